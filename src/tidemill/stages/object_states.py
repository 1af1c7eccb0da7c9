"""Objects of the user's as bytes, and back: by their own ``snapshot`` and ``restore``, or pickled.

Only what a lane of ours made is ever unpickled.
"""

from __future__ import annotations

import copyreg
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.by_value import dumps_by_value, importing_nothing
from tidemill.errors import StageError
from tidemill.stages.raised_in import raised_in

__all__ = ["ObjectStates", "States"]

_PROTOCOL: Final = 5
_GONE: Final = -1  # the size of a state that is no more
_SNAPSHOT, _PLAIN, _WHOLE = b"S", b"P", b"W"
"""How a state was made: by the object's own method; of its attributes alone; of the whole object."""
_NAME: Final = slice(1, 5)  # of a plain state: the checksum of its class's name


@dataclass(frozen=True)
class ObjectStates:
    """States of objects by key slot, one behind the other.

    >>> list(ObjectStates.of({3: b"abc", 7: None, 9: b"d"}))
    [(3, b'abc'), (7, None), (9, b'd')]
    """

    slots: NDArray[np.int32]
    sizes: NDArray[np.int32]
    """Bytes of each; -1 for an object that is no more."""
    data: bytes

    @classmethod
    def of(cls, states: Mapping[int, bytes | None]) -> ObjectStates:
        """From states by slot; None for an object that is no more."""
        slots, parts = np.fromiter(states, np.int32, len(states)), list(states.values())
        there = [part for part in parts if part is not None]
        if len(there) == len(parts):
            sizes = np.fromiter(map(len, there), np.int32, len(parts))
        else:
            sizes = np.array([_GONE if part is None else len(part) for part in parts], np.int32)
        return cls(slots, sizes, b"".join(there))

    @classmethod
    def joined(cls, parts: Sequence[ObjectStates]) -> ObjectStates:
        """One behind the other."""
        nothing = np.empty(0, np.int32)
        slots = np.concatenate([nothing, *(part.slots for part in parts)])
        sizes = np.concatenate([nothing, *(part.sizes for part in parts)])
        return cls(slots, sizes, b"".join(part.data for part in parts))

    def take(self, chosen: NDArray[np.bool_]) -> ObjectStates:
        """Some of them.

        >>> states = ObjectStates.of({3: b"abc", 7: None, 9: b"d"})
        >>> list(states.take(np.array([False, True, True])))
        [(7, None), (9, b'd')]
        """
        ends = np.cumsum(np.maximum(self.sizes, 0), dtype=np.int64)
        starts = ends - np.maximum(self.sizes, 0)
        spans = zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)
        data = b"".join(self.data[start:end] for start, end in spans)
        return ObjectStates(self.slots[chosen], self.sizes[chosen], data)

    def newest(self) -> ObjectStates:
        """Of each slot its last state alone, and none of objects that are no more.

        >>> states = ObjectStates.joined([ObjectStates.of({3: b"abc", 7: b"x"}), ObjectStates.of({3: b"d", 7: None})])
        >>> list(states.newest())
        [(3, b'd')]
        """
        last = np.zeros(len(self.slots), np.bool_)
        _, behind = np.unique(self.slots[::-1], return_index=True)
        last[len(self.slots) - 1 - behind] = True
        return self.take(last & (self.sizes >= 0))

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        at = 0
        for slot, size in zip(self.slots.tolist(), self.sizes.tolist(), strict=True):
            yield slot, None if size < 0 else self.data[at : at + size]
            at += max(size, 0)


class States:
    """Turns the objects that ``make()`` makes into bytes, and back.

    An object with ``snapshot()`` says itself what must be kept, and ``restore(snapshot)`` puts it into a new one. Of any
    other, the attributes are pickled alone where that is enough (the object and its class are three quarters of what
    the pickle of a small one takes), else the whole.

    >>> class Count:
    ...     n = 0
    >>> states, count = States("Keyed(Count)", Count), Count()
    >>> count.n = 5
    >>> states.load(states.dump(count), "S1").n
    5
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name = name
        self._make = make
        self._ways: dict[type, tuple[bytes, bytes]] = {}  # per class: how, and what may not occur in a plain state
        self._class: type | None = None  # of the first object that the factory made
        self._tried: set[tuple[type, object]] = set()

    def made(self, kind: type) -> None:
        """The factory has made an object of this class."""
        if self._class is None:
            self._class = kind

    def dump(self, value: Any) -> bytes:
        """Raises `StageError` for what cannot be kept, or not be made again: the first state of each class is tried."""
        kind = type(value)
        try:
            way, named = self._ways.get(kind) or self._way(value)
            if way is _SNAPSHOT:
                snapshot = value.snapshot()
                return self._tried_once(kind, type(snapshot), _SNAPSHOT + _pickled(snapshot))
            state = _attributes(value) if way is not _WHOLE else b""
            if state and named not in state:  # they do not lead back to an object of this class
                return self._tried_once(kind, way, way + state)
            return self._tried_once(kind, _WHOLE, _WHOLE + _pickled(value))
        except (StageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise StageError(
                f"{self._name}: the object of a sensor, a {kind.__qualname__}, cannot be kept for the case that its lane "
                f"dies ({type(error).__name__}: {error}). Give its class snapshot() and restore(snapshot), or make it of "
                "values that can be pickled."
            ) from error

    def _tried_once(self, kind: type, of: object, state: bytes) -> bytes:
        if (kind, of) not in self._tried:
            self._tried.add(
                (kind, of)
            )  # before the trial: a factory that has none to try it on is not asked with each state
            self._try(kind, state)
        return state

    def _try(self, kind: type, state: bytes) -> None:
        """Raises `StageError` for a state that no object can be made of. The factory is asked for an object only where that is to
        have a snapshot put into it; it may have none just now."""
        made: list[Any] = []
        if state[:1] == _SNAPSHOT:
            try:
                made.append(self._make())
            except (StageError, KeyboardInterrupt):
                raise
            except BaseException:  # noqa: BLE001 - it costs records where it is asked for their objects
                return
        elif state[:1] == _PLAIN:
            self.made(kind)
        try:
            self._loaded(state, made.pop)
        except (StageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            hint = (
                "Its restore(snapshot) has to take what its snapshot() returned."
                if hasattr(kind, "restore")
                else "Give its class snapshot() and restore(snapshot)."
            )
            raise StageError(
                f"{self._name}: the object of a sensor, a {kind.__qualname__}, can be kept for the case that its lane dies, but "
                f"not be made again from that ({type(error).__name__}: {error}). {hint}"
            ) from error

    def _way(self, value: Any) -> tuple[bytes, bytes]:
        kind = type(value)
        named = _text(kind.__qualname__)
        if hasattr(value, "snapshot") or hasattr(value, "restore"):
            if not (hasattr(value, "snapshot") and hasattr(value, "restore")):
                raise StageError(
                    f"{self._name}: a {kind.__qualname__} has only one of snapshot() and restore(snapshot); it needs both."
                )
            way = _SNAPSHOT
        else:
            way = _PLAIN + _checksum(kind) if _is_plain(value) else _WHOLE
        self._ways[kind] = way, named
        return way, named

    def load(self, state: bytes, sensor: str) -> Any:
        """An object as it was when `dump` made these bytes, perhaps of an earlier version of its class; raises `StageError`
        when its own methods raise."""
        try:
            return self._loaded(state, self._make)
        except (StageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            kind = "" if self._class is None else f", a {self._class.__qualname__},"
            taking = (
                "let restore() take it too"
                if state[:1] == _SNAPSHOT
                else "let this one read its pickle too (the same names, a __setstate__)"
            )
            raise StageError(
                f"{self._name}: the object of sensor {sensor!r}{kind} cannot be made again from what was kept of it "
                f"({type(error).__name__}: {error}{raised_in(error)}). If an earlier version of the class kept that, {taking}. To go on without it, rename "
                f'the class and start with --drop-state "{self._name}" (State(drop_state=...) in a program).'
            ) from error

    def _loaded(self, state: bytes, make: Callable[[], Any]) -> Any:
        how = state[:1]
        if how == _WHOLE:
            return pickle.loads(memoryview(state)[1:])  # noqa: S301 - our own lane's bytes
        if how == _SNAPSHOT:
            value = make()
            value.restore(pickle.loads(memoryview(state)[1:]))  # noqa: S301 - see above
            return value
        return self._of_attributes(state, make)

    def _of_attributes(self, state: bytes, make: Callable[[], Any]) -> Any:
        if self._class is None:
            self._class = type(make())
        if _checksum(self._class) != state[_NAME]:
            raise StageError(
                f"{self._name}: its factory makes objects of several classes, or its class was in another module when they were "
                "kept. Give them snapshot() and restore(snapshot), or put the class back where it was."
            )
        value = copyreg.__newobj__(self._class)  # type: ignore[attr-defined]
        attributes = pickle.loads(memoryview(state)[_NAME.stop :])  # noqa: S301 - see above
        if attributes is not None:
            _set_state(value, attributes)
        return value


def _pickled(value: Any) -> bytes:
    """By plain pickle where it can; what is of ``__main__``, a notebook or a closure goes by value."""
    try:
        with importing_nothing():
            return pickle.dumps(value, _PROTOCOL)
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
        return dumps_by_value(value)


def _attributes(value: Any) -> bytes:
    """Empty where plain pickle cannot do it."""
    try:
        with importing_nothing():
            return pickle.dumps(value.__getstate__(), _PROTOCOL)
    except Exception:  # noqa: BLE001 - see above
        return b""


def _text(text: str) -> bytes:
    """As it stands in a pickle of this protocol."""
    data = text.encode()
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else data


def _checksum(kind: type) -> bytes:
    return zlib.crc32(f"{kind.__module__}.{kind.__qualname__}".encode()).to_bytes(4, "little")


def _is_plain(value: Any) -> bool:
    """Whether pickle would keep of it what `object.__getstate__` gives, and nothing else."""
    kind: Any = type(value)
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return False
    if kind in copyreg.dispatch_table:
        return False
    made = value.__reduce_ex__(_PROTOCOL)
    return made[0] is copyreg.__newobj__ and made[1] == (kind,) and not any(made[3:])  # type: ignore[attr-defined]


def _set_state(value: Any, state: Any) -> None:
    """As pickle does it."""
    own = getattr(value, "__setstate__", None)
    if own is not None:
        own(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        value.__dict__.update(state)
    for name, item in (slots or {}).items():
        setattr(value, name, item)
