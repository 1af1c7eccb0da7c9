"""Rows into the user's function."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import OutsideError, PlanError, StageError
from tidemill.schema import Schema

BATCH = Batch.from_rows([{"sensor": "S1", "value": 20}, {"sensor": "S2", "value": 21.5}])


async def test_a_function_gets_the_batch() -> None:
    """Or dicts, when it asks for rows; the sink counts what was taken."""
    seen: list[Any] = []
    sink = sinks.Callback(seen.append)
    await sink.open(Schema(open=True))
    await sink.write(BATCH)
    await sinks.Callback(seen.append, rows=True).write(BATCH)
    await sink.close()
    assert seen == [BATCH, BATCH.to_rows()]
    assert sink.statistics().rows == 2


async def test_an_async_function_is_awaited_before_the_next() -> None:
    """A slow one holds the sink back, not the loop."""
    seen: list[str] = []

    async def slow(_: Batch) -> None:
        seen.append("begins")
        await asyncio.sleep(0)
        seen.append("ends")

    sink = sinks.Callback(slow)
    for _ in range(2):
        await sink.write(BATCH)
    assert seen == ["begins", "ends"] * 2


async def test_an_exception_names_the_sink_and_the_function() -> None:
    """It stops the run; errors of tidemill itself pass as they are; what failed is not counted as taken."""

    def broken(_: Batch) -> None:
        raise KeyError("unit")

    sink = sinks.Callback(broken, name="alarms")
    with pytest.raises(StageError, match=r"sink alarms: .*broken raised KeyError: 'unit'"):
        await sink.write(BATCH)
    assert sink.statistics().rows == 0

    async def refused(_: Batch) -> None:
        raise OutsideError("the pager is down")

    with pytest.raises(OutsideError, match="the pager is down"):
        await sinks.Callback(refused).write(BATCH)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
async def test_what_is_no_exception_is_told_alike(error: type[BaseException]) -> None:
    """``sys.exit`` does not end the program; the cancel of the sink's own task passes."""

    def leaves(_: Batch) -> None:
        raise error("3")

    async def soon(_: Batch) -> None:
        raise error("3")

    for function in (leaves, soon):
        with pytest.raises(StageError, match=f"sink callback: .* raised {error.__name__}: 3"):
            await sinks.Callback(function).write(BATCH)

    async def never(_: Batch) -> None:
        await asyncio.Event().wait()

    writing = asyncio.create_task(sinks.Callback(never).write(BATCH))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_where_and_columns() -> None:
    """A mask of another shape, or a mask function that fails, is named."""
    sink = sinks.Callback(print, where=lambda batch: batch["value"] > 20, columns=["value"])
    assert sink.chosen(BATCH).to_rows() == [{"value": 21.5}]
    with pytest.raises(StageError, match=r"where= of sink callback returned a mask of shape \(1,\) for 2"):
        sinks.Callback(print, where=lambda _: [True]).chosen(BATCH)  # type: ignore[arg-type, return-value]
    with pytest.raises(StageError, match="where= of sink callback raised PlanError: there is no column 'x'"):
        sinks.Callback(print, where=lambda batch: batch["x"] > 0).chosen(BATCH)


async def test_where_takes_what_is_missing_for_no() -> None:
    """A field that no record of a batch has, or some have not; without an end of the run, wherever the batch ends."""
    rows = [{"alarm": True}, {"alarm": None}, {"unit": "C"}, {"alarm": False}]
    sink = sinks.Callback(print, where="alarm")
    for batches in ([rows], [[row] for row in rows]):
        assert [row for part in batches for row in sink.chosen(Batch.from_rows(part)).to_rows()] == rows[:1]
    assert not len(sinks.Callback(print, where="humidity > 52").chosen(BATCH))
    with pytest.raises(PlanError, match="sink callback needs a column 'humidity'"):
        sinks.Callback(print, where="humidity > 52").bind(BATCH.schema)


@pytest.mark.parametrize("where", ["value", lambda batch: batch["value"]])
async def test_where_is_of_bools_alone(where: Any) -> None:
    """A number is no decision: NaN would be a yes."""
    with pytest.raises(
        StageError, match="where= of sink callback returned an array of float64; a bool array is needed"
    ):
        sinks.Callback(print, where=where).chosen(BATCH)


def test_not_a_function() -> None:
    """Found when the pipeline is written."""
    with pytest.raises(PlanError, match="needs a function, not str"):
        sinks.Callback("print")  # type: ignore[arg-type]
