"""What the initializer of a process has stored in globals of a script or a notebook, for the functions that come after it.

A pickle of functions by value has the globals that they use as they were when it was made, and they get a dict for themselves: what
another function has stored is nothing to them. What an initializer has stored is put there, for each module. It stays in
its process: functions and classes that go back go without it.
"""

from __future__ import annotations

import collections
import contextlib
import operator
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["InitializedGlobals", "initialized_here"]

_Globals = dict[str, Any]


class InitializedGlobals:
    """Of one process, by the names of the modules.

    >>> here, first, later = InitializedGlobals(), {"__name__": "script"}, {"__name__": "script", "model": None}
    >>> here.come(first)
    >>> with here.kept():
    ...     first["model"] = "large"
    >>> here.come(later)
    >>> later["model"], here.going("script", {"model": "large", "limit": 3})
    ('large', {'limit': 3, 'model': None})
    """

    def __init__(self) -> None:
        self._first: dict[int, _Globals] | None = {}
        """What came with the initializer, until it runs."""
        self._stored: dict[Any, _Globals] = {}
        self._sent: dict[Any, _Globals] = {}
        """What the application has sent in their place."""

    def come(self, its: _Globals) -> None:
        """A function was loaded, and these are its globals."""
        if self._first is not None:
            self._first[id(its)] = its
        module = its.get("__name__")
        if stored := self._stored.get(module):
            self._sent.setdefault(module, {}).update({name: its[name] for name in stored if name in its})
            its.update(stored)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """What is stored or changed meanwhile, in globals that have come."""
        first, self._first = self._first or {}, None
        before = {place: {name: _parts(value) for name, value in its.items()} for place, its in first.items()}
        sent = {place: dict(its) for place, its in first.items()}
        yield
        for place, its in first.items():
            stored = self._stored.setdefault(its.get("__name__"), {})
            for name, value in its.items():
                if sent[place].get(name, stored) is not value or not _same(before[place].get(name, ()), _parts(value)):
                    stored[name] = value
                    if sent[place].get(name, value) is not value:
                        self._sent.setdefault(its.get("__name__"), {})[name] = sent[place][name]

    def going(self, module: str | None, its: _Globals) -> _Globals:
        """The globals with which a function of the module leaves this process: as the application knows them, where it does."""
        stored, sent = self._stored.get(module), self._sent.get(module, {})
        if not stored:
            return its
        kept = {name: value for name, value in its.items() if name not in stored or stored[name] is not value}
        return {**kept, **{name: value for name, value in sent.items() if name in its and name not in kept}}


def _parts(value: Any) -> tuple[Any, ...]:
    """It and, where it can be changed, what it is made of."""
    try:
        own = vars(value).values() if hasattr(value, "__dict__") else ()
        if isinstance(value, dict):
            return value, *own, *dict.keys(value), *dict.values(value)
        if isinstance(value, (list, set, collections.deque)):
            return value, *own, *value
    except Exception:  # noqa: BLE001 - the user's own methods
        return (value,)
    return value, *own


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return len(before) == len(after) and all(map(operator.is_, before, after))


initialized_here: Final[ContextVar[InitializedGlobals | None]] = ContextVar("initialized_here", default=None)
"""Those of the process that loads and pickles here, if it has begun to; an application has none."""
