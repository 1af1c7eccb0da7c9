"""The objects of `tidemill.Lanes.keyed`, where they live: in a lane. The parent keeps what they can be made from again.

Every call says which version of the object it is for. A process that has another one, or none, does nothing and says
so; the parent then sends the object's state along. So a call never meets an object that is ahead or behind.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from tidemill.by_value import dumps, importing_nothing, names_what_stays_here
from tidemill.errors import BadResult, CallError
from tidemill.lanes.call_codec import loads

__all__ = ["KeyedObjects"]

MAX_LIVE: Final = 4096
"""Objects that a process keeps; the one used least lately is made again from its state when it is needed."""

_THE_CLASS: Final = "C"
_ASYNC: Final = (types.CoroutineType, types.AsyncGeneratorType)


class KeyedObjects:
    """One object a key, each made by ``factory()``.

    >>> from collections import Counter
    >>> objects = KeyedObjects(Counter)
    >>> value, state = objects("S1", 0, 1, b"", "update", dumps((("ab",), {})))
    >>> objects("S1", 1, 2, None, "__getitem__", dumps((("a",), {})))[0]
    1
    >>> KeyedObjects(Counter)("S1", 1, 2, None, "__getitem__", dumps((("a",), {}))) is None  # another process
    True
    """

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory = self.__wrapped__ = factory
        self._class = factory if isinstance(factory, type) else None
        self._live: OrderedDict[str | bytes, tuple[int, Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type[KeyedObjects], tuple[Callable[[], Any]]]:
        return KeyedObjects, (self._factory,)

    def __call__(
        self, key: str | bytes, version: int, next_version: int, state: bytes | None, method: str, arguments: bytes
    ) -> tuple[Any, bytes] | None:
        """What the method returned, and the object's state after it; None when that version of it is not here.

        Version 0 is a new object. An object whose method raised is forgotten: its state is that of before the call.
        """
        live = self._live.pop(key, None)
        if live is not None and live[0] == version:
            value = live[1]
        elif version == 0:
            value = self._factory()
        elif state is None:
            return None
        else:
            value = self._restored(state)
        args, kwargs = loads(bytearray(arguments))  # its arrays are the object's own
        answer = _method(value, method)(*args, **kwargs)
        if isinstance(answer, _ASYNC):
            raise _is_async(answer, value)
        after = self._snapshot(value)
        self._live[key] = next_version, value
        if len(self._live) > MAX_LIVE:
            self._live.popitem(last=False)
        return answer, after

    def _snapshot(self, value: Any) -> bytes:
        try:
            if _keeps_itself(type(value)):
                return dumps(value.snapshot())
            return self._pickled(value)
        except Exception as error:
            raise BadResult(
                "unpicklable_state",
                f"The method ran, but the object, a {type(value).__qualname__}, cannot be kept "
                f"({type(error).__name__}: {error}). Give its class snapshot() and restore(snapshot), or make it of "
                "values that can be pickled. The object is as it was before the call.",
            ) from error

    def _pickled(self, value: Any) -> bytes:
        """The class itself, which may be one of ``__main__``, does not travel each time."""
        buffer = io.BytesIO()
        try:
            with importing_nothing():
                _Pickler(buffer, self._class).dump(value)
        except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
            return dumps(value)
        data = buffer.getvalue()
        return dumps(value) if names_what_stays_here(data) else data

    def _restored(self, state: bytes) -> Any:
        if self._class is None or _keeps_itself(self._class):
            fresh = self._factory()
            if _keeps_itself(type(fresh)):
                fresh.restore(loads(state))
                return fresh
        return _Unpickler(io.BytesIO(state), self._class).load()


def _keeps_itself(of: type) -> bool:
    """Whether it has both methods; a class with one of them means something else by it."""
    return hasattr(of, "snapshot") and hasattr(of, "restore")


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, the_class: type | None) -> None:
        super().__init__(file, 5)
        self._class = the_class

    def persistent_id(self, value: Any) -> str | None:
        return _THE_CLASS if value is self._class and value is not None else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, the_class: type | None) -> None:
        super().__init__(file)
        self._class = the_class

    def persistent_load(self, _: Any) -> Any:
        return self._class


def _method(value: Any, name: str) -> Callable[..., Any]:
    """By its name; without one, the object itself when it can be called, else its ``update``."""
    if name:
        found: Callable[..., Any] = getattr(value, name)
    elif callable(value):
        found = value
    elif hasattr(value, "update"):
        found = value.update
    else:
        raise TypeError(
            f"a {type(value).__qualname__} has neither __call__ nor update; name the method: "
            'await objects.call(key, "method", ...)'
        )
    return found


def _is_async(begun: Any, value: Any) -> CallError:
    if isinstance(begun, types.CoroutineType):
        begun.close()  # else Python complains that nobody awaited it
    return CallError(
        f"{begun.__name__} of a {type(value).__qualname__} is async, and a lane runs plain methods (def): await on the event "
        "loop, and give the object what computes. The object is as it was before the call."
    )
