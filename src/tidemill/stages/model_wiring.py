"""Which columns go into which input of a model, and which come out of which output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import BadResult, PlanError
from tidemill.letters import WRONG_LENGTH, WRONG_TYPE
from tidemill.printable import counted
from tidemill.schema import Field, Kind
from tidemill.stages.functions import shown_type
from tidemill.stages.numbers import numbers_of
from tidemill.stages.onnx_signature import Signature, Tensor

__all__ = ["Feed", "Found", "Names", "Wiring", "all_of", "named", "wired"]

Names = Mapping[str, tuple[str, ...]] | tuple[str, ...]
"""Columns as the user gave them: for each input or output by its name, or for the only one."""

_DEFAULT_TILE: Final = 256
_NUMBERS: Final = frozenset(
    {"float16", "float32", "float64", "bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


@dataclass(frozen=True)
class Feed:
    """One input of the model, and the columns that fill it."""

    name: str
    columns: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Of one record; ``()`` for an input of one dimension."""

    def array(self, batch: Batch, rows: int, stage: str) -> NDArray[Any]:
        """The columns side by side, shape ``(rows, *shape)``, zeros behind the batch's records."""
        made = np.zeros((rows, len(self.columns)), self.dtype)
        count, floats = len(batch), self.dtype.kind == "f"
        with np.errstate(over="ignore"):  # beyond float32 is infinity
            for place, name in enumerate(self.columns):
                column = batch.columns.get(name)
                if floats and column is not None and column.kind is Kind.FLOAT:
                    made[:count, place] = column.values
                else:
                    made[:count, place] = (numbers_of if floats else self._exact)(batch, name, stage)
        return made.reshape(rows, *self.shape)

    def _exact(self, batch: Batch, name: str, stage: str) -> NDArray[Any]:
        """A column for an input of integers or bools, which have no word for what is missing."""
        column = batch.columns.get(name)
        low, high = (0, 1) if self.dtype.kind == "b" else (np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)
        values: NDArray[Any]
        if column is not None and column.kind in (Kind.INT, Kind.BOOL) and not _has_missing(column):
            values = column.values
            fitting = (values >= low) & (values <= high)
        else:
            values = numbers_of(batch, name, stage)
            fitting = (np.rint(values) == values) & (values >= low) & (values < high + 1)  # NaN is not
        if not fitting.all():
            value = values[int(np.flatnonzero(~fitting)[0])].item()
            message = f"{stage} needs column {name!r} as {self.dtype.name} for the model's input {self.name!r}"
            raise BadResult(WRONG_TYPE, f"{message}; it holds {value!r}")
        return values


@dataclass(frozen=True)
class Found:
    """One output of the model, and the columns that it becomes."""

    name: str
    columns: tuple[str, ...]
    kind: Kind
    dtype: str
    """As NumPy names it, ``"string"`` for text."""
    shape: tuple[int, ...] | None
    """Of one record; None where the model does not say, or it is text."""

    def checked(self, given: Any, tile: int, stage: str) -> NDArray[Any]:
        """What the model gave for one tile, shape ``(tile, columns)``; raises `BadResult`."""
        if not isinstance(given, np.ndarray):
            raise BadResult(WRONG_TYPE, f"{stage}: output {self.name!r} is {shown_type(given)}, no tensor")
        width = len(self.columns)
        if given.shape[:1] != (tile,) or given.size != tile * width:
            message = f"{stage}: output {self.name!r} has shape {given.shape} for {tile} records"
            raise BadResult(WRONG_LENGTH, f"{message}; ({tile}, {width}) is needed")
        return given.reshape(tile, width)

    def columns_of(self, given: NDArray[Any], rows: int) -> dict[str, Column]:
        """The columns in what the model gave, without what stands behind the batch's records."""
        turned = given.reshape(len(given), len(self.columns))[:rows].T
        if self.kind is Kind.TEXT:
            made = [Column.of_texts(list(map(str, row))) for row in turned]
        else:
            values = turned.astype(np.bool_ if self.kind is Kind.BOOL else np.float64, order="C")
            made = [Column(self.kind, row) for row in values]
        return dict(zip(self.columns, made, strict=True))


@dataclass(frozen=True)
class Wiring:
    """A model between columns."""

    feeds: tuple[Feed, ...]
    found: tuple[Found, ...]
    tile: int
    """Records of one call."""

    @property
    def fields(self) -> list[Field]:
        """The columns that it adds."""
        return [Field(column, found.kind) for found in self.found for column in found.columns]


def named(given: Any, what: str, stage: str) -> Names:
    """``inputs=`` or ``outputs=`` as given, checked; raises `PlanError`."""
    names: Names
    if isinstance(given, Mapping):
        names = {str(tensor): _columns(columns, what, stage) for tensor, columns in given.items()}
    else:
        names = _columns(given, what, stage)
    columns = all_of(names)
    if not columns:
        raise PlanError(f"{stage}: {what} names no column.")
    if what == "outputs" and len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise PlanError(f"{stage}: {what} names the column {twice!r} twice.")
    return names


def all_of(names: Names) -> list[str]:
    """Every column in it, in order."""
    return [column for part in names.values() for column in part] if isinstance(names, Mapping) else list(names)


def _columns(given: Any, what: str, stage: str) -> tuple[str, ...]:
    columns = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else (given,)
    for column in columns:
        if not isinstance(column, str):
            raise PlanError(f"{stage}: {what} needs names of columns, or a dict of them; it was given {column!r}.")
    return columns


def wired(signature: Signature, inputs: Names, outputs: Names, tile: int | None, stage: str) -> Wiring:
    """The wiring of a model of this signature; raises `PlanError` naming what does not fit, and what the model has."""
    feeds = tuple(_feed(tensor, columns, stage) for tensor, columns in _inputs(signature.inputs, inputs, stage))
    given = _outputs(signature.outputs, outputs, stage)
    found = tuple(_found(tensor, columns, stage) for tensor, columns in given)
    shapes = [tensor.shape for tensor in (*signature.inputs, *(tensor for tensor, _ in given))]
    fixed = {shape[0] for shape in shapes if shape and shape[0] is not None}
    if len(fixed) > 1 or (tile is not None and fixed - {tile}):
        wanted = "" if tile is None else f", and tile={tile}"
        raise PlanError(
            f"{stage}: the model is made for batches of {' and of '.join(map(str, sorted(fixed)))} records{wanted}; "
            f"all must be one number, or free. It takes {_told(signature.inputs)} and gives {_told(signature.outputs)}."
        )
    return Wiring(feeds, found, tile or next(iter(fixed), _DEFAULT_TILE))


def _told(tensors: Sequence[Tensor]) -> str:
    return "; ".join(map(str, tensors)) or "nothing"


# -- inputs --------------------------------------------------------------------------------------------------


def _inputs(tensors: Sequence[Tensor], inputs: Names, stage: str) -> list[tuple[Tensor, tuple[str, ...]]]:
    if not isinstance(inputs, Mapping):
        if len(tensors) != 1:
            raise PlanError(
                f"{stage}: the model has {len(tensors)} inputs ({_told(tensors)}); say which columns go into which: "
                'inputs={"input": ["column", ...], ...}.'
            )
        return [(tensors[0], inputs)]
    _require_known(inputs, tensors, "input", stage)
    absent = [tensor.name for tensor in tensors if tensor.name not in inputs]
    if absent:
        raise PlanError(f"{stage}: inputs= does not say what goes into the model's input {absent[0]!r}.")
    return [(tensor, inputs[tensor.name]) for tensor in tensors]


def _require_known(names: Mapping[str, Any], tensors: Sequence[Tensor], word: str, stage: str) -> None:
    for name in names:
        if name not in {tensor.name for tensor in tensors}:
            raise PlanError(f"{stage}: the model has no {word} {name!r}; its {word}s are {_told(tensors)}.")


def _feed(tensor: Tensor, columns: tuple[str, ...], stage: str) -> Feed:
    if tensor.dtype not in _NUMBERS:
        raise PlanError(
            f"{stage}: columns of numbers cannot be put into the model's input {tensor}; export the model so that it takes "
            "float32, float64, integers or bools."
        )
    shape = _record_shape(tensor, len(columns))
    if shape is None:
        raise PlanError(
            f"{stage}: the model's input {tensor} does not take {counted(len(columns), 'column')} ({', '.join(columns)})."
        )
    return Feed(tensor.name, columns, np.dtype(tensor.dtype), shape)


def _record_shape(tensor: Tensor, columns: int) -> tuple[int, ...] | None:
    """The shape of one record's numbers, with the one free dimension, if any, as large as the columns make it."""
    if tensor.shape is None:
        return (columns,)
    if not tensor.shape:
        return None
    sizes = tensor.shape[1:]
    known, free = math.prod(size for size in sizes if size is not None), sizes.count(None)
    if free > 1 or columns % known or (not free and columns != known):
        return None
    return tuple(columns // known if size is None else size for size in sizes)


# -- outputs -------------------------------------------------------------------------------------------------


def _outputs(tensors: Sequence[Tensor], outputs: Names, stage: str) -> list[tuple[Tensor, tuple[str, ...]]]:
    if isinstance(outputs, Mapping):
        _require_known(outputs, tensors, "output", stage)
        return [(tensor, outputs[tensor.name]) for tensor in tensors if tensor.name in outputs]
    widths = [_width(tensor) for tensor in tensors]
    free = widths.count(None)
    left = len(outputs) - sum(width for width in widths if width is not None)
    if free == len(tensors) == len(outputs):
        widths = [1] * free
    elif (free == 1 and left >= 1) or (not free and not left):
        widths = [left if width is None else width for width in widths]
    else:
        raise PlanError(
            f"{stage}: outputs= names {counted(len(outputs), 'column')} ({', '.join(outputs)}) for what the model gives: "
            f'{_told(tensors)}. Name as many, or say which you want: outputs={{"output": ["column", ...]}}.'
        )
    names = iter(outputs)
    return [
        (tensor, tuple(next(names) for _ in range(width or 0))) for tensor, width in zip(tensors, widths, strict=True)
    ]


def _width(tensor: Tensor) -> int | None:
    """Columns that an output becomes; None where the model does not say."""
    if tensor.shape is None or None in tensor.shape[1:]:
        return None
    return math.prod(size or 1 for size in tensor.shape[1:])


def _found(tensor: Tensor, columns: tuple[str, ...], stage: str) -> Found:
    if tensor.dtype is None:
        raise PlanError(
            f"{stage}: the model's output {tensor.name!r} is a sequence or a map, which no columns can be made of; "
            "export the model so that it gives tensors (zipmap=False with skl2onnx), or name other outputs."
        )
    if tensor.dtype not in _NUMBERS and tensor.dtype != "string":
        raise PlanError(
            f"{stage}: no column can be made of the model's output {tensor}; export the model so that it gives float32 or float64, "
            "or name other outputs."
        )
    width = _width(tensor)
    if tensor.shape == () or (width is not None and width != len(columns)):
        raise PlanError(
            f"{stage}: outputs= names {counted(len(columns), 'column')} ({', '.join(columns)}) for the model's output {tensor}."
        )
    kind = {"string": Kind.TEXT, "bool": Kind.BOOL}.get(tensor.dtype, Kind.FLOAT)
    shape = None if width is None or kind is Kind.TEXT else tuple(size or 1 for size in (tensor.shape or ())[1:])
    return Found(tensor.name, columns, kind, tensor.dtype, shape)


def _has_missing(column: Column) -> bool:
    return bool(column.missing_rows().any())
