"""The three files, as texts: the plan, the calibration, and the test against pandas. No I/O.

Names of fields, sensors and files come from outside: they stand in the texts as Python literals, never bare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any, Final

from tidemill.app.new.fields_seen import Place, shown_place
from tidemill.app.new.key_role import STEM
from tidemill.app.new.roles import Roles
from tidemill.app.new.sniffing import BLANKS, Layout
from tidemill.app.new.time_role import ARRIVAL
from tidemill.formats.key_template import KeyTemplate
from tidemill.formats.payloads import path_of

__all__ = ["MOST_SENSORS", "Calibrated", "Draft", "Live", "calibration_text"]

MOST_SENSORS: Final = 1_000
"""Lines of the calibration."""
_OTHERS_SHOWN: Final = 6
BLANK: Final = ("", "NA", "N/A", "NaN", "nan", "null")
"""What stands in a cell without a value, for pandas."""
_FINEST: Final = 13
"""Digits of a mean; what is behind them is how it was summed."""

_PLAN: Final = Template('''\
"""Rolling statistics of each sensor in a recording. A first draft by ``tidemill new``; it is yours from here on."""

${imports}
HERE = Path(__file__).parent

${functions}source = ${source}
plan = tm.Plan(
${stages}    tm.Calibrate(HERE / "calibration.csv", ${column}),  # (reading - baseline) / scale, of its own sensor
    tm.Rolling("normalized", window=50, stats=["mean", "std", "min", "max"]),  # of each sensor's last 50 records
)
${end}
''')

_LIVE_END: Final = Template("""\
sink = tm.sinks.SQLite(
    HERE / ${database},
    # keep="7d",  # the file grows for as long as messages come; this deletes rows a week older than the newest
)
pipeline = tm.Pipeline(source, plan, sink)""")
_END: Final = Template("pipeline = tm.Pipeline(source, plan, tm.sinks.SQLite(HERE / ${database}))")

_OPENED: Final = Template('''\

def opened(rows: list[dict]) -> list[dict]:
    """Each record, and the number inside of it as a field of its own."""
    for row in rows:
        item = row
        for name in ${value}:
            item = item.get(name) if isinstance(item, dict) else None
        row[${column}] = item
    return rows


''')

_TEST: Final = Template('''\
"""The plan and pandas make the same numbers of the first records."""

${imports}
HERE = Path(__file__).parent
MOST = 5_000  # records
WINDOW, STATS = 50, ["mean", "std", "min", "max"]  # as in the plan


def test_the_plan_makes_what_pandas_makes():
    file = runpy.run_path(str(HERE / ${plan}))
    plan, source = file["plan"], file["source"]
${head}
    table = pd.read_csv(HERE / "calibration.csv", dtype={"sensor": str}, keep_default_na=False).set_index("sensor")
    sensor = frame.astype(str).apply(key.format_map, axis=1) if "{" in key else frame[key].astype(str)
    normalized = (frame[${value}].astype(float) - sensor.map(table["baseline"])) / sensor.map(table["scale"])
    windows = normalized.groupby(sensor).rolling(WINDOW, min_periods=1)
    for name in STATS:
        expected = getattr(windows, name)().droplevel(0).sort_index()
        column = f"normalized_{name}_{WINDOW}"
        assert column in made, f"the plan makes no {column}; once its window or stats are others, say so at WINDOW and STATS"
        got = made[column].astype(float)
        # pandas keeps running sums, whose error shows where a window hardly varies
        pd.testing.assert_series_equal(got, expected, check_names=False, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":  # it needs no pytest, which finds it too
    test_the_plan_makes_what_pandas_makes()
    print("The plan and pandas make the same.")
''')


@dataclass(frozen=True)
class Calibrated:
    """A sensor, and the numbers seen of it."""

    sensor: str
    mean: float
    spread: float

    @property
    def cells(self) -> tuple[str, str, str]:
        """A line of the calibration; a sensor without numbers, or whose number never changes, gets the scale 1."""
        mean = self.mean if math.isfinite(self.mean) else 0.0
        varies = math.isfinite(self.spread) and self.spread > max(1e-9 * abs(mean), 1e-300)
        times = abs(mean / self.spread) if varies else math.inf
        finest = 4 + math.ceil(math.log10(times)) if 1 < times < math.inf else 6  # tells a thousandth of the spread
        digits = max(6, min(finest, _FINEST)) if varies else _FINEST
        return self.sensor, f"{mean:.{digits}g}", f"{self.spread:.6g}" if varies else "1"


def calibration_text(sensors: Sequence[Calibrated]) -> str:
    """A line for each of these sensors; one for those whose names differ by blanks around them, which tables do not tell apart.

    >>> print(calibration_text([Calibrated("S1", 20.5, 1.25), Calibrated("still, or stuck", 3.0, 0.0)]), end="")
    sensor,baseline,scale
    S1,20.5,1.25
    "still, or stuck",3,1
    """
    named: dict[str, Sequence[str]] = {}
    for one in sensors:
        named.setdefault(one.sensor.strip(), one.cells)
    rows = [("sensor", "baseline", "scale"), *named.values()]
    return "".join(",".join(map(_cell, row)) + "\n" for row in rows)


def _cell(text: str) -> str:
    """As CSV has it; `csv.writer` leaves a lone carriage return bare, and blanks that belong to the text."""
    return '"' + text.replace('"', '""') + '"' if set(',"\r\n') & set(text) or text != text.strip() else text


@dataclass(frozen=True)
class Live:
    """The source of messages."""

    url: str
    """Without anything secret in it."""
    pattern: str
    seen: str
    """A few words on the pattern, for a comment."""
    username: str | None
    password: bool
    """Whether one was given; the plan reads it from the environment."""
    client_id: str
    paths: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """Where in the messages each column is, when the reading is inside of other fields."""

    def options(self) -> list[str]:
        """The first options of `sources.MQTT`, a line each."""
        lines = [f"{literal(self.url)},", f"# {self.seen}; name the levels as you like", f"{literal(self.pattern)},"]
        if self.username is not None:
            lines.append(f"username={literal(self.username)},")
        if self.password:
            lines.append('password="${env:MQTT_PASSWORD}",')
        if self.paths:
            told = ", ".join(f"{literal(name)}: {literal(path_of(place))}" for name, place in self.paths.items())
            lines.append(f"value={{{told}}},")
        return [*lines, f"client_id={literal(self.client_id)},  # the broker keeps what comes while no run is there"]


@dataclass(frozen=True)
class Draft:
    """What the texts are made of."""

    plan: str
    """The plan's file name."""
    recording: str
    """The recording's path: from the plan's folder when it lies ``inside``, else from the root."""
    inside: bool
    stem: str
    """The recording's name without its suffixes."""
    layout: Layout
    roles: Roles
    fields: tuple[str, ...] = ()
    """Those of the recording."""
    coerced: bool = False
    """Whether cells of the reading are no numbers for pandas, and become NaN."""
    rejected: bool = False
    """Whether some of its records are dead letters."""
    live: Live | None = None
    """The plan's own source, when the recording is only what was heard of it."""

    # -- the plan --------------------------------------------------------------------------------------------

    def plan_text(self) -> str:
        """The plan as a person would write it, with a comment at each guess."""
        nested = len(self.roles.value) > 1
        column = literal(self.roles.value[-1])
        opened = _OPENED.substitute(value=literal(self.roles.value), column=column)
        pandas = () if self.layout.plain else ("import pandas as pd",)
        others = self.roles.others
        stages = self._comment("value", f"others are {_listed(others)}" if others else "give another with --value")
        if nested:
            stages.append(f"tm.MapRows(opened, adds={{{column}: float}}),")
        if self.roles.seen is ARRIVAL:
            stages.append(f"tm.EventTime({literal(self.roles.time)}),  # a column of the rows: when the message came")
        return _PLAN.substitute(
            imports=_lines(
                [
                    "from pathlib import Path",
                    "",
                    *pandas,
                    "import tidemill as tm",
                ]
            ),
            functions=opened if nested else "",
            source=self._source(),
            stages=_lines(stages, "    "),
            column=column,
            end=(_END if self.live is None else _LIVE_END).substitute(
                database=literal(f"{self.plan.removesuffix('.py')}.db")
            ),
        )

    def _source(self) -> str:
        """The source with all its options, a line each."""
        roles = self.roles
        options = [f"{self._place},"]
        if self.live is not None:
            options = self.live.options()
        elif not self.layout.plain:
            options = [
                f"# {self.layout}: pandas reads it, into memory",
                f"{self._read_csv(self.fields)}{self._named()}",
            ]
            if self.coerced:
                options += [f"# what is no number in {literal(self.roles.value[0])} is NaN", self._as_numbers()]
            options[-1] += ","
        elif not self.layout.named:
            options.append(f"format={literal(self.layout.kind)},")
        options += self._comment("key", 'or a field; or several: "{line}/{machine}"')
        options.append(f"key={literal(self.key)},")
        options += self._comment("time", "say which field holds the time")
        options.append(
            f"# time= is {roles.seen.words}"
            if roles.seen is ARRIVAL
            else f"time={literal(roles.time)},  # {roles.seen.words}"
        )
        if roles.seen.format is not None:
            options += self._comment("format", "say which comes first, the day or the month")
            options.append(f"time_format={literal(roles.seen.format)},")
        if not roles.seen.zoned:
            options += self._comment("tz", 'say where the clock was, such as "Europe/Berlin"')
            options.append(f"tz={literal(roles.tz)},")
        return f"tm.sources.{self._of}(\n{_lines(options, '    ')})"

    @property
    def _of(self) -> str:
        """The source's name."""
        return "MQTT" if self.live is not None else "Replay" if self.layout.plain else "Frame"

    @property
    def key(self) -> str:
        """The key as the plan's source takes it: a table knows nothing of its file, and gets a column with its name."""
        return self.roles.key if self.layout.plain or self.roles.key != f"{{{STEM}}}" else STEM

    @property
    def by_stem(self) -> bool:
        """Whether the file's own name is in the key."""
        return STEM in KeyTemplate(self.roles.key).names and "{" in self.roles.key

    def _comment(self, role: str, change: str) -> list[str]:
        doubt = self.roles.doubt(role)
        return [f"# {doubt}; {change}"] if doubt else []

    @property
    def _place(self) -> str:
        return f"HERE / {literal(self.recording)}" if self.inside else literal(self.recording)

    def _named(self) -> str:
        return f".assign(stem={literal(self.stem)})" if self.by_stem else ""

    def _as_numbers(self) -> str:
        """pandas' words for readings that it was told to leave as texts."""
        value = literal(self.roles.value[0])
        points = "" if self.layout.decimal == "." else f'.str.replace({literal(self.layout.decimal)}, ".")'
        return f'.assign(**{{{value}: lambda frame: pd.to_numeric(frame[{value}]{points}, errors="coerce")}})'

    def _read_csv(self, fields: Sequence[str], *more: str) -> str:
        """pandas' words for the recording, of whose fields these are used."""
        layout = self.layout
        texts = ", ".join(f"{literal(name)}: str" for name in self.as_text)
        stripped = ", ".join(f"{literal(name)}: str.strip" for name in self.stripped)
        options = [
            *(
                []
                if layout.separator == ","
                else [f"sep={literal(layout.separator)}" if layout.separator != BLANKS else 'sep=r"\\s+"']
            ),
            *([] if layout.quote == '"' else [f"quotechar={literal(layout.quote)}"]),
            *([f"skiprows={layout.skipped}"] if layout.skipped else []),
            *([] if layout.decimal == "." else [f"decimal={literal(layout.decimal)}"]),
            *([] if layout.encoding == "utf-8" else [f"encoding={literal(layout.encoding)}"]),
            *([] if layout.separator == BLANKS else ["skipinitialspace=True"]),
            *([f"header=0, names={literal(self.fields)}"] if layout.padded else []),
            *([f"converters={{{stripped}}}"] if stripped else []),
            *([f"dtype={{{texts}}}"] if texts else []),
            *(
                [f"keep_default_na=False, na_values=dict.fromkeys({literal(self.blankable(fields))}, {literal(BLANK)})"]
                if self.key_fields
                else []
            ),
            *more,
        ]
        return f"pd.read_csv({', '.join([self._place, *options])})"

    @property
    def as_text(self) -> tuple[str, ...]:
        """The fields that pandas is to leave as texts: what names a sensor, times that are digits, and readings that are no
        numbers everywhere."""
        roles = self.roles
        times = [roles.time] if roles.seen.is_number and roles.seen.format else []
        texts = [*self.key_fields, *times, *([roles.value[0]] if self.coerced else [])]
        return tuple(name for name in texts if name not in self.stripped)

    @property
    def stripped(self) -> tuple[str, ...]:
        """The texts of which pandas is to take away the blanks around them, as `sources.Replay` does."""
        if not self.layout.padded:
            return ()
        is_epoch = self.roles.seen.is_number and self.roles.seen.format is None
        return self.key_fields if is_epoch else (*self.key_fields, self.roles.time)

    def blankable(self, fields: Sequence[str]) -> list[str]:
        """Those of the fields in which pandas may take a word for a blank: a sensor may be called ``NA``."""
        return [name for name in fields if name not in self.key_fields]

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The fields of the recording that make the key; the file's own name is none."""
        return tuple(name for name in KeyTemplate(self.roles.key).names if not (self.by_stem and name == STEM))

    # -- the test --------------------------------------------------------------------------------------------

    def test_text(self) -> str:
        """The plan against pandas, on the head of the recording."""
        json = self.layout.kind == "ndjson"
        modules = [
            *(["import gzip"] if self._packed and json else []),
            *(["import json"] if json else []),
            "import runpy",
        ]
        names = [*(["from itertools import islice"] if json else []), "from pathlib import Path"]
        return _TEST.substitute(
            imports=_lines(
                [*modules, *names, "", "import pandas as pd", *(["import tidemill as tm"] * (self.live is None))]
            ),
            plan=literal(self.plan),
            head=_lines([*self._roles(), *(self._json_head() if json else self._csv_head())], "    "),
            value=literal(".".join(self.roles.value)),
        )

    @property
    def _packed(self) -> bool:
        return self.recording.lower().endswith(".gz")

    @property
    def _coerced(self) -> str:
        """pandas' word for times that are none, where a run has rejected some."""
        return ', errors="coerce"' if self.rejected else ""

    def _csv_head(self) -> list[str]:
        roles, value = self.roles, literal(self.roles.value[0])
        wanted = list(dict.fromkeys([*self.key_fields, roles.time, roles.value[0]]))
        bad = ('on_bad_lines="skip"',) if self.rejected else ()
        numbers = self._as_numbers() if self.coerced else ""
        lines = [f"frame = {self._read_csv(wanted, 'nrows=MOST', *bad)}{self._named()}{numbers}"]
        if roles.seen.format is not None:
            time, form = literal(roles.time), literal(roles.seen.format)
            lines.append(f"frame[{time}] = pd.to_datetime(frame[{time}], format={form}{self._coerced})")
        if self.rejected:
            lines += [
                "# what a run rejects never comes to the plan",
                f'frame[{value}] = pd.to_numeric(frame[{value}], errors="coerce")',
                f'frame = frame.replace("", None).dropna(subset={literal(wanted)}).reset_index(drop=True)',
            ]
        return [*lines, "made = plan.apply(frame, key=key, time=time, tz=tz)"]

    def _json_head(self) -> list[str]:
        roles = self.roles
        lines = [
            f'with {"gzip.open" if self._packed else "open"}({self._place}, "rt", encoding="utf-8") as lines:',
            "    records = [json.loads(line) for line in islice(lines, MOST) if line.strip()]",
        ]
        if self.rejected:
            needed = [*self.key_fields, roles.time]
            lines += [
                "# what a run rejects never comes to the plan",
                f"records = [one for one in records if all(one.get(name) is not None for name in {literal(needed)})]",
            ]
        if roles.seen.format is not None:
            time, form = literal(roles.time), literal(roles.seen.format)
            read = f"pd.to_datetime(one[{time}], format={form}{self._coerced})"
            lines.append(f"records = [{{**one, {time}: {read}}} for one in records]")
            if self.rejected:
                lines.append(f"records = [one for one in records if one[{time}] is not pd.NaT]")
        if self.by_stem:
            lines.append(f'records = [{{**one, "stem": {literal(self.stem)}}} for one in records]')
        return [
            *lines,
            "frame = pd.json_normalize(records)",
            "made = pd.DataFrame(plan.apply(records, key=key, time=time, tz=tz))",
        ]

    def _roles(self) -> list[str]:
        """As the plan's source has them, where it is one of the recording: one of messages may name them otherwise."""
        roles = self.roles
        told = ", ".join(map(literal, [roles.key, roles.time, roles.tz]))
        lines = [f"key, time, tz = {told}  # as the recording has them"]
        if self.live is None:
            lines += [
                f"if isinstance(source, tm.sources.{self._of}):",
                "    key, time, tz = source.key, source.time, source.tz",
            ]
        return lines


def literal(item: Any) -> str:
    """A value as Python writes it, texts in double quotes where that changes nothing else.

    >>> literal("sensor"), literal(["it's", "new\\nline"])
    ('"sensor"', '["it\\'s", "new\\\\nline"]')
    """
    if isinstance(item, str):
        told = repr(item)
        return told if set("'\"") & set(item) else f'"{told[1:-1]}"'
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(map(literal, item))}]"
    return repr(item)


def _lines(lines: Sequence[str], indent: str = "") -> str:
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)


def _listed(places: Sequence[Place]) -> str:
    told = ", ".join(map(shown_place, places[:_OTHERS_SHOWN]))
    return f"{told} and {len(places) - _OTHERS_SHOWN} more" if len(places) > _OTHERS_SHOWN else told
