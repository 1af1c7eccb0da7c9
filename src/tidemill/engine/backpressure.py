"""What a new call meets when as many wait already as may: it waits in turn, is refused, or an old one makes room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator

from tidemill.core.calls import Calls
from tidemill.engine.endings import own
from tidemill.errors import LanesFull

__all__ = ["Door", "dropped", "refused"]


def refused(name: str, why: str) -> LanesFull:
    """The error of a call that may not wait."""
    return LanesFull(f"{name}: the call was refused: {why}. Try again later, send less, or let calls wait.")


def dropped(name: str, why: str) -> LanesFull:
    """The error of a call that had to make room."""
    return LanesFull(
        f'{name}: the call was dropped before a lane had it, for a newer one: {why} (when_full="drop_oldest").'
    )


class Door:
    """Lets callers in, first come, first served."""

    def __init__(self, calls: Calls, when_full: str) -> None:
        self._calls = calls
        self.when_full = when_full
        self.line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        """Callers that wait to come in."""
        self._entering = 0  # were let in, and have not added their call yet
        self.rejected = 0
        """Calls that were refused because too much waited."""
        self.dropped = 0
        """Calls that were dropped for newer ones."""

    @property
    def bound(self) -> str:
        """For messages."""
        bounds = self._calls.bounds
        parts = []
        if bounds.waiting is not None:
            parts.append(f"max_waiting={bounds.waiting}")
        if bounds.waiting_bytes is not None:
            parts.append(f"max_waiting_bytes={bounds.waiting_bytes:,}")
        return f"{self._calls.bounded} calls wait, and the lanes have {' and '.join(parts)}"

    @property
    def must_wait(self) -> bool:
        """Whether a caller has to stand in line."""
        return bool(self.line) or self._full

    @property
    def _full(self) -> bool:
        """What a caller that was let in will add is not known in bytes: under a bound on these, one at a time."""
        calls, bounds = self._calls, self._calls.bounds
        if not self._entering:
            return calls.full
        most = 0 if bounds.waiting is None or bounds.waiting_bytes is not None else bounds.waiting
        return calls.full or calls.bounded + self._entering >= most

    def refuse(self, name: str) -> LanesFull:
        """The error of a call that may not wait; it is counted."""
        self.rejected += 1
        return refused(name, self.bound)

    async def come_in(self, name: str, make_room: Callable[[], None]) -> bool:
        """By ``when_full``: whether the caller stood in line, and has to say `entered`. Raises `LanesFull`."""
        if not self.must_wait:
            return False
        if self.when_full == "reject":
            raise self.refuse(name)
        if self.when_full == "drop_oldest":
            make_room()
            return False
        await self.enter()
        return True

    async def enter(self) -> None:
        """Wait in line; the caller adds its call, or gives up, before it awaits anything else. Then call `entered`."""
        turn = asyncio.get_running_loop().create_future()
        self.line[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self.line.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # it was let in already
                self.entered()
            raise

    def entered(self) -> None:
        """A caller that was let in has added its call, or gave up."""
        self._entering -= 1
        self.admit()

    def admit(self) -> None:
        """Let in whoever there is room for."""
        while self.line and not self._full:
            turn, _ = self.line.popitem(last=False)
            if not turn.done():
                self._entering += 1
                turn.set_result(None)

    def fail(self, error: Exception) -> Iterator[None]:
        """Nobody gets in any more: tell those in the line, one in each step."""
        while self.line:
            turn, _ = self.line.popitem(last=False)
            if not turn.done():
                turn.set_exception(own(error))
            yield
