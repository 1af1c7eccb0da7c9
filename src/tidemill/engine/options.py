"""Values of options: each is checked in one place and refused in one sentence, with `CallError`."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import AsyncIterable, Iterable
from datetime import timedelta
from typing import Any, Final, Literal

from tidemill.errors import CallError

__all__ = [
    "WHEN_FULL",
    "WhenFull",
    "check_callable",
    "check_choice",
    "check_count",
    "check_plain",
    "check_seconds",
    "check_source",
    "check_timeout",
]

WhenFull = Literal["block", "reject", "drop_oldest"]
WHEN_FULL: Final = ("block", "reject", "drop_oldest")
"""What a call meets when as much waits as may."""
_ASYNC: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def check_callable(value: object) -> None:
    """Something to call, not what a call returned; and a plain one."""
    if not callable(value):
        raise CallError(f"{value!r} is not a function; write lanes.run(function, argument), without calling it.")
    check_plain(value)


def check_plain(function: Any) -> None:
    """One that is not async, also where some of its arguments are bound."""
    bare = function
    while isinstance(bare, functools.partial):
        bare = bare.func
    if isinstance(bare, type):
        return
    is_function = isinstance(bare, types.FunctionType | types.MethodType)  # others may answer to any attribute
    code = getattr(bare if is_function else type(bare).__call__, "__code__", None)
    if isinstance(code, types.CodeType) and code.co_flags & _ASYNC:
        name = getattr(bare, "__qualname__", None) or type(bare).__qualname__
        raise CallError(
            f"{name} is async, and a lane runs plain functions: await on the event loop, and give a lane what computes, as a "
            "plain function (def). What must be async in the lane too goes into a plain function that calls asyncio.run(...)."
        )


def check_count(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise CallError(
            f"{name}={value!r} must be a whole number, at least {least}{'' if most is None else f' and at most {most}'}."
        )


def check_timeout(value: Any, name: str = "timeout") -> float | None:
    """None, or more than 0 seconds, as a float."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        raise CallError(f"{name}={value!r} must be a number of seconds; give {name}={value.total_seconds()!r}.")
    if not _is_number(value) or not value > 0:
        raise CallError(f"{name}={value!r} must be more than 0 seconds; leave it out for none.")
    return _seconds(name, value)


def check_seconds(name: str, value: Any) -> None:
    """0 seconds or more."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise CallError(f"{name}={value!r} must be a number of seconds, 0 or more.")
    _seconds(name, value)


def _seconds(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise CallError(f"{name} is a number of seconds that no float holds; leave it out for none.") from None


def check_source(value: object) -> None:
    """Something to read, one value after the other."""
    if not isinstance(value, (Iterable, AsyncIterable)) and not hasattr(type(value), "__getitem__"):
        raise CallError(
            f"{value!r} is not a source of values; write lanes.stream(function, values), with an iterable or an asynchronous "
            "iterable of them."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...] = WHEN_FULL) -> None:
    """One of some words."""
    if value not in choices:
        raise CallError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.")


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (str, bytes))
