"""The judges see what is lost, doubled, out of order or made up."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.chaos.oracle import Golden, contents_of, rows_of
from tests.chaos.plant import Plant
from tests.chaos.scripts import Connection, came_in, more_lines


def some(seed, at):
    """A few hundred lines, the last a record."""
    rng = random.Random(seed)
    return [line for part in range(4) for line in more_lines(rng, at + 250 * part)]


FIRST, SECOND = some(1, 0), some(2, 1_000)


def shown(lines):
    """The numbers and the dead letters that these lines make."""
    good = [line for line in lines if line.startswith("{")]
    return [json.loads(line)["n"] for line in good], [line for line in lines if line not in good]


def told(*came, due=(0, 0)):
    sent = [Connection(FIRST, due[0]), Connection(SECOND, due[1])]
    numbers, letters = zip(*(shown(lines) for lines in came), strict=True)
    return came_in(sent, [n for some in numbers for n in some], [line for some in letters for line in some])


@pytest.mark.parametrize("length", [0, 1, 7, 40, len(FIRST)])
def test_a_beginning_of_each_connection_is_right(length):
    wrong, came = told(FIRST[:length], SECOND)
    assert not wrong
    assert came == [json.loads(line) for line in FIRST[:length] + SECOND if line.startswith("{")]


def test_what_was_seen_must_stay():
    assert not told(FIRST[:40], SECOND, due=(40, 0))[0]
    assert "lines are there, and 45 were" in told(FIRST[:40], SECOND, due=(45, 0))[0]


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_gap_a_double_and_a_swap_are_told(at):
    one = next(n for n in range(at, len(FIRST)) if FIRST[n][0] == "{")
    assert told(FIRST[:one] + FIRST[one + 1 :], SECOND)[0]
    assert told(FIRST[: one + 1] + FIRST[one:], SECOND)[0]
    other = next(n for n in range(one + 1, len(FIRST)) if FIRST[n][0] == "{" and FIRST[n] != FIRST[one])
    swapped = [*FIRST[:one], FIRST[other], *FIRST[one + 1 : other], FIRST[one], *FIRST[other + 1 :]]
    assert told(swapped, SECOND)[0]


def test_a_lost_or_doubled_dead_letter_is_told():
    bad = next(n for n in range(len(FIRST)) if FIRST[n][0] != "{")
    assert told(FIRST[:bad] + FIRST[bad + 1 :], SECOND)[0]
    assert told(FIRST[: bad + 1] + FIRST[bad:], SECOND)[0]


def test_what_nobody_sent_and_what_comes_late_is_told():
    sent = [Connection(FIRST), Connection(SECOND)]
    assert "nobody sent" in came_in(sent, [5_000.0], [])[0]
    assert "nobody sent" in came_in(sent, [], ["no record 5000"])[0]
    assert "mixed" in told(FIRST[:40], SECOND, FIRST[40:])[0]


WRITTEN = ("sqlite", "ndjson", "parquet")


def written(folder, values):
    """A plant whose sinks have these in their rows."""
    (folder / "rows").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "rows.db")) as connection, connection:
        connection.execute("CREATE TABLE features (value REAL)")
        connection.executemany("INSERT INTO features VALUES (?)", [(value,) for value in values])
    (folder / "rows.ndjson").write_text("".join(f"{json.dumps({'value': value})}\n" for value in values))
    for at in range(0, len(values), 2):
        pq.write_table(pa.table({"value": values[at : at + 2]}), folder / "rows" / f"{at}.parquet")
    return Plant(folder, folder / "none", sinks=WRITTEN)


@pytest.mark.parametrize(
    "other", [[0.1, 0.1 + 0.2, 0.2], [0.1, 0.2, 0.3], [0.1, 0.3], [0.1, 0.3, 0.2, 0.2], [0.1, 0.3, None]]
)
def test_a_bit_a_row_and_an_order_are_told_of_each_sink(tmp_path, other):
    """Also where sinks are compared without a look at each row."""
    whole = written(tmp_path / "whole", [0.1, 0.3, 0.2])
    golden = Golden({sink: rows_of(whole, sink) for sink in WRITTEN}, [], {s: contents_of(whole, s) for s in WRITTEN})
    assert not golden.difference(written(tmp_path / "same", [0.1, 0.3, 0.2]))
    told = golden.difference(written(tmp_path / "other", other))
    assert [line.partition(":")[0] for line in told.splitlines() if line[0] != " "] == list(WRITTEN)
