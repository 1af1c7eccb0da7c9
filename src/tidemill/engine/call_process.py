"""A process that runs calls, as the crew sees it: what was sent to it, what it answered, what it is running."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.engine.functions_sent import SentFunction
from tidemill.lanes.call_codec import Answer, Parcel
from tidemill.lanes.cursor import CURSOR_BYTES, Cursor
from tidemill.lanes.inline_calls import InlineCalls
from tidemill.lanes.memory import Shared
from tidemill.lanes.process import ProcessChannel
from tidemill.lanes.wire import Call, Forget, Function, Returned, Revoke

__all__ = ["CallProcess", "Request", "answers_of"]

MAX_FUNCTIONS: Final = 256
"""Functions that a process keeps; the one sent first is forgotten."""


@dataclass(slots=True)
class Request:
    """A call as it is sent, and who is told of its end: once, with the answers or with why there are none."""

    name: str
    function: SentFunction | None
    parcels: Sequence[Parcel]
    settle: Callable[[Sequence[Answer] | Exception], None]
    listed: bool = False
    timeout_s: float | None = None
    busy_ns: int = 0
    """Of the lane; known once it has answered."""
    size: int = field(init=False)
    """Bytes of its parcels."""

    def __post_init__(self) -> None:
        parcels = self.parcels
        self.size = parcels[0].size if len(parcels) == 1 else sum(parcel.size for parcel in parcels)


class CallProcess:
    """A forked process, or its inline twin, with its cursor and the functions it has."""

    FIRST_CALL: Final = 1
    """The number of the call that makes it ready; others have higher ones."""

    def __init__(self, round_: int = 0) -> None:
        self.memory = Shared("cursor", CURSOR_BYTES)
        self.cursor = Cursor(self.memory.buffer)
        self.functions: OrderedDict[int, None] = OrderedDict()
        self.channel: ProcessChannel | InlineCalls | None = None
        self.lane: int | None = None
        """None before it has one, and after."""
        self.round = round_
        """Of starting; see `tidemill.engine.staff`."""
        self.items = 0
        """Values and errors that it sent back."""
        self.rss_at_ns = 0
        """When its memory was last looked at."""
        self.stops: dict[int, asyncio.TimerHandle] = {}
        """Running calls that were asked to stop, with what will kill them."""
        self.turns: dict[int, int] = {}
        """The turn of each call that was sent and not answered or revoked."""
        self._last_turn = 0
        self.dying = False

    def send(self, call: int, request: Request) -> None:
        assert self.channel is not None
        number = 0
        if request.function is not None:
            number = request.function.number
            self._introduce(request.function)
        payload = (
            request.parcels[0].data
            if len(request.parcels) == 1
            else b"".join([parcel.data for parcel in request.parcels])
        )
        self._last_turn += 1
        self.turns[call] = self._last_turn
        sizes = [len(parcel.data) for parcel in request.parcels]
        self.channel.send(Call(call, self._last_turn, number, request.listed, sizes), payload)

    def _introduce(self, function: SentFunction) -> None:
        assert self.channel is not None
        if function.number in self.functions:
            return
        if len(self.functions) == MAX_FUNCTIONS:
            self.channel.send(Forget(self.functions.popitem(last=False)[0]))
        self.functions[function.number] = None
        self.channel.send(Function(function.number), function.data)

    def revoke(self, call: int, *, or_kill: bool) -> bool:
        """Whether the call was not started and now never will be. One that runs can be killed: nothing else is hit."""
        assert self.channel is not None
        turn, started = self.turns[call], self.cursor.announce()
        if started == turn and or_kill:
            self.kill()
            return False
        self.channel.send(Revoke(turn if started < turn else 0))
        if started < turn:
            del self.turns[call]
        return started < turn

    def ask_to_stop(self, call: int) -> None:
        """Tell a call that may be running that nobody wants it any more; its function can see that."""
        self.cursor.cancel(self.turns[call])

    def running(self) -> int:
        """The call that was started and not answered; 0 for none."""
        started = self.cursor.started
        return next((call for call, turn in self.turns.items() if turn == started), 0)

    def kill(self) -> None:
        assert self.channel is not None
        if not self.dying:
            self.dying = True
            self.channel.kill()

    def close(self) -> None:
        for timer in self.stops.values():
            timer.cancel()
        self.cursor.close()
        self.memory.buffer.close()
        self.memory.close()


def answers_of(message: Returned, payload: Any) -> list[Answer]:
    view, start, answers = memoryview(payload), 0, []
    for raised, size in zip(message.raised, message.sizes, strict=True):
        answers.append(Answer(raised, view[start : start + size]))
        start += size
    return answers
