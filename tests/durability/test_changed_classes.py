"""A state that holds objects of an earlier version of a class."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.durability.endless import Endless

import tidemill as tm


class Mean:
    """As it was: it kept two values."""

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        self.total += record["value"]
        return {"mean": self.total / self.count}

    def snapshot(self) -> tuple[float, ...]:
        return self.count, self.total


class Forgetting(Mean):
    """The first version."""

    def restore(self, kept: tuple[float, ...]) -> None:
        self.count, self.total = kept  # type: ignore[assignment]


class Peaked(Mean):
    """The second one, which keeps three values."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0.0

    def snapshot(self) -> tuple[float, ...]:
        return self.count, self.total, self.peak

    def restore(self, kept: tuple[float, ...]) -> None:
        self.count, self.total, self.peak = kept  # type: ignore[assignment]


class Patient(Peaked):
    """The same, which takes what the first one kept too."""

    def restore(self, kept: tuple[float, ...]) -> None:
        self.count, self.total, self.peak = (*kept, 0.0)[:3]  # type: ignore[assignment]


class Stored:
    """Kept by its attributes; a version behind it is to read them."""

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.last = record["value"]
        return {}


class Choosy(Stored):
    """The second version of that."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.last, self.first = state["last"], state["first"]


def called(name: str, kind: type) -> Any:
    """The class, as the version of another one: a run knows it by its name."""
    return type(name, (kind,), {"__qualname__": name, "__module__": __name__})


async def ran(
    folder: Path, kind: Any, seconds: int, lanes: int, *, rows: int = 4, **state: Any
) -> list[dict[str, Any]]:
    """The rows of one more run, with two more records of each sensor, once there are so many."""
    records = [
        {"sensor": sensor, "time": n, "value": n} for sensor in ("press-1", "press-2") for n in (seconds, seconds + 1)
    ]
    made: list[dict[str, Any]] = []
    there = asyncio.Event()

    def take(some: list[dict[str, Any]]) -> None:
        made.extend(some)
        if len(made) >= rows:
            there.set()

    plan = tm.Plan(tm.Diff("value"), tm.Keyed(kind))
    pipeline = tm.Pipeline(Endless([records]), plan, tm.sinks.Callback(take, rows=True), name="plant")
    async with tm.serve(pipeline, lanes=lanes, state=tm.State(folder / "state", **state)):
        await there.wait()
    return made


async def test_a_version_that_does_not_take_what_an_earlier_one_kept_is_told_with_what_to_do(tmp_path, lanes):
    """By the sensor, the class and its line; and either way that is named is one."""
    await ran(tmp_path, called("Logic", Forgetting), 0, lanes)
    line = Peaked.restore.__code__.co_firstlineno + 1
    with pytest.raises(tm.StageError) as raised:
        await ran(tmp_path, called("Logic", Peaked), 2, lanes)
    assert str(raised.value).replace("press-2", "press-1") == (  # of two lanes, either may be the first
        "Keyed(Logic): the object of sensor 'press-1', a Logic, cannot be made again from what was kept of it (ValueError: not "
        f"enough values to unpack (expected 3, got 2), in restore, {__file__}, line {line}). If an earlier version of the class "
        "kept that, let restore() take it too. To go on without it, rename the class and start with --drop-state "
        '"Keyed(Logic)" (State(drop_state=...) in a program).'
    )
    rows = await ran(tmp_path, called("Logic", Patient), 4, lanes, rows=8)
    assert [row["mean"] for row in rows if row["sensor"] == "press-2"] == [1.0, 1.5, 2.0, 2.5]


async def test_the_new_version_may_begin_anew_under_another_name(tmp_path, lanes):
    """The other stages go on."""
    await ran(tmp_path, called("Logic", Forgetting), 0, lanes)
    rows = await ran(tmp_path, called("Logic2", Peaked), 2, lanes, drop_state=("Keyed(Logic)",))
    assert [(row["value_diff_1"], row["mean"]) for row in rows] == [(1.0, 2.0), (1.0, 2.5)] * 2


async def test_a_pickled_object_that_cannot_be_read_is_told_too(tmp_path, lanes):
    """It has no restore() that could take it."""
    await ran(tmp_path, called("Logic", Stored), 0, lanes)
    with pytest.raises(
        tm.StageError, match=r"sensor 'press-.', a Logic, .*KeyError: 'first', in __setstate__, .* line"
    ):
        await ran(tmp_path, called("Logic", Choosy), 2, lanes)
