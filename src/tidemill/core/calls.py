"""Which lane runs which call, and what follows from a cancel, a timeout or a death.

Events in, commands out; a command's outcome is the next event. A call waits, or is in one lane's queue, or is gone.

    add ──▶ waiting ── Send ──▶ in a lane's queue ── returned ──▶ gone
               ▲ │                 │        │
               │ └─ Dropped        │        └── cancel, timeout: Interrupt ──▶ revoked, or stopped: returned or died
               └── died, Steal ────┘

A call that could not be sent after all is gone (`Calls.unsent`).

Rules of this file: an idle lane gets a call before a busy one does; a busy one holds at most ``depth``, so that it
need not wait for the next; what waits behind another call moves to a lane that falls idle, at once when it is worth
the messages, else when it still waits some time later. A call that is pinned to a
lane runs there, in the order of adding. A call that was started is never started again. A call that was not started
loses nothing by a death. A lane that begins nothing though it has nothing else to do gets nothing more, what can leave it does, and
then it is replaced.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from tidemill.core.call_commands import Command, Dropped, Hung, Interrupt, Lost, Send, Steal, TimedOut
from tidemill.core.stillness import DOUBTED, Stillness
from tidemill.errors import EngineError

__all__ = ["Bounds", "Calls", "CallsStatistics"]

MIN_DEPTH: Final = 2
"""A lane always may have the next call beside the one it runs."""
WORTH_MOVING_S: Final = 0.0005
"""Work that waits in a busy lane, from which it is worth the messages to move half of it to an idle one at once."""


@dataclass(slots=True)
class _Call:
    pin: int | None
    size: int
    kept: bool
    lane: int | None = None
    wanted: bool = True


@dataclass(frozen=True)
class Bounds:
    """How much may wait, and how much a lane may hold."""

    waiting: int | None = None
    """Calls that no lane has; those that are kept do not count."""
    waiting_bytes: int | None = None
    """Bytes of their arguments."""
    lane_bytes: int = 1 << 20
    """Bytes of arguments beyond which a lane gets no third call."""


@dataclass(frozen=True)
class CallsStatistics:
    """How the calls are."""

    waiting: int
    """Calls that no lane has."""
    waiting_bytes: int
    """Bytes of their arguments."""
    in_lanes: tuple[int, ...]
    """Calls that each lane has and has not answered."""
    depth: int
    """Calls that a busy lane may hold."""


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

    def __init__(self, lanes: int, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.depth = MIN_DEPTH
        """Calls that a busy lane may hold; `deepen` changes it."""
        self._calls: dict[int, _Call] = {}
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._pinned: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(lanes)]
        self._pinned_waiting = 0
        self.waiting_bytes = 0
        """Bytes of the arguments of the calls that no lane has."""
        self._bounded: OrderedDict[int, None] = OrderedDict()  # of all that wait, what is not kept
        self._bounded_bytes = 0
        self._queues: list[deque[int]] = [deque() for _ in range(lanes)]
        self._lane_bytes = [0] * lanes
        self._up = [False] * lanes
        self._idle: dict[int, None] = {}  # lanes that are up and have no call
        self._busy = 0  # lanes that are up and have some
        self._held = 0  # calls in lanes that are up
        self._deadlines: list[tuple[int, int]] = []
        self._still = [Stillness() for _ in range(lanes)]
        self.fruitless = 0
        """Deaths in a row with nothing run and nothing returned."""
        self.call_s = inf
        """Seconds that a call takes, as far as is known; `deepen` changes it."""
        self.unshared = False
        """Whether a lane is idle and calls wait in another that did not seem worth moving: `share` them if they stay."""

    # -- from the callers ------------------------------------------------------------------------------

    def add(
        self,
        call: int,
        deadline_ns: int | None = None,
        *,
        size: int = 0,
        pin: int | None = None,
        kept: bool = False,
    ) -> list[Command]:
        """A new call with ``size`` bytes of arguments, to be stopped at ``deadline_ns``; its number must be the highest
        so far. ``pin`` is the lane that must run it, after those that were pinned to it before. One that is ``kept`` is
        bounded elsewhere: it is never dropped, and takes no room from others.
        """
        if call in self._calls:
            raise EngineError(f"call {call} was added twice")
        self._calls[call] = known = _Call(pin, size, kept)
        if deadline_ns is not None:
            heapq.heappush(self._deadlines, (deadline_ns, call))
        if pin is None:
            lane = None if self._waiting else self._least_busy()
        else:
            lane = pin if not self._pinned[pin] and self._has_room(pin) else None
        if lane is None:
            self._wait(call, known)
            return self._stolen() if self._idle and pin is None else []
        self._put(lane, call, known)
        return [Send(lane, call)]

    def cancel(self, call: int) -> list[Command]:
        """Its caller gave up; nothing when it is over already."""
        known = self._calls.get(call)
        if known is None or not known.wanted:
            return []
        known.wanted = False
        if known.lane is None:
            self._unwait(call, known)
            del self._calls[call]
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

    @property
    def full(self) -> bool:
        """Whether so much waits that a new call must wait outside, be refused, or take the place of an old one."""
        most, most_bytes = self.bounds.waiting, self.bounds.waiting_bytes
        return (most is not None and self.bounded >= max(most, 1)) or (
            most_bytes is not None and self._bounded_bytes >= max(most_bytes, 1)
        )

    @property
    def bounded(self) -> int:
        """Calls that no lane has, less those that are kept."""
        return len(self._bounded)

    def make_room(self) -> list[Command]:
        """Drop the calls that have waited longest until one more fits."""
        commands: list[Command] = []
        while self.full:
            call = next(iter(self._bounded))
            self._unwait(call, self._calls.pop(call))
            commands.append(Dropped(call))
        return commands

    def deepen(self, depth: int, call_s: float = inf) -> list[Command]:
        """From now on a busy lane may hold so many calls, at least two; each takes about ``call_s``."""
        self.call_s = call_s
        depth = max(MIN_DEPTH, depth)
        if depth == self.depth:
            return []
        self.depth, before = depth, self.depth
        return self._dispatched() if depth > before else []

    # -- from the lanes --------------------------------------------------------------------------------

    def attached(self, lane: int) -> list[Command]:
        """The lane has a process and can take calls."""
        self._still[lane].forget()
        if not self._up[lane]:
            self._up[lane] = True
            self._count(lane, 1)
        return self._dispatched()

    def returned(self, lane: int, call: int) -> list[Command]:
        """The lane answered the call; what is not in its queue is ignored."""
        self.fruitless = 0
        return self._gone(lane, call)

    def unsent(self, lane: int, call: int) -> list[Command]:
        """The call could not be sent to the lane, which knows nothing of it: it is gone."""
        return self._gone(lane, call)

    def _gone(self, lane: int, call: int) -> list[Command]:
        if not self._taken(lane, call):
            return []
        del self._calls[call]
        if not self._waiting and not self._pinned_waiting:  # mostly
            return self._stolen() if self._idle and self._held > self._busy else []
        return self._refilled(lane)

    def revoked(self, lane: int, call: int) -> list[Command]:
        """The lane has not started the call and will not: it is gone, or goes first to another lane."""
        if not self._taken(lane, call):
            return []
        self._back(call)
        return self._dispatched()

    def held(self, lane: int) -> list[Command]:
        """The lane gets nothing more until `attached`, and what it has not started should run elsewhere."""
        self.killed(lane)
        return [Steal(lane, call) for call in reversed(self._queues[lane]) if self._calls[call].pin is None]

    def killed(self, lane: int) -> None:
        """The lane is being killed: it gets nothing more until `died` and `attached`."""
        if self._up[lane]:
            self._count(lane, -1)
            self._up[lane] = False

    def died(self, lane: int, running: int = 0, *, wanted: bool = False) -> list[Command]:
        """The lane's process ended; ``running`` is the call it was in, 0 for none. All it had returned was told. It was ``wanted`` if
        that says nothing about the process.
        """
        self.killed(lane)
        self._still[lane].forget()
        queue, self._queues[lane] = list(self._queues[lane]), deque()
        self._lane_bytes[lane] = 0
        commands: list[Command] = []
        if running in queue:
            self.fruitless = 0
        elif not wanted:
            self.fruitless += 1
        for call in reversed(queue):
            if call == running:
                if self._calls[call].wanted:
                    commands.append(Lost(call))
                del self._calls[call]
            else:
                self._back(call)
        if self.fruitless >= self.MAX_FRUITLESS:
            self.fruitless = 0
            return commands + self._given_up(range(len(self._up)))
        return commands + self._dispatched()

    def looked(
        self, lane: int, sign: Hashable | None, *, at_work: bool = False, computes: bool = False
    ) -> list[Command]:
        """A look at whether the lane begins what it has (`Stillness.looked`)."""
        still = self._still[lane]
        if not still.looked(sign, at_work=at_work, computes=computes):
            return []
        if still.hangs:
            return [Hung(lane)]
        return self.held(lane) if still.looks == DOUBTED else []

    def doubted(self, lane: int) -> bool:
        """Whether the lane is held because it begins nothing; `attached` says that it may go on."""
        return self._still[lane].doubted

    def given_up(self) -> list[Command]:
        """Lanes cannot be started: every call that waits for one is told so. What a living lane can run goes on."""
        return self._given_up([lane for lane, up in enumerate(self._up) if not up])

    def _given_up(self, down: Iterable[int]) -> list[Command]:
        down = list(down)
        lines = [self._pinned[lane] for lane in down]
        if len(down) == len(self._up):
            lines.append(self._waiting)
        lost = sorted(_chained(lines))
        for call in lost:
            self._unwait(call, self._calls.pop(call))
        return [Lost(call) for call in lost]

    # -- who runs what ---------------------------------------------------------------------------------

    def _refilled(self, lane: int) -> list[Command]:
        """After the lane lost a call: nobody else has room for what waits."""
        if not self._up[lane]:
            return []
        commands: list[Command] = []
        while self._has_room(lane) and (call := self._next(lane)):
            known = self._calls[call]
            self._unwait(call, known)
            self._put(lane, call, known)
            commands.append(Send(lane, call))
        return commands or (self._stolen() if self._idle else commands)

    def _next(self, lane: int) -> int:
        """The call that the lane should get; 0 for none."""
        first = next(iter(self._waiting), 0)
        if self._pinned_waiting and self._pinned[lane]:
            pinned = next(iter(self._pinned[lane]))
            return min(first, pinned) if first else pinned
        return first

    def _dispatched(self) -> list[Command]:
        """After a lane came up, or calls came back: whatever waits and has a place."""
        commands: list[Command] = []
        if self._pinned_waiting:
            for lane, line in enumerate(self._pinned):
                while line and self._has_room(lane):
                    commands.append(self._sent(lane, next(iter(line))))
        while self._waiting and (least := self._least_busy()) is not None:
            commands.append(self._sent(least, next(iter(self._waiting))))
        return commands or self._stolen()

    def _sent(self, lane: int, call: int) -> Send:
        known = self._calls[call]
        self._unwait(call, known)
        self._put(lane, call, known)
        return Send(lane, call)

    def _has_room(self, lane: int) -> bool:
        held = len(self._queues[lane])
        return self._up[lane] and (
            held < MIN_DEPTH or (held < self.depth and self._lane_bytes[lane] < self.bounds.lane_bytes)
        )

    def _least_busy(self) -> int | None:
        if self._idle:
            return min(self._idle)
        best, least = None, self.depth
        for lane, queue in enumerate(self._queues):
            if len(queue) < least and self._has_room(lane):
                best, least = lane, len(queue)
        return best

    def share(self) -> list[Command]:
        """Some time has passed: what still waits in a busy lane, while another is idle, waits behind a long call."""
        self.unshared = False
        return self._stolen(least_s=0.0)

    def _stolen(self, *, least_s: float = WORTH_MOVING_S) -> list[Command]:
        """Half of what the fullest lane has not started, when another is idle and that is worth moving."""
        if not self._idle or self._held == self._busy:
            return []
        if (self._held - self._busy) * self.call_s < least_s:  # in all of them together
            self.unshared = True
            return []
        lane = max(range(len(self._queues)), key=lambda lane: len(self._queues[lane]) if self._up[lane] else 0)
        queue = self._queues[lane]
        if (len(queue) - 1) * self.call_s < least_s:
            self.unshared = True
            return []
        movable = [call for call in list(queue)[1:] if self._calls[call].pin is None]
        return [Steal(lane, call) for call in reversed(movable[len(movable) // 2 :])]

    # -- where calls are -------------------------------------------------------------------------------

    def _wait(self, call: int, known: _Call, *, first: bool = False) -> None:
        if known.pin is None:
            line = self._waiting
        else:
            line = self._pinned[known.pin]
            self._pinned_waiting += 1
        line[call] = None
        if first:
            line.move_to_end(call, last=False)
        self.waiting_bytes += known.size
        if not known.kept:
            self._bounded[call] = None
            self._bounded_bytes += known.size
            if first:
                self._bounded.move_to_end(call, last=False)

    def _unwait(self, call: int, known: _Call) -> None:
        if known.pin is None:
            del self._waiting[call]
        else:
            del self._pinned[known.pin][call]
            self._pinned_waiting -= 1
        self.waiting_bytes -= known.size
        if not known.kept:
            del self._bounded[call]
            self._bounded_bytes -= known.size

    def _put(self, lane: int, call: int, known: _Call) -> None:
        queue = self._queues[lane]
        if not queue:
            del self._idle[lane]
            self._busy += 1
        queue.append(call)
        known.lane = lane
        self._held += 1
        self._lane_bytes[lane] += known.size

    def _taken(self, lane: int, call: int) -> bool:
        """Take the call out of the lane's queue, if it is there."""
        queue = self._queues[lane]
        if queue and queue[0] == call:
            queue.popleft()
        elif call in queue:
            queue.remove(call)
        else:
            return False
        self._lane_bytes[lane] -= self._calls[call].size
        if self._up[lane]:
            self._held -= 1
            if not queue:
                self._busy -= 1
                self._idle[lane] = None
        return True

    def _count(self, lane: int, sign: int) -> None:
        """The lane comes up, or goes down."""
        queue = self._queues[lane]
        self._held += sign * len(queue)
        if queue:
            self._busy += sign
        elif sign > 0:
            self._idle[lane] = None
        else:
            del self._idle[lane]

    def _back(self, call: int) -> None:
        """The call left its lane unstarted."""
        known = self._calls[call]
        if known.wanted:
            known.lane = None
            self._wait(call, known, first=True)
        else:
            del self._calls[call]

    # -- readings --------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Calls that no lane has."""
        return len(self._waiting) + self._pinned_waiting

    def has(self, lane: int) -> int:
        """Calls that the lane has not answered."""
        return len(self._queues[lane])

    def in_flight(self) -> list[int]:
        """Calls that each lane that is up has not answered."""
        return [len(queue) for queue, up in zip(self._queues, self._up, strict=True) if up]

    def statistics(self) -> CallsStatistics:
        return CallsStatistics(self.waiting, self.waiting_bytes, tuple(map(len, self._queues)), self.depth)

    def validate(self) -> None:
        """Raise `EngineError` if a rule of this file is broken; tests call it after each step."""
        waiting = _chained([self._waiting, *self._pinned])
        places = [*waiting, *_chained(self._queues)]
        if sorted(places) != sorted(self._calls):
            raise EngineError(f"calls {sorted(self._calls)} are in the places {sorted(places)}")
        for lane, queue in enumerate(self._queues):
            if any(self._calls[call].lane != lane or self._calls[call].pin not in {None, lane} for call in queue):
                raise EngineError(f"lane {lane} has {list(queue)}")
            pinned = [call for call in queue if self._calls[call].pin == lane] + list(self._pinned[lane])
            if pinned != sorted(pinned):
                raise EngineError(f"calls pinned to lane {lane} are out of order: {pinned}")
            if self._lane_bytes[lane] != sum(map(self._size, queue)):
                raise EngineError(f"lane {lane} is said to hold {self._lane_bytes[lane]} bytes")
            if self._has_room(lane) and (self._waiting or self._pinned[lane]):
                raise EngineError(f"a call waits while lane {lane} has room")
        if self.waiting != len(waiting) or self.waiting_bytes != sum(map(self._size, waiting)):
            raise EngineError(f"{self.waiting} calls of {self.waiting_bytes} bytes are said to wait")
        bounded = [call for call in waiting if not self._calls[call].kept]
        if sorted(self._bounded) != sorted(bounded) or self._bounded_bytes != sum(map(self._size, bounded)):
            raise EngineError(f"calls {list(self._bounded)} of {self._bounded_bytes} bytes are said to be bounded")
        up = [lane for lane, is_up in enumerate(self._up) if is_up]
        if sorted(self._idle) != [lane for lane in up if not self._queues[lane]]:
            raise EngineError(f"lanes {sorted(self._idle)} are said to be idle")
        if self._held != sum(len(self._queues[lane]) for lane in up) or self._busy != len(up) - len(self._idle):
            raise EngineError(f"{self._busy} lanes are said to be busy with {self._held} calls")

    def _size(self, call: int) -> int:
        return self._calls[call].size


def _chained(queues: Iterable[Iterable[int]]) -> list[int]:
    return [call for queue in queues for call in queue]
