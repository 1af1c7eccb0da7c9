"""The columns that have come to a stage so far, for rows that it puts among the records without one of their own.

Such a row lacks the records' fields; but a function behind the stage may look at them, also where no record comes with
the row. So it has every column that is known, with nothing in it. What the schema does not say is noted in state memory,
where a lane that replaces a dead one finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind, Schema
from tidemill.stages.state import StageState, StateField

__all__ = ["SeenColumns"]

_MOST: Final = 1 << 16
"""Bytes for names and kinds; what does not fit is known only until its lane ends."""
_HEAD: Final = np.zeros(1, np.int32)
_NOTHING: Final = Kind.OBJECT.value
"""The kind of a column that has held only nulls."""


class SeenColumns:
    """Names and kinds, in the order of their first coming: those of the schema, then others."""

    def __init__(self, schema: Schema) -> None:
        self._declared = {field.name: field.kind or Kind.OBJECT for field in schema}
        self._kinds: dict[str, Kind] | None = None
        self._rewritten = 0

    def fields(self) -> Mapping[str, StateField]:
        """Its arrays, for `Stage.state_fields`: two texts, of which the head says which one counts, and its length."""
        texts = {f"columns{n}": StateField("uint8", (_MOST,), per_lane=True, region=("columns", n)) for n in (0, 1)}
        return {"columns": StateField("int64", (1, 2), per_lane=True), **texts}

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], lanes: int) -> list[dict[str, NDArray[Any]]]:
        """For `Stage.moved`: every lane knows what any has seen."""
        kinds: dict[str, str] = {}
        for arrays in old:
            region, size = arrays["columns"][0].tolist()
            told = json.loads(arrays[f"columns{region}"].tobytes()) if size else {}
            kinds.update({name: kind for name, kind in told.items() if kinds.get(name, _NOTHING) == _NOTHING})
        text = np.frombuffer(json.dumps(kinds).encode() if kinds else b"", np.uint8)
        if len(text) > _MOST:
            text = text[:0]
        return [{"columns": np.array([[0, len(text)]]), "columns0": text} for _ in range(lanes)]

    def kinds(self, state: StageState) -> Mapping[str, Kind]:
        """What has come."""
        if self._kinds is None or self._rewritten != state.rewritten:
            region, size = state["columns"][0].tolist()
            told = json.loads(state[f"columns{region}"][:size].tobytes()) if size else {}
            self._kinds = {**self._declared, **{name: Kind(kind) for name, kind in told.items()}}
            self._rewritten = state.rewritten
        return self._kinds

    def note(self, batch: Batch, state: StageState) -> None:
        """Columns come; one that has held only nulls so far is of the kind of its first value."""
        known = self.kinds(state)
        new = {
            name: column.kind
            for name, column in batch.columns.items()
            if known.get(name) is not column.kind and known.get(name, Kind.OBJECT) is Kind.OBJECT
        }
        if new:
            self._write({**known, **new}, state)

    def missing(self, rows: int, state: StageState) -> dict[str, Column]:
        """Every column, with no value in so many rows."""
        return {name: Column.missing(kind, rows) for name, kind in self.kinds(state).items()}

    def _write(self, kinds: dict[str, Kind], state: StageState) -> None:
        self._kinds = kinds
        text = json.dumps({name: kind.value for name, kind in kinds.items()}).encode()
        if len(text) > _MOST:
            return
        region = 1 - int(state["columns"][0, 0])  # nothing that counts is overwritten
        state[f"columns{region}"][: len(text)] = np.frombuffer(text, np.uint8)
        state.save("columns", _HEAD)
        state.seal()
        state["columns"][0] = region, len(text)
