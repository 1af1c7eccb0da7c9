"""One lane as the engine sees it: its process or its inline twin, its state memory, its record of deaths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tidemill.core.blame import Blame, Cursor, Death
from tidemill.engine.kept_objects import KeptObjects
from tidemill.lanes.channel import Exit
from tidemill.lanes.fork_client import PATIENCE_S, ForkServer
from tidemill.lanes.framing import Part, Payload
from tidemill.lanes.inline import InlineLane
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import FromLane, Message, Result
from tidemill.stages.state import StateLayout, StateMemory

__all__ = ["Lane", "LaneFactory", "LaneWork"]

NICE = 5
"""Lanes yield to the event loop, and not more than they must: far behind, the kernel lets them wait for work of a third of a
millisecond for 25 ms (decision 57)."""


class _Channel(Protocol):
    pid: int | None

    def send(self, message: Any, payload: Part = b"") -> None: ...
    def kill(self) -> None: ...


@dataclass
class _Killed:
    """We killed it, at this cursor."""

    slab: int
    stage: int
    row: int
    since_ns: int


@dataclass
class LaneWork:
    """What the lane of this number has done in a run."""

    busy_ns: int = 0
    batches: int = 0
    restarts: int = 0
    """Processes that were lost and replaced."""


class Lane:
    """A lane outlives its processes: its number, its state memory and what it is owed stay."""

    def __init__(self, number: int, layout: StateLayout, work: LaneWork) -> None:
        self.number = number
        self.work = work
        self.state = Shared(f"state-{number}", layout.total_bytes)
        self.memory = StateMemory(layout, self.state.buffer)
        self.copy = Shared(f"copy-{number}", layout.total_bytes)
        """Where its process copies the state for a checkpoint; not a byte is taken from the machine before."""
        self.blame = Blame()
        self.results: dict[int, tuple[Result, Payload]] = {}
        """Results that came and are not committed."""
        self.objects = KeptObjects()
        """What its process holds that is not in the state memory, as of the last slab that was committed."""
        self.went_on_ns = 0
        """When it was given work while it had none, or finished a slab, whichever was last."""
        self.ready = False
        self._channel: _Channel | None = None
        self._killed: _Killed | None = None

    @property
    def pid(self) -> int | None:
        return self._channel.pid if self._channel else None

    def attach(self, channel: _Channel) -> None:
        self._channel = channel
        self._killed = None

    def detach(self) -> None:
        """Its process is gone."""
        self._channel = None
        self.ready = False
        self.results.clear()

    def send(self, message: Message, payload: Part = b"") -> None:
        """To its process; what is sent while there is none is owed to the next."""
        if self._channel is not None:
            self._channel.send(message, payload)

    def overdue(self, now_ns: int, deadlines_ns: list[int | None]) -> int | None:
        """The stage whose function it is in, if that has run for longer than it may."""
        _, stage, _, since_ns = self.memory.cursor
        deadline = deadlines_ns[stage] if 0 <= stage < len(deadlines_ns) else None
        return stage if since_ns and deadline is not None and now_ns - since_ns > deadline else None

    @property
    def copied(self) -> int:
        """The number of the checkpoint whose copy is whole; 0 before the first."""
        return int(np.frombuffer(self.copy.buffer, np.int64, 1)[0])

    def close(self) -> None:
        """Let go of the memory."""
        self.state.close()
        self.copy.close()

    def kill(self) -> bool:
        """Stop its process because a deadline passed; whether that was not done before."""
        if self._channel is None or self._killed is not None:
            return False
        self._killed = _Killed(*self.memory.cursor)
        self._channel.kill()
        return True

    def death(self, how: Exit, user_code: list[bool]) -> Death:
        """What is known of how its process ended."""
        slab, stage, row, since_ns = self.memory.cursor
        ours = self._killed is not None
        if ours and self._killed != _Killed(slab, stage, row, since_ns):
            stage = row = -1  # it got away from where it hung while the kill was on its way: nobody is to blame
        in_user_code = 0 <= stage < len(user_code) and user_code[stage]
        return Death(Cursor(slab, stage, row), how.signal, how.code, ours=ours, in_user_code=in_user_code)


class LaneFactory:
    """Gives lanes their processes: forked ones, or inline twins. With ``keeps``, also these tell what objects they hold."""

    def __init__(self, server: ForkServer | None, slabs: list[Shared], *, keeps: bool = False) -> None:
        self._server = server
        self._slabs = slabs
        self._keeps = keeps

    def start(self, lane: Lane, received: Callable[[FromLane, Payload], None], died: Callable[[Exit], None]) -> None:
        """A new process for the lane, which continues from its state memory."""
        if self._server is None:
            slabs = [slab.buffer for slab in self._slabs]
            lane.attach(
                InlineLane(lane.state.buffer, memoryview(lane.copy.buffer), slabs, received, tells_objects=self._keeps)
            )
            return
        memories = [lane.state.fd, lane.copy.fd, *(slab.fd for slab in self._slabs)]
        lane.attach(self._server.spawn("lane", memories, received, died, nice=NICE, patience_s=PATIENCE_S))
