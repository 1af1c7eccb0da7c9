"""`Batch`: records as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.orders import Orders, Part, joined
from tidemill.schema import Field, Kind, Schema

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["Batch"]


class Batch:
    """Records as columns: 1-D arrays of one length, with the sensor and the time of each record beside them.

    ``batch["value"]``       the column as a read-only 1-D array of ``len(batch)``: float64 for numbers (NaN where
                             missing), str objects for text (None where missing), datetime64[ns] UTC for times
    ``batch.codes("unit")``  int32 codes of a text column (-1 where missing); ``batch.texts("unit")`` names them
    ``batch.key``            int32 codes of each record's sensor; ``batch.keys`` names them
    ``batch.time``           int64 nanoseconds since 1970-01-01 UTC, whichever field the source read them from;
                             ``batch["time"]`` is the records' own field of that name, as it came

    A batch is never changed; the ``with_``, ``take`` and ``slice`` methods return new ones that share memory.
    Arrays handed to a function in a lane are valid for that call only.

    >>> batch = Batch.from_rows([{"sensor": "S1", "value": 20}, {"sensor": "S2", "value": 21.5}])
    >>> batch["value"]
    array([20. , 21.5])
    >>> batch.to_rows()
    [{'sensor': 'S1', 'value': 20}, {'sensor': 'S2', 'value': 21.5}]
    """

    __slots__ = (
        "_rows",
        "arrived_ns",
        "columns",
        "epoch",
        "key_column",
        "orders",
        "origin",
        "origin_names",
        "sequence",
        "time_ns",
    )

    def __init__(
        self,
        columns: Mapping[str, Column],
        *,
        rows: int | None = None,
        key: Column | None = None,
        time: NDArray[np.int64] | None = None,
        arrived_ns: int = 0,
    ) -> None:
        self.columns = dict(columns)
        self._rows = rows if rows is not None else len(next(iter(self.columns.values()), ()))
        self.key_column = key
        self.time_ns = time
        self.arrived_ns = arrived_ns
        """Monotonic time at which the read that brought these records returned; 0 when unknown."""
        self.origin: Sequence[dict[str, Any]] | None = None
        """The user's own dicts, when the records came as dicts: what `to_rows` gives back unchanged."""
        self.origin_names: frozenset[str] = frozenset()
        """The columns that still hold what ``origin`` holds."""
        self.sequence: NDArray[np.int64] | None = None
        """In a sink of a run that keeps state: the number of each row among all that the pipeline has made since its first
        start, int64 of shape ``(len(batch),)``. A row that comes again, after a start, has the number that it had."""
        self.epoch = 0
        """There, the number of the start that made these rows."""
        self.orders: Orders | None = None
        """Per record, which of several field orders it had; None when all had the columns' order."""

    # -- reading -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"Batch({len(self)} records; {self.schema})"

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.column(name).array

    if not TYPE_CHECKING:  # or every attribute would be there

        def __getattr__(self, name: str) -> Any:
            """Says where a column is, which of a DataFrame is an attribute too."""
            hint = f"; the column is batch[{name!r}]" if name not in self.__slots__ and name in self.columns else ""
            raise AttributeError(f"a Batch has no attribute {name!r}{hint}", name=name, obj=self)

    def column(self, name: str) -> Column:
        """The column with its tags; ``batch[name]`` is the array alone."""
        try:
            return self.columns[name]
        except (KeyError, TypeError):  # a slice has no hash
            there = ", ".join(self.columns) or "none"
            hint = " The records' times are batch.time." if name == "time" else ""
            if not isinstance(name, str):  # who asks takes it for an array
                hint = f" A function gets a Batch, columns by name; an array with a row for each record is {self._stacked()}."
            raise PlanError(
                f"there is no column {name!r} in this batch; the columns there are: {there}.{hint}"
            ) from None

    def _stacked(self) -> str:
        """An array of the columns of numbers, as code."""
        numbers = (Kind.FLOAT, Kind.INT, Kind.BOOL)
        names = [name for name, column in self.columns.items() if column.kind in numbers and name != "time"]
        shown = [f"batch[{name!r}]" for name in names[:2]] + ["..."] * (len(names) > 2)
        return f"np.stack([{', '.join(shown or ['...'])}], axis=1)"

    def codes(self, name: str) -> NDArray[np.int32]:
        """Codes of a text column, shape ``(len(batch),)``, int32; -1 where there is no text."""
        column = self.column(name)
        if column.kind is not Kind.TEXT:
            raise PlanError(f"column {name!r} is {column.kind.value}, not text: only text has codes.")
        return column.values

    def texts(self, name: str) -> NDArray[np.object_]:
        """The texts that ``codes(name)`` point into."""
        self.codes(name)
        texts = self.columns[name].texts
        assert texts is not None
        return texts

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def schema(self) -> Schema:
        """The columns' kinds: None for one in which no row has a value, since it could still be any.

        >>> Batch.from_rows([{"sensor": "S1", "value": None}]).schema
        Schema(sensor: text, value: unknown)
        """
        return Schema(
            Field(name, None if column.kind is Kind.OBJECT and column.is_missing else column.kind)
            for name, column in self.columns.items()
        )

    @property
    def key(self) -> NDArray[np.int32]:
        """Code of each record's sensor, shape ``(len(batch),)``, int32."""
        if self.key_column is None:
            raise PlanError('this batch has no key; give one with key="column".')
        return self.key_column.values

    @property
    def keys(self) -> NDArray[np.object_]:
        """The sensors' names that ``key`` points into."""
        if self.key_column is None or self.key_column.texts is None:
            raise PlanError('this batch has no key; give one with key="column".')
        return self.key_column.texts

    @property
    def time(self) -> NDArray[np.int64]:
        """Event time of each record, shape ``(len(batch),)``, int64 nanoseconds since 1970-01-01 UTC."""
        if self.time_ns is None:
            raise PlanError('this batch has no time; give one with time="column".')
        return self.time_ns

    # -- shaping -----------------------------------------------------------------------------------

    def with_columns(self, columns: Mapping[str, Column]) -> Batch:
        """This batch with ``columns`` after its own; an existing name keeps its place and takes the new column."""
        made = self._like({**self.columns, **columns})
        made.origin_names = self.origin_names.difference(columns)
        return made

    def holding(self, columns: Mapping[str, Column], orders: Orders | None) -> Batch:
        """These records with just these columns and orders; their own dicts are kept where they are still good."""
        known = orders[1] if orders is not None else None
        own = self.orders[1] if self.orders is not None else None
        made = self._like(columns)
        if known is own and list(columns)[: len(self.columns)] == list(self.columns):
            made.origin_names = frozenset(n for n in self.origin_names if columns.get(n) is self.columns.get(n))
        else:
            made.origin, made.origin_names = None, frozenset()
            made.orders = orders
        return made

    def select(self, names: Mapping[str, str]) -> Batch:
        """Only these columns, in this order; ``names`` maps the new name to the present one."""
        made = self._like({new: self.column(old) for new, old in names.items()})
        made.origin = None
        made.orders = None
        return made

    def without_origin(self) -> Batch:
        """The same records, without the dicts as which they came: these weigh several times as much as columns do, and
        `to_rows` makes them anew."""
        made = self._like(self.columns)
        made.origin, made.origin_names = None, frozenset()
        return made

    def take(self, rows: NDArray[Any]) -> Batch:
        """The records at these positions, in this order."""
        made = self._like(
            {name: column.take(rows) for name, column in self.columns.items()},
            rows=len(rows),
            key=None if self.key_column is None else self.key_column.take(rows),
            time=None if self.time_ns is None else self.time_ns.take(rows),
        )
        if self.sequence is not None:
            made.sequence = self.sequence.take(rows)
        if self.origin is not None:
            made.origin = [self.origin[row] for row in rows.tolist()]
        if self.orders is not None:
            made.orders = (self.orders[0].take(rows), self.orders[1])
        return made

    def slice(self, start: int, stop: int) -> Batch:
        """Records ``start`` to ``stop`` (counted from the front, clipped to what is there), sharing memory."""
        if start == 0 and stop >= len(self):
            return self
        stop = min(stop, len(self))
        start = min(start, stop)
        made = self._like(
            {name: column.slice(start, stop) for name, column in self.columns.items()},
            rows=stop - start,
            key=None if self.key_column is None else self.key_column.slice(start, stop),
            time=None if self.time_ns is None else self.time_ns[start:stop],
        )
        if self.sequence is not None:
            made.sequence = self.sequence[start:stop]
        if self.origin is not None:
            made.origin = self.origin[start:stop]
        if self.orders is not None:
            made.orders = (self.orders[0][start:stop], self.orders[1])
        return made

    def _like(
        self,
        columns: Mapping[str, Column],
        *,
        rows: int | None = None,
        key: Column | None = None,
        time: NDArray[np.int64] | None = None,
    ) -> Batch:
        same_rows = rows is None
        made = Batch(
            columns,
            rows=self._rows if rows is None else rows,
            key=self.key_column if same_rows else key,
            time=self.time_ns if same_rows else time,
            arrived_ns=self.arrived_ns,
        )
        made.origin_names = self.origin_names
        made.epoch = self.epoch
        if same_rows:
            made.sequence = self.sequence
            made.origin = self.origin
            made.orders = self.orders
        return made

    @classmethod
    def concat(cls, parts: Sequence[Batch], *, whole: Mapping[str, Column] | None = None) -> Batch:
        """The parts one after another; a column that a part lacks is absent in its records. Columns that are there already
        for all of them are given as ``whole``, and not joined again."""
        if len(parts) == 1:
            return parts[0] if whole is None else parts[0]._like({**parts[0].columns, **whole})
        rows = sum(map(len, parts))
        kinds: dict[str, Kind] = {}
        unlike: dict[str, None] = {}
        for part in parts:
            for name, column in part.columns.items():
                if kinds.setdefault(name, column.kind) is not column.kind:
                    unlike[name] = None
        for name in unlike:  # once each: there may be hundreds of parts
            kinds[name] = _kind_of([part.columns[name] for part in parts if name in part.columns])
        columns = {
            name: whole[name]
            if whole is not None and name in whole
            else Column.concat([_as_kind(p.columns.get(name), kind, len(p)) for p in parts])
            for name, kind in kinds.items()
        }
        keys = [part.key_column for part in parts]
        times = [part.time_ns for part in parts]
        made = cls(
            columns,
            rows=rows,
            key=Column.concat([key for key in keys if key is not None]) if None not in keys else None,
            time=np.concatenate([time for time in times if time is not None])
            if all(time is not None for time in times)
            else None,
            arrived_ns=parts[0].arrived_ns,
        )
        if all(part.origin is not None for part in parts):
            made.origin = [row for part in parts for row in part.origin or ()]
            made.origin_names = frozenset.intersection(*(part.origin_names for part in parts))
        made.orders = joined([Part(part.names, part.orders, len(part)) for part in parts], made.names)
        return made

    # -- to and from other shapes --------------------------------------------------------------------

    @classmethod
    def from_rows(cls, rows: Sequence[dict[str, Any]]) -> Batch:
        """Records given as dicts; raises `PlanError` when a field changes its kind from row to row."""
        from tidemill.kinds import Kinds
        from tidemill.rows import batch_of_rows

        batch, rejects = batch_of_rows(rows, Kinds())
        if rejects:
            raise PlanError(f"row {rejects[0].row}: {rejects[0].reason}")
        return batch

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per record, with the records' own names, order, types and values, then what the stages added."""
        from tidemill.rows import rows_of_batch

        return rows_of_batch(self)

    def to_arrow(self) -> pyarrow.Table:
        """A pyarrow Table; text is dictionary-encoded, times are timestamp[ns, UTC], missing values are null."""
        from tidemill.interchange import to_arrow

        return to_arrow(self)

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame; numbers stay NumPy float64, so a missing number is NaN."""
        from tidemill.interchange import to_pandas

        return to_pandas(self)


def _kind_of(columns: Sequence[Column]) -> Kind:
    """The kind of the first that has a value; where none has, of the first of a kind of its own."""
    with_values = [column.kind for column in columns if column.has_values]
    return next(iter(with_values or [column.kind for column in columns if column.kind is not Kind.OBJECT]), Kind.OBJECT)


def _as_kind(column: Column | None, kind: Kind, rows: int) -> Column:
    """The column, where it is of the kind; what holds no value at all can be of any kind."""
    if column is None:
        return Column.missing(kind, rows)
    if column.kind is kind or column.has_values:
        return column
    made = Column.missing(kind, rows)
    made.tags = column.tags
    return made
