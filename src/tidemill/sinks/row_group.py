"""Rows gathered, by copy, until there are enough of them for a row group of a Parquet file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import DTYPES, NAT, Column
from tidemill.schema import Kind
from tidemill.sinks.text import cell_text, clean_text

__all__ = ["RowGroup", "kind_of"]


def kind_of(column: Column) -> Kind | None:
    """The column's kind; None while it holds nothing but nulls, which any kind may follow."""
    if column.kind is Kind.OBJECT and all(item is None for item in column.values):
        return None
    return column.kind


class RowGroup:
    """At most ``capacity`` rows, column by column; a column that a batch lacks is null in its rows."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows = 0
        self._columns: dict[str, _Gathered] = {}

    @property
    def kinds(self) -> dict[str, Kind | None]:
        return {name: gathered.kind for name, gathered in self._columns.items()}

    def append(self, batch: Batch, kinds: dict[str, Kind | None]) -> None:
        """Copy these rows, which must fit; ``kinds`` are the kinds of its columns as `kind_of` tells them."""
        for name, kind in kinds.items():
            gathered = self._columns.get(name)
            if gathered is None:
                gathered = self._columns[name] = _Gathered(self.capacity, self.rows)
            if kind is not None and gathered.kind is not kind:
                gathered.settle(kind, self.rows)
        for name, gathered in self._columns.items():
            column = batch.columns.get(name)
            if column is None or kinds[name] is None:
                gathered.skip(self.rows, len(batch))
            else:
                gathered.copy(column, self.rows)
        self.rows += len(batch)

    def arrays(self, kinds: dict[str, Kind | None]) -> list[Any]:
        """One pyarrow array for each column of ``kinds``, in that order."""
        import pyarrow as pa

        return [
            self._columns[name].array(self.rows) if name in self._columns else pa.nulls(self.rows, arrow_type(kind))
            for name, kind in kinds.items()
        ]

    def clear(self) -> None:
        """Forget the rows."""
        self.rows = 0
        self._columns.clear()


def arrow_type(kind: Kind | None) -> Any:
    """How a kind is stored: text as a dictionary, which is also how the file stores it."""
    import pyarrow as pa

    match kind:
        case None:
            return pa.null()
        case Kind.FLOAT:
            return pa.float64()
        case Kind.INT:
            return pa.int64()
        case Kind.BOOL:
            return pa.bool_()
        case Kind.TIME:
            return pa.timestamp("ns", "UTC")
        case Kind.TEXT:
            return pa.dictionary(pa.int32(), pa.string())
        case Kind.OBJECT:
            return pa.string()


class _Gathered:
    """One column of the group."""

    def __init__(self, capacity: int, rows_before: int) -> None:
        self.kind: Kind | None = None
        self._capacity = capacity
        self._values: NDArray[Any] = np.empty(0)
        self._missing: NDArray[np.bool_] | None = None
        self._codes: dict[str, int] = {}
        self._recoding: tuple[NDArray[np.object_], NDArray[np.int32]] | None = None
        self.skip(0, rows_before)

    def settle(self, kind: Kind, rows_before: int) -> None:
        """The first value shows the kind; the rows before it have none."""
        self.kind = kind
        self._values = np.empty(self._capacity, DTYPES[kind])
        self.skip(0, rows_before)

    def skip(self, start: int, rows: int) -> None:
        if rows:
            self._missing_mask()[start : start + rows] = True
            if self.kind is not None:
                self._values[start : start + rows] = 0

    def copy(self, column: Column, start: int) -> None:
        stop = start + len(column)
        if self.kind is Kind.TEXT:
            self._values[start:stop] = self._recoded(column)
        else:
            self._values[start:stop] = column.values
        missing = self._missing_of(column)
        if missing is not None:
            self._missing_mask()[start:stop] = missing

    def array(self, rows: int) -> Any:
        import pyarrow as pa

        if self.kind is None:
            return pa.nulls(rows)
        values = self._values[:rows]
        mask = None if self._missing is None else self._missing[:rows]
        kind = arrow_type(self.kind)
        if self.kind is Kind.TEXT:
            codes = _fixed(values, pa.int32(), mask)
            return pa.DictionaryArray.from_arrays(codes, _texts(list(map(clean_text, self._codes))))
        if self.kind is Kind.OBJECT:
            return _texts(["" if item is None else cell_text(item) for item in values], _with_nones(values, mask))
        return _fixed(values, kind, mask)

    def _missing_mask(self) -> NDArray[np.bool_]:
        if self._missing is None:
            self._missing = np.zeros(self._capacity, np.bool_)
        return self._missing

    def _missing_of(self, column: Column) -> NDArray[np.bool_] | None:
        missing: NDArray[np.bool_] | None = None
        if self.kind is Kind.TEXT:
            missing = column.values < 0
        elif column.tags is not None:
            missing = column.missing_rows()
        if self.kind is Kind.TIME:
            unknown = column.values == NAT
            missing = unknown if missing is None else missing | unknown
        if self.kind is Kind.INT and column.exact:  # beyond 64 bits: no Parquet integer holds it
            missing = np.zeros(len(column), np.bool_) if missing is None else missing
            missing[list(column.exact)] = True
        return missing if missing is not None and missing.any() else None

    def _recoded(self, column: Column) -> NDArray[np.int32]:
        """The column's codes, changed to this group's; batches of one slab share their texts."""
        texts = column.texts
        assert texts is not None
        if len(texts) > 2 * len(column):  # a big table of which few entries are used
            used, places = np.unique(column.values, return_inverse=True)
            changed = (-1 if code < 0 else self._code(texts[code]) for code in used.tolist())
            recoded: NDArray[np.int32] = np.fromiter(changed, np.int32, len(used))[places]
            return recoded
        if self._recoding is None or self._recoding[0] is not texts:
            table = np.fromiter(map(self._code, texts), np.int32, len(texts))
            self._recoding = (texts, np.append(table, np.int32(-1)))  # code -1 reads the last entry
        codes: NDArray[np.int32] = self._recoding[1][column.values]
        return codes

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))


# pyarrow.array would import pandas, wherever it is installed, to ask whether what it was given is of pandas: most of a
# second in the sink's process before its first row group. These make the same arrays of their buffers.


def _fixed(values: NDArray[Any], kind: Any, missing: NDArray[np.bool_] | None) -> Any:
    """An array of a fixed width over the memory of ``values``."""
    import pyarrow as pa

    data = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [_validity(missing), pa.py_buffer(data)])


def _texts(texts: list[str], missing: NDArray[np.bool_] | None = None) -> Any:
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    if len(ends) and ends[-1] >= 1 << 31:  # more than one array can hold: let pyarrow make several
        return pa.array(texts, pa.string(), mask=missing)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    buffers = [_validity(missing), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _validity(missing: NDArray[np.bool_] | None) -> Any:
    import pyarrow as pa

    return None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))


def _with_nones(items: NDArray[Any], missing: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    nones = np.fromiter((item is None for item in items), np.bool_, len(items))
    return nones if missing is None else nones | missing
