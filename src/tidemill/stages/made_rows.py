"""What the stages share that make rows without a record: the sensor's own name in them, and where they come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidemill.column import INTEGER_TAG, Column
from tidemill.schema import NAMING, Kind, Schema
from tidemill.stages.state import StageState

__all__ = ["KeyField", "crossings"]


class KeyField:
    """The column that names the sensor in a row without a record, of the kind that it has in the records.

    A key is text, made of what the record said; a record's number is read back from it.
    """

    def __init__(self, schema: Schema) -> None:
        self.name = schema.key
        kind = schema[self.name].kind if self.name in schema else None
        self.kind = kind if kind in NAMING else Kind.TEXT

    def column(self, slots: NDArray[np.int32], keys: NDArray[np.object_]) -> Column:
        """The names of these key slots."""
        used, codes = np.unique(slots, return_inverse=True)
        names: Sequence[str] = keys[used].tolist()
        if self.kind is Kind.TEXT:
            texts = np.fromiter(names, object, len(names))
            return Column(Kind.TEXT, codes.astype(np.int32), texts=texts)
        if self.kind is Kind.BOOL:
            return Column(Kind.BOOL, np.array([name == "True" for name in names], np.bool_)[codes])
        if self.kind is Kind.INT:
            return Column(Kind.INT, np.array([int(name) for name in names], np.int64)[codes])
        whole = np.array([name.lstrip("-").isdigit() for name in names], np.bool_)[codes]
        tags = np.where(whole, INTEGER_TAG, 0).astype(np.uint8) if whole.any() else None
        values = np.array([float(name) for name in names])[codes]
        large = np.flatnonzero(whole & (np.abs(values) >= 2.0**53)).tolist()
        exact = {row: int(names[codes[row]]) for row in large}
        return Column(Kind.FLOAT, values, tags=tags, exact=exact or None)


def crossings(state: StageState, thresholds: NDArray[np.int64]) -> NDArray[np.int32]:
    """Place in the slab of the record with which the watermark reached each threshold."""
    places = np.searchsorted(state.marks[1:], thresholds)
    return np.minimum(places, max(len(state.marks) - 2, 0)).astype(np.int32)
