"""Whether a user's function looks at its neighbours in the batch: the same records in other batches say it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tidemill.batch import Batch
from tidemill.core.trial import Change, Made, Trial, change, cut_at, keys_of, marks_of
from tidemill.letters import WRONG_TYPE
from tidemill.stages.base import Stage
from tidemill.stages.functions import FunctionStage

__all__ = ["Finding", "Habit", "habit_of", "whole_of"]

_LAST_DIGITS = 1e-9
"""Relative, or absolute below 1: what rounding in another order can do, and hardly anything else."""


class Habit(enum.Enum):
    """What makes a function give a record other values."""

    ROW_WISE = "row-wise"
    """Nothing: each record has its values whatever batch it comes in."""
    CHANCE = "chance"
    """The very same batch gave others: random numbers, a clock, or something outside."""
    NEIGHBOURS = "neighbours"
    """The records that came with it in the batch."""
    MEMORY = "memory"
    """The batches that came before, kept in the function's own object, or in what all its objects share: a module, a class."""
    KINDS = "kinds"
    """The kinds of the values that it returned with it: texts among numbers."""
    DIGITS = "digits"
    """The size of the batch, in the last digits only: a matrix product, or a sum in another order."""


@dataclass(frozen=True)
class Finding:
    """How a function behaved."""

    habit: Habit
    records: int
    """In the batch that was tried whole, and in halves."""
    singles: int
    """So many of them, the first, were tried one by one as well."""
    how: str = ""
    """In which batches the record ``change`` came out otherwise."""
    change: Change | None = None


def whole_of(stage: Stage, batch: Batch) -> Made:
    """What the stage makes of the whole batch."""
    return _trial(stage, batch).feed_all([batch])


def habit_of(
    stage: Stage,
    batch: Batch,
    whole: Made,
    *,
    singles: int,
    more: Callable[[], bool],
    remade: Callable[[], Stage | None],
) -> Finding:
    """Give the stage the batch again, in halves, and its first ``singles`` records one by one; compare to the last bit.

    ``whole`` is what its first call gave. ``more`` is asked before each single record: once it says no (the time is up),
    those so far are enough. ``remade`` gives the stage as it was before that first call, with all that its functions keep
    anywhere; None where that is not to be had, or says nothing.

    Of several habits the one is told that harms most: what is remembered is lost with a lane, while rounding is small.
    Costs six calls of the function, and one for each single record.
    """
    rows = len(batch)
    found = change(whole_of(stage, batch), whole)
    if found is not None:
        again = remade()
        remembers = again is not None and change(whole_of(again, batch), whole) is None
        return Finding(Habit.MEMORY if remembers else Habit.CHANCE, rows, 0, "the second time", found)
    halves = cut_at(batch, [rows // 2])
    split = _trial(stage, batch).feed_all(halves)
    how = f"in batches of {len(halves[0]):,} and {len(halves[1]):,}"
    if isinstance(stage, FunctionStage) and not stage.state_fields():
        found = change(_by_new_objects(stage, batch), split)
        if found is not None:
            return Finding(Habit.MEMORY, rows, 0, f"{how}, the second by a new object", found)
    digits = _of_cuts(split, whole, Finding(Habit.ROW_WISE, rows, 0, how))
    if digits.habit in (Habit.NEIGHBOURS, Habit.KINDS):
        return digits
    lane = _trial(stage, batch)
    made: list[Made] = []
    for piece in cut_at(batch.slice(0, singles), range(1, min(singles, rows))):
        if made and not more():
            break
        made.append(lane.feed(piece))
    tried = len(made)
    if stage.follows_watermark:
        made.append(lane.finish())
    together = _trial(stage, batch).feed_all([batch.slice(0, tried)])
    alone = _of_cuts(Made.joined(made), together, Finding(Habit.ROW_WISE, rows, tried, "alone"))
    if alone.habit is Habit.ROW_WISE and digits.habit is Habit.DIGITS:
        return replace(digits, singles=tried)
    return alone


def _trial(stage: Stage, batch: Batch, **options: Any) -> Trial:
    return Trial(stage, keys_of(batch), records=len(batch), marks=marks_of(batch), **options)


def _by_new_objects(stage: Stage, batch: Batch) -> Made:
    """In halves, each by an object of its own, which knows what the other has learned of kinds."""
    first, second = cut_at(batch, [len(batch) // 2])
    lane = _trial(stage, batch)
    made = lane.feed(first)
    other = _trial(stage, batch, kinds=lane.learned, fed=len(first))
    return Made.joined([made, other.feed(second)])


def _of_cuts(got: Made, expected: Made, tried: Finding) -> Finding:
    """What batches that are cut otherwise say: the first record that differs by more than rounding, or at all."""
    found = change(got, expected, gap=_LAST_DIGITS)
    if found is not None:
        return replace(tried, habit=Habit.KINDS if WRONG_TYPE in found.codes else Habit.NEIGHBOURS, change=found)
    found = change(got, expected)
    return replace(tried, how="") if found is None else replace(tried, habit=Habit.DIGITS, change=found)
