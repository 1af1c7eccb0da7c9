"""The whole circle: a run that rejects records, a fix, and a run that replays them from the dead letters."""

from __future__ import annotations

import json

import pytest

import tidemill as tm
from tidemill.testing import ListSink

pytestmark = pytest.mark.slow

TIMES = {f"{minute:02}": 1_709_251_200 + 60 * minute for minute in range(60)}


def fixed(batch):
    return {"double": 2 * batch["value"]}


def broken(batch):
    if (batch["value"] == 3.0).any():
        raise ValueError("three")
    return fixed(batch)


def turn(source, function, letters, lanes):
    """One run; what reached the sink, with the roles each record had."""
    sink = ListSink()
    tm.run(tm.Pipeline(source, tm.Map(function), sink), lanes=lanes, dead_letters=letters)
    keys = [key for batch in sink.batches for key in batch.keys[batch.key].tolist()]
    times = [ns // 10**9 for batch in sink.batches for ns in batch.time.tolist()]
    return list(zip(keys, times, sink.rows, strict=True))


def circle(source, whole, tmp_path, lanes, **options):
    """Run, fix, replay; both runs together are what the fixed pipeline makes of the whole input."""
    dead = tmp_path / "dead.ndjson"
    first = turn(source(), broken, dead, lanes)
    assert dead.exists()
    again = turn(tm.sources.DeadLetters(dead, **options), fixed, tmp_path / "again.ndjson", lanes)
    assert not (tmp_path / "again.ndjson").exists()
    assert again
    wanted = turn(whole(), fixed, tmp_path / "none.ndjson", lanes)
    assert sorted(first + again, key=repr) == sorted(wanted, key=repr)


def test_csv_with_keys_from_the_name_of_the_file(tmp_path, lanes):
    """A function that raised, and the sensor and the time that each record had: neither is asked for again."""
    path = tmp_path / "pump.csv"
    lines = [f"2024-03-01 00:{minute}:00,{minute[1]},00{minute},K{minute}" for minute in TIMES]
    path.write_text("\n".join(["timestamp,value,part,kind", *lines]))

    def source():
        return tm.sources.Replay(path, key="{stem}", time="timestamp", columns={"part": str})

    circle(source, source, tmp_path, lanes, columns={"part": str})


def test_ndjson_with_a_key_of_two_fields(tmp_path, lanes):
    """Also where the records have fields of the default names that mean something else."""
    path = tmp_path / "plant.ndjson"
    rows = [
        {"line": "L1", "machine": n, "sensor": "temperature", "time": "slow", "at": 1_700_000_000 + n, "value": n % 9}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def source():
        return tm.sources.Replay(path, key="{line}/{machine}", time="at")

    circle(source, source, tmp_path, lanes)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_recording_that_declares_its_times(tmp_path, suffix):
    """Times that are a column of their own come back as times."""
    import pandas as pd

    frame = pd.DataFrame({"sensor": "S1", "time": pd.date_range("2024", periods=9, freq="s"), "value": range(9)})
    path = tmp_path / f"plant.{suffix}"
    getattr(frame, f"to_{suffix}")(path, **({"index": False} if suffix == "csv" else {}))

    def source():
        return tm.sources.Replay(path, columns={"time": "time"})

    circle(source, source, tmp_path, 0, columns={"time": "time"})


def test_csv_records_that_the_source_refused(tmp_path):
    """A cell that is no number, a time that cannot be read, a line of too few cells: repaired in the letters."""
    path, dead, repaired = (tmp_path / name for name in ("plant.csv", "dead.ndjson", "repaired.ndjson"))
    good = [f"S{n},2024-03-01 00:00:{n:02},{n},007\n" for n in range(10, 20)]
    bad = ["S20,2024-03-01 00:00:20,hot,008\n", "S21,2024-03-01 00:00:XX,21,009\n", "S22,2024-03-01 00:00:22\n"]
    path.write_text("sensor,at,value,part\n" + "".join(good + bad))
    first = turn(tm.sources.Replay(path, time="at", columns={"part": str}), fixed, dead, 0)
    assert len(first) == 10
    text = dead.read_text()
    for wrong, right in (('"hot"', "20"), ("00:XX", "00:21"), ("00:00:22", "00:00:22,22,010")):
        assert wrong in text
        text = text.replace(wrong, right)
    repaired.write_text(text)
    again = turn(
        tm.sources.DeadLetters(repaired, time="at", columns={"part": str}), fixed, tmp_path / "again.ndjson", 0
    )
    assert sorted((key, time - TIMES["00"], row["value"], row["part"]) for key, time, row in again) == [
        ("S20", 20, 20, "008"),
        ("S21", 21, 21, "009"),
        ("S22", 22, 22, "010"),
    ]


def test_a_time_that_was_never_read_is_asked_for(tmp_path):
    """A letter whose time is not known does not become a record of now."""
    path, dead = tmp_path / "plant.csv", tmp_path / "dead.ndjson"
    path.write_text("sensor,at,value\nS1,2024-03-01 00:00:00,1\nS1,never,2\n")
    turn(tm.sources.Replay(path, time="at"), fixed, dead, 0)
    assert turn(tm.sources.DeadLetters(dead), fixed, tmp_path / "again.ndjson", 0) == []
    (letter,) = map(json.loads, (tmp_path / "again.ndjson").read_text().splitlines())
    assert letter["reason_code"] == "bad_time"


@pytest.mark.parametrize("suffix", ["ndjson", "csv"])
def test_long_lines_are_kept_whole(tmp_path, suffix):
    """Up to the limit of a line, so that what was cut by nobody can be repaired."""
    path, dead, repaired = tmp_path / f"plant.{suffix}", tmp_path / "dead.ndjson", tmp_path / "repaired.ndjson"
    note = "n" * 50_000
    if suffix == "csv":
        path.write_text(f"sensor,time,value,note\nS1,1,1,a\nS1,2,2,b\nS1,3;4,{note}\n")
        wrong, right = "3;4", "3,4"
    else:
        path.write_text(
            '{"sensor":"S1","time":1,"value":1,"note":"a"}\n{"sensor":"S1","time":2,"value":2,"note":"b"}\n'
            f'{{"sensor":"S1","time":3,"value":4,"note":"{note}"\n'
        )
        wrong, right = f'{note}\\"', f'{note}\\"}}'
    turn(tm.sources.Replay(path), fixed, dead, 0)
    text = dead.read_text()
    assert wrong in text
    repaired.write_text(text.replace(wrong, right))
    ((key, time, row),) = turn(tm.sources.DeadLetters(repaired), fixed, tmp_path / "again.ndjson", 0)
    assert (key, time, row["value"], row["note"]) == ("S1", 3, 4, note)


def test_one_letter_that_nobody_repaired_spoils_no_other(tmp_path):
    """The kind of a field is what most of the letters say, not what the first of them was rejected for."""
    dead = tmp_path / "dead.ndjson"
    rows = [{"sensor": "S1", "time": n, "value": n or "hot"} for n in range(4)]
    dead.write_text("".join(json.dumps({"raw": row}) + "\n" for row in rows))
    again = turn(tm.sources.DeadLetters(dead), fixed, tmp_path / "again.ndjson", 0)
    assert [row["double"] for _, _, row in again] == [2, 4, 6]


def test_letters_that_a_person_has_spoiled_are_told_and_others_are_replayed(tmp_path):
    """A header that is a number, a sensor that is a list; a text that became a record, of a CSV letter too."""
    dead, again = tmp_path / "dead.ndjson", tmp_path / "again.ndjson"
    record = {"value": 1.0}
    letters = [
        {"raw": "S1,1", "header": 5, "key": "S1", "time": 1},
        {"raw": record, "header": ["sensor", "value"], "key": ["S2"], "time": 1},
        {"raw": record, "header": ["sensor", "value"], "key": "S3", "time": 1},
    ]
    dead.write_text("".join(json.dumps(letter) + "\n" for letter in letters))
    rows = turn(tm.sources.DeadLetters(dead), fixed, again, 0)
    assert [key for key, _, _ in rows] == ["S3"]
    reasons = [json.loads(line)["reason"] for line in again.read_text().splitlines()]
    assert [reason.partition("its field ")[2].split()[0] for reason in reasons] == ["'header'", "'key'"]
