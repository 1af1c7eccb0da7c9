"""One object per key, living in the lanes: `tidemill.Lanes.keyed`.

The state of every object as of its last call that returned is kept here, and arrives together with what that call
returned. So whatever happens to a lane, an object has seen exactly the calls whose callers have a value. Calls of one
key run one after the other; those of different keys at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.core.keys import in_turn
from tidemill.engine.backpressure import refused
from tidemill.engine.call_process import CallProcess, Request
from tidemill.engine.crew import Crew
from tidemill.engine.endings import settle, unsendable, value_of
from tidemill.engine.functions_sent import SentFunction
from tidemill.engine.keyed_limits import KeyedLimits, KeyedStatistics
from tidemill.errors import BadResult, CallError
from tidemill.lanes.call_codec import Answer, dumps_arguments, dumps_call

__all__ = ["Keyed"]

Key = str | bytes


@dataclass(slots=True, eq=False)
class _Turn:
    key: Key
    method: str
    arguments: Any  # pickled, once it was taken
    future: asyncio.Future[Any]
    call: int = 0


@dataclass(slots=True)
class _Object:
    lane: int
    version: int = 0
    state: bytes = b""
    process: CallProcess | None = None  # that has this version
    now: _Turn | None = None
    line: OrderedDict[_Turn, None] = field(default_factory=OrderedDict)


class Keyed:
    """``await counters("S12", x)`` calls the object of that key; see `tidemill.Lanes.keyed`."""

    def __init__(
        self,
        crew: Crew,
        check: Callable[[], None],
        name: str,
        sent: SentFunction,
        lanes: int,
        limits: KeyedLimits,
    ) -> None:
        self._crew = crew
        crew.holders.add(self)
        self._check = check
        self._name = name
        self._sent = sent
        self._lanes = lanes
        self._limits = limits
        self._objects: dict[Key, _Object] = {}
        self._bytes = 0
        self._open = self._open_bytes = self._rejected = self._restored = 0
        self._blocked: OrderedDict[_Turn, None] = OrderedDict()
        self._numbers = itertools.count()
        self._versions = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    def __call__(self, key: Key, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call the object of ``key``, or its ``update`` if it cannot be called; the future has what that returns. It is no coroutine:
        ``asyncio.gather`` takes it, ``asyncio.create_task`` does not.
        """
        return self._called(key, "", args, kwargs)

    def call(self, key: Key, method: str, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call a method of the object of ``key`` by its name."""
        return self._called(key, method, args, kwargs)

    def drop(self, key: Key) -> bool:
        """Forget the object of ``key``; whether there was one. Raises `CallError` while calls of it are under way."""
        self._check()
        known = self._objects.get(key)
        if known is None:
            return False
        if known.now is not None:
            raise CallError(f"{self._name}: calls of key {key!r} are under way; await them before dropping it.")
        del self._objects[key]
        self._bytes -= len(known.state)
        return True

    def statistics(self) -> KeyedStatistics:
        """How the objects are, now."""
        waiting = sum(len(known.line) for known in self._objects.values())
        blocked = sum(not turn.future.done() for turn in self._blocked)
        return KeyedStatistics(
            len(self._objects),
            self._bytes,
            waiting,
            self._open,
            self._open_bytes,
            blocked,
            self._rejected,
            self._restored,
        )

    # -- how many may wait -----------------------------------------------------------------------------

    def _called(self, key: Key, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> asyncio.Future[Any]:
        self._check()
        if not isinstance(key, (str, bytes)):
            raise CallError(f"{self._name}: the key {key!r} must be text or bytes.")
        turn = _Turn(key, method, (args, kwargs), self._loop.create_future())
        if not self._is_full and not self._blocked:
            self._take(turn)
        elif self._limits.when_full == "reject":
            self._rejected += 1
            raise refused(self._name, self._why_full)
        else:
            self._blocked[turn] = None  # its arguments are pickled when there is room
            turn.future.add_done_callback(lambda _: self._blocked.pop(turn, None))
        return turn.future

    @property
    def _is_full(self) -> bool:
        return self._open >= self._limits.max_waiting or self._open_bytes >= self._limits.max_waiting_bytes

    @property
    def _why_full(self) -> str:
        limits = self._limits
        return (
            f"{self._open:,} calls ({self._open_bytes:,} bytes) have not ended, with max_waiting={limits.max_waiting:,} "
            f"and max_waiting_bytes={limits.max_waiting_bytes:,}"
        )

    def _take(self, turn: _Turn) -> None:
        """Raises `CallError` for one that cannot be sent."""
        args, kwargs = turn.arguments
        where = {f"argument {number}": value for number, value in enumerate(args)} | kwargs
        arguments = bytes(dumps_arguments((args, kwargs), where).data)
        known = self._objects.get(turn.key) or self._made(turn.key)
        turn.arguments = arguments
        self._open += 1
        self._open_bytes += len(arguments)
        turn.future.add_done_callback(lambda _: self._over(turn))
        known.line[turn] = None
        if known.now is None:
            self._next(turn.key, known)

    def _over(self, turn: _Turn) -> None:
        """A call has ended, or its caller was cancelled: somebody else may come in."""
        self._open -= 1
        self._open_bytes -= len(turn.arguments)
        if turn.future.cancelled():
            self._given_up(turn)
        while self._blocked and not self._is_full and not self._crew.closed:
            turn, _ = self._blocked.popitem(last=False)
            if not turn.future.done():
                try:
                    self._take(turn)
                except CallError as error:
                    unsendable(turn.future, error)

    # -- one call after the other ----------------------------------------------------------------------

    def _made(self, key: Key) -> _Object:
        if len(self._objects) >= self._limits.max_keys:
            raise CallError(
                f"{self._name}: {len(self._objects):,} keys have an object, and max_keys={self._limits.max_keys:,}; "
                "drop those that are done with .drop(key), or allow more."
            )
        known = self._objects[key] = _Object(in_turn(next(self._numbers), self._lanes))
        return known

    def _next(self, key: Key, known: _Object) -> None:
        """Begin the next call of the key that somebody waits for."""
        known.now = None
        while known.line and known.now is None:
            turn, _ = known.line.popitem(last=False)
            if not turn.future.done():
                known.now = turn
        if known.now is not None:
            has_it = known.process is not None and known.process is self._crew.staff.seats[known.lane]
            try:
                self._send(key, known, known.now, with_state=not has_it)
            except CallError as error:  # with the state of its object it is too large
                turn, known.now = known.now, None
                settle(turn.future, error)
                self._next(key, known)
        elif not known.version:
            del self._objects[key]  # no call of it ever returned

    def _send(self, key: Key, known: _Object, turn: _Turn, *, with_state: bool) -> None:
        version = next(self._versions)
        state = known.state if with_state and known.version else None
        self._restored += state is not None
        arguments = (key, known.version, version, state, turn.method, turn.arguments)
        request = Request(
            f"{self._name} of key {key!r}",
            self._sent,
            [dumps_call(arguments, {})],
            lambda outcome: self._settled(key, known, turn, version, outcome),
        )
        turn.call = self._crew.submit(request, known.lane, kept=True)

    def _settled(
        self, key: Key, known: _Object, turn: _Turn, version: int, outcome: Sequence[Answer] | Exception
    ) -> None:
        if known.now is not turn:  # it was given up while its result was being copied, and the next has begun
            return
        try:
            answered = value_of(outcome if isinstance(outcome, Exception) else outcome[0])
            if answered is None:
                self._send(key, known, turn, with_state=True)
                return
            value, state = answered
            if turn.future.cancelled():  # this very turn of the loop
                known.process = None
            else:
                self._keep(known, version, state)
                turn.future.set_result(value)
        except Exception as error:  # noqa: BLE001 - the call's own
            known.process = None
            settle(turn.future, error.with_traceback(None))  # frames of ours would keep its arguments
        if not self._crew.closed:
            self._next(key, known)

    def _keep(self, known: _Object, version: int, state: bytes) -> None:
        total = self._bytes + len(state) - len(known.state)
        if total > self._limits.max_bytes:
            raise BadResult(
                "large_state",
                f"{self._name}: the method ran, but its object would bring the kept states to {total:,} bytes, and "
                f"max_bytes={self._limits.max_bytes:,}. The object is as it was before the call.",
            )
        self._bytes = total
        known.version, known.state, known.process = version, state, self._crew.staff.seats[known.lane]

    def _given_up(self, turn: _Turn) -> None:
        """Its caller was cancelled: the call leaves no trace."""
        known = self._objects.get(turn.key)
        if known is not None:
            known.line.pop(turn, None)
        if known is not None and known.now is turn and not self._crew.closed:
            self._crew.cancel(turn.call)
            known.process = None
            self._next(turn.key, known)

    def fail(self, error: Exception) -> Iterator[None]:
        """The lanes are closing: tell those who wait behind others (`tidemill.engine.crew.Holder`)."""
        for line in [*(known.line for known in self._objects.values()), self._blocked]:
            while line:
                settle(line.popitem(last=False)[0].future, error)
                yield
