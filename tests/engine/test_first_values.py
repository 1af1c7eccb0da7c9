"""Live columns whose first value is not what the plan needs: the fault of its record, and not what the column is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.column import Column
from tidemill.kinds import Kinds
from tidemill.schema import Asked, Kind, Schema
from tidemill.testing import ListSink

NUMBER = Asked((Kind.FLOAT, Kind.INT, Kind.BOOL), "as Lag('value') needs it")


async def coming(*values: Any) -> AsyncIterator[dict[str, Any]]:
    for number, value in enumerate(values):
        yield {"sensor": "S", "time": 1_700_000_000 + number, "value": value}


@pytest.mark.parametrize("first", ["n/a", "", [1.5], {"is": 1.5}])
@pytest.mark.parametrize("lanes", [0, 1])
async def test_a_first_value_that_is_no_number_ends_no_run(first: Any, lanes: int, tmp_path: Any) -> None:
    """A device that starts with "n/a" would stop the plant, and a text that came first have all numbers rejected."""
    dead, sink = tmp_path / "dead.ndjson", ListSink()
    source = tm.sources.Records(coming(first, 1.0, 2, first, 3.0))
    pipeline = tm.Pipeline(source, tm.Rolling("value", window=2, stats=["mean"]), sink)
    async with tm.serve(pipeline, lanes=lanes, state=False, dead_letters=dead) as run:
        report = await run.wait()
    assert [row["value_mean_2"] for row in sink.rows] == [1.0, 1.5, 2.5]
    assert report.dead_letters == 2
    assert '"reason_code":"wrong_type"' in dead.read_text()


async def test_where_nothing_fits_the_reason_names_the_stage(tmp_path: Any) -> None:
    """And what it needs."""
    dead = tmp_path / "dead.ndjson"
    pipeline = tm.Pipeline(tm.sources.Records(coming("n/a", "n/a")), tm.Lag("value", 1), ListSink())
    async with tm.serve(pipeline, lanes=0, state=False, dead_letters=dead) as run:
        report = await run.wait()
    assert (report.rows_out, report.dead_letters) == (0, 2)
    said = "field 'value' has to be float or int or bool, as Lag('value') needs it, and this record has str"
    assert dead.read_text().count(said) == 2


async def test_a_function_may_make_a_number_of_a_text() -> None:
    """Behind one that does not say what it makes, nothing is asked of what comes in."""
    sink = ListSink()
    plan = tm.Plan(
        tm.MapRows(lambda rows: [{**row, "number": float(row["value"])} for row in rows]), tm.Lag("number", 1)
    )
    async with tm.serve(tm.Pipeline(tm.sources.Records(coming("1.5", "2.5")), plan, sink), lanes=0, state=False) as run:
        await run.wait()
    assert [row["number_lag_1"] for row in sink.rows][1:] == [1.5]


@pytest.mark.parametrize(("kind", "value"), [(int, 1), (object, 1.5), ("time", "2024-03-01T00:00:00Z"), (float, 2)])
async def test_what_one_source_declares_is_what_the_column_is_in_the_others(kind: Any, value: Any) -> None:
    """Whichever of them speaks first."""
    sink = ListSink()
    sources = [
        tm.sources.Records(coming(value), columns={"value": kind}, name="one"),
        tm.sources.Records(coming(value), name="other"),
    ]
    async with tm.serve(tm.Pipeline(sources, tm.Plan(), sink), lanes=0, state=False) as run:
        report = await run.wait()
    assert (report.dead_letters, [row["value"] for row in sink.rows]) == (0, [sink.rows[0]["value"]] * 2)


@pytest.mark.parametrize("header", ["", '"header":["sensor","time","value"],'])
def test_letters_of_which_one_was_repaired_give_that_one(header: str, tmp_path: Any) -> None:
    """Most of what is in the file is what it was refused for."""
    raws = [(7, '"n/a"'), (8, '"n/a"'), (9, "2.0")]
    shown = [
        f'"S,{time},{value.strip(chr(34))}"' if header else f'{{"sensor":"S","time":{time},"value":{value}}}'
        for time, value in raws
    ]
    letters = tmp_path / "dead.ndjson"
    letters.write_text("".join(f'{{"reason_code":"wrong_type",{header}"raw":{raw}}}\n' for raw in shown))
    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.DeadLetters(letters), tm.Lag("value"), sink)
    report = tm.run(pipeline, lanes=0, dead_letters=tmp_path / "again.ndjson")
    assert [row["value"] for row in sink.rows] == [2.0]
    assert report.dead_letters == 2


def test_a_time_is_no_number() -> None:
    """Whose nanoseconds a float would round."""
    kinds = Kinds()
    kinds.ask({"value": NUMBER})
    column, rejects = kinds.column(
        "value", Column(Kind.TIME, np.array([10**18 + 1, 0]), tags=np.array([0, 1], np.uint8))
    )
    assert [(reject.row, reject.reason) for reject in rejects] == [
        (0, "field 'value' has to be float or int or bool, as Lag('value') needs it, and this record has time")
    ]
    assert column.to_list() == [None, None]
    assert kinds.get("value") is None


def test_a_plan_asks_for_what_may_come_with_a_record() -> None:
    """Not for what is there already, nor for what a stage has made, nor for what may be anything."""
    plan = tm.Plan(tm.Lag("value", 1), tm.Rolling(["value_lag_1", "other"], window=2, stats=["mean"]))
    assert {name: asked.kinds for name, asked in plan.asks(Schema(open=True)).items()} == {
        "value": NUMBER.kinds,
        "other": NUMBER.kinds,
    }
    assert set(plan.asks(Schema.of({"value": float}).opened())) == {"other"}
    assert plan.asks(Schema.of({"value": float, "other": float})) == {}


values = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=2), st.just([1]))


@given(st.lists(values, max_size=12), st.data())
def test_what_is_taken_does_not_depend_on_how_records_are_cut(items: list[Any], data: st.DataObject) -> None:
    """The first value that fits says what the column is, wherever a batch begins; nothing else passes."""

    def taken(parts: list[list[Any]]) -> tuple[list[Any], list[int], Kind | None]:
        kinds = Kinds()
        kinds.ask({"value": NUMBER})
        made, lost, start = [], [], 0
        for part in parts:
            column, rejects = kinds.column("value", part)
            lost += [start + reject.row for reject in rejects]
            made += [item for row, item in enumerate(column.to_list()) if row not in {r.row for r in rejects}]
            start += len(part)
        return made, lost, kinds.get("value")

    cut = data.draw(st.integers(0, len(items)))
    whole, parts = taken([items]), taken([part for part in (items[:cut], items[cut:]) if part])
    assert whole == (parts if items else taken([[]]))
    assert all(type(item) in (bool, int, float, type(None)) for item in whole[0])
    assert {items[place] is None for place in whole[1]} <= {False}
    assert np.isin([str(item) for item in whole[0]], [str(item) for item in items]).all()
