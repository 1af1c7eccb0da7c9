"""Which lane runs which call, and what follows from a cancel, a timeout or a death.

Events in, commands out; a command's outcome is the next event. A call waits, or is in one lane's queue, or is gone.

    add ──▶ waiting ── Send ──▶ in a lane's queue ── returned ──▶ gone
               ▲                   │        │
               │                   │        └── cancel, timeout: Interrupt ──▶ revoked, or killed and then died
               └── died, Steal ────┘

Rules of this file: an idle lane gets a call before a busy one does; a busy one holds at most ``per_lane``, so that it
need not wait for the next; a call that waits behind another moves to a lane that falls idle. A call that was started
is never started again. A call that was not started loses nothing by a death.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from tidemill.errors import EngineError

__all__ = ["Calls", "CallsStatistics", "Command", "Interrupt", "Lost", "Send", "Steal", "TimedOut"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send the call to the lane."""

    lane: int
    call: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Nobody wants the call any more: revoke it, or kill the lane when it runs it; then say `revoked` or `killed`."""

    lane: int
    call: int


@dataclass(frozen=True, slots=True)
class Steal:
    """Another lane has nothing to do: revoke the call; then say `revoked`, or nothing when it was started."""

    lane: int
    call: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Tell the caller; the work is being stopped."""

    call: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Tell the caller that the lane died while it ran this call."""

    call: int


Command = Send | Interrupt | Steal | TimedOut | Lost


@dataclass(slots=True)
class _Call:
    lane: int | None = None
    wanted: bool = True


@dataclass(frozen=True)
class CallsStatistics:
    """How the calls are."""

    waiting: int
    """Calls that no lane has."""
    in_lanes: tuple[int, ...]
    """Calls that each lane has and has not answered."""


class Calls:
    """The calls of some lanes; lanes are numbered from 0 and start out down.

    >>> calls = Calls(lanes=2)
    >>> calls.attached(0), calls.attached(1)
    ([], [])
    >>> calls.add(1), calls.add(2), calls.add(3)
    ([Send(lane=0, call=1)], [Send(lane=1, call=2)], [Send(lane=0, call=3)])
    >>> calls.died(0, running=1)  # 3 had not been started
    [Lost(call=1), Send(lane=1, call=3)]
    """

    MAX_FRUITLESS = 8
    """Deaths in a row with nothing run and nothing returned, after which the calls that wait are given up."""

    def __init__(self, lanes: int, *, per_lane: int = 2) -> None:
        self._per_lane = per_lane
        self._calls: dict[int, _Call] = {}
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._queues: list[deque[int]] = [deque() for _ in range(lanes)]
        self._up = [False] * lanes
        self._deadlines: list[tuple[int, int]] = []
        self.fruitless = 0
        """Deaths in a row with nothing run and nothing returned."""

    # -- from the callers ------------------------------------------------------------------------------

    def add(self, call: int, deadline_ns: int | None = None) -> list[Command]:
        """A new call, to be stopped at ``deadline_ns``; its number must be new."""
        if call in self._calls:
            raise EngineError(f"call {call} was added twice")
        self._calls[call] = _Call()
        self._waiting[call] = None
        if deadline_ns is not None:
            heapq.heappush(self._deadlines, (deadline_ns, call))
        return self._dispatched()

    def cancel(self, call: int) -> list[Command]:
        """Its caller gave up; nothing when it is over already."""
        known = self._calls.get(call)
        if known is None or not known.wanted:
            return []
        known.wanted = False
        if known.lane is None:
            self._forget(call)
            return []
        return [Interrupt(known.lane, call)]

    def expired(self, now_ns: int) -> list[Command]:
        """Time has come to ``now_ns``."""
        commands: list[Command] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, call = heapq.heappop(self._deadlines)
            known = self._calls.get(call)
            if known is not None and known.wanted:
                commands += [TimedOut(call), *self.cancel(call)]
        return commands

    @property
    def next_deadline_ns(self) -> int | None:
        """When `expired` must be called."""
        if len(self._deadlines) > 64 + 2 * len(self._calls):  # calls that ended in time left theirs behind
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._calls]
            heapq.heapify(self._deadlines)
        while self._deadlines and self._deadlines[0][1] not in self._calls:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    # -- from the lanes --------------------------------------------------------------------------------

    def attached(self, lane: int) -> list[Command]:
        """The lane has a process and can take calls."""
        self._up[lane] = True
        return self._dispatched()

    def returned(self, lane: int, call: int) -> list[Command]:
        """The lane answered the call; what is not in its queue is ignored."""
        self.fruitless = 0
        if not self._taken(lane, call):
            return []
        self._forget(call)
        return self._dispatched()

    def revoked(self, lane: int, call: int) -> list[Command]:
        """The lane has not started the call and will not: it is gone, or goes first to another lane."""
        if not self._taken(lane, call):
            return []
        self._back(call)
        return self._dispatched()

    def killed(self, lane: int) -> None:
        """The lane is being killed: it gets nothing more until `died` and `attached`."""
        self._up[lane] = False

    def died(self, lane: int, running: int = 0) -> list[Command]:
        """The lane's process ended; ``running`` is the call it was in, 0 for none. All it had returned was told."""
        self._up[lane] = False
        queue, self._queues[lane] = list(self._queues[lane]), deque()
        commands: list[Command] = []
        self.fruitless = 0 if running in queue else self.fruitless + 1
        for call in reversed(queue):
            if call == running:
                if self._calls[call].wanted:
                    commands.append(Lost(call))
                self._forget(call)
            else:
                self._back(call)
        if self.fruitless >= self.MAX_FRUITLESS:
            return commands + self._given_up()
        return commands + self._dispatched()

    def _given_up(self) -> list[Command]:
        """Lanes die before they run anything: every call that waits is told so."""
        self.fruitless = 0
        lost: list[Command] = [Lost(call) for call in self._waiting]
        for call in list(self._waiting):
            self._forget(call)
        return lost

    # -- who runs what ---------------------------------------------------------------------------------

    def _dispatched(self) -> list[Command]:
        commands: list[Command] = []
        while self._waiting:
            lane = self._least_busy()
            if lane is None:
                return commands
            call, _ = self._waiting.popitem(last=False)
            self._queues[lane].append(call)
            self._calls[call].lane = lane
            commands.append(Send(lane, call))
        return commands or self._stolen()

    def _least_busy(self) -> int | None:
        best, least = None, self._per_lane
        for lane, queue in enumerate(self._queues):
            if self._up[lane] and len(queue) < least:
                best, least = lane, len(queue)
        return best

    def _stolen(self) -> list[Command]:
        """One call that waits behind another, when a lane is idle."""
        if not any(up and not queue for up, queue in zip(self._up, self._queues, strict=True)):
            return []
        for lane, queue in enumerate(self._queues):
            if self._up[lane] and len(queue) > 1:
                return [Steal(lane, queue[-1])]
        return []

    def _taken(self, lane: int, call: int) -> bool:
        """Take the call out of the lane's queue, if it is there."""
        queue = self._queues[lane]
        if queue and queue[0] == call:
            queue.popleft()
        elif call in queue:
            queue.remove(call)
        else:
            return False
        return True

    def _back(self, call: int) -> None:
        """The call left its lane unstarted."""
        known = self._calls[call]
        if known.wanted:
            known.lane = None
            self._waiting[call] = None
            self._waiting.move_to_end(call, last=False)
        else:
            self._forget(call)

    def _forget(self, call: int) -> None:
        del self._calls[call]
        self._waiting.pop(call, None)

    # -- readings --------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Calls that no lane has."""
        return len(self._waiting)

    def in_flight(self) -> list[int]:
        """Calls that each lane that is up has not answered."""
        return [len(queue) for queue, up in zip(self._queues, self._up, strict=True) if up]

    def statistics(self) -> CallsStatistics:
        return CallsStatistics(len(self._waiting), tuple(map(len, self._queues)))

    def validate(self) -> None:
        """Raise `EngineError` if a rule of this file is broken; tests call it after each step."""
        places = [*self._waiting, *_chained(self._queues)]
        if sorted(places) != sorted(self._calls):
            raise EngineError(f"calls {sorted(self._calls)} are in the places {sorted(places)}")
        for lane, queue in enumerate(self._queues):
            if len(queue) > self._per_lane or any(self._calls[call].lane != lane for call in queue):
                raise EngineError(f"lane {lane} has {list(queue)}")
        if self._waiting and self._least_busy() is not None:
            raise EngineError("a call waits while a lane has room")


def _chained(queues: Iterable[Iterable[int]]) -> list[int]:
    return [call for queue in queues for call in queue]
