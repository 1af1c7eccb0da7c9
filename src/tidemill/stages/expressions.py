"""Small expressions over column names, such as ``"10 < value < 80 and unit == 'C'"``: read, checked, never executed
as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.errors import PlanError

__all__ = ["Expression"]


def _is_in(value: Any, items: Any) -> Any:
    found = np.zeros(np.shape(value), np.bool_)
    for item in items:
        found = found | (value == item)
    return found


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
    ast.In: _is_in,
    ast.NotIn: lambda value, items: ~_is_in(value, items),
}
_UNARY: Final[Mapping[type, Callable[[Any], Any]]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


class Expression:
    """A checked expression: called with a `Batch`, it gives an array of one value per record.

    Column names, numbers, texts, True and False, ``and or not``, ``== != < <= > >= in``, ``+ - * / // %`` and brackets.
    Raises `PlanError` for anything else.

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
                raise PlanError(
                    f"the expression {text!r} holds {ast.unparse(node) if isinstance(node, ast.expr) else node!r}, "
                    "which is not one of: column names, values, and or not, comparisons, in, + - * / // %. "
                    "Give a function for more."
                )
        self._tree = tree
        self.names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        """The columns it reads."""

    def __call__(self, batch: Batch) -> Any:
        with np.errstate(all="ignore"):
            value = _value(self._tree, batch)
        return value if np.ndim(value) else np.full(len(batch), value)


_ALLOWED: Final = (
    ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List, ast.And,
    ast.Or, ast.Not, *_BINARY, *_COMPARE, *_UNARY,
)  # fmt: skip


def _value(node: ast.expr, batch: Batch) -> Any:
    match node:
        case ast.Name(id=name):
            return batch[name]
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
            return _UNARY[type(op)](_value(operand, batch))
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, batch), _value(right, batch))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(left, batch), *(_value(other, batch) for other in others)]
            pairs = zip(ops, values, values[1:], strict=False)
            made = [_COMPARE[type(op)](a, b) for op, a, b in pairs]
            return made[0] if len(made) == 1 else np.logical_and.reduce(np.broadcast_arrays(*made))
    raise AssertionError(node)


def _truth(node: ast.expr, batch: Batch) -> Any:
    return np.asarray(_value(node, batch)).astype(np.bool_)
