"""Arrays lent to a function for one call: what it keeps of them is overwritten behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch

__all__ = ["lending", "overwrite"]


def lending(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` over copies of the arrays in its arguments, which hold NaN or an extreme once it has returned.

    >>> kept = []
    >>> lending(kept.append)(np.array([1.0, 2.0])), kept
    (None, [array([nan, nan])])
    """

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        lent: list[NDArray[Any]] = []
        try:
            value = fn(*_lent(args, lent), **_lent(kwargs, lent))
            try:
                return cloudpickle.loads(cloudpickle.dumps(value))  # it may return views of what it was given
            except Exception:  # noqa: BLE001 - whoever sends the value will say so
                lent.clear()
                return value
        finally:
            for array in lent:
                overwrite(array)

    return called


def _lent(value: Any, lent: list[NDArray[Any]]) -> Any:
    """The value with its arrays copied; the copies are noted in ``lent``."""
    if type(value) in (tuple, list):
        return type(value)(_lent(item, lent) for item in value)
    if type(value) is dict:
        return {name: _lent(item, lent) for name, item in value.items()}
    if type(value) is np.ndarray:
        copy = value.copy()
        lent.append(copy)
        shown = copy.view()
        shown.flags.writeable = value.flags.writeable
        return shown
    if isinstance(value, Batch):
        batch = value.take(np.arange(len(value)))
        columns = [*batch.columns.values(), *([batch.key_column] if batch.key_column is not None else [])]
        lent += [column.values for column in columns]
        lent += [] if batch.time_ns is None else [batch.time_ns]
        return batch
    return value


def overwrite(array: NDArray[Any]) -> None:
    """Fill it with what nobody takes for a value: NaN, or an extreme."""
    array.flags.writeable = True
    match array.dtype.kind:
        case "f" | "c":
            array.fill(np.nan)
        case "i":
            array.fill(np.iinfo(array.dtype).min)
        case "u":
            array.fill(np.iinfo(array.dtype).max)
        case "b":
            np.logical_not(array, out=array)
        case "m" | "M":
            array.fill("NaT")
        case "O":
            array.fill(None)
        case "S" | "U":
            array.fill("")
        case _:
            array.view(np.uint8).fill(255)
