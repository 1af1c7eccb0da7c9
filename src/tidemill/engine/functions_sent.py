"""Which functions have numbers: a plain function is pickled once and sent once to each lane's process."""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tidemill.engine.options import check_plain
from tidemill.lanes.call_codec import dumps_function

__all__ = ["FunctionsSent", "SentFunction", "call_name", "name_of"]


@dataclass(frozen=True, slots=True)
class SentFunction:
    """A function with its number and its pickle."""

    number: int
    data: bytes
    call_name: str
    """For messages."""


_Known = tuple[Callable[[], Any], SentFunction]
"""A weak reference to a function, and what was made of it."""


class FunctionsSent:
    """Functions and classes by identity, for as long as the application keeps them.

    Bound methods, partials and other callables carry values that may change between calls: they have no number and
    are pickled with the arguments of each call.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._sent: dict[int, _Known] = {}  # by ``id``: classes may say of themselves that they equal others
        self._last: _Known = (lambda: self, SentFunction(0, b"", ""))  # the one asked for last: mostly the next

    def of(self, function: Callable[..., Any]) -> SentFunction | None:
        """Its number and pickle; None for a callable that travels with each call. Raises `CallError`. From any thread."""
        known = self._last  # read once: another thread may replace it meanwhile
        if known[0]() is function:
            return known[1]
        if not isinstance(function, (types.FunctionType, type)):
            return None
        place = id(function)
        found = self._sent.get(place)
        if found is None or found[0]() is not function:
            check_plain(function)
            sent = SentFunction(next(self._numbers), dumps_function(function), call_name(function))
            found = (weakref.ref(function, lambda gone: self._forget(place, gone)), sent)
            self._sent[place] = found
        self._last = found
        return found[1]

    def _forget(self, place: int, gone: object) -> None:
        known = self._sent.get(place)
        if known is not None and known[0] is gone:
            del self._sent[place]

    def listed(self, function: Callable[..., Any]) -> SentFunction:
        """The same for a function of lists, whatever it is: it is as it was when it was first sent."""
        sent = self.of(function)
        return sent or SentFunction(next(self._numbers), dumps_function(function), call_name(function))


def call_name(function: Callable[..., Any]) -> str:
    """A call of it, for messages."""
    return f"lanes.run({name_of(function)})"


def name_of(function: Callable[..., Any]) -> str:
    """For messages."""
    return getattr(function, "__qualname__", None) or type(function).__qualname__
