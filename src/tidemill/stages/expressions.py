"""Small expressions over column names, such as ``"10 < value < 80 and unit == 'C'"``: read, checked, never executed
as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, NULL_TAG, Column
from tidemill.errors import PlanError
from tidemill.schema import Kind, Schema
from tidemill.stages.numbers import NUMERIC

__all__ = ["Expression"]


_BINARY: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ORDERS: Final = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_UNARY: Final[Mapping[type, Callable[[Any], Any]]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


class Expression:
    """A checked expression: called with a `Batch`, it gives an array of one value per record.

    Column names, numbers, texts, True and False, ``and or not``, ``== != < <= > >= in``, ``+ - * / // %`` and brackets.
    Raises `PlanError` for anything else. A comparison in which something is missing (NaN, null, an absent field) is False, whichever
    it is, and so is a name alone where a condition stands; ``not`` of it is True. In arithmetic True is 1. A column that the batch lacks is missing in
    each record. Integers are compared as they are, also beyond 2**53.

    >>> from tidemill.batch import Batch
    >>> Expression("value * 2 > 5 and unit in ('C', 'F')")(Batch.from_rows([{"value": 4, "unit": "C"}]))
    array([ True])
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise PlanError(f"the expression {text!r} cannot be read: {error.msg}.") from None
        for node in ast.walk(tree):
            if not isinstance(node, _ALLOWED) or (
                isinstance(node, ast.Constant) and not isinstance(node.value, bool | int | float | str)
            ):
                missing = next(filter(None, map(_asked_whether_missing, ast.walk(tree))), None)
                more = (
                    "Give a function for more."
                    if missing is None
                    else f'"{missing} == {missing}" is True where {missing} is there, "not {missing} == {missing}" where it is missing.'
                )
                raise PlanError(
                    f"the expression {text!r} holds {_written(node)}, "
                    f"which is not one of: column names, values, and or not, comparisons, in, + - * / // %. {more}"
                )
        self._tree: ast.expr = _Signed().visit(tree)
        self.names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        """The columns it reads."""

    def check(self, schema: Schema, *, stage: str) -> None:
        """Raises `PlanError` where a column of numbers is known to be compared with a text, or one of texts with a number: which comes
        first, nobody can say."""
        kinds = {field.name: field.kind for field in schema}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Compare):
                for op, *sides in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False):
                    for side, other in (sides, sides[::-1]):
                        if type(op) in _ORDERS and isinstance(side, ast.Name) and isinstance(other, ast.Constant):
                            _check_order(self.text, side.id, kinds.get(side.id), other.value, stage)

    def __call__(self, batch: Batch) -> Any:
        with np.errstate(all="ignore"):
            value = _value(self._tree, batch)
            if isinstance(self._tree, ast.Name) and _is_of_flags(value):
                value = _truth(self._tree, batch)
        return value if np.ndim(value) else np.full(len(batch), value)


def _written(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.expr) else _NOT_ALLOWED.get(type(node), type(node).__name__)


def _asked_whether_missing(node: ast.AST) -> str | None:
    """The column of which Python or another library would be asked so here."""
    match node:
        case (
            ast.Compare(left=ast.Name(id=name), comparators=[ast.Constant(value=None)])
            | ast.Compare(left=ast.Constant(value=None), comparators=[ast.Name(id=name)])
        ):
            return name
        case (
            ast.Call(func=ast.Name(id=asked) | ast.Attribute(attr=asked), args=[ast.Name(id=name)])
            | ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=asked), args=[])
        ):
            return name if asked in _WHETHER_MISSING else None
    return None


_WHETHER_MISSING: Final = ("isnan", "isna", "isnull", "notna", "notnull")
_NOT_ALLOWED: Final[Mapping[type, str]] = {
    ast.Is: "`is`",
    ast.IsNot: "`is not`",
    ast.Pow: "`**`",
    ast.BitAnd: "`&` (write `and`)",
    ast.BitOr: "`|` (write `or`)",
    ast.BitXor: "`^`",
    ast.Invert: "`~` (write `not`)",
    ast.LShift: "`<<`",
    ast.RShift: "`>>`",
    ast.MatMult: "`@`",
}
_ALLOWED: Final = (
    ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List, ast.And,
    ast.Or, ast.Not, ast.In, ast.NotIn, *_BINARY, *_COMPARE, *_UNARY,
)  # fmt: skip


def _check_order(text: str, name: str, kind: Kind | None, value: object, stage: str) -> None:
    numbers = kind in NUMERIC
    if (numbers and isinstance(value, str)) or (kind is Kind.TEXT and not isinstance(value, str)):
        there, given = ("numbers", "text") if numbers else ("texts", "number")
        raise PlanError(f"{stage}: {text!r} compares {name!r}, a column of {there}, with the {given} {value!r}.")


def _value(node: ast.expr, batch: Batch) -> Any:
    match node:
        case ast.Name(id=name):
            return _column(name, batch).array
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value(item, batch) for item in items]
        case ast.BoolOp(op=op, values=parts):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return join.reduce(np.broadcast_arrays(*(_truth(part, batch) for part in parts)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_truth(operand, batch))
        case ast.UnaryOp(op=op, operand=operand):
            return _computed(_UNARY[type(op)], _value(operand, batch))
        case ast.BinOp(left=left, op=op, right=right):
            return _computed(_BINARY[type(op)], _value(left, batch), _value(right, batch))
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_Side(side, batch) for side in (left, *others)]
            made = [_compared(op, *pair) for op, pair in zip(ops, pairwise(sides), strict=True)]
            return made[0] if len(made) == 1 else np.logical_and.reduce(np.broadcast_arrays(*made))
    raise AssertionError(node)


def _column(name: str, batch: Batch) -> Column:
    return batch.column(name) if name in batch else Column.missing(Kind.OBJECT, len(batch))


def _computed(op: Callable[..., Any], *operands: Any) -> Any:
    """As Python does, for which True is 1. Of objects, None where one is None: nothing can be computed with it."""
    operands = tuple(map(_counted, operands))
    objects = [item for item in operands if getattr(item, "dtype", None) == np.object_]
    if not objects:
        return op(*operands)
    there = np.array([all(part is not None for part in parts) for parts in zip(*objects, strict=True)], np.bool_)
    made = np.full(len(there), None, np.object_)
    made[there] = op(*(item[there] if np.ndim(item) else item for item in operands))
    return made


def _counted(operand: Any) -> Any:
    """Flags as numbers: of two of NumPy's, a sum is a flag and a difference an error."""
    return np.asarray(operand, np.int64) if getattr(operand, "dtype", type(operand)) in (np.bool_, bool) else operand


def _truth(node: ast.expr, batch: Batch) -> Any:
    """What is missing is False; comparisons, and what joins them, have seen to that themselves."""
    side = _Side(node, batch)
    made = side.value.astype(np.bool_)
    decides = isinstance(node, ast.Compare | ast.BoolOp) or isinstance(getattr(node, "op", None), ast.Not)
    return made if decides else made & side.there


def _is_of_flags(value: NDArray[Any]) -> bool:
    """Whether nothing but True, False and None is in a column."""
    if value.dtype == np.object_:
        return all(item is None or isinstance(item, bool | np.bool_) for item in value.tolist())
    return value.dtype == np.bool_


# -- comparisons -------------------------------------------------------------------------------------------


class _Side:
    """What stands on one side of a comparison, evaluated once."""

    def __init__(self, node: ast.expr, batch: Batch) -> None:
        self.node, self._batch = node, batch
        self.items = [_Side(item, batch) for item in node.elts] if isinstance(node, ast.Tuple | ast.List) else None
        """Of a list, its own."""

    @cached_property
    def value(self) -> NDArray[Any]:
        return np.asarray(_value(self.node, self._batch))

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        """The records that have a value in every column that is read here, of which a number came."""
        there = np.ones(len(self._batch), np.bool_)
        for name in {own.id for own in ast.walk(self.node) if isinstance(own, ast.Name)}:
            column = _column(name, self._batch)
            if column.tags is not None:
                there &= (column.tags != NULL_TAG) & (column.tags != ABSENT_TAG)
            if column.kind is Kind.TEXT:
                there &= column.values >= 0
        if self.items is None and self.value.dtype.kind == "f":
            there &= ~np.isnan(self.value)
        elif self.items is None and self.value.dtype.kind == "M":
            there &= ~np.isnat(self.value)
        return there

    def at(self, rows: NDArray[np.bool_] | slice) -> NDArray[Any]:
        return self.value[rows] if self.value.ndim else self.value

    @property
    def rounded(self) -> NDArray[np.bool_]:
        """The records in which a value of its own is not what its array shows: an integer that float64 does not hold."""
        rounded = np.zeros(len(self._batch), np.bool_)
        match self.node:
            case ast.Name(id=name):
                rounded[list(_column(name, self._batch).exact or ())] = True
            case ast.Constant(value=int(value)) if abs(value) > 2**53:
                rounded[:] = True
        return rounded

    def exactly(self) -> list[Any]:
        """The values as they are."""
        match self.node:
            case ast.Name(id=name):
                return _column(name, self._batch).to_list()
            case ast.Constant():
                return [self.node.value] * len(self._batch)
            case _:
                shown: list[Any] = np.broadcast_to(self.value, (len(self._batch),)).tolist()
                return shown


def _compared(op: ast.cmpop, left: _Side, right: _Side) -> NDArray[np.bool_]:
    """Where both sides have a value, what Python says of them; elsewhere False."""
    if isinstance(op, ast.In | ast.NotIn):
        found = np.zeros(len(left.there), np.bool_)
        for item in [right] if right.items is None else right.items:
            found |= _compared(ast.Eq(), left, item)
        return found if isinstance(op, ast.In) else ~found & left.there
    there = left.there & right.there
    compare = _COMPARE[type(op)]
    made = np.zeros(len(there), np.bool_)
    rows = there if "O" in (left.value.dtype.kind, right.value.dtype.kind) else slice(None)  # None has no order
    made[rows] = np.asarray(compare(left.at(rows), right.at(rows))).astype(np.bool_)
    rounded = there & (left.rounded | right.rounded)
    if rounded.any():
        rounded[rounded] = left.at(rounded) == right.at(rounded)  # where they differ, rounding has changed nothing
        ours, theirs = left.exactly(), right.exactly()
        for row in np.flatnonzero(rounded).tolist():
            made[row] = compare(ours[row], theirs[row])
    return made & there


class _Signed(ast.NodeTransformer):
    """Numbers with their sign: ``-5`` is read as an operation on 5."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        number = getattr(node.operand, "value", None)
        if isinstance(number, bool) or not isinstance(number, int | float) or type(node.op) not in _UNARY:
            self.generic_visit(node)
            return node
        return ast.copy_location(ast.Constant(_UNARY[type(node.op)](number)), node)
