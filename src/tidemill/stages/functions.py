"""What `Map`, `MapRows`, `MapFrame` and `Filter` share: calling the user's function, and reading what it returned."""

from __future__ import annotations

import inspect
import math
from array import ArrayType
from collections import deque
from collections.abc import Callable, Iterator, KeysView, ValuesView
from itertools import islice
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.annotations import signature_of
from tidemill.batch import Batch
from tidemill.column import ABSENT, ABSENT_TAG, INTEGER_TAG, NULL_TAG, Column, is_null, object_array
from tidemill.errors import BadResult, PlanError, TidemillError
from tidemill.kinds import Kinds
from tidemill.letters import WRONG_LENGTH, WRONG_TYPE
from tidemill.schema import Kind, Schema
from tidemill.stages.base import OnError, Stage
from tidemill.stages.narrowing import told
from tidemill.stages.own_values import Lent, own_column, own_values
from tidemill.stages.series import array_of_series, in_row_order, is_series

__all__ = [
    "FunctionStage",
    "are_integers",
    "as_mask",
    "called",
    "check_function",
    "is_async",
    "made_column",
    "own_name",
    "padded",
    "shown_type",
]


class FunctionStage(Stage):
    """A stage around a user's function, or a class whose object is the function.

    A class is called without arguments once per lane, where an expensive object (a model, a table) is then kept.
    """

    runs_user_code: ClassVar[bool] = True

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error, deadline_s=deadline_s)
        check_function(fn, type(self).__name__)
        if not isinstance(fn, type):
            _require_one_argument(fn, type(self).__name__)
        self.fn = fn
        self._call: Callable[..., Any] = fn

    def describe(self) -> str:
        return f"{type(self).__name__}({own_name(self.fn)})"

    def bind(self, schema: Schema) -> Schema:
        """What an undeclared function adds is learned from its first batch."""
        return schema.opened()

    def opened(self) -> Self:
        lane = super().opened()
        lane._call = called(self.fn, self.name)
        return lane


def as_mask(made: Any, rows: int, maker: str) -> NDArray[np.bool_]:
    """Which of ``rows`` records are wanted. Raises `BadResult` for anything but a bool for each, or one for all."""
    if is_series(made):
        made = in_row_order(made, rows)
    if hasattr(made, "to_numpy") and not hasattr(made, "__array__"):
        made = made.to_numpy()
    made = _unmasked(made)
    if isinstance(made, bool | np.bool_):
        made = np.full(rows, made)
    mask = np.asarray(made)
    if mask.dtype == object and mask.ndim == 1 and all(isinstance(item, bool | np.bool_) for item in mask.tolist()):
        mask = mask.astype(np.bool_)
    if mask.dtype != np.bool_:
        got = f"an array of {mask.dtype.name}" if mask.ndim else shown_type(mask.tolist())
        raise BadResult(WRONG_TYPE, f"{maker} returned {got}; a bool array is needed")
    if mask.shape != (rows,):
        raise BadResult(WRONG_LENGTH, f"{maker} returned a mask of shape {mask.shape} for {rows} records")
    return mask


def check_function(fn: object, stage: str) -> None:
    """Raises `PlanError` for what is no function that can be called here."""
    if not callable(fn):
        hint = "." if isinstance(fn, str | int | float | list | tuple | dict | None) else f": {_callable_by(type(fn))}"
        raise PlanError(f"{stage} needs a function; it was given {shown_type(fn)}{hint}")
    if isinstance(fn, type) and not _may_make_functions(fn):
        raise _uncallable(fn, stage)
    if is_async(fn):
        raise PlanError(f"{stage} needs a plain function; {own_name(fn)} is async.")


def _require_one_argument(fn: Callable[..., Any], stage: str) -> None:
    """Raises `PlanError` for a function that cannot be called with what it works on alone."""
    try:
        signature = signature_of(fn, follow_wrapped=False)  # a decorator may give the rest
    except (ValueError, TypeError):  # of some functions in C, nobody can tell
        return
    try:
        signature.bind(None)
    except TypeError:
        raise PlanError(
            f"{stage} calls its function with one argument, and this is {own_name(fn)}{signature}; give others their values "
            "first, as functools.partial does."
        ) from None


def is_async(fn: Any) -> bool:
    """Whether a call returns a coroutine: of the function, or of an object (of the class) that can be called."""
    by_call = fn.__call__ if isinstance(fn, type) else type(fn).__call__
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(by_call)


def called(fn: Callable[..., Any], stage: str) -> Callable[..., Any]:
    """The function, or an object of the class; raises `PlanError` where none can be made."""
    if not isinstance(fn, type):
        return fn
    try:
        made: Any = fn()
    except (TidemillError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PlanError(f"{stage}: an object of the class {own_name(fn)} could not be made: {told(error)}") from error
    if not callable(made):
        raise _uncallable(fn, stage)
    return made  # type: ignore[no-any-return]


def _may_make_functions(kind: Any) -> bool:
    """False of a class that makes objects of its own, which cannot be called."""
    new: Any = kind.__new__
    plain = type(kind) is type and new is object.__new__
    return not plain or any("__call__" in own.__dict__ for own in kind.__mro__)


def _uncallable(kind: type, stage: str) -> PlanError:
    return PlanError(f"{stage}: objects of the class {own_name(kind)} cannot be called: {_callable_by(kind)}")


def _callable_by(kind: type) -> str:
    """What makes objects of a class functions."""
    if any(callable(getattr(kind, method, None)) for method in ("update", "update_many")):
        return "tm.Keyed takes classes with update() or update_many()."
    method = next((name for name in _PREDICTING if callable(getattr(kind, name, None))), None)
    calls = "" if method is None else f" that calls {method}()"
    return f"give the class {kind.__name__} a method __call__{calls}."


_PREDICTING: Final = ("predict", "transform", "predict_proba", "decision_function", "score_samples", "forward")


def own_name(fn: object) -> str:
    """What a function, a partial of one, or an object that can be called, is named."""
    return str(
        getattr(fn, "__name__", None) or getattr(getattr(fn, "func", None), "__name__", None) or type(fn).__name__
    )


def shown_type(value: object) -> str:
    """The type as a person knows it: ``None``, ``list``, ``pandas.DataFrame``."""
    if value is None:
        return "None"
    module = type(value).__module__.split(".")[0]
    return type(value).__name__ if module in ("builtins", "__main__") else f"{module}.{type(value).__name__}"


# -- one returned column -----------------------------------------------------------------------------------


def made_column(stage: str, name: str, given: Any, batch: Batch, declared: Kind | None) -> Column:
    """What a function returned for ``name`` as a column of ``len(batch)``; raises `BadResult`.

    An array, list, Series, range, deque or iterator has one value per record (a Series of pandas whose rows were sorted is put
    back by its index); anything else is one value for all of them. Numbers become float64 unless declared. A value that is
    still the batch's own is that, as the record held it: missing, or an int. So what becomes of one record does not depend on
    the others of its batch. What is not the batch's own is copied: a function may return its own buffer, and be called again
    before the records have gone on. A column that it was lent comes back as such; `taken` copies it.
    """
    rows = len(batch)
    own = batch.columns.get(name)
    if isinstance(given, Column):
        if len(given) != rows:
            raise _wrong_length(stage, name, len(given), rows)
        return given if given is own else own_column(given)
    array = _array(stage, name, given, rows)
    if own is None or declared not in (None, own.kind):
        return _column(stage, name, array, declared)
    compared = own.original if isinstance(own, Lent) and own.is_untouched else own  # to compare is no look
    if _unchanged(compared, array):
        return own
    if compared.kind is Kind.OBJECT and compared.has_values and declared is None and array.dtype.kind in "Obifu":
        return _of_any_type(name, array, compared)
    if compared.kind is Kind.INT and are_integers(array):
        declared = Kind.INT
    return _as_held(compared, _column(stage, name, array, declared))


def are_integers(array: NDArray[Any]) -> bool:
    """As far as there are values."""
    if array.dtype == object:
        return {type(item) for item in array.tolist() if not is_null(item)} <= {int, np.int64}
    return array.dtype.kind in "iu"


def _of_any_type(name: str, array: NDArray[Any], own: Column) -> Column:
    """The column of a field that holds values of any type: those that were left alone are what they were.

    It stays a column of objects if the first value was left alone, whatever else this batch happens to hold.
    """
    held = own.to_list()
    made = [item.item() if isinstance(item, np.number | np.bool_ | np.str_) else item for item in array.tolist()]
    alone = [_is_held(item, was) for item, was in zip(made, held, strict=True)]
    items = own_values(
        was if same else None if is_null(item) else float(item) if type(item) is int else item
        for item, was, same in zip(made, held, alone, strict=True)
    )
    first = next((row for row, item in enumerate(items) if item is not None and item is not ABSENT), None)
    if array.dtype != object or first is None or not alone[first]:
        column, rejects = Kinds().column(name, items)
        if not rejects:
            return column
    return Kinds({name: Kind.OBJECT}).column(name, items)[0]


def _is_held(item: Any, was: Any) -> bool:
    """Whether an item of an array is what the record holds: a number may have become a float, and nothing a NaN."""
    if was is None or was is ABSENT:
        return is_null(item) or (type(item) is float and math.isnan(item))
    if type(item) in (int, float) and type(was) in (int, float):
        return bool(item == was) and (item != 0 or math.copysign(1, item) == math.copysign(1, was))
    return item is was or (type(item) is str and type(was) is str and item == was)


def _as_held(own: Column, column: Column) -> Column:
    """``column``, and what the record's own said of a value that is the same: that it is missing, or was an int."""
    if column.kind is not own.kind or (own.tags is None and own.exact is None):
        return column
    tags = np.zeros(len(own), np.uint8) if own.tags is None else own.tags
    made = np.zeros(len(own), np.uint8) if column.tags is None else column.tags
    if own.kind in (Kind.TEXT, Kind.OBJECT):
        same = np.isin(tags, (NULL_TAG, ABSENT_TAG)) & np.isin(made, (NULL_TAG, ABSENT_TAG))
    else:
        bits = np.dtype(f"u{own.values.itemsize}")
        same = own.values.view(bits) == np.ascontiguousarray(column.values).view(bits)
    exact = {row: item for row, item in (column.exact or {}).items() if not same[row]}
    exact |= {row: item for row, item in (own.exact or {}).items() if same[row]}
    tags = np.where(same, tags, made).astype(np.uint8)
    return Column(
        column.kind, column.values, tags=tags if tags.any() else None, texts=column.texts, exact=exact or None
    )


def _wrong_length(stage: str, name: str, got: int, rows: int) -> BadResult:
    return BadResult(WRONG_LENGTH, f"{stage} returned {got} values of {name!r} for {rows} records")


_IN_LINE: Final = (range, deque, ArrayType, memoryview, Iterator, KeysView, ValuesView)
"""What has values in an order, as a list does, and is nothing that a record could hold."""


def _array(stage: str, name: str, given: Any, rows: int) -> NDArray[Any]:
    """One value per record."""
    if not isinstance(given, np.ndarray):
        given = _with_values(given, rows)
    given = _unmasked(given)
    if isinstance(given, np.ndarray) and given.ndim > 0:
        if given.ndim != 1:
            raise BadResult(
                WRONG_LENGTH,
                f"{stage} returned {name!r} with shape {given.shape}; a column has one dimension, ({rows},)",
            )
        if len(given) != rows:
            raise _wrong_length(stage, name, len(given), rows)
        return given
    if isinstance(given, np.ndarray):
        given = given[()]
    if isinstance(given, bool | int | float | np.number | np.bool_ | np.datetime64):
        return np.full(rows, given)
    return object_array([given] * rows)


def _with_values(given: Any, rows: int) -> Any:
    """What has a value for each record as an array; anything else as it is."""
    if is_series(given):
        given = array_of_series(in_row_order(given, rows))
    elif hasattr(given, "to_numpy"):
        given = given.to_numpy()
    if isinstance(given, _IN_LINE):
        given = list(islice(given, rows + 1))  # of an iterator, which may have no end
    return _array_of_items(given) if isinstance(given, list | tuple) else given


def _unmasked(given: Any) -> Any:
    """What the mask of a NumPy masked array hides is missing."""
    if type(given) is np.ndarray or not isinstance(given, np.ma.MaskedArray):
        return given
    if not np.ma.is_masked(given):
        return given.data
    nothing = np.array("NaT", given.dtype) if given.dtype.kind == "M" else np.array(None)
    return np.where(np.ma.getmaskarray(given), nothing, given.data)


def _array_of_items(items: list[Any] | tuple[Any, ...]) -> NDArray[Any]:
    types = set(map(type, items))
    if types <= {float} or types <= {int} or types <= {bool} or types <= {float, int}:
        return np.array(items, np.float64) if float in types or not types else np.array(items)
    if types and all(issubclass(one, np.generic) for one in types):
        return np.array(items)
    return object_array(items)


def _unchanged(own: Column, array: NDArray[Any]) -> bool:
    """Whether the array holds what the function was shown of this column, bit for bit."""
    shown = own.array
    if array.dtype != shown.dtype:
        return False
    start, stride = array.__array_interface__["data"][0], array.strides
    if own.kind is not Kind.TEXT and (start, stride) == (shown.__array_interface__["data"][0], shown.strides):
        return True
    if array.dtype == object:
        return own.kind is Kind.TEXT and bool(np.array_equal(array, shown))
    width = np.dtype(f"u{array.itemsize}")
    return bool(np.array_equal(np.ascontiguousarray(array).view(width), np.ascontiguousarray(shown).view(width)))


_FITS: Final[dict[Kind, str]] = {Kind.FLOAT: "fiu", Kind.INT: "i", Kind.BOOL: "b"}
"""The NumPy kinds that a declared column accepts; floats that are whole numbers are integers too."""


def _column(stage: str, name: str, array: NDArray[Any], declared: Kind | None) -> Column:
    kind = array.dtype.kind
    if kind == "O" and declared is not Kind.OBJECT:
        return _column_of_objects(stage, name, array, declared)
    if kind == "M" and declared in (None, Kind.TIME):
        return _times(stage, name, array)
    if declared is None:
        if kind in "fiu":
            return Column(Kind.FLOAT, np.array(array, np.float64))
        if kind == "b":
            return Column(Kind.BOOL, np.array(array))
        return Column.of_array(array)
    if declared is Kind.OBJECT:
        return Column(Kind.OBJECT, object_array(own_values(array.tolist())))
    if declared is Kind.TEXT and kind in "UT":
        return Column.of_texts(array.tolist())
    if declared is Kind.INT and kind in "fu":
        return Column(Kind.INT, _integers(stage, name, array))
    if kind not in _FITS.get(declared, ""):
        raise _wrong_kind(stage, name, declared, array.dtype.name)
    target = {Kind.FLOAT: np.float64, Kind.INT: np.int64, Kind.BOOL: np.bool_}[declared]
    return Column(declared, np.array(array, target))


def _times(stage: str, name: str, array: NDArray[Any]) -> Column:
    try:
        return Column.of_array(array)
    except OverflowError as error:
        raise BadResult(WRONG_TYPE, f"{stage} returned {name!r} with {error}") from None


def _integers(stage: str, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """Floats that are whole numbers, or integers without a sign; raises `BadResult` for what int64 does not hold."""
    fits = (array == np.rint(array)) & (np.abs(array) < 2.0**63) if array.dtype.kind == "f" else array < 2**63
    if not fits.all():
        wrong = array[np.argmin(fits)]
        raise BadResult(
            WRONG_TYPE,
            f"{stage} returned {name!r} with {wrong}, which is no whole number of 64 bits; it is declared as int",
        )
    return array.astype(np.int64)


def _wrong_kind(stage: str, name: str, declared: Kind, got: str) -> BadResult:
    return BadResult(WRONG_TYPE, f"{stage} returned {name!r} as {got}; it is declared as {declared.value}")


def _column_of_objects(stage: str, name: str, array: NDArray[Any], declared: Kind | None) -> Column:
    """Text with nulls, numbers with nulls, or objects."""
    items = [None if is_null(item) else item for item in array.tolist()]
    types = {type(item) for item in items if item is not None}
    if declared is None and not (types and any(types <= alike for alike in _WITH_NULLS)):
        return Column(Kind.OBJECT, object_array(own_values(items)), tags=_null_tags(items))
    column, rejects = Kinds({} if declared is None else {name: declared}).column(name, items)
    if rejects:
        raise _wrong_kind(stage, name, declared or column.kind, shown_type(items[rejects[0].row]))
    if declared is None and column.kind is Kind.FLOAT and column.tags is not None:  # as in an array without nulls
        column = Column(
            Kind.FLOAT, column.values, tags=np.where(column.tags == INTEGER_TAG, 0, column.tags).astype(np.uint8)
        )
    return column


_WITH_NULLS: Final = ({str, np.str_}, {int, float, np.float64, np.int64}, {bool, np.bool_})
"""What can have nulls among it and still be a column of its own kind."""


def _null_tags(items: list[Any]) -> NDArray[np.uint8] | None:
    if not any(item is None for item in items):
        return None
    return np.fromiter((NULL_TAG if item is None else 0 for item in items), np.uint8, len(items))


def padded(batch: Batch, rows: int) -> Batch:
    """The batch made ``rows`` long: numbers by zeros, everything else by its last value."""
    if not len(batch):
        return batch
    made = batch.take(np.minimum(np.arange(rows), len(batch) - 1))
    for name, column in made.columns.items():
        if column.kind in (Kind.FLOAT, Kind.INT, Kind.BOOL):
            column.values[len(batch) :] = 0  # `take` has just made this memory
            made.columns[name] = column
    return made
