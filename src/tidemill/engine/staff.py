"""The processes behind the lanes: started, made ready, kept one ahead, replaced.

A process is ready when it has answered its first call, which imports what was asked for and runs the user's
initializer. Ready processes are seated in vacant lanes; one more waits as the spare, so that a death, a stop or a
recycling costs a swap. While processes fail before they are ready, or are not ready in time, new ones are started ever
more slowly, and after `ATTEMPTS` of them in a row whoever waits is told why.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Protocol

from tidemill.engine.call_process import CallProcess, Request
from tidemill.engine.making import ATTEMPTS, Making
from tidemill.engine.slices import Turns, in_turns
from tidemill.engine.wear import is_worn
from tidemill.errors import EngineError, OutsideError
from tidemill.lanes.channel import Exit, ProcessChannel
from tidemill.lanes.fork_client import ForkServer
from tidemill.lanes.framing import Payload
from tidemill.lanes.inline_calls import InlineCalls
from tidemill.lanes.wire import FromLane, Partly, Returned, Stop

__all__ = ["Making", "Staff"]


_LONGEST_S: Final = 1e9
_GONE_S: Final = 5.0
"""How long processes that were killed may take to end before closing goes on without their word."""


class Employer(Protocol):
    """Whom the staff tells."""

    def seated(self, lane: int) -> None:
        """The lane has a process that is ready."""

    def returned(self, process: CallProcess, message: Returned, payload: Payload) -> None:
        """A process that has a lane answered a call."""

    def partly(self, process: CallProcess, message: Partly, payload: Payload) -> None:
        """A process that has a lane answered the first calls of a bundle."""

    def vacated(self, lane: int, process: CallProcess, how: Exit) -> None:
        """The process of the lane ended."""

    def hopeless(self, error: Exception) -> None:
        """Processes keep failing before they are ready."""


class Staff:
    """Processes for ``lanes`` lanes and one spare. Use on one loop's thread only."""

    def __init__(self, lanes: int, making: Making, first_call: Request, employer: Employer) -> None:
        self._inline = lanes == 0
        self._making = making
        self.recycles = making.recycles and not self._inline
        """Whether processes wear out at all."""
        self._employer = employer
        self._first_call = first_call
        self.seats: list[CallProcess | None] = [None] * max(lanes, 1)
        self.spare: CallProcess | None = None
        """Ready, and in no lane."""
        self._starting: dict[CallProcess, asyncio.TimerHandle | None] = {}
        """Not ready yet, with what ends the wait for it."""
        self.processes: set[CallProcess] = set()
        self._server: ForkServer | None = None
        self._lost_servers: dict[ForkServer, asyncio.Task[None]] = {}
        """With the tasks that let go of what is left of them."""
        self._preloading: set[asyncio.Task[Any]] = set()
        self._round = self._failures = 0
        self._waking: asyncio.TimerHandle | None = None
        self._all_seated: asyncio.Future[None] | None = None
        self.closed = False

    async def start(self) -> None:
        """Start the processes and return when each lane has one that is ready; raises what keeps them from it."""
        self._loop = asyncio.get_running_loop()
        self._turns = Turns()
        if not self._inline:
            try:
                self._server = ForkServer()
                await self._server.start()
                await self._preload(self._server)
            except (EngineError, OutsideError, OSError) as error:
                raise self._making.not_started(error) from error
        self._all_seated = self._loop.create_future()
        self._hire()
        try:
            await self._all_seated
        finally:
            self._all_seated = None

    async def _preload(self, server: ForkServer) -> None:
        for module, pickled in self._making.imports_one_by_one().items():
            try:
                await server.preload(pickled)
            except (EngineError, OutsideError) as error:
                if not module:
                    raise
                raise self._making.ended_the_server(module) from error

    # -- one ahead -------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """Start as many processes as are missing: at once, or later while they keep failing."""
        if self.closed or self._waking is not None or not self._missing:
            return
        if self._failures:
            delay_s = min(1.0, 0.01 * 2 ** min(self._failures, 7))
            self._waking = self._loop.call_later(delay_s, self._hire_now)
        else:
            self._hire_now()

    @property
    def _missing(self) -> int:
        wanted = self.seats.count(None) + (self.spare is None and not self._inline)
        return max(0, wanted - len(self._starting))

    def _hire_now(self) -> None:
        self._waking = None
        for _ in range(self._missing):
            if not self.closed and self._waking is None:  # else one has failed at once
                self._spawn()

    def _spawn(self) -> None:
        try:
            process = self._forked()
        except (EngineError, OutsideError, OSError) as error:  # the server was killed this instant, or nothing is left
            self._failed(self._round, self._making.not_started(error))
            return
        self.processes.add(process)
        self._starting[process] = self._patience(process)
        process.send(process.FIRST_CALL, self._first_call)

    def _patience(self, process: CallProcess) -> asyncio.TimerHandle | None:
        """What kills the process if its initializer hangs; nothing can where there is no process."""
        seconds = self._making.initializer_timeout
        if self._inline or self._making.initializer is None or seconds is None:
            return None
        return self._loop.call_later(min(float(seconds), _LONGEST_S), self._hung, process)

    def _hung(self, process: CallProcess) -> None:
        self._has_begun(process)  # another is started at once, even if this one cannot be killed
        process.kill()
        self._failed(process.round, self._making.hung())

    def _has_begun(self, process: CallProcess) -> bool:
        """Whether it was being started until now; either way it is no longer."""
        if process not in self._starting:
            return False
        timer = self._starting.pop(process)
        if timer is not None:
            timer.cancel()
        return True

    def _forked(self) -> CallProcess:
        process = CallProcess(self._turns, self._round, 0 if self._inline else self._making.arena_bytes)

        def received(message: FromLane, payload: Payload) -> None:
            if self.closed:
                return
            if isinstance(message, Returned):
                if process.lane is not None:
                    self._employer.returned(process, message, payload)
                elif process in self._starting:
                    self._began(process, message, payload)
            elif isinstance(message, Partly) and process.lane is not None:
                self._employer.partly(process, message, payload)

        try:
            if self._inline:
                process.channel = InlineCalls(process.cursor, received)
            else:
                process.channel = self._living_server().spawn(
                    "calls", process.memories, received, lambda how: self._died(process, how), nice=self._making.nice
                )
        except BaseException:
            process.close()
            raise
        return process

    def _living_server(self) -> ForkServer:
        assert self._server is not None
        if not self._server.alive:  # somebody killed it, and its children with it
            server = ForkServer()
            server.begin()
            self._let_go(self._server)
            self._server = server
            task = asyncio.ensure_future(self._server.preload(self._making.imports()))
            self._preloading.add(task)
            task.add_done_callback(self._preloaded)
        return self._server

    def _preloaded(self, task: asyncio.Task[Any]) -> None:
        self._preloading.discard(task)
        if not task.cancelled():
            task.exception()  # the server is gone again; whoever spawns next notices

    def _let_go(self, server: ForkServer) -> None:
        """Of a lost server: else each would stay a zombie until the lanes are closed."""
        task = self._lost_servers[server] = asyncio.ensure_future(server.reap())
        task.add_done_callback(lambda _: self._lost_servers.pop(server, None))

    # -- what processes say ----------------------------------------------------------------------------

    def _began(self, process: CallProcess, message: Returned, payload: Payload) -> None:
        try:
            process.first_answer(message, payload)
        except Exception as error:  # noqa: BLE001 - the user's own
            process.kill()
            self._has_begun(process)
            self._failed(process.round, self._making.raised(error))
            return
        self._has_begun(process)
        self._failures = 0
        self.spare = process
        self.fill()

    def fill(self) -> None:
        """Seat the spare where a lane is vacant, and see to the next."""
        for lane, seat in enumerate(self.seats):
            if seat is None and self.spare is not None:
                process, self.spare = self.spare, None
                process.lane = lane
                self.seats[lane] = process
                self._employer.seated(lane)
        if self._all_seated is not None and not self._all_seated.done() and None not in self.seats:
            self._all_seated.set_result(None)
        self._hire()

    def _failed(self, round_: int, error: Exception) -> None:
        """A process was never ready. Those of one round count once."""
        if round_ == self._round:
            self._round += 1
            self._failures += 1
        if self._failures >= ATTEMPTS:
            if self._all_seated is not None:
                if not self._all_seated.done():
                    self._all_seated.set_exception(error)
            elif None in self.seats:
                self._employer.hopeless(error)
        self._hire()

    def _died(self, process: CallProcess, how: Exit) -> None:
        self.processes.discard(process)
        lane, starting = process.lane, self._has_begun(process)
        if self.closed:
            process.close()
            return
        if process is self.spare:
            self.spare = None
        if lane is not None:
            self.seats[lane] = None
            self._employer.vacated(lane, process, how)
        error = self._making.died(process, how) if starting else None
        process.close()
        if error is not None:
            self._failed(process.round, error)
        else:
            self.fill()

    # -- wear ------------------------------------------------------------------------------------------

    def is_worn(self, process: CallProcess, now_ns: int) -> bool:
        """Whether the process has served long enough."""
        return is_worn(process, self._making, now_ns)

    def retire(self, lane: int) -> None:
        """The lane's process, which has nothing to do, ends; the spare takes its place."""
        process = self.seats[lane]
        assert process is not None
        assert process.channel is not None
        process.lane = None
        self.seats[lane] = None
        process.channel.send(Stop())
        self.fill()

    # -- the end ---------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End the processes."""
        self.closed = True
        if self._waking is not None:
            self._waking.cancel()
        for process in list(self._starting):
            self._has_begun(process)
        for task in self._preloading:
            task.cancel()
        processes = list(self.processes)
        for process in processes:
            process.kill()
        self.seats, self.spare = [None] * len(self.seats), None
        if self._inline:
            return
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GONE_S):
                    for process in processes:
                        assert isinstance(process.channel, ProcessChannel)
                        await process.channel.gone.wait()
        finally:  # ends what is left, if this is cancelled
            try:
                if self._server is not None:
                    await self._server.aclose()
                if self._lost_servers:
                    await asyncio.wait(self._lost_servers.values())
            finally:  # also if it is cancelled again
                for process in self.processes:
                    assert isinstance(process.channel, ProcessChannel)
                    process.channel.close()
                    process.close()
                copies = self._turns.rest()
                try:
                    await in_turns(copies)  # whoever waits for their results is told before the lanes are closed
                finally:
                    for _ in copies:  # what is left, if this was cancelled
                        pass

    async def abandon(self) -> None:
        """The same when the loop that they belong to was closed under them."""
        self.closed = True
        for server in [*self._lost_servers, self._server]:
            if server is not None:
                await server.abandon()
        for process in self.processes:
            process.close(abandoned=True)

    def arena_bytes(self, lane: int) -> int:
        """What the arena of the lane's process takes from the machine."""
        process = self.seats[lane]
        return 0 if process is None or process.large is None else process.large.touched_bytes()

    def pid(self, lane: int) -> int | None:
        process = self.seats[lane]
        return process.channel.pid if process is not None and process.channel is not None else None
