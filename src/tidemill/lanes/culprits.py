"""What in a value keeps it from being sent to another process, for messages."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, Final

from tidemill.by_value import parts_by_value
from tidemill.lanes.parcels import pack

__all__ = ["culprit", "describe", "first_culprit"]

_FEW: Final = 4
_DEPTH: Final = 4
"""Of containers in containers that are looked into."""
_PART: Final = itemgetter(1)


def describe(error: BaseException) -> str:
    """For messages. Lets Ctrl-C pass, which is nobody's error."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    return f"{type(error).__name__}: {error}"


def _can_be_pickled(value: Any, dumps: Callable[[Any], object]) -> bool:
    try:
        dumps(value)
    except BaseException as error:  # noqa: BLE001 - whatever its methods raise
        describe(error)
        return False
    return True


def culprit(value: Any, path: str, dumps: Callable[[Any], object] = pack, depth: int = _DEPTH) -> str | None:
    """The path to the smallest part that ``dumps`` cannot pickle, with its type; None when it can do all of it.

    Takes a few times as long as ``dumps``, however many parts there are.
    """
    return None if _can_be_pickled(value, dumps) else _culprit_in(value, path, dumps, depth)


def _culprit_in(value: Any, path: str, dumps: Callable[[Any], object], depth: int) -> str:
    """Of what cannot be pickled."""
    parts: Iterable[tuple[str, Any]] = []
    if depth and type(value) is dict:
        parts = [(f"{path}[{key!r}]", part) for key, part in _around(list(value.items()), dumps)]
    elif depth and type(value) in {list, tuple}:
        numbered = _around(list(enumerate(value)), dumps)
        parts = [(f"{path}[{number}]", part) for number, part in numbered]
    elif depth and isinstance(value, types.MethodType):
        parts = [(f"{path}.__self__", value.__self__)]
    elif depth and isinstance(value, functools.partial):
        parts = [(f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords")]
    elif depth and isinstance(value, types.FunctionType):
        parts = [(f"{name} in {path}", part) for name, part in parts_by_value(value)]
    elif depth and isinstance(value, type):
        parts = [(f"{path}.{name}", part) for name, part in vars(value).items() if not name.startswith("__")]
    elif depth and _is_pickled_by_parts(value):
        parts = [(f"{path}.{name}", part) for name, part in vars(value).items()]
    for name, part in parts:
        found = culprit(part, name, dumps, depth - 1)
        if found:
            return found
    return f"{path}, a {type(value).__qualname__},"


def _around(parts: list[tuple[Any, Any]], dumps: Callable[[Any], object]) -> list[tuple[Any, Any]]:
    """A few of the ``parts`` of something that cannot be pickled, the first culprit among them: found by halves, since one by one
    they take ten times as long as all together."""
    while len(parts) > _FEW:
        half = len(parts) // 2
        first = parts[:half]
        parts = parts[half:] if _can_be_pickled(list(map(_PART, first)), dumps) else first
    return parts


def first_culprit(where: Mapping[str, Any], otherwise: str, dumps: Callable[[Any], object] = pack) -> str:
    """The same of the first of several values, by what messages call them, that has one: there is one among them."""
    if len(where) == 1:
        return next(_culprit_in(value, path, dumps, _DEPTH) for path, value in where.items())
    return next((found for path, value in where.items() if (found := culprit(value, path, dumps))), otherwise)


def _is_pickled_by_parts(value: Any) -> bool:
    """Whether pickle takes the attributes of an object, and nothing that its class says instead."""
    kind = type(value)
    return isinstance(getattr(value, "__dict__", None), dict) and all(
        getattr(kind, name) is getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )
