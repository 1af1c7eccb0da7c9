"""The objects of `Keyed`, one per sensor, where they live: in a lane, with the bytes that each can be made from again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import StageError
from tidemill.letters import TOO_MANY_KEYS
from tidemill.printable import counted
from tidemill.stages.object_states import ObjectStates, States

__all__ = ["Full", "Held", "Objects"]

NEVER: Final = -(2**63)
"""The newest time of a sensor that has not spoken."""
_TIME: Final = 8  # bytes of the newest time, before the state


class Full(Exception):
    """There is no room for one more object."""

    reason_code = TOO_MANY_KEYS


class Held:
    """One sensor's object."""

    __slots__ = ("call", "newest", "saved", "value")

    def __init__(self, saved: bytes | None = None, newest: int = NEVER) -> None:
        self.value: Any = None
        self.call: Callable[[Any], Any] | None = None
        """Its ``update`` or ``update_many``; None while there are only its bytes."""
        self.newest = newest
        """The latest time of its sensor's records; kept only with a ``ttl``."""
        self.saved = saved
        """The object as it was before the present step; None for one that began in it."""


@dataclass
class _Base:
    """What a sensor's object can be made from again, in the middle of a step."""

    state: bytes | None
    """None for a new object."""
    at: int
    """What it took of the step's records before this one is in the state."""
    instead_of: tuple[Held | None, _Base | None] = (None, None)
    """What was there before, where a new object began with the record ``at``."""


class Objects:
    """The objects of one stage in one lane, by key slot.

    A step takes records in with `ready` and `Held.call`, repairs with `put_back` what a record that failed has done, and
    ends with `keep`; `undo` takes back all that happened since the last `keep`.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[], Any],
        *,
        ttl_ns: int | None = None,
        max_keys: int | None = None,
    ) -> None:
        self._name = name
        self._factory = factory
        self._max_keys = max_keys
        self.ttl_ns = ttl_ns
        self._states = States(name, self._made)
        self._spare: Any = None
        self.method = ""
        """``update`` or ``update_many``, which of the two the objects have; empty until one was looked at."""
        self._bases: dict[int, _Base] = {}
        self._released: dict[int, Held] = {}
        self._changed: dict[int, bytes | None] = {}
        self._oldest = NEVER  # no object has been silent since before this time
        self.held: dict[int, Held] = {}
        self.sensors: Sequence[str] | NDArray[np.object_] = ()
        """By key slot, for messages."""

    def __len__(self) -> int:
        return len(self.held)

    def look(self) -> None:
        """Learn ``method`` from the first object; raises what the factory raises."""
        self._spare = self._made()

    def _made(self) -> Any:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        value = self._factory()
        if not self.method:
            if (method := async_method(type(value))) is not None:
                raise StageError(f"{self._name} needs plain methods; {method} is async.")
            self.method = next((name for name in ("update_many", "update") if callable(getattr(value, name, None))), "")
        if not callable(getattr(value, self.method or "update", None)):
            raise StageError(
                f"{self._name}: an object of its factory, a {type(value).__qualname__}, has no method "
                f"{self.method or 'update'}; it needs update(record) or update_many(batch), which returns a dict."
            )
        self._states.made(type(value))
        return value

    # -- one record after another --------------------------------------------------------------------------

    def ready(self, slot: int, at: int, time_ns: int) -> Held:
        """The object that record ``at`` of the step, of this time, goes to; raises `Full`, or what the factory raises."""
        held = self.held.get(slot)
        if held is None:
            self._make_room(time_ns)
        elif not self._expired(held, time_ns):
            if held.call is None:
                self._fill(held, self._load(slot, self._state_of(held)))
            return held
        before = held or self._released.get(slot)
        fresh = Held(None if before is None else before.saved)
        self._fill(fresh, self._made())
        self._bases[slot] = _Base(None, at, (held, self._bases.get(slot)))
        self.held[slot] = fresh
        self._oldest = NEVER
        return fresh

    def _load(self, slot: int, state: bytes) -> Any:
        return self._states.load(state, str(self.sensors[slot]) if slot < len(self.sensors) else "?")

    def _expired(self, held: Held, time_ns: int) -> bool:
        return self.ttl_ns is not None and time_ns - held.newest > self.ttl_ns

    def _fill(self, held: Held, value: Any) -> None:
        held.value = value
        held.call = getattr(value, self.method)

    def put_back(self, slot: int, at: int, again: Callable[[int], Iterable[Any]]) -> None:
        """Record ``at`` failed: the sensor's object is what it would be without it.

        ``again(start)`` gives what the object was called with from record ``start`` on, without those that failed.
        """
        held = self.held.get(slot)
        if held is None:  # none could be made
            return
        base = self._bases.get(slot) or _Base(self._state_of(held), 0)
        if base.state is None and base.at == at:  # it began with this record
            del self._bases[slot], self.held[slot]
            before, its_base = base.instead_of
            if before is not None:
                self.held[slot] = before
            if its_base is not None:
                self._bases[slot] = its_base
            return
        self._fill(held, self._made() if base.state is None else self._load(slot, base.state))
        assert held.call is not None
        try:
            for given in again(base.at):
                held.call(given)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise StageError(
                f"{self._name}: a record that it took was refused when it was given to a copy of the same object "
                f"({type(error).__name__}: {error}); what its {self.method} does must depend on the object and the "
                "record alone."
            ) from error
        self._bases[slot] = _Base(self._states.dump(held.value), at)

    # -- room ------------------------------------------------------------------------------------------------

    def _make_room(self, time_ns: int) -> None:
        """Room for one more: what has been silent for longer than the ttl goes first."""
        if self._max_keys is None or len(self.held) < self._max_keys:
            return
        if self.ttl_ns is not None and time_ns - self._oldest > self.ttl_ns:
            for slot in [slot for slot, held in self.held.items() if self._expired(held, time_ns)]:
                self._released[slot] = self.held.pop(slot)
                self._bases.pop(slot, None)
            self._oldest = min((held.newest for held in self.held.values()), default=NEVER)
        if len(self.held) >= self._max_keys:
            raise Full(
                f"{self._name} holds the objects of {counted(self._max_keys, 'sensor')} in this lane, and has no room for another"
            )

    def rooms(self) -> int | None:
        """How many new objects there is room for; None without a limit."""
        return None if self._max_keys is None else max(self._max_keys - len(self.held), 0)

    # -- the step is over --------------------------------------------------------------------------------------

    def keep(self, slots: Iterable[int]) -> None:
        """All is well with the step: the objects of these sensors are kept as they are now."""
        changed, get, dump, timed = self._changed, self.held.get, self._states.dump, self.ttl_ns is not None
        changed.update(dict.fromkeys(self._released))
        for slot in slots:
            held = get(slot)
            if held is not None and held.call is not None:
                state = dump(held.value)
                if timed:
                    state = held.newest.to_bytes(_TIME, "little", signed=True) + state
                held.saved = changed[slot] = state
        self._bases.clear()
        self._released.clear()

    def undo(self, slots: Iterable[int]) -> None:
        """The objects of these sensors, and those that made room for them, are again what they were before the step."""
        for slot in {*slots, *self._released}:
            held = self.held.pop(slot, None) or self._released.get(slot)
            if held is not None and held.saved is not None:
                self.held[slot] = self._asleep(held.saved)
        self._bases.clear()
        self._released.clear()
        self._oldest = NEVER

    def _asleep(self, saved: bytes) -> Held:
        if self.ttl_ns is None:
            return Held(saved)
        return Held(saved, int.from_bytes(saved[:_TIME], "little", signed=True))

    def _state_of(self, held: Held) -> bytes:
        assert held.saved is not None
        return held.saved if self.ttl_ns is None else held.saved[_TIME:]

    # -- to and from the parent --------------------------------------------------------------------------------

    def changed(self) -> ObjectStates | None:
        """The states of the objects that changed since this was last asked; None when none has."""
        if not self._changed:
            return None
        changed, self._changed = self._changed, {}
        return ObjectStates.of(changed)

    def hold(self, states: ObjectStates) -> None:
        """Objects of a lane that died; each is made again when its sensor speaks."""
        for slot, state in states:
            if state is not None:
                self.held[slot] = self._asleep(state)
            else:
                self.held.pop(slot, None)


def async_method(kind: type) -> str | None:
    """The method of this class that would get records and return a coroutine, by name; None if it has none such."""
    names = (name for name in ("update_many", "update") if inspect.iscoroutinefunction(getattr(kind, name, None)))
    return next((f"{kind.__qualname__}.{name}" for name in names), None)
