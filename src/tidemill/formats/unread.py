"""Reading the pickle of a column of objects where one of them fails to be made: the others are still read.

Plain pickle reads all of it, as ever. Only when it raises, the same bytes are read again by pickle's own slow reader, which puts
a stand-in where something cannot be made; the items that hold one, however deep, are those that cannot be read.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, Final

from tidemill.by_value import dumps

__all__ = ["loads_items"]


def loads_items(data: Any, count: int) -> tuple[list[Any], dict[int, str]]:
    """The ``count`` items of a pickled list, and of those that cannot be read, which are None, the reasons by their places.

    >>> loads_items(pickle.dumps([1, None], 5), 2)
    ([1, None], {})
    """
    try:
        items: list[Any] = pickle.loads(data)  # noqa: S301 - our own processes' bytes
    except Exception as error:  # noqa: BLE001 - whatever the items' own methods raise
        return _loads_some(bytes(data), count, error)
    return items, {}


def _loads_some(data: bytes, count: int, error: Exception) -> tuple[list[Any], dict[int, str]]:
    try:
        items = _Reader(data).load()
    except Exception:  # noqa: BLE001 - as above, where no stand-in can be put
        return [None] * count, dict.fromkeys(range(count), _told(error))
    reasons = {}
    for place, item in enumerate(items):
        try:
            dumps(item)
        except Exception as why:  # noqa: BLE001 - a stand-in's, or of a method that would be called next
            reasons[place] = str(why) if isinstance(why, _Unread) else _told(why)
    return [None if place in reasons else item for place, item in enumerate(items)], reasons


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Unread(Exception):
    """Raised by what would pickle a stand-in."""


class _StandIn:
    """For what could not be made."""

    def __init__(self, error: Exception) -> None:
        self._why = _told(error)

    def __reduce__(self) -> Any:
        raise _Unread(self._why)

    def _nothing(self, *_: Any) -> None:
        """What would be put into it goes nowhere."""

    append = extend = add = update = __setitem__ = _nothing


_SlowUnpickler: Any = pickle._Unpickler  # which has a method for each operation


class _Reader(_SlowUnpickler):  # type: ignore[misc]
    stack: list[Any]
    memo: dict[int, Any]
    dispatch: Final = dict(_SlowUnpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:  # noqa: BLE001 - a module may raise anything
            return _StandIn(error)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        made = self._made(function, arguments)
        if isinstance(made, _StandIn) and arguments and self.stack and self.stack[-1] is arguments[0]:
            self._replace(made)  # what was to be filled, as classes are
        self.stack.append(made)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self.stack.append(self._made(getattr(kind, "__new__", kind), (kind, *arguments)))

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self.stack.append(self._made(getattr(kind, "__new__", kind), (kind, *arguments), named))

    def load_build(self) -> None:
        at = len(self.stack) - 2
        if isinstance(self.stack[at], _StandIn):
            del self.stack[at + 1 :]
            return
        try:
            super().load_build()
        except Exception as error:  # noqa: BLE001 - its __setstate__
            del self.stack[at + 1 :]
            self._replace(_StandIn(error))

    def _made(self, function: Callable[..., Any], arguments: Any, named: Any = None) -> Any:
        for part in (function, *arguments):
            if isinstance(part, _StandIn):
                return part
        try:
            return function(*arguments, **(named or {}))
        except Exception as error:  # noqa: BLE001 - whatever the class of an item raises
            return _StandIn(error)

    def _replace(self, stand_in: _StandIn) -> None:
        """It takes the place of what is on top, also where the pickle refers to that again."""
        failed, self.stack[-1] = self.stack[-1], stand_in
        for place, known in self.memo.items():
            if known is failed:
                self.memo[place] = stand_in

    for _operation, _method in {
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.NEWOBJ_EX: load_newobj_ex,
        pickle.BUILD: load_build,
    }.items():
        dispatch[_operation[0]] = _method
