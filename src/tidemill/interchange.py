"""Batches ↔ pandas, polars, Arrow and lists of dicts. The libraries are imported when they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, INTEGER_TAG, NAT, NULL_TAG, Column, nanoseconds, object_array
from tidemill.errors import MissingExtra, PlanError
from tidemill.kinds import Kinds
from tidemill.rows import batch_of_rows
from tidemill.schema import Kind

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = [
    "arrow_of_polars",
    "column_of_arrow",
    "column_of_pandas",
    "columns_of_arrow",
    "first_twice",
    "from_table",
    "is_naive_arrow",
    "is_naive_pandas",
    "kind_of_table",
    "naive_times",
    "to_arrow",
    "to_pandas",
]


def kind_of_table(data: Any) -> str:
    """What ``data`` is: ``"pandas"``, ``"polars"``, ``"arrow"``, ``"rows"``, ``"batch"``, or ``""`` for none of them.

    Asks by type name, so that no library is imported only to find out.

    >>> kind_of_table([{"value": 1}]), kind_of_table(7)
    ('rows', '')
    """
    if isinstance(data, Batch):
        return "batch"
    for kind in type(data).__mro__:
        root = kind.__module__.partition(".")[0]
        if (root, kind.__name__) in (("pandas", "DataFrame"), ("polars", "DataFrame")):
            return root
        if root == "pyarrow" and kind.__name__ in ("Table", "RecordBatch"):
            return "arrow"
    if isinstance(data, (list, tuple)) and all(issubclass(kind, Mapping) for kind in set(map(type, data))):
        return "rows"
    return ""


def from_table(data: Any) -> Batch:
    """A batch of the columns of a pandas or polars DataFrame, an Arrow table or a list of dicts; a Batch as it is.

    Roles are not given here: the batch has neither key nor time. Raises `PlanError` for anything else.
    """
    match kind_of_table(data):
        case "batch":
            batch: Batch = data
            return batch
        case "pandas":
            return Batch(_columns_of_pandas(data), rows=len(data))
        case "polars":
            return _of_arrow(arrow_of_polars(data))
        case "arrow":
            return _of_arrow(data)
        case "rows":
            batch, rejects = batch_of_rows([dict(row) for row in data], Kinds())
            if rejects:
                raise PlanError(f"row {rejects[0].row}: {rejects[0].reason}")
            return batch
        case _:
            raise PlanError(
                f"a {type(data).__name__} is no table; give a DataFrame (pandas or polars), an Arrow table, "
                f"a list of dicts or a Batch."
            )


def naive_times(data: Any) -> frozenset[str]:
    """The columns of a table that hold times without a zone, which whoever gives the roles reads in their ``tz``."""
    match kind_of_table(data):
        case "pandas":
            return frozenset(str(name) for name in data.columns if is_naive_pandas(data[name]))
        case "polars":
            kinds = dict(data.schema)
            return frozenset(name for name, kind in kinds.items() if _naive_polars(kind))
        case "arrow":
            return frozenset(field.name for field in data.schema if is_naive_arrow(field.type))
        case _:
            return frozenset()


def _naive_polars(kind: Any) -> bool:
    return str(kind).startswith(("Datetime", "Date")) and getattr(kind, "time_zone", None) is None


# -- Arrow -------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", "Arrow tables") from None
    return pa


def to_arrow(batch: Batch) -> pa.Table:
    """A pyarrow Table with one type per kind, the same for every batch of a run.

    Numbers are float64 (int64 when declared), text is dictionary-encoded, times are timestamp[ns, UTC], nested and
    other values are JSON text; null and absent are null. A computed NaN stays NaN.
    """
    pa = _pyarrow()
    arrays = {name: _arrow_array(pa, column) for name, column in batch.columns.items()}
    if not arrays:
        return pa.table({})
    return pa.table(arrays)


def _arrow_array(pa: Any, column: Column) -> Any:
    missing = None if column.tags is None else (column.tags != 0) & (column.tags != INTEGER_TAG)
    if missing is not None and not missing.any():
        missing = None
    match column.kind:
        case Kind.TEXT:
            assert column.texts is not None
            absent = column.values < 0
            codes = pa.array(column.values, mask=absent if absent.any() else None)
            return pa.DictionaryArray.from_arrays(codes, pa.array(column.texts.tolist(), pa.string()))
        case Kind.TIME:
            missing = column.values == NAT
            return pa.array(column.values, pa.int64(), mask=missing).cast(pa.timestamp("ns", "UTC"))
        case Kind.OBJECT:
            return pa.array([_json_text(item) for item in column.to_list()], pa.string())
        case _:
            return pa.array(column.values, mask=missing)


def _json_text(item: Any) -> str | None:
    if item is None or item is ABSENT:
        return None
    if isinstance(item, str):
        return item
    try:
        made = json.dumps(item, default=str)
        return json.loads(made) if made.startswith('"') else made
    except (TypeError, ValueError, RecursionError):
        return str(item)


def columns_of_arrow(table: Any) -> dict[str, Column]:
    """The columns of a pyarrow Table or RecordBatch. Raises `PlanError` when two have one name."""
    if (name := first_twice(table.schema.names)) is not None:
        raise PlanError(f"the Arrow table has the column {name!r} twice.")
    return {name: column_of_arrow(table.column(name)) for name in table.schema.names}


def first_twice(names: Sequence[str]) -> str | None:
    """The first name that comes a second time; None when none does.

    >>> first_twice(["sensor", "value", "value"])
    'value'
    """
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def column_of_arrow(array: Any) -> Column:
    """One Arrow array: numbers, decimals too, are floats that remember integers, strings text, timestamps times in UTC.

    A timestamp without a zone is shown as if it were UTC's; see `naive_times`.
    """
    pa = _pyarrow()
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
        if isinstance(array, pa.ChunkedArray):  # some versions give one back when there is no chunk
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    kind = array.type
    if pa.types.is_dictionary(kind) and _is_text(pa, kind.value_type):
        return _text_of_arrow(array)
    if pa.types.is_dictionary(kind):
        return column_of_arrow(array.dictionary_decode())
    if _is_text(pa, kind):
        return _text_of_arrow(array.dictionary_encode())
    missing = _missing_of_arrow(array)
    if pa.types.is_boolean(kind):
        return _tagged(Column(Kind.BOOL, array.fill_null(False).to_numpy(zero_copy_only=False)), missing)
    if pa.types.is_integer(kind):
        return _tagged(Column.of_integers(array.fill_null(0).to_numpy(zero_copy_only=False)), missing, np.nan)
    if pa.types.is_floating(kind):
        filled = array.cast(pa.float64()).fill_null(float("nan"))
        return _tagged(Column(Kind.FLOAT, filled.to_numpy(zero_copy_only=False)), missing)
    if pa.types.is_decimal(kind):
        return _decimals_of_arrow(pa, array)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _time_of_arrow(pa, array, missing)
    return _tagged(Column(Kind.OBJECT, object_array(array.to_pylist())), missing)


def _is_text(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _missing_of_arrow(array: Any) -> NDArray[np.bool_] | None:
    if array.null_count == 0:
        return None
    missing: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return missing


def _tagged(column: Column, missing: NDArray[np.bool_] | None, fill: Any = None) -> Column:
    if missing is None:
        return column
    tags = np.zeros(len(column), np.uint8) if column.tags is None else column.tags
    values = column.values
    if fill is not None:
        values = np.where(missing, fill, values)
    return Column(column.kind, values, tags=np.where(missing, np.uint8(NULL_TAG), tags), exact=column.exact)


def _text_of_arrow(array: Any) -> Column:
    texts = object_array(array.dictionary.to_pylist())
    codes = array.indices.cast("int32").fill_null(-1).to_numpy(zero_copy_only=False)
    if None in texts.tolist():  # a null may stand in the dictionary itself
        empty = [code for code, text in enumerate(texts.tolist()) if text is None]
        codes = np.where(np.isin(codes, empty), np.int32(-1), codes)
    missing = codes < 0
    tags = np.where(missing, np.uint8(NULL_TAG), np.uint8(0)) if missing.any() else None
    return Column(Kind.TEXT, codes, tags=tags, texts=texts)


def _decimals_of_arrow(pa: Any, array: Any) -> Column:
    if array.type.scale > 0:
        return column_of_arrow(array.cast(pa.float64()))
    try:
        return column_of_arrow(array.cast(pa.int64()))
    except pa.ArrowInvalid:  # an integer beyond int64
        return _column_of_objects([None if item is None else int(item) for item in array.to_pylist()])


def _time_of_arrow(pa: Any, array: Any, missing: NDArray[np.bool_] | None) -> Column:
    zone = getattr(array.type, "tz", None)
    try:
        values = array.cast(pa.timestamp("ns", zone)).cast(pa.int64()).fill_null(NAT).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # beyond the years 1677 to 2262
        return _tagged(Column(Kind.OBJECT, object_array([str(item) for item in array.to_pylist()])), missing)
    return _tagged(Column(Kind.TIME, values), missing)


def _of_arrow(table: Any) -> Batch:
    return Batch(columns_of_arrow(table), rows=table.num_rows)


def arrow_of_polars(frame: Any) -> Any:
    """A polars DataFrame as a pyarrow Table. Raises `MissingExtra` without pyarrow."""
    _pyarrow()
    return frame.to_arrow()


# -- pandas ------------------------------------------------------------------------------------------


def to_pandas(batch: Batch) -> pd.DataFrame:
    """A pandas DataFrame: numbers float64 with NaN where missing, text and other values objects, times UTC."""
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtra("pandas", "all", "DataFrames") from None
    return pd.DataFrame({name: _pandas_values(pd, column) for name, column in batch.columns.items()}, copy=True)


def _pandas_values(pd: Any, column: Column) -> Any:
    match column.kind:
        case Kind.TIME:
            return pd.DatetimeIndex(column.values.view("datetime64[ns]"), tz="UTC")
        case Kind.OBJECT:
            return pd.Series(column.values, dtype=object)
        case Kind.INT | Kind.BOOL if column.tags is not None and column.tags.any():
            return pd.Series(column.to_list(absent=None), dtype=object)
        case _:
            return column.array


def _columns_of_pandas(frame: Any) -> dict[str, Column]:
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise PlanError(f"the DataFrame has the column {str(twice[0])!r} twice.")
    return {str(name): column_of_pandas(frame[name]) for name in frame.columns}


def column_of_pandas(series: Any) -> Column:
    """One column of pandas: numbers are floats that remember integers, strings text, datetimes times, as of Arrow."""
    values = series.dtype
    if isinstance(values, np.dtype) and values.kind in "fbiu":
        return Column.of_array(series.to_numpy())
    if hasattr(values, "pyarrow_dtype"):
        return column_of_arrow(_pyarrow().array(series))
    if str(values) == "category":
        return column_of_pandas(series.astype(values.categories.dtype))
    if getattr(values, "kind", "") == "M":
        moments = series if getattr(values, "tz", None) is None else series.dt.tz_convert("UTC").dt.tz_localize(None)
        return _time_column(moments.to_numpy())
    items = series.astype(object).to_numpy()
    missing = series.isna().to_numpy()
    return _column_of_objects([None if gone else item for item, gone in zip(items, missing.tolist(), strict=True)])


def _pandas_dtype(series: Any) -> Any:
    """The dtype of a column's values; of a category, that of its categories."""
    categories = getattr(series.dtype, "categories", None)
    return series.dtype if categories is None else categories.dtype


def is_naive_pandas(series: Any) -> bool:
    """Whether a column of pandas holds times without a zone."""
    dtype = _pandas_dtype(series)
    arrow = getattr(dtype, "pyarrow_dtype", None)
    if arrow is not None:
        return is_naive_arrow(arrow)
    return getattr(dtype, "kind", "") == "M" and getattr(dtype, "tz", None) is None


def is_naive_arrow(kind: Any) -> bool:
    """Whether a type of Arrow is that of times without a zone."""
    told = str(kind.value_type if _pyarrow().types.is_dictionary(kind) else kind)
    return told.startswith(("timestamp", "date")) and "tz=" not in told


def _time_column(moments: NDArray[Any]) -> Column:
    missing = np.isnat(moments)
    try:
        ns = nanoseconds(moments)
    except OverflowError:  # as of Arrow
        return _tagged(Column(Kind.OBJECT, object_array(list(map(str, moments)))), missing if missing.any() else None)
    return _tagged(Column(Kind.TIME, ns), missing if missing.any() else None)


def _column_of_objects(items: Sequence[Any]) -> Column:
    plain = [item.item() if isinstance(item, np.generic) else item for item in items]
    column, rejects = Kinds().column("", plain)
    if rejects:
        column, _ = Kinds({"": Kind.OBJECT}).column("", plain)
    return column
