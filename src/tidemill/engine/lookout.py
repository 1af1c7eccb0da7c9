"""Looks, now and then, whether lanes that have calls begin them; one that hangs between two calls is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from tidemill.core.call_commands import Command
from tidemill.core.calls import Calls
from tidemill.engine.call_process import CallProcess
from tidemill.engine.staff import Staff
from tidemill.lanes.platform import activity

__all__ = ["Lookout"]

_log = logging.getLogger("tidemill")

_LOOK_S: Final = 0.2
"""So often."""


class Lookout:
    """``perform`` does what `Calls` says follows, ``going_on`` gives a lane calls again that was not trusted."""

    def __init__(
        self,
        staff: Staff,
        calls: Calls,
        *,
        perform: Callable[[list[Command]], None],
        going_on: Callable[[CallProcess, int], list[Command]],
    ) -> None:
        self._staff, self._calls = staff, calls
        self._perform, self._going_on = perform, going_on
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def sent(self) -> None:
        """A lane has got a call: there is something to look at, until all are answered."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def end(self) -> None:
        """Look no more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        for lane, process in enumerate(self._staff.seats):
            if process is not None and not process.dying:
                self._look_at(process, lane)
        if not self._ended and not all(process is None or process.has_none for process in self._staff.seats):
            self.sent()

    def _look_at(self, process: CallProcess, lane: int) -> None:
        doubted, sign = self._calls.doubted(lane), process.sign()
        at_work, ticks = (False, 0) if sign is None else activity(self._staff.pid(lane))
        computes, process.ticks = ticks > process.ticks, ticks
        commands = self._calls.looked(lane, sign, at_work=at_work, computes=computes)
        goes_on = doubted and not self._calls.doubted(lane)
        if goes_on:
            commands += self._going_on(process, lane)
        if commands or goes_on:  # without a command, too: its share of what waits elsewhere may come later
            self._perform(commands)

    def replace(self, lane: int) -> None:
        """It hangs: its process is killed, and another takes its place."""
        process = self._staff.seats[lane]
        assert process is not None
        pid = self._staff.pid(lane)
        told = "lane %d: process %s runs no call and begins none of those it has, and is killed"
        _log.error(told, lane, pid, extra={"lane": lane, "pid": pid})
        process.hung = True
        process.kill()
