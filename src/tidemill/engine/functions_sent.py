"""Which functions have numbers: a plain function is pickled once and sent once to each lane's process."""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tidemill.lanes.call_codec import dumps_function

__all__ = ["FunctionsSent", "SentFunction", "call_name", "name_of"]


@dataclass(frozen=True, slots=True)
class SentFunction:
    """A function with its number and its pickle."""

    number: int
    data: bytes
    call_name: str
    """For messages."""


class FunctionsSent:
    """Functions and classes by identity, for as long as the application keeps them.

    Bound methods, partials and other callables carry values that may change between calls: they have no number and
    are pickled with the arguments of each call.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._sent: weakref.WeakKeyDictionary[Callable[..., Any], SentFunction] = weakref.WeakKeyDictionary()
        self._last: Callable[[], Any] = lambda: self  # a weak reference to the function asked for last: mostly the next
        self._last_sent = SentFunction(0, b"", "")

    def of(self, function: Callable[..., Any]) -> SentFunction | None:
        """Its number and pickle; None for a callable that travels with each call. Raises `CallError`."""
        if self._last() is function:
            return self._last_sent
        if not isinstance(function, (types.FunctionType, type)):
            return None
        sent = self._sent.get(function)
        if sent is None:
            sent = SentFunction(next(self._numbers), dumps_function(function), call_name(function))
            self._sent[function] = sent
        self._last, self._last_sent = weakref.ref(function), sent
        return sent

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
