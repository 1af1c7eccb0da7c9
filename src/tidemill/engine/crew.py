"""The shell around `core.calls`: processes, a warm spare, one timer. Feed an event, perform the commands.

Everything is on the event loop's thread; nothing here blocks it, waits or polls.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tidemill.clock import SystemClock
from tidemill.core.calls import Calls, Command, Interrupt, Lost, Send, Steal, TimedOut
from tidemill.engine.call_process import CallProcess, Request, answers_of
from tidemill.errors import CallError, LaneDied
from tidemill.lanes.call_codec import Answer
from tidemill.lanes.inline_calls import InlineCalls
from tidemill.lanes.process import Exit, ForkServer, ProcessChannel
from tidemill.lanes.wire import FromLane, Returned

__all__ = ["Crew", "Feeder"]


class Feeder(Protocol):
    """Makes calls when a lane has room for them."""

    def feed(self) -> None: ...
    def fail(self, error: Exception) -> None: ...


@dataclass
class _Lane:
    """A lane outlives its processes."""

    process: CallProcess | None = None
    busy_ns: int = 0
    done: int = 0
    restarts: int = 0


class Crew:
    """Lanes with their processes, a warm spare, and the calls in them. Use on one loop's thread only."""

    def __init__(self, lanes: int, *, nice: int) -> None:
        self._inline = lanes == 0
        self._nice = nice
        self.lanes = [_Lane() for _ in range(max(lanes, 1))]
        self.calls = Calls(len(self.lanes), per_lane=2)
        self._server: ForkServer | None = None
        self._requests: dict[int, Request] = {}
        self._numbers = itertools.count(1)
        self._feeders: dict[Feeder, None] = {}
        self._feeding = False
        self._spare: CallProcess | None = None
        self._processes: set[CallProcess] = set()
        self._clock = SystemClock()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ns = 0
        self._early_deaths = 0  # in a row, of processes that returned nothing
        self._closed = False
        self._lost_servers: list[ForkServer] = []

    async def start(self) -> None:
        """Start the processes and return when they can take calls."""
        self._loop = asyncio.get_running_loop()
        if not self._inline:
            self._server = ForkServer()
            try:
                await self._server.start()
            except BaseException:
                await self._server.aclose()
                raise
        for number in range(len(self.lanes)):
            self._seat(number)

    # -- calls -----------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Take a call; its number."""
        call = next(self._numbers)
        self._requests[call] = request
        deadline_ns = None
        if request.timeout_s is not None:
            deadline_ns = self._clock.monotonic_ns() + int(request.timeout_s * 1e9)
        self._perform(self.calls.add(call, deadline_ns))
        return call

    def cancel(self, call: int) -> None:
        """Stop the call; nobody is told of its end."""
        if self._requests.pop(call, None) is not None and not self._closed:
            self._perform(self.calls.cancel(call))

    def feed_from(self, feeder: Feeder) -> None:
        """Ask it for calls now, and whenever a lane has room, until `feed_no_more`."""
        self._feeders[feeder] = None
        self._feed()

    def feed_no_more(self, feeder: Feeder) -> None:
        self._feeders.pop(feeder, None)

    def _feed(self) -> None:
        if self._feeding or not self._feeders or self.calls.waiting:
            return
        self._feeding = True
        try:
            for feeder in list(self._feeders):
                feeder.feed()
        finally:
            self._feeding = False

    # -- commands --------------------------------------------------------------------------------------

    def _perform(self, commands: list[Command], how: Exit | None = None) -> None:
        todo = deque(commands)
        while todo:
            match todo.popleft():
                case Send(lane, call):
                    process = self.lanes[lane].process
                    assert process is not None
                    process.send(call, self._requests[call])
                case Interrupt(lane, call):
                    todo.extend(self._revoke(lane, call, or_kill=True))
                case Steal(lane, call):
                    todo.extend(self._revoke(lane, call, or_kill=False))
                case TimedOut(call):
                    self._settle(call, self._timed_out(call))
                case Lost(call):
                    self._settle(call, self._lost(call, how))
        self._arm()
        self._feed()

    def _revoke(self, lane: int, call: int, *, or_kill: bool) -> list[Command]:
        process = self.lanes[lane].process
        assert process is not None
        if process.revoke(call, or_kill=or_kill and not self._inline):  # there is no process to kill inline
            return self.calls.revoked(lane, call)
        if process.dying:
            self.calls.killed(lane)
        return []

    def _settle(self, call: int, outcome: Sequence[Answer] | Exception) -> None:
        request = self._requests.pop(call, None)
        if request is not None:
            request.settle(outcome)

    def _timed_out(self, call: int) -> TimeoutError:
        request = self._requests[call]
        return TimeoutError(f"{request.name}: no result within {request.timeout_s} s; the work was stopped.")

    def _lost(self, call: int, how: Exit | None) -> LaneDied:
        name = self._requests[call].name
        if how is None or self._early_deaths >= Calls.MAX_FRUITLESS:
            return LaneDied(
                f"{name}: {Calls.MAX_FRUITLESS} processes in a row ended ({how}) before they could run anything; see "
                "their messages on stderr, and whether something kills them, such as a limit on memory.",
                how.signal if how else None,
                how.code if how else None,
            )
        return LaneDied(
            f"{name}: the lane's process ended while it ran this call ({how}). Other calls are not affected.",
            how.signal,
            how.code,
        )

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

    # -- processes -------------------------------------------------------------------------------------

    def _seat(self, number: int) -> None:
        """Give a lane a process: the spare, if there is one."""
        if self._closed:
            return
        process, self._spare = self._spare or self._spawned(), None
        process.lane = number
        self.lanes[number].process = process
        if not self._inline:
            self._spare = self._spawned()
        self._perform(self.calls.attached(number))

    def _spawned(self) -> CallProcess:
        process = CallProcess()

        def received(message: FromLane, payload: bytes) -> None:
            self._received(process, message, payload)

        if self._inline:
            process.channel = InlineCalls(process.cursor, received)
        else:
            process.channel = self._living_server().spawn(
                "calls", [process.memory.fd], received, lambda how: self._died(process, how), nice=self._nice
            )
        self._processes.add(process)
        return process

    def _living_server(self) -> ForkServer:
        assert self._server is not None
        if not self._server.alive:  # somebody killed it, and its children with it
            self._lost_servers.append(self._server)
            self._server = ForkServer()
            self._server.begin()
        return self._server

    def _received(self, process: CallProcess, message: FromLane, payload: bytes) -> None:
        if not isinstance(message, Returned) or process.lane is None or self._closed:
            return
        lane = self.lanes[process.lane]
        lane.busy_ns += message.busy_ns
        lane.done += 1
        self._early_deaths = 0
        process.turns.pop(message.call, None)
        request = self._requests.pop(message.call, None)
        self._perform(self.calls.returned(process.lane, message.call))  # first: the lane may be idle
        if request is not None:
            request.settle(answers_of(message, payload))

    def _died(self, process: CallProcess, how: Exit) -> None:
        running = process.running()
        process.close()
        self._processes.discard(process)
        if self._closed:
            return
        self._early_deaths = 0 if running else self._early_deaths + 1
        if process is self._spare:
            self._spare = None
            self._later(self._replace_spare)
        elif process.lane is not None:
            number = process.lane
            self.lanes[number].process = None
            self.lanes[number].restarts += 1
            self._perform(self.calls.died(number, running), how)
            self._later(lambda: self._seat(number))

    def _later(self, act: Callable[[], None]) -> None:
        """At once, unless processes keep dying before they have done anything."""
        if self._early_deaths < 3:
            act()
        else:
            self._loop.call_later(min(1.0, 0.02 * 2 ** min(self._early_deaths, 6)), act)

    def _replace_spare(self) -> None:
        if self._spare is None and not self._closed:
            self._spare = self._spawned()

    # -- the end ---------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Stop all work, tell every caller, end the processes."""
        if self._closed:
            return
        self._closed = True
        error = CallError("The lanes were closed before this call had ended; await what you need inside the block.")
        for request in list(self._requests.values()):
            request.settle(error)
        self._requests.clear()
        for feeder in list(self._feeders):
            feeder.fail(error)
        if self._timer is not None:
            self._timer.cancel()
        processes = list(self._processes)
        for process in processes:
            process.kill()
        if self._inline:
            return
        try:
            for process in processes:
                assert isinstance(process.channel, ProcessChannel)
                await process.channel.gone.wait()
        finally:  # ends what is left, if this is cancelled
            for server in [*self._lost_servers, self._server]:
                assert server is not None
                await server.aclose()

    def pid(self, number: int) -> int | None:
        process = self.lanes[number].process
        return process.channel.pid if process is not None and process.channel is not None else None
