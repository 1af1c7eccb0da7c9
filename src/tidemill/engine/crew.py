"""The shell around `core.calls`: feed an event, perform the commands. The processes are `engine.staff`'s.

Everything is on the event loop's thread; nothing here blocks it, waits or polls.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tidemill.clock import SystemClock
from tidemill.core.call_commands import Command, Dropped, Hung, Interrupt, Lost, Send, Steal, TimedOut
from tidemill.core.calls import Bounds, Calls
from tidemill.core.depth import Depth
from tidemill.engine.backpressure import Door, dropped
from tidemill.engine.call_process import CallProcess, Request, answers_of
from tidemill.engine.deaths import Death
from tidemill.engine.endings import tell
from tidemill.engine.lookout import Lookout
from tidemill.engine.slices import in_turns
from tidemill.engine.staff import Making, Staff
from tidemill.errors import CallError, LanesFull
from tidemill.lanes.call_codec import Answer
from tidemill.lanes.channel import Exit
from tidemill.lanes.framing import Payload
from tidemill.lanes.wire import Partly, Returned

__all__ = ["CLOSED", "Crew", "Feeder", "Holder", "LaneCounts"]

_log = logging.getLogger("tidemill")

_LONGEST_S: Final = 1e9
"""A deadline farther away, which may be infinity, is none that a clock in nanoseconds holds."""
_SHARED_AFTER_S: Final = 0.001
"""After so long, what waits in a busy lane is moved to an idle one, though it seemed to be little."""
_READ_S: Final = 0.05
"""So long a lane may go on reading a call that nobody wants any more, before it is killed."""
CLOSED: Final = "The lanes were closed before this call had ended; await what you need inside the block."


def _nobody(_: Sequence[Answer] | Exception) -> None:
    """Whoever called does not want it any more."""


class Feeder(Protocol):
    """Makes calls when a lane has room for them."""

    def feed(self) -> None: ...


class Holder(Protocol):
    """Holds calls that have not come here yet, or wait behind others."""

    def fail(self, error: Exception) -> Iterator[None]:
        """The lanes are closing, and take no more calls: tell the callers, one in each step."""


class Line(Protocol):
    """Where calls wait before they come here."""

    def waiting_calls(self) -> tuple[int, int]: ...


@dataclass
class LaneCounts:
    """What a lane has done so far; it outlives its processes."""

    busy_ns: int = 0
    done: int = 0
    items: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    restarts: int = 0
    recycled: int = 0


class Crew:
    """Lanes with their processes, and the calls in them. Use on one loop's thread only."""

    def __init__(
        self, lanes: int, making: Making, first_call: Request, bounds: Bounds, *, grace_s: float, when_full: str
    ) -> None:
        self._inline = lanes == 0
        self._grace_s = grace_s
        self.lanes = [LaneCounts() for _ in range(max(lanes, 1))]
        self.calls = Calls(len(self.lanes), bounds)
        self._depth = Depth(len(self.lanes))
        self.staff = Staff(lanes, making, first_call, self)
        self.door = Door(self.calls, when_full)
        self.bounded = bounds.waiting is not None or bounds.waiting_bytes is not None
        """Whether there is a limit to what may wait."""
        self._requests: dict[int, Request] = {}
        self._numbers = itertools.count(CallProcess.FIRST_CALL + 1)
        self._feeders: dict[Feeder, None] = {}
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        """Whoever may hold calls when the lanes are closed."""
        self.lines: dict[Line, None] = {}
        """Of streams; for the statistics."""
        self._feeding = False
        self._retiring: int | None = None
        self._clock = SystemClock()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ns = 0
        self._sharing: asyncio.TimerHandle | None = None
        self._lookout = Lookout(self.staff, self.calls, perform=self._perform, going_on=self._going_on)
        self._told_oversized = False
        self.closed = False
        """Whether `aclose` has begun."""

    async def start(self) -> None:
        """Start the processes and return when they can take calls; raises what keeps them from it."""
        self._loop = asyncio.get_running_loop()
        try:
            await self.staff.start()
        except BaseException:
            await self.aclose()
            raise

    # -- calls -----------------------------------------------------------------------------------------

    def submit(self, request: Request, pin: int | None = None, *, kept: bool = False) -> int:
        """Take a call, to be run by the lane ``pin`` if there is one; its number. One that is ``kept`` has bounds of its
        own, and those of the lanes are not for it.
        """
        call = next(self._numbers)
        if self.closed:
            request.settle(CallError(CLOSED))
            return call
        self._requests[call] = request
        if request.timeout_s is None:
            self._perform(self.calls.add(call, size=request.size, pin=pin, kept=kept))
        else:
            due_ns = self._clock.monotonic_ns() + int(min(request.timeout_s, _LONGEST_S) * 1e9)
            self._perform(self.calls.add(call, due_ns, size=request.size, pin=pin, kept=kept))
            self._arm()
        return call

    def make_room(self) -> None:
        """Drop the calls that have waited longest, if no more may wait."""
        self._perform(self.calls.make_room())

    def cancel(self, call: int) -> None:
        """Stop the call; nobody is told of its end."""
        if self._requests.pop(call, None) is not None and not self.closed:
            self._perform(self.calls.cancel(call))

    def feed_from(self, feeder: Feeder) -> None:
        """Ask it for calls now, and whenever a lane has room, until `feed_no_more`."""
        self._feeders[feeder] = None
        self._feed()

    def feed_no_more(self, feeder: Feeder) -> None:
        self._feeders.pop(feeder, None)

    def waiting_calls(self) -> tuple[int, int]:
        """Calls that no lane has, and bytes of their arguments."""
        if self.closed:
            return 0, 0
        calls = self.calls.statistics()
        more = [line.waiting_calls() for line in self.lines]
        return calls.waiting + sum(count for count, _ in more), calls.waiting_bytes + sum(size for _, size in more)

    def _feed(self) -> None:
        if self._feeding or not self._feeders:
            return
        self._feeding = True
        try:
            for feeder in list(self._feeders):
                feeder.feed()
        finally:
            self._feeding = False

    # -- commands --------------------------------------------------------------------------------------

    def _perform(self, commands: list[Command], why: Death | Exception | None = None) -> None:
        if self.closed:  # its processes are ending, and every caller is being told so
            return
        for command in commands:  # grows while it is read
            if type(command) is Send:
                commands += self._send(command.lane, command.call)
                continue
            match command:
                case Interrupt(lane, call):
                    commands += self._stop(lane, call)
                case Steal(lane, call):
                    commands += self._steal(lane, call)
                case TimedOut(call):
                    self._settle(call, self._timed_out(call))
                case Lost(call):
                    self._settle(call, self._lost(call, why))
                case Dropped(call):
                    self.door.dropped += 1
                    self._settle(call, self._dropped(call))
                case Hung(lane):
                    self._lookout.replace(lane)
        if self._to_be_shared:
            self._sharing = self._loop.call_later(_SHARED_AFTER_S, self._share)
        if self._retiring is not None:
            self._retire()
        if self.door.line:
            self.door.admit()
        if self._feeders:
            self._feed()

    def _send(self, lane: int, call: int) -> list[Command]:
        process = self.staff.seats[lane]
        assert process is not None
        request = self._requests[call]
        try:
            process.send(call, request)
        except Exception as error:  # noqa: BLE001 - no memory for it, for example
            return self._unsent(lane, call, error)
        self.lanes[lane].sent_bytes += request.size
        if not self._inline:
            self._lookout.sent()
        return []

    def _unsent(self, lane: int, call: int, error: Exception) -> list[Command]:
        """The call could not be sent: it has ended with that. Its caller, who may be making it just now, is told after this."""
        request = self._requests.get(call)
        if request is not None:
            request.unsent = True
            self._loop.call_soon(self._settle, call, error)
        return self.calls.unsent(lane, call)

    def _not_sent(self, process: CallProcess, call: int, error: Exception) -> None:
        """The same, told by the process. It may be in the midst of commands: what follows from this must not overtake them."""
        self._loop.call_soon(self._take_out, process, call, error)

    def _take_out(self, process: CallProcess, call: int, error: Exception) -> None:
        lane = process.lane
        if lane is None or self.staff.seats[lane] is not process or self.closed:
            return  # it ended meanwhile: the call goes to another
        self._perform(self._unsent(lane, call, error))

    @property
    def _to_be_shared(self) -> bool:
        """Whether a look at what waits in busy lanes is due, and nobody has been told to come for it."""
        return self.calls.unshared and self._sharing is None

    def _share(self) -> None:
        self._sharing = None
        if not self.closed:
            self._perform(self.calls.share())

    def _steal(self, lane: int, call: int) -> list[Command]:
        process = self.staff.seats[lane]
        if process is None or call not in process.turns or not process.revoke(call, or_kill=False):
            return []
        return self._revoked(process, lane, call)

    def _stop(self, lane: int, call: int) -> list[Command]:
        """Revoke the call; one that may be running is asked to stop, and killed when the grace has passed."""
        process = self.staff.seats[lane]
        assert process is not None
        if call not in process.turns:  # it could not be sent, and is taken out in a moment
            return []
        kill, turn = not self._inline and not self._grace_s, process.turns[call]
        if process.revoke(call, or_kill=kill):
            commands = self._revoked(process, lane, call)
            if process.reads_in_vain(turn):
                self._loop.call_later(min(self._grace_s, _READ_S), self._waste, process, lane, turn)
            return commands
        if self._inline:
            return []  # there is no process to kill
        if process.dying:
            self.calls.killed(lane)
            return []
        process.ask_to_stop(call)
        process.stops[call] = self._loop.call_later(self._grace_s, self._kill, process, call)
        return self.calls.held(lane)

    def _revoked(self, process: CallProcess, lane: int, call: int) -> list[Command]:
        """The lane will not start the call. While that may lie before a full socket the lane gets nothing more: behind one
        that runs for long, what nobody wants would add up.
        """
        held = self.calls.held(lane) if process.clog(lambda: self._unclogged(process)) else []
        return held + self.calls.revoked(lane, call)

    def _unclogged(self, process: CallProcess) -> None:
        if process.lane is not None and not self.closed:
            self._perform(self._going_on(process, process.lane))

    def _going_on(self, process: CallProcess, lane: int) -> list[Command]:
        """The lane may be given calls again, if nothing else speaks against it."""
        if process.stops or process.clogged or process.dying or lane == self._retiring or self.calls.doubted(lane):
            return []
        return self.calls.attached(lane)

    def _kill(self, process: CallProcess, call: int) -> None:
        if call in process.turns:
            process.revoke(call, or_kill=True)  # not if it has ended meanwhile and its answer is on the way

    def _waste(self, process: CallProcess, lane: int, turn: int) -> None:
        """The process still reads a call that nobody wants: another takes its place. What lies behind was not started."""
        if self.staff.seats[lane] is process and process.reads_in_vain(turn):
            process.wasted = True
            process.kill()

    def _settle(self, call: int, outcome: Sequence[Answer] | Exception) -> None:
        request = self._requests.pop(call, None)
        if request is not None:
            tell(request.settle, outcome)

    def _timed_out(self, call: int) -> TimeoutError:
        request = self._requests[call]
        return TimeoutError(f"{request.name}: no result within {request.timeout_s} s; the work was stopped.")

    def _dropped(self, call: int) -> LanesFull:
        return dropped(self._requests[call].name, self.door.bound)

    def _lost(self, call: int, why: Death | Exception | None) -> Exception:
        if isinstance(why, Exception):
            return why
        assert why is not None
        return why.error(call, self._requests[call].name)

    def _arm(self) -> None:
        """One timer, for the earliest deadline."""
        due_ns = self.calls.next_deadline_ns
        if due_ns is None or (self._timer is not None and self._timer_at_ns <= due_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_ns = due_ns
        self._timer = self._loop.call_later(max(0.0, (due_ns - self._clock.monotonic_ns()) / 1e9), self._due)

    def _due(self) -> None:
        self._timer = None
        self._perform(self.calls.expired(self._clock.monotonic_ns()))
        self._arm()

    # -- from the staff --------------------------------------------------------------------------------

    def seated(self, lane: int) -> None:
        """The lane has a process (`tidemill.engine.staff.Employer`)."""
        process = self.staff.seats[lane]
        assert process is not None
        process.not_sent = self._not_sent
        self._perform(self.calls.attached(lane))

    def returned(self, process: CallProcess, message: Returned, payload: Payload) -> None:
        """A call came back."""
        lane = process.lane
        assert lane is not None
        call, items, busy_ns = message.call, len(message.sizes), message.busy_ns
        request = self._requests.get(call)
        if not process.believes(message, payload) or (request is not None and not request.can_have(items)):
            self._distrust(process, lane)
            return
        settle: Callable[[Sequence[Answer] | Exception], None] = _nobody
        if request is not None:
            request.busy_ns = busy_ns
            settle = request.settle
            del self._requests[call]
        counts = self.lanes[lane]
        counts.busy_ns += busy_ns
        counts.done += 1
        counts.items += items
        counts.received_bytes += len(payload) + message.room
        process.items += items
        del process.turns[call]
        commands = self.calls.returned(lane, call)  # before the caller is told: the lane may be idle
        depth = self._depth.measured(lane, busy_ns)
        if depth != self.calls.depth or self._depth.call_s != self.calls.call_s:
            commands += self.calls.deepen(depth, self._depth.call_s)
        if process.stops:
            commands += self._stopped(process, call, lane)
        if self.staff.recycles:
            commands += self._aged(process, lane)
        if commands or self.door.line or self._feeders or self._retiring is not None or self._to_be_shared:
            self._perform(commands)
        if message.oversized and not self._told_oversized:
            self._tell_oversized(message)
        process.answers(message, payload, settle)

    def partly(self, process: CallProcess, message: Partly, payload: Payload) -> None:
        """The first calls of a bundle came back."""
        lane = process.lane
        assert lane is not None
        request = self._requests.get(message.call)
        items = len(message.sizes)
        if not process.has_answered(message, payload) or (
            request is not None and not (request.bundle and request.can_have(items + 1))
        ):
            self._distrust(process, lane)
            return
        self.lanes[lane].items += items
        self.lanes[lane].received_bytes += len(payload)
        process.items += items
        if request is not None:
            request.finished += answers_of(message, payload)

    def _distrust(self, process: CallProcess, lane: int) -> None:
        told, pid = "lane %d: process %s gave an answer that cannot be, and is killed", self.staff.pid(lane)
        _log.error(told, lane, pid, extra={"lane": lane, "pid": pid})
        process.kill()

    def finished(self, call: int) -> tuple[int, Sequence[Answer]] | None:
        """Of a bundle that is under way, what is finished and was not sent, and the number of the first of it."""
        for process in self.staff.seats:
            if process is not None and call in process.turns:
                return process.found(call)
        return None

    def _tell_oversized(self, message: Returned) -> None:
        self._told_oversized = True
        _log.warning(
            "a result, a %s, of %d bytes has no room in the arena and came through a socket, several times slower; open "
            "the lanes with a larger arena_bytes, or return less (this is said once)",
            message.oversized,
            sum(message.sizes),
        )

    def _stopped(self, process: CallProcess, call: int, lane: int) -> list[Command]:
        """A call that was asked to stop, or ended by itself: the lane may go on."""
        timer = process.stops.pop(call, None)
        if timer is not None:
            timer.cancel()
        return self._going_on(process, lane)

    def vacated(self, lane: int, process: CallProcess, how: Exit) -> None:
        """The lane's process ended."""
        running = process.running()
        request = self._requests.get(running)
        if request is not None:
            known = len(request.finished)
            request.strike(process.found(running) if request.bundle else (0, []))
            self.lanes[lane].items += len(request.finished) - known
        self.lanes[lane].restarts += 1
        if self._retiring == lane:
            self._retiring = None
        self._perform(
            self.calls.died(lane, running, wanted=process.wasted),
            Death(how, running, process.last_words(), process.hung),
        )

    def hopeless(self, error: Exception) -> None:
        """No process can be made."""
        self._perform(self.calls.given_up(), error)

    # -- recycling -------------------------------------------------------------------------------------

    def _aged(self, process: CallProcess, lane: int) -> list[Command]:
        """Begin to retire the process if it has served long enough and the spare is ready."""
        if self._retiring is not None or self.staff.spare is None or process.stops or process.dying:
            return []
        if not self.staff.is_worn(process, self._clock.monotonic_ns()):
            return []
        self._retiring = lane
        return self.calls.held(lane)

    def _retire(self) -> None:
        """Swap the process once nothing is left in it."""
        lane = self._retiring
        assert lane is not None
        if self.calls.has(lane):
            return
        self._retiring = None
        process = self.staff.seats[lane]
        if process is None or process.dying:
            return
        self.lanes[lane].recycled += 1
        fields = {"lane": lane, "pid": self.staff.pid(lane), "items": process.items}
        _log.info("lane %(lane)d: process %(pid)s was replaced after %(items)d items", fields, extra=fields)
        self.staff.retire(lane)

    # -- the end ---------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Stop all work, tell every caller, end the processes."""
        if self.closed:
            return
        self.closed = True
        self._lookout.end()
        for timer in (self._timer, self._sharing):
            if timer is not None:
                timer.cancel()
        ends = self._ends(CallError(CLOSED))
        telling = asyncio.ensure_future(in_turns(ends))
        try:
            await self.staff.aclose()
            await telling
        finally:
            telling.cancel()
            for _ in ends:  # what is left, if this was cancelled
                pass
            await asyncio.wait([telling])

    def _ends(self, error: Exception) -> Iterator[None]:
        """Tell every caller, one in each step."""
        for call in list(self._requests):
            self._settle(call, error)
            yield
        for holder in list(self.holders):
            yield from holder.fail(error)
        yield from self.door.fail(error)

    async def abandon(self) -> None:
        """The loop was closed: nobody can be told any more. End the processes, from another loop."""
        if not self.closed:
            self.closed = True
            await self.staff.abandon()
