"""Seekable sources: whoever goes on where another stood gets what that one would have got, to the bit and in its order."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import sources
from tidemill.batch import Batch
from tidemill.errors import InputError
from tidemill.letters import DeadLetter
from tidemill.sources import DeadLetters, Frame, Lines, Records, Replay, Source, SourceContext
from tidemill.sources.edged import pieces
from tidemill.sources.made import MadeSource

# -- recordings ------------------------------------------------------------------------------------------------

LIMIT = 120
"""Bytes of a line."""
BAD_LINES = [
    b"nonsense",
    b"[1]",
    b"",
    b"  ",
    b'{"sensor": "S", "time": "soon"}',
    b"\xff",
    b"x" * 400,
    b'{"value": NaN}',
]
BAD_CSV = [b"a,b", b"", b"\xff,1,1,1", b"x" * 400, b'S1,1,"open,1', b'"two\nlines",1,2,3', b'S2,2,"a\nb",4', b",1,1,1"]


def times() -> st.SearchStrategy[Any]:
    """Clocks that step back, and what is no time."""
    return st.one_of(st.integers(0, 40), st.integers(0, 40), st.none(), st.just("never"))


@st.composite
def rows(draw: Any, records: Any, max_size: int = 12) -> list[dict[str, Any]]:
    """Records, some of which lack a role or hold what does not fit the others."""
    made = draw(records(max_size=max_size))
    for row in made:
        for name, values in (
            ("sensor", st.sampled_from(["S1", "S2", "S3", "", None])),
            ("time", times()),
            ("value", st.floats() | st.integers() | st.sampled_from(["odd", True, None])),
            (draw(st.sampled_from(["late", "later"])), st.integers() | st.text(max_size=3)),
        ):
            if draw(st.integers(0, 9)):
                row[name] = draw(values)
    return made


@st.composite
def json_file(draw: Any, records: Any) -> bytes:
    good = [json.dumps(row).encode() for row in draw(rows(records))]
    short = st.builds(
        lambda sensor, time, value: json.dumps({"sensor": sensor, "time": time, "value": value}).encode(),
        st.sampled_from(["S1", "S2"]),
        times(),
        st.integers(0, 9) | st.sampled_from(["odd", None, True]),
    )
    lines = draw(st.lists(st.one_of(st.sampled_from(good or [b""]), st.sampled_from(BAD_LINES), short), max_size=30))
    return framed(draw, lines)


@st.composite
def csv_file(draw: Any) -> bytes:
    cells = st.builds(
        lambda *parts: ",".join(map(str, parts)).encode(),
        st.sampled_from(["S1", "S2"]),
        st.integers(0, 40) | st.just("soon"),
        st.sampled_from(["1", "2.5", "", "odd", '"3"']),
        st.sampled_from(["", "7", "x"]),
    )
    lines = draw(st.lists(cells | cells | st.sampled_from(BAD_CSV), max_size=40))
    return framed(draw, [*draw(st.lists(st.just(b""), max_size=2)), b"sensor,time,value,other", *lines])


def framed(draw: Any, lines: list[bytes]) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    data = end.join(lines) + draw(st.sampled_from([b"", end]))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + data


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# -- one strategy for each seekable source: how to make it, anew each time --------------------------------------

Make = Callable[[], Source]


@st.composite
def replay(draw: Any, records: Any, folder: Path) -> Make:
    packed = draw(st.sampled_from(["", "", ".gz"]))
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["csv", "ndjson", "parquet"]))
        if kind == "parquet":
            table = pa.table(
                {
                    "sensor": draw(st.lists(st.sampled_from(["S1", "S2", "", None]), min_size=1, max_size=30)),
                }
            )
            count = table.num_rows
            table = table.append_column(
                "time", pa.array(draw(st.lists(st.integers(0, 40), min_size=count, max_size=count)))
            )
            table = table.append_column("value", pa.array([float(n) for n in range(count)]))
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=draw(st.integers(1, 9)))
        else:
            data = draw(csv_file() if kind == "csv" else json_file(records))
            written(folder, f"{number}.{kind}{packed}", data)
    order = draw(st.sampled_from(["merge", "sequence"]))
    paces = draw(st.lists(st.sampled_from(["max", 1.0, 50.0]), min_size=1, max_size=4))
    turn = itertools.cycle(paces)
    return lambda: Replay(folder, order=order, pace=next(turn), limit=LIMIT)


@st.composite
def lines(draw: Any, records: Any, folder: Path) -> Make:
    kind = draw(st.sampled_from(["csv", "ndjson"]))
    data = draw(csv_file() if kind == "csv" else json_file(records))
    path = written(folder, f"a.{kind}{draw(st.sampled_from(['', '.gz']))}", data)
    return lambda: Lines(path, limit=LIMIT)


@st.composite
def dead_letters(draw: Any, records: Any, folder: Path) -> Make:
    made = []
    for row in draw(rows(records)):
        letter = {"raw": draw(st.sampled_from([row, json.dumps(row), "nonsense"]))}
        if draw(st.booleans()):
            letter["key"] = "K"
        if draw(st.booleans()):
            letter["time"] = draw(st.sampled_from([None, "2026-01-01T00:00:00Z"]))
        if draw(st.integers(0, 4)) == 0:
            letter |= {"raw": draw(st.sampled_from(["S1,1", "S1,1,2", '"S1'])), "header": ["sensor", "time", "value"]}
        made.append(json.dumps(letter).encode())
    bad = draw(st.lists(st.sampled_from([*BAD_LINES, b"x" * 4_000]), max_size=4))
    path = written(folder, "letters.ndjson", framed(draw, draw(st.permutations(made + bad))))
    return lambda: DeadLetters(path, limit=2_000)


@st.composite
def frame(draw: Any, records: Any, folder: Path) -> Make:
    count = draw(st.integers(0, 30))
    of = lambda values: draw(st.lists(values, min_size=count, max_size=count))  # noqa: E731
    table = pd.DataFrame(
        {
            "sensor": pd.Series(of(st.sampled_from(["S1", "S2", None])), dtype=object),
            "time": of(st.integers(0, 40)),
            "value": of(st.floats()),
        }
    )
    if draw(st.booleans()):
        return lambda: Frame(pa.Table.from_pandas(table))
    return lambda: Frame(table)


@st.composite
def of_a_list(draw: Any, records: Any, folder: Path) -> Make:
    items: list[Any] = draw(rows(records, max_size=25))
    for place in sorted(draw(st.lists(st.integers(0, len(items)), max_size=3)), reverse=True):
        batch = Batch.from_rows([{"sensor": "B", "time": n, "value": n} for n in range(draw(st.integers(0, 5)))])
        items.insert(place, draw(st.sampled_from([batch, 7, {1: 2, "late": 1}, {"\ud800": 1, "late": "x"}])))
    return lambda: Records(items if len(items) % 2 else tuple(items))


STRATEGIES: dict[type[Source], Any] = {
    DeadLetters: dead_letters,
    Frame: frame,
    Lines: lines,
    Records: of_a_list,
    Replay: replay,
}


def test_every_source_that_can_seek_is_tried_here() -> None:
    """A source that says something of its own about seeking has a strategy, and those that do not cannot seek."""
    found = [getattr(sources, name) for name in sources.__all__]
    able = {
        each
        for each in found
        if inspect.isclass(each) and issubclass(each, Source) and each.seekable is not Source.seekable
    }
    assert able == set(STRATEGIES)
    assert not sources.TCP().seekable
    assert not sources.Synthetic(count=1).seekable
    assert not Records(iter([])).seekable
    assert not Lines("-").seekable
    assert issubclass(sources.Synthetic, MadeSource)


# -- the law ---------------------------------------------------------------------------------------------------


@dataclass
class LegClock:
    """A clock that moves when somebody sleeps, and whose wall is not that of the run before."""

    wall: int
    now: int = 10**9
    step: int = 1

    def monotonic_ns(self) -> int:
        self.now += self.step
        return self.now

    def wall_ns(self) -> int:
        return self.wall + self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(1, round(seconds * 1e9))
        await asyncio.sleep(0)


@dataclass
class Leg:
    """A stream from an offset to where it was stopped: what it gave, and where it stood then."""

    events: list[Any] = field(default_factory=list)
    offset: Any = None
    ended: bool = False


def told_of(batch: Batch) -> Iterator[Any]:
    """Each record: its fields with their types, its key and time, and the kinds of its columns."""
    kinds = sorted((name, column.kind.value) for name, column in batch.columns.items())
    keys = [] if batch.key_column is None else batch.key_column.to_list()
    for row, key, time in zip(batch.to_rows(), keys, batch.time.tolist(), strict=True):
        present = [kind for kind in kinds if kind[0] in row]
        yield "record", [(n, type(item).__name__, repr(item)) for n, item in row.items()], key, time, present


def told_of_letter(letter: DeadLetter) -> Any:
    return "letter", letter.reason_code, letter.reason, repr(letter.raw), letter.key, letter.time_ns, letter.header


async def leg(source: Source, clock: LegClock, stop: int | None) -> Leg:
    """Run ``source`` until ``stop`` steps (batches and rejects) have been made, or to its end."""
    made = Leg()
    steps = itertools.count(1)

    def stepped() -> None:
        if made.offset is None and next(steps) == stop:
            made.offset = json.dumps(source.offset())

    def reject(letter: DeadLetter) -> None:
        if made.offset is None:
            made.events.append(told_of_letter(letter))
            stepped()

    context = SourceContext(clock, reject)
    stream = source.stream(context)
    async for batch in stream:
        assert batch.arrived_ns
        if made.offset is None:
            made.events += told_of(batch)
            stepped()
        if made.offset is not None:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    made.ended = made.offset is None
    if made.ended:
        made.offset = json.dumps(source.offset())
    return made


async def whole_and_in_legs(make: Make, stops: list[int], looks: list[bool]) -> None:
    first_wall = 1_700_000_000 * 10**9
    looking = iter(itertools.cycle(looks))
    source = make()
    source.check()
    whole = await leg(source, LegClock(first_wall, step=0), None)
    accepted = source.accepted
    events: list[Any] = []
    offset = None
    for number in itertools.count():
        source = make()
        if offset is None or next(looking):
            source.check()
        if offset is not None:
            source.seek(json.loads(offset))
            assert json.loads(json.dumps(source.offset())) == json.loads(offset)
        wall = first_wall + number * 10**15
        stop = stops[number] if number < len(stops) else None
        made = await leg(source, LegClock(wall, step=0), stop)
        events += made.events
        offset = made.offset
        assert events == whole.events[: len(events)]
        if made.ended:
            break
    assert events == whole.events
    assert source.accepted == accepted
    again = make()
    again.seek(json.loads(offset))
    assert (await leg(again, LegClock(0), None)).events == []


SMALL = {
    "readers.BLOCK": st.integers(20, 300),
    "recorded.BLOCK": st.just(100),
    "readers._ROWS": st.integers(1, 9),
    "readers._COUNTED_ANEW": st.integers(1, 20),
    "records._BLOCK": st.integers(1, 9),
}
"""Bounds that are large in a run: here a few records go beyond them."""


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_a_stream_in_legs_is_the_stream(kind: type[Source], records: Any) -> None:
    """Stopped anywhere, again and again, and gone on with by a new source each time: the same records and letters."""

    @settings(deadline=None)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
            for bound, values in SMALL.items():
                patch.setattr(f"tidemill.sources.{bound}", data.draw(values))
            most = data.draw(st.integers(1, 9))
            for module in ("dead_letters", "frame", "lines", "records", "replay"):
                patch.setattr(f"tidemill.sources.{module}.pieces", lambda batch, _=0: pieces(batch, most))
            try:
                make = data.draw(STRATEGIES[kind](records, Path(name)))
                make().check()
            except InputError:
                return  # no header, or none of the roles in the first records: refused before it begins
            stops = data.draw(st.lists(st.integers(1, 12), max_size=6))
            looks = data.draw(st.lists(st.booleans(), min_size=1, max_size=3))
            asyncio.run(whole_and_in_legs(make, stops, looks))

    law()
