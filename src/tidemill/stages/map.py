"""`Map` and `MapFrame`: a user's function over columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from numpy.typing import NDArray

from tidemill.annotations import annotations_of
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import BadResult, PlanError
from tidemill.letters import WRONG_LENGTH, WRONG_TYPE
from tidemill.orders import follows
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import OnError
from tidemill.stages.frames import (
    Library,
    column_from_shown,
    columns_of_frame,
    frame_of_batch,
    is_frame,
    require_library,
)
from tidemill.stages.functions import FunctionStage, made_column, padded, shown_type
from tidemill.stages.options import declared_kinds, names_of, whole_number
from tidemill.stages.own_values import lent, own_column, taken
from tidemill.stages.series import array_of_series
from tidemill.stages.state import StageState

__all__ = ["ColumnsFunction", "Map", "MapFrame"]


class ColumnsFunction(FunctionStage):
    """A stage around a function that returns columns for the records it was shown.

    ``adds``  the columns it adds and their kinds; learned from its first batch when not given
    ``into``  name of the column, for a function that returns one array
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        adds: Mapping[str, object] | None,
        into: str | None,
        name: str | None,
        on_error: OnError,
        deadline_s: float | None,
    ) -> None:
        super().__init__(fn, name=name, on_error=on_error, deadline_s=deadline_s)
        self.adds = None if adds is None else declared_kinds(adds, name=f"{self.name}: adds")
        self.into = into
        if into is not None and self.adds is not None and list(self.adds) != [into]:
            raise PlanError(f"{self.name}: adds={list(self.adds)} and into={into!r} name different columns.")

    def bind(self, schema: Schema) -> Schema:
        if self.adds is None:
            return super().bind(schema)
        return schema.adding(Field(column, kind) for column, kind in self.adds.items())

    def _made(self, result: Any, batch: Batch) -> dict[str, Column]:
        """The returned columns, checked."""
        if self.into is not None and not isinstance(result, Mapping | Batch) and not is_frame(result):
            result = {self.into: result}
        declared = self.adds or {}
        if isinstance(result, Batch):
            made = _columns_of_batch(self.name, result, batch)
        elif is_frame(result):
            made = columns_of_frame(
                self.name,
                result,
                batch,
                lambda column, array: made_column(self.name, column, array, batch, declared.get(column)),
            )
        elif isinstance(result, Mapping):
            made = {
                column: made_column(self.name, column, given, batch, declared.get(column))
                for column, given in result.items()
            }
        else:
            raise BadResult(
                WRONG_TYPE,
                f"{self.name} returned {shown_type(result)}; a dict of columns, a DataFrame or a Batch is needed"
                + ("" if result is None else ', or into="name" for one array'),
            )
        self._check_names(made, batch)
        return taken(made)

    def _check_names(self, made: dict[str, Column], batch: Batch) -> None:
        for column in made:
            if not isinstance(column, str):
                raise BadResult(WRONG_TYPE, f"{self.name} returned the column {column!r}; names must be text")
        if self.adds is None:
            return
        for column, kind in self.adds.items():
            if column not in made:
                raise BadResult(WRONG_TYPE, f"{self.name} did not return {column!r}, which it declares in adds")
            if made[column].kind is not kind:
                raise BadResult(
                    WRONG_TYPE,
                    f"{self.name} returned {column!r} as {made[column].kind.value}; it is declared as {kind.value}",
                )
        for column in [column for column in made if column not in self.adds]:
            if made[column] is not batch.columns.get(column):
                raise BadResult(WRONG_TYPE, f"{self.name} returned {column!r}, which it does not declare in adds")
            del made[column]  # one it was given and passed through


class Map(ColumnsFunction):
    """A function from a batch to new columns; one row out per record in.

    ``fn``       gets a `Batch` (columns are read-only 1-D arrays of ``len(batch)``, nested values copies) and returns a
                 dict of arrays, lists, Series (one of pandas is put back by its index where its rows moved), iterators
                 or single values (one value for all records), a DataFrame, a `Batch`, or, with ``into``, one array. Or a
                 class: it is called once per lane without arguments, and its object is the function
    ``columns``  the columns it sees; all by default
    ``adds``     the columns it adds and their kinds, such as ``{"feature": float}``; learned from its first batch
                 when not given
    ``into``     name of the column, for a function that returns one array
    ``tile``     call it with exactly this many records each time (the last ones padded: numbers by zeros), so that
                 a matrix product gives a record the same bits whatever batch it came in

    Returned numbers become float64 unless declared; bool, text, datetime64 and objects are kept. A column that exists
    is replaced in its place; what is returned unchanged stays exactly as it was. Infinities are allowed. What is returned is
    taken at once: a function may give out its own memory, and write to it again when it is next called. Beside the
    function's own time, a call costs some 20 us, whatever the batch: 0.01 us a record in one of thousands.

    Nested values are copied at the function's first look at their column, once for all of its threads (0.3 us for a list of
    numbers, 2 to 3 us for a dict of some dicts), and again when it returns them. So it may change them in place; what it does
    not return stays as it was in the record. What is in one value several times is one object in its copy, too.

    A wrong length, a wrong type, or an undeclared or missing column raises `BadResult`, and like an exception of the
    function it costs the records it fails on, not the batch: ``on_error`` says what becomes of them.

    >>> import numpy as np
    >>> from tidemill.batch import Batch
    >>> def feature(batch):
    ...     return {"root": np.sqrt(batch["value"]), "lane": "A"}
    >>> batch = Batch.from_rows([{"value": 4.0}, {"value": 9.0}])
    >>> Map(feature).opened().step(batch, None).to_rows()
    [{'value': 4.0, 'root': 2.0, 'lane': 'A'}, {'value': 9.0, 'root': 3.0, 'lane': 'A'}]
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        columns: Sequence[str] | None = None,
        adds: Mapping[str, object] | None = None,
        into: str | None = None,
        tile: int | None = None,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(fn, adds=adds, into=into, name=name, on_error=on_error, deadline_s=deadline_s)
        self.columns = None if columns is None else names_of(columns, name=f"{self.name}: columns")
        if tile is not None:
            must = "be a number of records, 1 or more"
            tile = whole_number(tile, name=f"{self.name}: tile", must=must, least=1)
        self.tile = tile

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns or ():
            schema.require(column, stage=self.name)
        return super().bind(schema)

    def reads(self) -> frozenset[str] | None:
        return None if self.columns is None else frozenset(self.columns)

    def step(self, batch: Batch, state: StageState) -> Batch:
        seen = batch if self.columns is None else batch.select({c: c for c in self.columns if c in batch})
        if self.tile is None:
            return batch.with_columns(self._mapped(seen))
        parts = list(map(self._mapped, _tiles(seen, self.tile)))
        made = {name: Column.concat([part[name] for part in parts]).slice(0, len(batch)) for name in parts[0]}
        return batch.with_columns(made)

    def _mapped(self, batch: Batch) -> dict[str, Column]:
        """What one call makes."""
        given = lent(batch)
        return self._made(self._call(given), given)


def _tiles(batch: Batch, rows: int) -> Iterator[Batch]:
    for start in range(0, max(len(batch), 1), rows):
        piece = batch.slice(start, start + rows)
        yield piece if len(piece) == rows else padded(piece, rows)


def _columns_of_batch(stage: str, result: Batch, batch: Batch) -> dict[str, Column]:
    if len(result) != len(batch):
        raise BadResult(WRONG_LENGTH, f"{stage} returned a Batch of {len(result)} records for {len(batch)}")
    own = batch.columns
    return {name: column if column is own.get(name) else own_column(column) for name, column in result.columns.items()}


class MapFrame(FunctionStage):
    """A function from a DataFrame to a DataFrame of as many rows, unchanged, as people already have them.

    ``fn``     gets the batch as a DataFrame of its own memory (numbers float64 with NaN where missing, text, times in
               ns UTC, index 0..n-1) and returns the one that goes on: columns may be added, changed, dropped, reordered
    ``frame``  ``"pandas"`` or ``"polars"``; by default what the first parameter's annotation says, else pandas

    Rows that a pandas function has sorted are put back by their index; what comes back unchanged stays exactly as it
    was in the record (an integer an integer). Integers among which one is missing are shown as floats too, as pandas has them;
    what becomes of them are integers again where it is whole, unless the function makes floats of them where none is missing.
    NaN is null there. Another number of rows raises `BadResult`, which costs the records it
    fails on; use `Filter` to leave records out. Beside the function's own time, making the frame and reading it costs 0.8 us a
    record of six fields, and half of that where one is a text and not three; `Map` gets them for nothing.

    >>> from tidemill.batch import Batch
    >>> def doubled(frame):
    ...     return frame.assign(double=frame["value"] * 2)
    >>> batch = Batch.from_rows([{"sensor": "S1", "value": 3.0}, {"sensor": "S2", "value": 1.5}])
    >>> MapFrame(doubled).opened().step(batch, None).to_rows()
    [{'sensor': 'S1', 'value': 3.0, 'double': 6.0}, {'sensor': 'S2', 'value': 1.5, 'double': 3.0}]
    """

    may_lose_columns: ClassVar[bool] = True

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        frame: Library | None = None,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(fn, name=name, on_error=on_error, deadline_s=deadline_s)
        if frame not in (None, "pandas", "polars"):
            raise PlanError(f'{self.name}: frame={frame!r} is not one of "pandas", "polars".')
        self.frame: Library = frame or _annotated(fn)
        self._known: Mapping[str, Kind] = {}

    def bind(self, schema: Schema) -> Schema:
        """Raises `MissingExtra` without the library: no record is at fault."""
        require_library(self.frame)
        return super().bind(schema)

    def know(self, kinds: Mapping[str, Kind]) -> None:
        self._known = kinds

    def step(self, batch: Batch, state: StageState) -> Batch:
        given = lent(batch)
        result = self._framed(given)

        def column_of(name: str, array: NDArray[Any]) -> Column:
            known, alone = self._known.get(name), partial(self._kind_alone, batch, name)
            return column_from_shown(self.name, name, array, given, known, alone)

        made = taken(columns_of_frame(self.name, result, given, column_of))
        added = batch.with_columns(made)
        if list(added.columns) == list(made):
            return added
        left = added.select({name: name for name in made})
        if follows(made, added.columns):
            left.orders = added.orders
        return left

    def _framed(self, batch: Batch) -> Any:
        result = self._call(frame_of_batch(batch, self.frame))
        if not is_frame(result):
            raise BadResult(WRONG_TYPE, f"{self.name} returned {shown_type(result)}; a DataFrame is needed")
        return result

    def _kind_alone(self, batch: Batch, name: str, row: int) -> Kind | None:
        """Of which kind the function makes a column of integers for a record that has one, as it is shown alone."""
        result = self._framed(lent(batch.slice(row, row + 1)))
        if len(result) != 1 or name not in result.columns:
            return None
        return Kind.FLOAT if array_of_series(result[name]).dtype.kind == "f" else Kind.INT


def _annotated(fn: Callable[..., Any]) -> Library:
    first = next((given for name, given in annotations_of(fn).items() if name != "return"), None)
    module = first.split(".")[0] if isinstance(first, str) else getattr(first, "__module__", "").split(".")[0]
    return "polars" if module in ("pl", "polars") else "pandas"
