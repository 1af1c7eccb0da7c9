"""``tidemill new``: three files, and each does what it is for."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import os
import re
import runpy
import shlex
import sqlite3
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.app.cli import answer
from tidemill.app.load import load
from tidemill.app.new.command import new
from tidemill.app.new.roles import Given, Roles
from tidemill.app.new.sniffing import Layout
from tidemill.app.new.templates import Calibrated, Draft, calibration_text
from tidemill.app.new.times_seen import TimeSeen
from tidemill.errors import InputError, OutputExists
from tidemill.schema import Field, Kind, Schema

LINES = int(os.environ.get("TIDEMILL_RECORDED_LINES", "401"))
"""That are taken of each recording."""


def cut(recording: Path, folder: Path) -> tuple[Path, int]:
    """The first lines of a recording, and how many there are."""
    place = folder / recording.name
    opened = gzip.open if recording.suffix == ".gz" else open
    with opened(recording, "rb") as whole, opened(place, "wb") as part:
        lines = list(islice(whole, LINES))
        part.writelines(lines)
    return place, len(lines)


def tried(recording: Path, folder: Path, **given: str) -> tuple[tm.Report, Any]:
    """What becomes of the plan that ``new`` makes: it is run, and its test is run."""
    plan = folder / "plant.py"
    assert new(str(plan), str(recording), Given(**given), force=False) == 0
    report = tm.run(load(str(plan)).pipeline, lanes=0, dead_letters=folder / "dead.ndjson")
    runpy.run_path(str(folder / "test_plant.py"))["test_the_plan_makes_what_pandas_makes"]()
    return report, plan.read_text()


RECORDINGS: list[tuple[str, int, dict[str, str], int, list[str]]] = [
    ("nab/data/realKnownCause/*.csv", 7, {}, 1, ['key="{stem}"', 'tz="UTC"']),
    ("nab/data/realAWSCloudwatch/*.csv", 17, {}, 1, ['"timestamp"']),
    ("nab/data/realTraffic/*.csv", 7, {}, 1, ['key="{stem}"', 'tz="UTC"']),
    ("nab/results/windowedGaussian/realKnownCause/*.csv", 4, {}, 1, ['"timestamp"']),
    ("ioos_qartod/20363_1000427.csv.gz", 1, {}, 1, ['time="time",  # ISO 8601']),
    ("ioos_qartod/*water_level*", 2, {}, 1, ['"sea_surface_height_above_sea_level"']),
    ("ioos_qartod/attenuated_*.csv", 1, {}, 2, ['quotechar="\'"', "skiprows=1", "sources.Frame"]),
    ("mitbih_ecg/100_adc.csv.gz", 1, {"time": "sample"}, 1, ['"MLII"', "seconds since 1970"]),
    ("uncg_wsn/singlehop/data.csv", 1, {"time": "reading"}, 1, ['key="mote_id"', '"humidity"', "others are 'temperature'"]),
    ("uncg_wsn/multihop/data.csv", 1, {"time": "reading"}, 1, ['key="mote_id"', '"humidity"']),
    ("uncg_wsn/*/*_data.txt", 8, {"time": "Reading#"}, 1, ['sep=r"\\s+"']),
    ("campusiot_lorawan/d1d1*.ndjson.gz", 3, {}, 0, ["def opened", '"object", "temperature"']),
    ("campusiot_lorawan/ems*.ndjson.gz", 1, {}, 0, ['["decoded", "payload", "temperature"]']),
]  # fmt: skip
"""Where they are, how many, what must be said, how many lines are a head, and words of the plan."""


@pytest.mark.parametrize(
    ("where", "count", "given", "heads", "words"), RECORDINGS, ids=lambda item: item if isinstance(item, str) else ""
)
def test_every_recording_gives_a_plan_that_runs_and_agrees_with_pandas(
    recordings: Path, tmp_path: Path, where: str, count: int, given: dict[str, str], heads: int, words: list[str]
) -> None:
    """Its first lines, or with ``TIDEMILL_RECORDED_LINES=10000000`` all of it."""
    paths = sorted(recordings.glob(where))
    assert len(paths) == count
    for path in paths:
        folder = tmp_path / path.parent.name / path.name.partition(".")[0]
        folder.mkdir(parents=True)
        part, lines = cut(path, folder)
        report, plan = tried(part, folder, **given)
        assert (path.name, report.records_in, report.rows_out, report.dead_letters) == (
            path.name,
            *[lines - heads] * 2,
            0,
        )
        assert [each for each in words if each not in plan] == []


def test_every_recording_but_one_is_among_them(recordings: Path, tmp_path: Path) -> None:
    """That one has NUL in its texts, and is refused."""
    readable = re.compile(r".*(\.csv|\.csv\.gz|\.ndjson\.gz|_data\.txt)")
    every = {path for path in recordings.rglob("*") if readable.fullmatch(path.name)}
    (left,) = every - {path for where, *_ in RECORDINGS for path in recordings.glob(where)}
    assert left.name == "100_atr.csv"
    with pytest.raises(InputError, match=r"100_atr\.csv is not text"):
        new(str(tmp_path / "plant.py"), str(left), Given(), force=False)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_recording_with_bad_records_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are told, and the test passes over them as the run does."""
    lines = [f"S{n % 3},{1_700_000_000 + n},{n * 7 % 11}.5\n" for n in range(300)]
    lines[5:5] = ["S1,1700000005,n/a broken\n", "S1,1,2,3\n", ",1700000005,3\n"]
    report, _ = tried(written(tmp_path, "march.csv", "sensor,time,value\n" + "".join(lines)), tmp_path)
    assert (report.rows_out, report.dead_letters) == (300, 3)
    told = capsys.readouterr().out
    assert "1 rejected as wrong_type: field 'value' is float" in told
    assert "1 rejected as no_key: " in told


def test_a_recording_of_a_spreadsheet(tmp_path: Path) -> None:
    """Semicolons, decimal commas, days first, blanks before texts: pandas reads it into a frame."""
    rows = [f"{n % 28 + 1:02}.03.2024 12:00; S{n % 2};{n},5\n" for n in range(100)]
    report, plan = tried(written(tmp_path, "m\u00e4rz.csv", "Zeit;Sensor;Wert\n" + "".join(rows)), tmp_path)
    assert report.rows_out == 100
    assert 'time_format="%d.%m.%Y %H:%M"' in plan
    assert (tmp_path / "calibration.csv").read_text().splitlines()[1].startswith("S0,49.5,")


@pytest.mark.parametrize(
    ("mark", "times"),
    [(" , ", "2024-03-01 12:{:02}:00"), (" ,", "17000000{:02}"), (" ,", "01.03.2024 12:{:02}"), (" ; ", "01.03.2024 12:{:02}")],
)  # fmt: skip
def test_blanks_around_names_and_cells_belong_to_neither(tmp_path: Path, mark: str, times: str) -> None:
    """Of the header, of the key, of times, of the reading; whoever reads the file."""
    rows = [["timestamp", "sensor", "value", "note"]]
    rows += [[times.format(n % 60), f"S{n % 3}", f"{n % 7}.5", "a b" if n % 5 else ""] for n in range(120)]
    report, plan = tried(written(tmp_path, "a.csv", "".join(mark.join(row) + "\n" for row in rows)), tmp_path)
    assert (report.rows_out, report.dead_letters) == (120, 0)
    assert 'key="sensor"' in plan
    with sqlite3.connect(tmp_path / "plant.db") as database:
        made = database.execute("SELECT sensor, count(normalized) FROM features GROUP BY 1").fetchall()
        assert made == [("S0", 40), ("S1", 40), ("S2", 40)]
    database.close()


@pytest.mark.parametrize("mark", [",", ";", " , "])
def test_times_of_fourteen_digits(tmp_path: Path, mark: str) -> None:
    """Are no epochs, for pandas neither, also where some are missing."""
    rows = [f"S{n % 2}{mark}{'' if n == 7 else f'202403011200{n:02}'}{mark}{n % 7}.5\n" for n in range(60)]
    report, plan = tried(written(tmp_path, "a.csv", mark.join(["sensor", "time", "value\n"]) + "".join(rows)), tmp_path)
    assert (report.rows_out, report.dead_letters) == (59, 1)
    assert 'time_format="%Y%m%d%H%M%S"' in plan


@pytest.mark.parametrize("mark", [",", ";"])
def test_sensors_may_be_called_what_pandas_takes_for_a_blank(tmp_path: Path, mark: str) -> None:
    """They are sensors, whoever reads the file."""
    rows = [mark.join([("NA", "null", "S1")[n % 3], str(1_700_000_000 + n), f"{n % 7}.5\n"]) for n in range(120)]
    report, _ = tried(written(tmp_path, "a.csv", mark.join(["sensor", "time", "value\n"]) + "".join(rows)), tmp_path)
    assert (report.rows_out, report.dead_letters) == (120, 0)
    assert [line.partition(",")[0] for line in (tmp_path / "calibration.csv").read_text().splitlines()[1:]] == [
        "NA",
        "null",
        "S1",
    ]


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        ("sensor;time;value\n" + "".join(f"S{n % 3};{1_700_000_000 + n};{'---' if n == 100 else f'{n % 7},5'}\n" for n in range(120)), 0),
        ("# by x\nsensor,time,value\n,s,degC\n" + "".join(f"S{n % 3},{1_700_000_000 + n},{n % 7}.5\n" for n in range(120)), 1),
    ],
    ids=["a cell of dashes", "a row of units"],
)  # fmt: skip
def test_cells_that_are_no_numbers_are_nan(tmp_path: Path, text: str, rejected: int) -> None:
    """One of them makes no text of the readings of all others."""
    report, _ = tried(written(tmp_path, "a.csv", text), tmp_path)
    assert (report.rows_out, report.dead_letters) == (120, rejected)
    with contextlib.closing(sqlite3.connect(tmp_path / "plant.db")) as database:
        assert database.execute("SELECT count(normalized) FROM features").fetchone()[0] == 119 + rejected
    database.close()


def test_of_days_and_months_that_may_be_each_other_that_is_said(tmp_path: Path) -> None:
    """At the format, not at the field."""
    rows = [f"03/04/2024 1:{n:02} PM,S1,{n}\n" for n in range(10, 20)]
    _, plan = tried(written(tmp_path, "a.csv", "time,sensor,value\n" + "".join(rows)), tmp_path)
    assert (
        "    time=\"time\",  # as '%m/%d/%Y %I:%M %p'\n"
        "    # a guess: '%d/%m/%Y %I:%M %p' reads these times too; say which comes first, the day or the month\n"
        '    time_format="%m/%d/%Y %I:%M %p",\n'
    ) in plan


def test_what_the_plan_would_not_run_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a file is written."""
    monkeypatch.setattr("tidemill.sources.Replay.peek", lambda self: Schema([Field("value", Kind.TEXT)]))
    place = written(tmp_path, "a.csv", "sensor,time,value\nS1,1700000000,1.5\nS1,1700000001,2.5\n")
    with pytest.raises(InputError, match=r"the plan would not run on what was read: .*'value' to be float"):
        new(str(tmp_path / "plant.py"), str(place), Given(), force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('key="sensor"', 'key="Sensor"', "'Sensor'.*'sensor'"),
        ('time="time"', 'time="ts"', "'ts'.*time"),
        ('tz="UTC"', 'tz="Europe/Berln"', "'Europe/Berln' is not a time zone"),
        ("window=50", "window=20", "makes no normalized_mean_50; once its window or stats are others, say so at WINDOW and STATS"),
        ('"std", ', "", "makes no normalized_std_50; "),
        ('key="sensor"', 'key="{line}-{sensor}"', ""),
        ("source = tm.sources.Replay(", "source = tm.sources.TCP(port=0)\nrecorded = tm.sources.Replay(", ""),
    ],
)  # fmt: skip
def test_the_test_goes_by_what_the_plan_says(tmp_path: Path, before: str, after: str, said: str) -> None:
    """Its key, time and zone, while it reads the recording; after another change it says what to change in the test."""
    rows = [f"L{n % 2},S{n % 3},2024-03-01 12:00:{n:02},{n % 7}\n" for n in range(60)]
    _, plan = tried(written(tmp_path, "a.csv", "line,sensor,time,value\n" + "".join(rows)), tmp_path)
    sensors = [f"{line}S{n}" for line in ("", "L0-", "L1-") for n in range(3)]
    names = "sensor,baseline,scale\n" + "".join(f"{name},1,{2 + n}\n" for n, name in enumerate(sensors))
    (tmp_path / "calibration.csv").write_text(names)
    (tmp_path / "plant.py").write_text(plan.replace(before, after))
    test = runpy.run_path(str(tmp_path / "test_plant.py"))["test_the_plan_makes_what_pandas_makes"]
    if said:
        with pytest.raises((InputError, AssertionError), match=said):
            test()
    else:
        test()


def test_several_quantities_of_each_device(tmp_path: Path) -> None:
    """Long records: the device and the quantity together are the sensor."""
    rows = [f"pump-{n % 2},{'flow' if n % 4 < 2 else 'power'},{1_700_000_000 + n},{n * 13 % 17}\n" for n in range(200)]
    report, plan = tried(written(tmp_path, "a.csv", "device,metric,time,value\n" + "".join(rows)), tmp_path)
    assert report.rows_out == 200
    assert 'key="{device}/{metric}"' in plan
    assert len((tmp_path / "calibration.csv").read_text().splitlines()) == 5


def test_records_of_one_sensor_a_file_in_json_without_a_suffix_that_says_so(tmp_path: Path) -> None:
    """The format is given, and the file's name is the sensor."""
    rows = [json.dumps({"ts": 1_700_000_000_000 + n, "x": n % 7}) + "\n" for n in range(100)]
    report, plan = tried(written(tmp_path, "pump.log", "".join(rows)), tmp_path)
    assert report.rows_out == 100
    assert 'format="ndjson"' in plan
    with contextlib.closing(sqlite3.connect(tmp_path / "plant.db")) as database:
        assert database.execute("SELECT avg(normalized) FROM features").fetchone()[0] == pytest.approx(0, abs=1e-5)
    database.close()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """One of the three is enough; --force replaces them; a recording that cannot be told leaves nothing behind."""
    march = written(tmp_path, "march.csv", "sensor,time,value\nS1,1700000000,20\nS1,1700000001,21\n")
    written(tmp_path, "calibration.csv", "mine")
    with pytest.raises(OutputExists, match=r"calibration.csv is there already"):
        new(str(tmp_path / "plant.py"), str(march), Given(), force=False)
    bad = written(tmp_path, "bad.csv", "sensor,value\nS1,20\n")
    with pytest.raises(InputError, match="--time"):
        new(str(tmp_path / "plant.py"), str(bad), Given(), force=True)
    assert (tmp_path / "calibration.csv").read_text() == "mine"
    assert not (tmp_path / "plant.py").exists()
    assert new(str(tmp_path / "plant.py"), str(march), Given(), force=True) == 0
    assert (tmp_path / "calibration.csv").read_text() == "sensor,baseline,scale\nS1,20.5,0.5\n"


def test_a_second_plan_is_sent_to_a_folder_of_its_own(tmp_path: Path) -> None:
    """--force would take the first plan's calibration from it; it is proposed only for the plan's own files."""
    march = written(tmp_path, "march.csv", "sensor,time,value\nS1,1700000000,20\nS1,1700000001,21\n")
    assert new(str(tmp_path / "plant.py"), str(march), Given(), force=False) == 0
    with pytest.raises(
        OutputExists, match=r"calibration.csv is there already.* give other.py a folder of its own\."
    ) as other:
        new(str(tmp_path / "other.py"), str(march), Given(), force=False)
    assert "--force" not in str(other.value)
    with pytest.raises(OutputExists, match=r"plant.py and .* are there already.* add --force"):
        new(str(tmp_path / "plant.py"), str(march), Given(), force=False)


@pytest.mark.filterwarnings("ignore:unknown_key:RuntimeWarning")
def test_more_sensors_than_a_calibration_has_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How many more is said, and they are NaN in the plan as in pandas."""
    rows = [f"S{n % 1_200},{1_700_000_000 + n},{n % 7}\n" for n in range(2_400)]
    report, _ = tried(written(tmp_path, "a.csv", "sensor,time,value\n" + "".join(rows)), tmp_path)
    assert report.rows_out == 2_400
    assert len((tmp_path / "calibration.csv").read_text().splitlines()) == 1_001
    assert "the first 1,000 sensors; 200 more" in capsys.readouterr().out


def test_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written, what was seen, what is a guess, and what to type next."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "march.csv", "timestamp,value\n2024-03-01 12:00:00,20\n2024-03-01 12:00:01,21\n")
    new("plant.py", "march.csv", Given(), force=False)
    told = capsys.readouterr().out
    assert told.startswith(
        "wrote     plant.py, calibration.csv, test_plant.py\nread      march.csv: CSV with commas; 2 records of 1 sensor, "
    )
    assert "\nzone      tz='UTC' (a guess: the times name no zone)\n" in told
    assert told.endswith(
        "next      tidemill check plant.py --input march.csv\n          tidemill run plant.py\n          python test_plant.py\n"
    )


def test_what_the_test_needs_and_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tidemill does not bring pandas along."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tidemill.app.new.command.find_spec", lambda _: None)
    written(tmp_path, "march.csv", "timestamp,value\n2024-03-01 12:00:00,20\n2024-03-01 12:00:01,21\n")
    new("plant.py", "march.csv", Given(), force=False)
    assert capsys.readouterr().out.endswith("python test_plant.py  # needs pandas: pip install pandas\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("iso.csv", "sensor,time,value\nS1,2024-03-01 12:00:00,20\nS1,2024-03-01 12:00:01,21\n"),
        ("us.csv", "sensor,time,value\nS1,3/13/2024 1:00 PM,20\nS1,3/13/2024 1:01 PM,21\n"),
        ("no suffix", '{"sensor": "S1", "time": "31.03.2024", "value": 20}\n{"sensor": "S1", "time": "01.04.2024", "value": 21}\n'),
        ("sheet.csv", "sensor;time;value\nS1;31.03.2024;20,5\nS1;01.04.2024;21,5\n"),
    ],
)  # fmt: skip
def test_what_is_said_to_be_next_goes_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    """Each command, word for word."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, name, text)
    new("plant.py", name, Given(), force=False)
    _, _, after = capsys.readouterr().out.partition("next ")
    check, run, parity = (shlex.split(line) for line in after.splitlines())
    assert answer([*check[1:], "--lanes", "0"]) == 0
    assert answer([*run[1:], "--lanes", "0"]) == 0
    assert "dead letters" not in capsys.readouterr().err
    assert parity == ["python", "test_plant.py"]
    runpy.run_path("test_plant.py", run_name="__main__")
    assert capsys.readouterr().out.endswith("The plan and pandas make the same.\n")


@pytest.mark.parametrize(
    ("plan", "said"), [("plant", "does not end in .py"), ("no/such/plant.py", "there is no folder")]
)
def test_a_place_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, said: str) -> None:
    """Before the recording is read."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        new(plan, "nothing.csv", Given(), force=False)


# -- texts -----------------------------------------------------------------------------------------------------

words = st.text(min_size=1, max_size=12) | st.sampled_from(
    ['"""', "\\", "'", '"', "${value}", "\n", "#", "{x}", "\u2028"]
)


@settings(max_examples=30)
@given(words, words, words, st.lists(words, min_size=1, max_size=3), st.booleans(), st.sampled_from(["csv", "ndjson"]))
def test_whatever_the_names_are_the_texts_are_python_that_holds_them(plan, place, time, value, inside, kind) -> None:
    """Names come from outside: each is a literal in the code, and nothing of it is code or ends a comment."""
    layout = Layout(kind, separator=";" if inside else ",", padded=inside)
    doubts = {"key": "a guess", "time": "a guess", "tz": "a guess", "value": "a guess"}
    key = "{stem}" if set("{}") & set(place) else place
    roles = Roles(key, time, TimeSeen("ISO 8601", zoned=False), "UTC", tuple(value), ((place, time),), doubts)
    draft = Draft(plan, place, inside, place, layout, roles, rejected=True)
    for text in (draft.plan_text(), draft.test_text()):
        tree = ast.parse(text.encode("utf-8"))
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert {place, time} <= constants
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert names <= {
            "HERE", "MOST", "Path", "STATS", "WINDOW", "column", "file", "key", "source", "time", "tz", "__file__", "dict", "expected", "float", "frame", "getattr", "got", "gzip", "isinstance",
            "islice", "item", "json", "line", "lines", "list", "made", "name", "normalized", "one", "open", "opened", "pd",
            "pipeline", "plan", "records", "row", "rows", "runpy", "sensor", "str", "table", "tm", "windows", "all",
            "__name__", "print", "test_the_plan_makes_what_pandas_makes",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "spread", "baseline"),
    [
        (1013254.303, 0.002, "1013254.303"),
        (1013254.3, 0.0, "1013254.3"),
        (20.123456789, 5.0, "20.1235"),
        (0.0, 1.0, "0"),
    ],
)
def test_a_baseline_has_the_digits_that_the_spread_asks_for(mean: float, spread: float, baseline: str) -> None:
    """A large number that hardly varies is not rounded by more than it varies."""
    assert Calibrated("S1", mean, spread).cells[1] == baseline


@pytest.mark.filterwarnings("ignore:unknown_key:RuntimeWarning")
@settings(max_examples=30)
@example([("#", 0.0, 0.0), ("# ", 0.0, 0.0)])
@given(
    st.lists(
        st.tuples(words.filter(str.strip), st.floats(), st.floats(min_value=0)),
        min_size=1,
        max_size=8,
        unique_by=lambda one: one[0],
    )
)
def test_a_calibration_of_any_sensors_is_one(tmp_path_factory, sensors) -> None:
    """`Calibrate` reads it, whatever was seen of them."""
    place = tmp_path_factory.getbasetemp() / "calibration.csv"
    place.write_bytes(calibration_text([Calibrated(*one) for one in sensors]).encode("utf-8", "replace"))
    tm.Plan(tm.Calibrate(os.fspath(place))).apply([{"sensor": "S1", "time": 0, "value": 1.0}])
