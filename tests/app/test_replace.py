"""Other edges for the same plan."""

from __future__ import annotations

import errno
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tidemill as tm
from tidemill.app.cli import answer
from tidemill.app.load import Found
from tidemill.app.replace import replaced, said_as_options, source_of
from tidemill.app.run_options import Edges

PLAN = tm.Plan(tm.Select("value"))


RUN = ["run", "plant.py", "--input", "in.csv", "--output", "o.csv"]


def plan_in(folder: Path) -> None:
    (folder / "plant.py").write_text("import tidemill as tm\nplan = tm.Plan()\n")
    (folder / "in.csv").write_text("sensor,time\na,1\n")


def found(*sources: tm.sources.Source, plan: tm.Plan = PLAN) -> Found:
    pipeline = tm.Pipeline(list(sources), plan, tm.sinks.Latest(), name="plant") if sources else None
    return Found(pipeline, None if pipeline else plan, "it", Path("plant.py"))


def test_without_options_the_pipeline_stays_itself() -> None:
    """Not a copy: the very object of the file."""
    given = found(tm.sources.Records([]))
    assert replaced(given, Edges()) is given.pipeline


def test_a_new_source_reads_what_the_old_one_read() -> None:
    """Sensor, time, zone and declared kinds are the file's, whatever the source is."""
    own = tm.sources.TCP(key="device", time="when", tz="Europe/Vienna", columns={"n": int})
    made = replaced(found(own), Edges(input="march.csv"))
    (source,) = made.sources
    assert isinstance(source, tm.sources.Replay)
    assert (source.key, source.time, source.tz, source.columns) == ("device", "when", "Europe/Vienna", own.columns)
    assert (made.name, made.plan) == ("plant", PLAN)
    assert isinstance(made.sinks[0], tm.sinks.Latest)


def test_a_new_source_reads_what_is_written_as_the_old_one(tmp_path):
    """Times of a format of their own; records whose file does not say what they are, and lines on standard input."""
    (march := tmp_path / "march.log").write_text("sensor,time\na,31.03.2024\n")
    own = tm.sources.Replay("april.log", time_format="%d.%m.%Y", format="csv")
    (source,) = replaced(found(own), Edges(input=str(march))).sources
    assert (source.time_format, source.format) == ("%d.%m.%Y", "csv")
    assert source_of(str(march), found(own).pipeline).time_format == "%d.%m.%Y"
    assert source.peek().names == ("sensor", "time")
    (named,) = replaced(found(own), Edges(input="march.parquet")).sources
    assert named.format is None
    (lines,) = replaced(found(own), Edges(input="-")).sources
    assert (lines.time_format, lines.format) == ("%d.%m.%Y", "csv")
    influx = tm.sources.Lines("-", format="influx", precision="s")
    (lines,) = replaced(found(influx), Edges(input="-")).sources
    assert (lines.format, lines.precision) == ("influx", "s")
    (recorded,) = replaced(found(influx), Edges(input="march.influx.gz")).sources
    assert (type(recorded), recorded.format, recorded.precision) == (tm.sources.Lines, "influx", "s")
    (recorded,) = replaced(found(own), Edges(input="march.lp")).sources
    assert (type(recorded), recorded.format, recorded.precision) == (tm.sources.Lines, "influx", None)
    (lines,) = replaced(found(influx, tm.sources.Lines("-")), Edges(input="-")).sources
    assert (lines.format, lines.precision) == ("ndjson", None)


def test_the_command_line_has_the_last_word() -> None:
    """--key, --time and --tz over the file's."""
    own = tm.sources.TCP(key="device", time="when")
    (source,) = replaced(found(own), Edges(input="-", key="id", tz="UTC")).sources
    assert isinstance(source, tm.sources.Lines)
    assert (source.key, source.time, source.tz) == ("id", "when", "UTC")


def test_sources_that_disagree_are_asked_about() -> None:
    """No guess: the option to type is in the message, and typing it helps."""
    given = found(tm.sources.Records([], key="a"), tm.sources.Records([], key="b"))
    with pytest.raises(tm.PlanError, match=r"differ in key= \(a, b\); .*--key NAME"):
        replaced(given, Edges(input="march.csv"))
    (source,) = replaced(given, Edges(input="march.csv", key="b")).sources
    assert source.key == "b"


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (Edges(key="id"), "--key says how --input is to be read"),
        (Edges(tz="UTC"), "--tz says how --input is to be read"),
        (Edges(if_exists="append"), "--if-exists is about --output"),
    ],
)
def test_an_option_with_nothing_to_act_on_is_refused(edges: Edges, words: str) -> None:
    """Silently ignored options are how wrong results are made."""
    with pytest.raises(tm.PlanError, match=words):
        replaced(found(tm.sources.Records([])), edges)


def test_a_plan_needs_both_edges() -> None:
    """Each missing one is named; given both, it is a pipeline named after the file."""
    with pytest.raises(tm.PlanError, match=r"add --input PATH and --output PATH"):
        replaced(found(), Edges())
    made = replaced(found(), Edges(input="march.csv", output="out.db", if_exists="append"))
    assert made.name == "plant"
    assert made.sinks[0].if_exists == "append"


def test_the_edges_may_refer_to_what_is_kept_elsewhere(tmp_path, monkeypatch):
    """A recording by its path, a broker by its address."""
    monkeypatch.setenv("PLANT_ROOT", str(tmp_path))
    edges = Edges(input="${env:PLANT_ROOT}/march.csv", output="mqtt://${env:BROKER}/features/{sensor}")
    made = replaced(found(), edges)
    assert made.sources[0].path == f"{tmp_path}/march.csv"
    assert repr(made.sinks[0]) == "MQTT('mqtt://${env:BROKER}', 'features/{sensor}')"
    with pytest.raises(tm.InputError, match=r"path= of Replay refers to \$\{env:NOT_THERE\}"):
        replaced(found(), Edges(input="${env:NOT_THERE}", output="-"))


def test_line_protocol_that_is_written_as_an_output_has_the_same_sensors(tmp_path):
    """Its tags are tags again, whatever they look like."""
    read, written = tmp_path / "x.influx", tmp_path / "y.lp"
    read.write_text(
        "cpu,cpu=cpu0,host=PLANT\\ 1 idle=1.5,n=3i 1700000000000000001\n"
        "cpu,cpu=cpu1 idle=2.5 1700000000000000002\n"
        "mem,host=2024-01-01,slot=7 used=7i,ok=true 1700000000000000003\n"
        "mem used=9i 1700000000000000004\n"
    )
    tm.run(replaced(found(plan=tm.Plan()), Edges(input=str(read), output=str(written))), lanes=0)
    assert written.read_text() == read.read_text()


def test_a_url_is_no_recording():
    """Its password is not repeated."""
    with pytest.raises(tm.PlanError, match="mqtt:// is no recording; write the source into the file") as told:
        replaced(found(), Edges(input="mqtt://me:c4nary@broker/plant", output="-"))
    assert "c4nary" not in str(told.value)


def test_an_output_without_a_known_suffix_is_refused() -> None:
    """With the suffixes that are known."""
    with pytest.raises(tm.PlanError, match=r"\.parquet"):
        replaced(found(tm.sources.Records([])), Edges(output="features.xyz"))


@pytest.mark.parametrize("name", ["out.csv", "out.ndjson", "out.parquet", "out.db"])
def test_what_is_at_the_output_names_the_option(tmp_path, name):
    """The refusal says what to type on a command line; for a sink of the file, what to write in it."""
    path = tmp_path / name
    rows = tm.sources.Records([{"sensor": "a", "time": 1, "value": 1.0}])
    tm.run(tm.Pipeline(rows, tm.Plan(), tm.sinks.for_path(path)), lanes=0)
    with pytest.raises(tm.InputError, match="--if-exists ") as told, said_as_options(Edges(output=str(path))):
        tm.sinks.for_path(path).check()
    assert "if_exists" not in str(told.value)
    with pytest.raises(tm.InputError, match="if_exists="), said_as_options(Edges()):
        tm.sinks.for_path(path).check()


@pytest.mark.parametrize(
    ("edges", "warm", "says"),
    [
        ({"input": "march.csv"}, None, "; try --key 'device' --time 'timestamp'"),
        ({}, "march.csv", "tm.State(warm=tm.sources.Replay(PATH, key='device', time='timestamp'))"),
        ({}, None, "; try key='device', time='timestamp'"),
    ],
)
def test_a_recording_with_other_names_says_what_to_type(edges, warm, says, tmp_path, monkeypatch):
    """At --input the options; --warm has none, and a program does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "march.csv").write_text("device,timestamp,value\nd1,1,2\n")
    with pytest.raises(tm.InputError, match=re.escape(says)), said_as_options(Edges(**edges), warm):
        tm.sources.Replay("march.csv").check()


def test_one_parquet_file_takes_no_more_rows(tmp_path):
    """The refusal is in the words of the command line, too."""
    edges = Edges(output=str(tmp_path / "rows.parquet"), if_exists="append")
    says = re.escape("give a folder, such as rows/, or add --if-exists replace")
    with pytest.raises(tm.PlanError, match=says), said_as_options(edges):
        replaced(found(tm.sources.Records([])), edges)


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (["run", "--output", "in.csv", "--if-exists", "replace"], "the sink lines and the source replay"),
        (["run", "--output", "o.csv", "--report", "plant.py"], "the report and the plan"),
        (["run", "--output", "o.csv", "--dead-letters", "plant.py"], "the dead letters and the plan"),
        (["run", "--output", "o.csv", "--report", "o.csv"], "the sink lines and the report"),
        (["run", "--output", "o.csv", "--dead-letters", "o.csv"], "the sink lines and the dead letters"),
        (["run", "--output", "o.csv", "--dead-letters", "in.csv"], "the dead letters and the source replay"),
        (["check", "--output", "in.csv"], "the sink lines and the source replay"),
    ],
)
def test_no_two_options_name_one_file(tmp_path, monkeypatch, capsys, words, both):
    """What the one writes, the other would lose: refused with both before anything is written."""
    monkeypatch.chdir(tmp_path)
    texts = {"plant.py": "import tidemill as tm\nplan = tm.Plan()\n", "in.csv": "sensor,time\na,1\n"}
    for name, text in texts.items():
        Path(name).write_text(text)
    command, *options = words
    assert answer([command, "plant.py", "--input", "in.csv", "--lanes", "0", *options]) == 4
    assert f"{both} are one file" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == texts


def test_a_table_of_the_plan_is_not_written_over(tmp_path, monkeypatch, capsys):
    """By a report, or by dead letters."""
    monkeypatch.chdir(tmp_path)
    Path("calibration.csv").write_text("sensor,baseline,scale\na,0,1\n")
    Path("in.csv").write_text("sensor,time,value\na,1,2\n")
    Path("plant.py").write_text("import tidemill as tm\nplan = tm.Plan(tm.Calibrate('calibration.csv'))\n")
    for option in ("--report", "--dead-letters"):
        words = ["run", "plant.py", "--input", "in.csv", "--output", "o.csv", "--lanes", "0", option, "calibration.csv"]
        assert answer(words) == 4
        assert "Calibrate" in capsys.readouterr().err
    assert Path("calibration.csv").read_text().startswith("sensor,baseline,scale")


def test_a_report_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch, capsys):
    """Not behind a run of a week."""
    monkeypatch.chdir(tmp_path)
    plan_in(tmp_path)
    assert answer([*RUN, "--report", "/proc/r.json"]) == 4
    assert "the report cannot be written to /proc/r.json: " in capsys.readouterr().err
    assert not Path("o.csv").exists()


@pytest.mark.parametrize("place", ["/proc/d.ndjson", "/proc/version"])
def test_dead_letters_that_cannot_be_written_are_told_at_once(tmp_path, monkeypatch, capsys, place):
    """Not at the first of them, when rows have gone out; also where modes alone would let everybody write."""
    monkeypatch.chdir(tmp_path)
    plan_in(tmp_path)
    assert answer([*RUN, "--dead-letters", place]) == 4
    assert f"the dead letters cannot be written to {place}: " in capsys.readouterr().err
    assert not Path("o.csv").exists()


def test_the_summary_comes_before_a_report_that_fails(tmp_path, monkeypatch, capsys):
    """What the run did is told, whatever becomes of its file."""
    monkeypatch.chdir(tmp_path)
    plan_in(tmp_path)

    def full(*_: object) -> None:
        raise tm.OutsideError("the disk is full.")

    monkeypatch.setattr("tidemill.files.write_whole", full)
    assert answer([*RUN, "--report", "r.json"]) == 5
    told = capsys.readouterr().err
    assert told.index("1 record in, 1 row out") < told.index("the disk is full")


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError()])
def test_too_little_memory_is_the_outsides_fault(tmp_path, monkeypatch, capsys, error):
    """As too few files are; nothing of tidemill is to be reported then."""
    monkeypatch.chdir(tmp_path)
    plan_in(tmp_path)

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("tidemill.lanes.memory.mmap.mmap", full)
    assert answer(RUN) == 5
    assert "ulimit -v" in capsys.readouterr().err


def test_too_few_files_are_the_outsides_fault(tmp_path):
    """Lanes need some, and a service may have few: it is told which limit to raise."""
    plan_in(tmp_path)
    command = f"ulimit -n 40; exec {sys.executable} -m tidemill {shlex.join(RUN)} --lanes 4"
    told = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (told.returncode, "ulimit -n" in told.stderr) == (5, True)
