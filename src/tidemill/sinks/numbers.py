"""The numbers by which a reader knows a row that comes again: of the row, and of the start that made it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Kind

__all__ = ["refuse_numbers", "with_numbers"]

_NAMES: Final = ("_epoch", "_seq")


def with_numbers(batch: Batch, sink: str) -> Batch:
    """The rows with two columns more, which a run that keeps state gives numbers for; without, as they are."""
    if batch.sequence is None:
        return batch
    refuse_numbers(batch.columns, sink)
    values = (np.full(len(batch), batch.epoch), batch.sequence)
    return batch.with_columns({name: Column(Kind.INT, numbers) for name, numbers in zip(_NAMES, values, strict=True)})


def refuse_numbers(names: Iterable[str], sink: str) -> None:
    """A column of the user's is never written over."""
    taken = [name for name in names if name in _NAMES]
    if taken:
        raise PlanError(
            f"sink {sink}: numbered=True adds {' and '.join(_NAMES)}, and there is a column {taken[0]!r} already; "
            "rename it, or choose others with columns=[...]."
        )
