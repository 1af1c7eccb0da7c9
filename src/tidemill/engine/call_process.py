"""A process that runs calls, as the crew sees it: what was sent to it, what it answered, what it is running."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Literal

from tidemill.engine.endings import tell
from tidemill.engine.functions_sent import SentFunction
from tidemill.engine.large_buffers import LargeBuffers
from tidemill.engine.slices import Turns
from tidemill.errors import EngineError
from tidemill.lanes.call_codec import Answer, Parcel
from tidemill.lanes.channel import ProcessChannel
from tidemill.lanes.cursor import CURSOR_BYTES, Cursor
from tidemill.lanes.finished import FINISHED_BYTES, Finished
from tidemill.lanes.framing import Discarded, Part, Payload, joined, joined_size, pieces
from tidemill.lanes.inline_calls import InlineCalls
from tidemill.lanes.last_words import LAST_WORDS_BYTES, last_words
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import Call, Forget, Function, Message, Partly, Returned, Revoke

__all__ = ["CallProcess", "Request", "answers_of"]

MAX_FUNCTIONS: Final = 256
"""Functions that a process keeps; the one called least lately is forgotten."""
_FINISHED_AT: Final = CURSOR_BYTES + LAST_WORDS_BYTES


class Request:
    """A call as it is sent, and who is told of its end: once, with the answers or with why there are none."""

    __slots__ = (
        "busy_ns",
        "finished",
        "function",
        "listed",
        "name",
        "parcels",
        "settle",
        "size",
        "struck",
        "timeout_s",
        "unsent",
    )

    def __init__(
        self,
        name: str,
        function: SentFunction | None,
        parcels: Sequence[Parcel],
        settle: Callable[[Sequence[Answer] | Exception], None],
        *,
        listed: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self.name = name
        """For messages."""
        self.function = function
        self.parcels = parcels
        self.settle = settle
        self.listed = listed
        self.timeout_s = timeout_s
        self.busy_ns = 0
        """Of the lane; known once it has answered."""
        self.finished: list[Answer] = []
        """Of a bundle, the first answers, which came before the others."""
        self.struck: Literal["", "here", "somewhere"] = ""
        """Whether a process died in it: of a bundle, in the first call without an answer, or nobody knows in which."""
        self.unsent = False
        """Whether it ends because it could not be sent, which says nothing of others."""
        self.size = parcels[0].size if len(parcels) == 1 else sum(parcel.size for parcel in parcels)
        """Bytes of its parcels."""

    @property
    def bundle(self) -> bool:
        """Whether these are several calls."""
        return len(self.parcels) > 1 and not self.listed

    def can_have(self, answers: int) -> bool:
        """Whether so many more answers can be right: of a bundle, the last calls may be given back."""
        left = len(self.parcels) - len(self.finished)
        return answers == left or (answers < left and self.bundle)

    def strike(self, found: tuple[int, Sequence[Answer]] | None) -> None:
        """The process died in it; ``found`` is what it had finished, and the number of the first of that (`CallProcess.found`)."""
        if found is None or found[0] != len(self.finished):
            self.struck = "somewhere"
            return
        self.struck = "here"
        self.finished += found[1]


class CallProcess:
    """A forked process, or its inline twin, with its cursor and the functions it has."""

    FIRST_CALL: Final = 1
    """The number of the call that makes it ready; others have higher ones."""

    def __init__(self, turns: Turns, round_: int = 0, arena_bytes: int = 0) -> None:
        self.memory = Shared("cursor", _FINISHED_AT + FINISHED_BYTES)
        self.cursor = Cursor(memoryview(self.memory.buffer)[:CURSOR_BYTES])
        self.finished = Finished(memoryview(self.memory.buffer)[_FINISHED_AT:])
        try:
            self.large = LargeBuffers(arena_bytes, self._send, turns, self._failed) if arena_bytes else None
        except BaseException:
            self.memory.close()
            raise
        self.not_sent: Callable[[CallProcess, int, Exception], None] | None = None
        """Told of a call that waited for buffers before it, and then could not be sent."""
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
        self._last_revoked = 0  # of the turns that it was sent
        self._killed_in = 0
        """The turn that it is killed for, since its call did not stop."""
        self.dying = False
        self.ticks = 0
        """Of the processors, that it had had at the last look."""
        self.hung = False
        """Whether it is killed because it begins none of its calls."""
        self.wasted = False
        """Whether it is killed because it reads what nobody wants."""
        self.clogged = False
        """Whether a call that was revoked may still lie before its socket, which is full."""

    @property
    def memories(self) -> list[int]:
        """What the process maps, by descriptor."""
        return [self.memory.fd] if self.large is None else [self.memory.fd, self.large.fd]

    def send(self, call: int, request: Request) -> None:
        """Send the call. When that raises, the process knows nothing of it; the same goes when `not_sent` is told later."""
        number = 0 if request.function is None else self._known(request.function)
        self._last_turn = turn = self._last_turn + 1
        self.turns[call] = turn
        try:
            if len(request.parcels) > 1:
                several = [parcel.data for parcel in request.parcels]
                self._post(Call(call, turn, number, request.listed, list(map(len, several))), joined(several))
                return
            parcel = request.parcels[0]
            if not parcel.buffers:
                self._post(Call(call, turn, number, request.listed, [parcel.size]), parcel.head)
            elif request.listed or self.large is None or not self.large.send(call, turn, number, parcel):
                parts = parcel.parts
                self._post(Call(call, turn, number, request.listed, [sum(map(len, parts))]), *parts)
        except BaseException:
            self.turns.pop(call, None)
            raise

    def _known(self, function: SentFunction) -> int:
        """The number of a function that it has, or gets now."""
        number = function.number
        if number in self.functions:
            self.functions.move_to_end(number)
        else:
            self._introduce(function)
        return number

    def _introduce(self, function: SentFunction) -> None:
        if len(self.functions) == MAX_FUNCTIONS:
            self._post(Forget(self.functions.popitem(last=False)[0]))
        self._post(Function(function.number), function.data)
        self.functions[function.number] = None  # it has it, or will

    def _post(self, message: Message, *payload: Part) -> None:
        """Send behind what is still being copied, or at once."""
        if self.large is not None and self.large.sending:
            self.large.post(message, *payload)
        else:
            assert self.channel is not None
            self.channel.send(message, *payload)

    def _send(self, message: Message, *payload: Part) -> None:
        assert self.channel is not None
        self.channel.send(message, *payload)

    def _failed(self, message: Message, error: Exception) -> None:
        """What was posted could not be sent: a call, or a message without which the process knows too little."""
        if not isinstance(message, Call) or self.not_sent is None:
            self.kill()
        elif self.turns.get(message.call) == message.turn:  # else it was revoked, and may have been sent again
            del self.turns[message.call]
            self.not_sent(self, message.call, error)

    def revoke(self, call: int, *, or_kill: bool) -> bool:
        """Whether the call was not started and now never will be. One that runs can be killed: nothing else is hit."""
        assert self.channel is not None
        turn = self.turns[call]
        if self.large is not None and self.large.withdraw(turn):
            del self.turns[call]
            return True
        started = self.cursor.announce()
        if started == turn and or_kill:
            self._killed_in = turn
            self.kill()
            return False
        self.channel.send(Revoke(turn if started < turn else 0))
        if started < turn:
            del self.turns[call]
            self._last_revoked = max(self._last_revoked, turn)
            if self.large is not None:
                self.large.free(turn)
        return started < turn

    def clog(self, read: Callable[[], None]) -> bool:
        """A call was revoked. Whether, for the first time, it may lie before a full socket; ``read`` is called when it does not."""

        def caught_up() -> None:
            self.clogged = False
            read()

        if self.clogged or not isinstance(self.channel, ProcessChannel):
            return False
        self.clogged = self.channel.once_caught_up(caught_up)
        return self.clogged

    def reads_in_vain(self, turn: int) -> bool:
        """Whether a call that was revoked still goes through its socket, and it has no other to run before that."""
        return self.clogged and self.cursor.started < turn and all(other > turn for other in self.turns.values())

    def ask_to_stop(self, call: int) -> None:
        """Tell a call that may be running that nobody wants it any more; its function can see that."""
        self.cursor.cancel(self.turns[call])

    def running(self) -> int:
        """The call that was started and not answered; 0 for none. One behind a call that it is killed for waits in vain to begin."""
        started = self.cursor.started
        if self._killed_in and started > self._killed_in:
            return 0
        return next((call for call, turn in self.turns.items() if turn == started), 0)

    @property
    def has_none(self) -> bool:
        """Whether it has begun all that it was sent and answered that."""
        return not self.turns and self.cursor.started >= self._last_revoked

    def sign(self) -> tuple[int, int] | None:
        """What changes when it does anything; None when it runs a call, or has none to begin."""
        started = self.cursor.started
        turns = self.turns.values()
        if max(next(reversed(turns), 0), self._last_revoked) <= started or started in turns or not self._has_all:
            return None
        assert isinstance(self.channel, ProcessChannel)
        return started, self.channel.drained

    @property
    def _has_all(self) -> bool:
        """Whether nothing for it is still being copied."""
        return self.large is None or not self.large.sending

    def last_words(self) -> str:
        """The end of what it wrote to its standard streams; once it has ended."""
        return last_words(memoryview(self.memory.buffer)[CURSOR_BYTES:])

    def found(self, call: int) -> tuple[int, Sequence[Answer]] | None:
        """Of a bundle, what is finished and was not sent, and the number of the first of it (`tidemill.lanes.finished`)."""
        return self.finished.of(self.turns[call])

    def kill(self) -> None:
        assert self.channel is not None
        if not self.dying:
            self.dying = True
            self.channel.kill()

    def answers(self, message: Returned, payload: Payload, settle: Callable[[list[Answer]], None]) -> None:
        """Tell what the process answered, once that is in memory of this process's own."""
        if self.large is not None:
            for turn in message.freed:
                self.large.free(turn)
            if message.at >= 0:
                self.large.came(message, payload, settle)
                return
        tell(settle, answers_of(message, payload))

    def first_answer(self, message: Returned, payload: Payload) -> None:
        """Raises what the process answered to its first call, if that is an error."""
        if not self.believes(message, payload):
            raise EngineError("the process answered its first call with what cannot be an answer")
        del self.turns[message.call]
        answers_of(message, payload)[0].value()

    def has_answered(self, message: Partly | Returned, payload: Payload) -> bool:
        """Whether these can be answers to a call that was sent."""
        return (
            message.call in self.turns
            and len(message.raised) == len(message.sizes)
            and joined_size(message.sizes) == len(payload)
        )

    def believes(self, message: Returned, payload: Payload) -> bool:
        """Whether that can be the answer to a call that was sent: a function may have got hold of the socket."""
        return self.has_answered(message, payload) and (
            message.at < 0 or (self.large is not None and self.large.holds(message.at, message.room))
        )

    def close(self, *, abandoned: bool = False) -> None:
        """It has ended; what it answered before is told once it is copied, unless the loop was closed, which leaves nobody to tell."""
        for timer in self.stops.values():
            timer.cancel()
        if self.large is not None:
            self.large.close(abandoned=abandoned)
        self.cursor.close()
        self.finished.close()
        self.memory.buffer.close()
        self.memory.close()


def answers_of(message: Partly | Returned, payload: Payload) -> list[Answer]:
    """One answer an item; those that were discarded together have it all."""
    if isinstance(payload, Discarded):
        return [Answer(raised, payload) for raised in message.raised]
    if len(message.sizes) == 1:
        return [Answer(message.raised[0], payload)]
    return list(map(Answer, message.raised, pieces(payload, message.sizes)))
