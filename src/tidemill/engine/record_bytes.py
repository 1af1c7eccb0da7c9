"""What records weigh: their bytes in memory, and what of them must be encoded before lanes can have them."""

from __future__ import annotations

import pickle
from typing import Final

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind

__all__ = ["record_bytes"]

_SAMPLE: Final = 64  # texts
_SAMPLE_OBJECTS: Final = 8
_TEXT_COST: Final = 40  # bytes of text that take as long to encode as there being a text at all
_OBJECT_COST: Final = 100  # the same of an object
_PICKLE_COST: Final = 25  # and of each byte of a pickle


def record_bytes(batch: Batch) -> tuple[float, float]:
    """What a record holds in memory, roughly, and what of it must be encoded, as bytes of text that take as long.

    Nested values are counted as 200 bytes each in memory; texts, and the time that objects take, by a sample.
    """
    total = encoded = 0.0
    for column in batch.columns.values():
        if column.kind is Kind.OBJECT:
            total += 200
            encoded += _OBJECT_COST + _PICKLE_COST * _pickled_bytes(column)
            continue
        total += column.values.itemsize
        if column.kind is Kind.TEXT and column.texts is not None and len(column.texts):
            sample = column.texts[:: max(len(column.texts) // _SAMPLE, 1)]
            each = sum(map(len, sample)) / len(sample)
            share = min(len(column.texts) / max(len(batch), 1), 1.0)  # a text of many records is held once
            total += each * share
            encoded += (each + _TEXT_COST) * share
    return total, encoded


def _pickled_bytes(column: Column) -> float:
    """Bytes of an item's pickle, by a sample."""
    if column.is_missing:
        return 0.0
    sample = column.values[:: max(len(column.values) // _SAMPLE_OBJECTS, 1)].tolist()
    try:
        return len(pickle.dumps(sample, pickle.HIGHEST_PROTOCOL)) / len(sample)
    except Exception:  # noqa: BLE001 - whoever must pickle it will say so
        return 0.0
