"""Values that no record may bring: infinite numbers, text that UTF-8 cannot hold, objects that no other process can get.

Each is found a column at a time, and only the records that hold one are rejected.
"""

from __future__ import annotations

import math
import pickle
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.by_value import dumps
from tidemill.letters import INFINITE, MALFORMED, WRONG_TYPE, Reject
from tidemill.schema import Kind

__all__ = ["check_sendable", "find_infinite", "find_surrogates", "find_unsendable", "is_unicode"]

_NAMES: Final = pickle.STACK_GLOBAL
"""Somewhere in every pickle that names a class or a function, which may fail where it is read."""


def find_infinite(batch: Batch, rejects: dict[int, Reject]) -> None:
    floats = [(name, column) for name, column in batch.columns.items() if column.kind is Kind.FLOAT]
    with np.errstate(all="ignore"):
        sums = [float(np.add.reduce(column.values)) for _, column in floats]
    for (name, column), total in zip(floats, sums, strict=True):
        if math.isfinite(total):
            continue  # so is every value
        for row in np.flatnonzero(np.isinf(column.values)).tolist():
            rejects.setdefault(row, Reject(row, INFINITE, f"field {name!r} holds an infinite number"))


def find_surrogates(batch: Batch, rejects: dict[int, Reject]) -> None:
    for name, column in batch.columns.items():
        if column.kind is not Kind.TEXT or column.texts is None or is_unicode("".join(column.texts.tolist())):
            continue
        for code, text in enumerate(column.texts.tolist()):
            if not is_unicode(text):
                for row in np.flatnonzero(column.values == code).tolist():
                    rejects.setdefault(row, Reject(row, MALFORMED, f"field {name!r} is not valid Unicode text"))


def find_unsendable(batch: Batch, rejects: dict[int, Reject]) -> None:
    """Rejects values that cannot go to a lane or a sink, which are other processes: a lock, an open file."""
    for name, column in batch.columns.items():
        if column.kind is not Kind.OBJECT or _why_unsendable(items := column.values.tolist()) is None:
            continue
        for row, item in enumerate(items):
            if row not in rejects and (why := _why_unsendable(item)) is not None:
                reason = f"field {name!r} holds a {type(item).__name__} that cannot be sent to another process: {why}"
                rejects[row] = Reject(row, WRONG_TYPE, reason)


def _why_unsendable(item: Any) -> str | None:
    try:
        check_sendable(item)
    except Exception as error:  # noqa: BLE001 - the item's own code may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def check_sendable(value: Any) -> None:
    """Raises what its own methods raise, where it is pickled for another process or read there."""
    data = dumps(value)
    if _NAMES in data:  # nothing else can fail to be read
        pickle.loads(data)  # noqa: S301 - what we just made


def is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
