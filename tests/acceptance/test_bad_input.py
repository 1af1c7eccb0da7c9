"""Bad records go to the dead letters and everything else flows; bad settings are refused at start, by name."""

from __future__ import annotations

import json
import socket

import pytest

GOOD = '{"sensor": "a", "time": "2026-03-01T06:00:00Z", "value": 1.5}\n'

PIPELINE = """
import tidemill as tm
pipeline = tm.Pipeline(tm.sources.Lines("-"), tm.Rolling("value", window=5, stats=["mean"]), tm.sinks.Lines("out.ndjson"))
"""


@pytest.mark.parametrize("lanes", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ('{"sensor": "a", "time": "2026-03-01T06:00:01Z", "val\n', "malformed"),
        ("[1, 2, 3]\n", "malformed"),
        ('{"sensor": "a", "time": "2026-03-01T06:00:01Z", "value": "warm"}\n', "wrong_type"),
        ('{"time": "2026-03-01T06:00:01Z", "value": 1}\n', "no_key"),
        ('{"sensor": "a", "time": "yesterday", "value": 1}\n', "bad_time"),
        ('{"sensor": "a", "time": "2026-03-01T06:00:01Z", "value": 1e999}\n', "infinite"),
        ('{"sensor": "a", "time": "2026-03-01T06:00:01Z", "value": 1, "pad": "' + "x" * (1 << 20) + '"}\n', "oversize"),
    ],
    ids=["half a line", "no object", "text for a number", "no sensor", "no such time", "infinite", "over 1 MiB"],
)
def test_a_bad_record_goes_to_the_dead_letters(tidemill, write, tmp_path, rows_of, bad, code, lanes) -> None:
    """With its reason; the records around it flow, and the run succeeds."""
    write("plant.py", PIPELINE)
    words = ("--report", "r.json", "--dead-letters", "bad.ndjson", "--lanes", lanes)
    told = tidemill("run", "plant.py", *words, input=GOOD + bad + GOOD)
    assert told.returncode == 0, told.stderr
    assert [row["value"] for row in rows_of(tmp_path / "out.ndjson")] == [1.5, 1.5]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["dead_letters_by_reason"] == {code: 1}
    (letter,) = rows_of(tmp_path / "bad.ndjson")
    assert letter["reason_code"] == code
    assert letter["reason"]


@pytest.mark.parametrize("lanes", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("lambda rows: [{**r, 'y': 1 / (r['value'] - 3)} for r in rows]", "raised"),
        ("lambda rows: [r for r in rows if r['value'] != 3]", "wrong_length"),
        ("lambda rows: [r if r['value'] != 3 else 'three' for r in rows]", "wrong_type"),
    ],
    ids=["raises", "returns too few", "returns a wrong type"],
)
def test_a_function_that_fails_on_a_record_costs_that_record(
    tidemill, write, tmp_path, rows_of, function, code, lanes
) -> None:
    """The batch is narrowed down to it; its neighbours in the batch come out."""
    write(
        "plant.py",
        f"""
import tidemill as tm
rows = [{{"sensor": "a", "time": i, "value": float(i)}} for i in range(10)]
pipeline = tm.Pipeline(tm.sources.Records(rows), tm.MapRows({function}), tm.sinks.Lines("out.ndjson"))
""",
    )
    told = tidemill("run", "plant.py", "--report", "r.json", "--lanes", lanes)
    assert told.returncode == 0, told.stderr
    assert [row["value"] for row in rows_of(tmp_path / "out.ndjson")] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert json.loads((tmp_path / "r.json").read_text())["dead_letters_by_reason"] == {code: 1}
    (letter,) = rows_of(tmp_path / "dead_letters.ndjson")
    assert letter["raw"]["value"] == 3


def test_a_stage_may_stop_the_run_instead(tidemill, write) -> None:
    """on_error="stop": exit code 1, the function's error in one line, its traceback with --debug."""
    write(
        "plant.py",
        """
import tidemill as tm
def picky(rows):
    raise ValueError("the user's own words")
pipeline = tm.Pipeline(
    tm.sources.Records([{"sensor": "a", "time": 1, "value": 1.0}]),
    tm.MapRows(picky, on_error="stop"),
    tm.sinks.Lines("out.ndjson"),
)
""",
    )
    told = tidemill("run", "plant.py")
    assert told.returncode == 1, told.stderr
    assert "the user's own words" in told.stderr
    assert "Traceback" not in told.stderr
    debugged = tidemill("run", "plant.py", "--debug", "--output", "b.ndjson")
    assert debugged.returncode == 1
    assert "in picky" in debugged.stderr


@pytest.mark.parametrize(
    ("raised", "edge"),
    [
        ("RuntimeError('broke')", "source"),
        ("SystemExit(4)", "source"),
        pytest.param("GeneratorExit()", "source", marks=pytest.mark.slow),
        pytest.param("SystemExit(4)", "sink", marks=pytest.mark.slow),
        pytest.param("GeneratorExit()", "sink", marks=pytest.mark.slow),
    ],
)
def test_code_of_the_users_at_an_edge_that_fails_ends_the_run(tidemill, write, raised, edge) -> None:
    """What Records iterates over, or a Callback: exit code 1, whatever it raised, with the edge's name; the rest with --debug."""
    write(
        "plant.py",
        f"""
import tidemill as tm
def fail(_=None):
    raise {raised}
def readings():
    yield {{"sensor": "a", "time": 1, "value": 1.0}}
    fail()
records = tm.sources.Records(readings() if "{edge}" == "source" else [{{"sensor": "a", "time": 1}}], name="the source")
pipeline = tm.Pipeline(records, tm.Plan(), tm.sinks.Callback(print if "{edge}" == "source" else fail, name="the sink"))
""",
    )
    told = tidemill("run", "plant.py", "--lanes", 0, "--no-state", "--debug")
    assert told.returncode == 1, told.stderr
    *trace, last = told.stderr.splitlines()
    assert last.startswith(f"tidemill: {edge} the {edge}: ")
    assert raised.partition("(")[0] in last
    assert any("in fail" in line for line in trace)


REFUSED = {
    "no such input": (
        "tm.sources.Replay('nowhere.csv')",
        "tm.Rolling('value')",
        "tm.sinks.Lines('o.ndjson')",
        4,
        "{here}/nowhere.csv",
    ),
    "no such column": (
        "tm.sources.Replay('in.csv')",
        "tm.Rolling('pressure')",
        "tm.sinks.Lines('o.ndjson')",
        3,
        "'pressure'",
    ),
    "no such table": (
        "tm.sources.Replay('in.csv')",
        "tm.Calibrate('no.csv')",
        "tm.sinks.Lines('o.ndjson')",
        4,
        "{here}/no.csv",
    ),
    "bad table": (
        "tm.sources.Replay('in.csv')",
        "tm.Calibrate('bad.csv')",
        "tm.sinks.Lines('o.ndjson')",
        4,
        "{here}/bad.csv has no column 'sensor'. Expected header: sensor,baseline,scale",
    ),
    "bad cell in a table": (
        "tm.sources.Replay('in.csv')",
        "tm.Calibrate('cell.csv')",
        "tm.sinks.Lines('o.ndjson')",
        4,
        "{here}/cell.csv, row 1 (sensor a): scale is 'x'",
    ),
    "no such column in lines": (
        "tm.sources.Lines('in.csv')",
        "tm.Rolling('pressure')",
        "tm.sinks.Lines('o.ndjson')",
        3,
        "'pressure'",
    ),
    "no such folder": (
        "tm.sources.Replay('in.csv')",
        "tm.Rolling('value')",
        "tm.sinks.Lines('no/o.ndjson')",
        4,
        "{here}/no",
    ),
    "no such zone": (
        "tm.sources.Replay('in.csv', tz='Mars/Base')",
        "tm.Rolling('value')",
        "tm.sinks.Lines('o.ndjson')",
        4,
        "Mars/Base",
    ),
}


@pytest.mark.parametrize("command", ["check", pytest.param("run", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_at_start(tidemill, write, tmp_path, case, command) -> None:
    """By ``check`` as by ``run``: one paragraph with the culprit's name (for paths the absolute one), nothing written."""
    source, stage, sink, code, culprit = REFUSED[case]
    write("in.csv", "sensor,time,value\na,1,1\n")
    write("bad.csv", "name,offset\na,1\n")
    write("cell.csv", "sensor,baseline,scale\na,1,x\n")
    write("plant.py", f"import tidemill as tm\npipeline = tm.Pipeline({source}, tm.Plan({stage}), {sink})\n")
    told = tidemill(command, "plant.py")
    assert told.returncode == code, told.stderr
    assert culprit.format(here=tmp_path) in told.stderr
    assert "Traceback" not in told.stderr
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "o.ndjson").exists()


def test_a_busy_port_is_refused_by_number(tidemill, write) -> None:
    """Exit code 5: the world outside."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(
            "plant.py",
            f"""
import tidemill as tm
pipeline = tm.Pipeline(tm.sources.TCP("127.0.0.1", {port}), tm.Rolling("value"), tm.sinks.Lines("o.ndjson"))
""",
        )
        told = tidemill("run", "plant.py")
    assert told.returncode == 5, told.stderr
    assert str(port) in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("option", ["--report", "--dead-letters"])
def test_a_file_without_a_folder_is_refused_before_the_run(tidemill, examples, tmp_path, option) -> None:
    """Not after a week of running."""
    told = tidemill("run", examples / "replay.py", "--output", "o.csv", option, "no/such.json")
    assert told.returncode == 4
    assert f"{tmp_path}/no/such.json" in told.stderr
    assert not (tmp_path / "o.csv").exists()
