"""A field that only some records have: whichever records share a batch, the functions behind find the same columns."""

import asyncio
import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.batching import Limits

ROWS = [
    {
        "sensor": f"S{n % 3}",
        "time": n,
        "value": float(n),
        **({"temp": 20.0 + n} if n % 10 == 0 else {}),
        "on": n % 2 == 0,
    }
    for n in range(40)
]
LATE = [{name: item for name, item in row.items() if name != "temp" or row["time"] > 10} for row in ROWS]


def same(rows):
    return rows


def hot(rows):
    return [{**row, "x": row["value"]} if row["value"] % 7 == 5 else row for row in rows]


def cold(rows):
    return [{name: item for name, item in row.items() if name != "temp" or item > 25} for row in rows]


def fails(rows):
    if any(row["value"] in (3.0, 20.0, 21.0) for row in rows):
        raise ValueError("three")
    return [{**row, "y": 1.0} for row in rows]


def as_text(rows):
    return [{**row, "temp": str(row["temp"])} if "temp" in row else row for row in rows]


def sometimes(count, record):
    return count + 1, ({"x": 1.0 * count} if count % 4 == 3 else {})


def doubled(name):
    return tm.Map(lambda batch: {"twice": batch[name] * 2})


class Many:
    """Looks at an optional field."""

    def update_many(self, batch):
        return {"z": batch["temp"] * 2}


PLANS = {
    "as it came": [tm.MapRows(same), doubled("temp")],
    "added": [tm.MapRows(hot), doubled("x")],
    "added, declared": [tm.MapRows(hot, adds={"x": float}), doubled("x")],
    "left out": [tm.MapRows(cold), doubled("temp")],
    "failing": [tm.MapRows(fails), doubled("temp")],
    "failing, nan": [tm.MapRows(fails, on_error="nan"), doubled("temp")],
    "another kind": [tm.MapRows(as_text), tm.Map(lambda batch: {"told": batch["temp"]})],
    "another kind, failing": [tm.MapRows(as_text), tm.MapRows(fails), tm.Map(lambda batch: {"told": batch["temp"]})],
    "scan": [tm.scan(sometimes, 0), doubled("x")],
    "scan, declared": [tm.scan(sometimes, 0, adds={"x": float}), doubled("x")],
    "nan": [tm.MapRows(same), tm.Map(lambda batch: {"twice": batch["temp"] * 2}, on_error="nan")],
    "filter": [tm.MapRows(same), tm.Filter(lambda batch: ~(batch["temp"] > 25))],
    "keyed": [tm.MapRows(same), tm.Keyed(Many)],
    "frame": [tm.MapRows(same), tm.MapFrame(lambda frame: frame.assign(twice=frame["temp"] * 2))],
    "silence": [tm.Silence("2s"), tm.MapRows(same), doubled("temp")],
    "silence behind": [tm.MapRows(hot), tm.Silence("2s"), doubled("temp"), tm.MapRows(same), doubled("x")],
}


def outcome(plan, rows, folder, *, lanes, most):
    """Rows with their order of fields, and letters, of a run with batches of so many records at most."""
    sink, letters = tm.testing.ListSink(), folder / "dead.ndjson"
    letters.unlink(missing_ok=True)
    pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Plan(*plan), sink)
    tm.run(pipeline, lanes=lanes, dead_letters=letters, limits=Limits(max_records=most))
    return [repr(row) for row in sink.rows], letters.read_text().splitlines() if letters.exists() else []


@pytest.mark.parametrize(
    ("plan", "rows"),
    [pytest.param(plan, ROWS, id=name) for name, plan in PLANS.items()]
    + [pytest.param(plan, LATE, id=f"{name}, late") for name, plan in PLANS.items() if "kind" not in name],
)
def test_batches_decide_nothing(plan, rows, tmp_path):
    """Batches of one record, of five and of all give the same rows, fields in the same order, and the same letters."""
    alone = outcome(plan, rows, tmp_path, lanes=0, most=1)
    assert len(alone[0]) > 20
    for most in (5, 1_000):
        assert outcome(plan, rows, tmp_path, lanes=0, most=most) == alone


FIELDS = {
    "a": st.floats(-9, 9),
    "b": st.floats(-9, 9) | st.none(),
    "c": st.booleans(),
    "d": st.sampled_from(["x", "y"]),
}
KEEPING = [
    tm.MapRows(same),
    tm.MapRows(hot),
    tm.MapRows(fails),
    tm.MapRows(fails, adds={"y": float}, on_error="nan"),
    tm.MapRows(
        lambda rows: [{**row, "s": row["a"]} if row.get("a", 0) > 0 else row for row in rows], adds={"s": float}
    ),
    tm.scan(sometimes, 0, adds={"x": float}),
    tm.Silence("2s"),
    tm.Filter("value < 25"),
    tm.Rolling("value", 3, ["mean"]),
]
LOOKING = [
    doubled("a"),
    doubled("b"),
    tm.Map(lambda batch: {"not": ~batch["c"]}),
    tm.Filter(lambda batch: batch["d"] != "x"),
]


@given(
    st.lists(st.fixed_dictionaries({}, optional=FIELDS), min_size=2, max_size=30),
    st.lists(st.sampled_from(KEEPING), min_size=1, max_size=3, unique_by=id),
    st.lists(st.sampled_from(LOOKING), min_size=1, max_size=2, unique_by=id),
    st.integers(2, 7),
)
@settings(max_examples=60, deadline=None)
def test_any_fields_of_any_records(optional, keeping, looking, most):
    """Records that have any of their fields, through functions that keep them to functions that look at one."""
    rows = [{"sensor": f"S{n % 3}", "time": n, "value": float(n), **fields} for n, fields in enumerate(optional)]
    rows[0].update({"a": 1.0, "b": 2.0, "c": True, "d": "y"}, time=0)  # so that the kinds are known
    with TemporaryDirectory() as folder:
        plan = [*keeping, *looking]
        alone = outcome(plan, rows, Path(folder), lanes=0, most=1)
        assert outcome(plan, rows, Path(folder), lanes=0, most=most) == alone
        assert outcome(plan, rows, Path(folder), lanes=0, most=1_000) == alone


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_lanes_decide_nothing(plan, lanes, tmp_path):
    """With records shared out among lanes it is the same."""
    alone = outcome(plan, ROWS, tmp_path, lanes=0, most=1)
    assert outcome(plan, ROWS, tmp_path, lanes=lanes, most=5) == alone


@pytest.mark.parametrize("rows", [ROWS, LATE], ids=["first", "late"])
@pytest.mark.parametrize("name", ["as it came", "added, declared", "failing, nan", "silence", "filter", "keyed"])
def test_no_record_is_lost_for_its_company(name, rows, tmp_path):
    """What no record of a batch has is there without a value, also for the records before the first that has it."""
    assert outcome(PLANS[name], rows, tmp_path, lanes=0, most=1)[1] == []


def test_apply_agrees():
    """Over data in memory, too."""
    made = tm.Plan(*PLANS["as it came"]).apply(LATE, time="time")
    assert [row["twice"] for row in made if "temp" in row] == [row["temp"] * 2 for row in LATE if "temp" in row]
    assert len(made) == len(LATE)


@pytest.mark.parametrize("most", [1, 7, 1_000])
def test_a_sink_finds_the_columns_that_came(most):
    """A sink's own function finds a column in each batch behind the one that has shown it."""
    sink = tm.testing.ListSink(where=lambda batch: batch["temp"] > 25)
    plan = tm.Plan(tm.MapRows(same))
    tm.run(tm.Pipeline(tm.sources.Records(ROWS), plan, sink), lanes=0, limits=Limits(max_records=most))
    assert [row["temp"] for row in sink.rows] == [30.0, 40.0, 50.0]


def test_what_a_function_drops_stays_dropped(tmp_path):
    """A field that a function does not give back is no column of the output, also where no record of the first batch has it."""
    keep = ("sensor", "time", "value", "on")
    plan = tm.Plan(tm.MapRows(lambda rows: [{name: row[name] for name in keep} for row in rows]))
    source = tm.sources.Records(LATE)
    tm.run(tm.Pipeline(source, plan, tm.sinks.Lines(tmp_path / "o.csv")), lanes=0, limits=Limits(max_records=5))
    with (tmp_path / "o.csv").open() as lines:
        assert tuple(next(csv.reader(lines))) == keep


def test_lines_have_one_order_of_fields(tmp_path):
    """Line protocol, whose fields have the columns' order, is the same to the byte."""
    told = set()
    for most in (1, 2, 3, 100):
        sink = tm.sinks.Lines(tmp_path / "o.influx", measurement="m", tags=["sensor"], if_exists="replace")
        plan = tm.Plan(tm.MapRows(fails, on_error="nan"))
        tm.run(tm.Pipeline(tm.sources.Records(ROWS), plan, sink), lanes=0, limits=Limits(max_records=most))
        told.add((tmp_path / "o.influx").read_bytes())
    assert len(told) == 1


async def came_in(folder, groups, lanes):
    """Rows and letters of a live run whose sender waits after each of these groups until they are on the disk."""
    source = tm.sources.TCP(ack=True, time="time")
    sink = tm.sinks.Lines(folder / "out.ndjson")
    pipeline = tm.Pipeline(source, tm.Plan(doubled("temp")), sink, name="plant")
    async with tm.serve(pipeline, state=folder / "state", lanes=lanes, metrics=False) as run:
        await source.wait_listening()
        answers, sender = await asyncio.open_connection("127.0.0.1", source.port)
        sent = 0
        for rows in groups:
            sender.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
            sent += len(rows)
            while int(await answers.readline()) < sent:
                pass
        sender.close()
        await run.stop()
    letters = folder / "state" / "dead_letters.ndjson"
    return (
        [json.loads(line).get("twice") for line in (folder / "out.ndjson").read_text().splitlines()],
        len(letters.read_text().splitlines()) if letters.exists() else 0,
    )


LIVE = [{"sensor": "a", "time": 0, "temp": 1.5}, *({"sensor": "a", "time": n} for n in range(1, 7))]


@pytest.mark.parametrize("lanes", [0, 2])
async def test_reads_decide_nothing(lanes, tmp_path):
    """Records of a live source that come one by one and all at once are the same rows, though none after the first has the field."""
    (tmp_path / "one").mkdir()
    (tmp_path / "all").mkdir()
    wanted = [3.0, *[None] * 6]
    assert await came_in(tmp_path / "one", [[row] for row in LIVE], lanes) == (wanted, 0)
    assert await came_in(tmp_path / "all", [LIVE], lanes) == (wanted, 0)


async def test_the_next_start_knows_what_came(tmp_path):
    """A field that came before a run was stopped is there for the records behind, in the next start too."""
    assert await came_in(tmp_path, [LIVE[:1]], 0) == ([3.0], 0)
    assert await came_in(tmp_path, [LIVE[1:4]], 2) == ([3.0, None, None, None], 0)
    assert await came_in(tmp_path, [LIVE[4:]], 0) == ([3.0, *[None] * 6], 0)
