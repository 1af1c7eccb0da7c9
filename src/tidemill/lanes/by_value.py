"""Pickles of what another process cannot import: the code of ``__main__``, of a notebook, of closures (by cloudpickle).

Two things are ours. A class that comes back to the process that it is from stays as it is there: cloudpickle would set all
its attributes to what they were where it was pickled. And a function with a ``functools.lru_cache`` travels, with a cache of
its own.
"""

from __future__ import annotations

import functools
import io
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final

import cloudpickle

__all__ = ["dumps_by_value"]

_Cached: Final = type(functools.lru_cache(len))

_native: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that were sent from here and did not come from elsewhere."""
_foreign: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that came from elsewhere."""


def dumps_by_value(value: Any, buffer_callback: Callable[[Any], Any] | None = None) -> bytes:
    """Pickle a value; raises whatever its own methods raise.

    >>> import pickle
    >>> Reading = type("Reading", (), {"scale": 1.0})
    >>> sent = dumps_by_value(Reading)
    >>> Reading.scale = 2.0
    >>> pickle.loads(sent) is Reading, Reading.scale
    (True, 2.0)
    """
    file = io.BytesIO()
    _Pickler(file, 5, buffer_callback).dump(value)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is _Cached and not _is_found(obj):
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == 6:
            if obj not in _foreign:
                _native.add(obj)
            make, arguments, state, _, _, fill = reduced
            return _made, (make, *arguments), (fill, state), None, None, _filled
        return reduced


def _is_found(function: Any) -> bool:
    """Whether another process finds it by its name."""
    name = function.__module__
    if name == "__main__" or name in cloudpickle.list_registry_pickle_by_value():
        return False
    try:
        found = functools.reduce(getattr, function.__qualname__.split("."), sys.modules[name])
    except (AttributeError, KeyError):
        return False
    return found is function


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _made(make: Callable[..., type], *arguments: Any) -> type:
    """The class, which may be known here, else without its attributes."""
    made = make(*arguments)
    if made not in _native:
        _foreign.add(made)
    return made


def _filled(made: type, state: tuple[Callable[[type, Any], Any], Any]) -> None:
    if made not in _native:
        fill, attributes = state
        fill(made, attributes)
