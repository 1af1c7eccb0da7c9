"""The large buffers of one process's calls: on their way through its arena, copied in slices, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from tidemill.engine.endings import tell
from tidemill.engine.slices import Slices, Turns, copied, copied_items
from tidemill.lanes.arena import ArenaBack, ArenaOut, laid_like
from tidemill.lanes.beside import Buffer, has_gaps
from tidemill.lanes.call_codec import Answer, Parcel
from tidemill.lanes.framing import Discarded, Part, Payload
from tidemill.lanes.memory import Shared
from tidemill.lanes.parcels import room_of
from tidemill.lanes.wire import Call, Message, Returned

__all__ = ["LargeBuffers"]

Settle = Callable[[list[Answer]], None]


class LargeBuffers:
    """The parent's side of an arena (`tidemill.lanes.arena`).

    ``send`` is called with each message once its buffers are in place. Messages keep their order. ``turns`` is the time
    for all that is copied on this loop. When that raises, ``failed`` is told of the message.
    """

    def __init__(
        self, size: int, send: Callable[..., None], turns: Turns, failed: Callable[[Message, Exception], None]
    ) -> None:
        self._shared = Shared("arena", size)
        self._memory = memoryview(self._shared.buffer)
        self._out = ArenaOut(size)
        self._back = ArenaBack(self._memory)
        self._send = send
        self._failed = failed
        self._sending = Slices(turns)
        self._receiving = Slices(turns)
        self._places: dict[int, tuple[int, int]] = {}  # by turn: what arguments have on the way out
        self._unsent: set[int] = set()
        """Turns whose buffers are being copied: a call may be withdrawn and sent again meanwhile."""

    @property
    def fd(self) -> int:
        return self._shared.fd

    # -- out -------------------------------------------------------------------------------------------

    @property
    def sending(self) -> bool:
        """Whether messages wait for buffers before them."""
        return self._sending.busy

    def send(self, call: int, turn: int, function: int, parcel: Parcel) -> bool:
        """Send a call with its buffers through the arena; False when it has no room for them."""
        at = self._out.take(parcel.room)
        if at is None:
            return False
        self._places[turn] = at, parcel.room
        self._unsent.add(turn)
        message = Call(call, turn, function, listed=False, sizes=[len(parcel.head)], at=at, room=parcel.room)
        self._sending.do(self._copied_and_sent(message, parcel), partial(self._not_sent, message))
        return True

    def post(self, message: Message, *payload: Part) -> None:
        """Send a message behind the calls that wait for their buffers."""
        self._sending.do(self._sent(message, *payload), partial(self._not_sent, message))

    def withdraw(self, turn: int) -> bool:
        """Do not send the call that has that turn; False when it was sent."""
        if turn not in self._unsent:
            return False
        self._unsent.discard(turn)
        self.free(turn)
        return True

    def _copied_and_sent(self, message: Call, parcel: Parcel) -> Iterator[None]:
        at = message.at
        for buffer in parcel.buffers:
            for _ in _copied(buffer, self._memory[at : at + buffer.nbytes]):
                yield
                if message.turn not in self._unsent:  # withdrawn; who has its place now is copied there after this
                    return
            at += room_of(buffer)
        if message.turn in self._unsent:
            self._unsent.discard(message.turn)
            self._send(message, parcel.head)

    def _sent(self, message: Message, *payload: Part) -> Iterator[None]:
        self._send(message, *payload)
        yield

    def _not_sent(self, message: Message, error: Exception) -> None:
        if isinstance(message, Call):
            self._unsent.discard(message.turn)
            self.free(message.turn)  # also of one whose buffers were in place
        self._failed(message, error)

    def free(self, turn: int) -> None:
        """The process looks no more at the arguments of that turn."""
        place = self._places.pop(turn, None)
        if place is not None:
            self._out.give_back(*place)

    # -- back ------------------------------------------------------------------------------------------

    def holds(self, at: int, room: int) -> bool:
        """Whether a process can have put so much there."""
        return self._back.holds(at, room)

    def came(self, message: Returned, payload: Payload, settle: Settle) -> None:
        """Copy what came through the arena, and then tell of it."""
        block = self._back.block(message.at, message.room)
        self._receiving.do(
            self._copied_and_told(message, block, payload, settle), partial(self._not_copied, message, block, settle)
        )

    def _copied_and_told(
        self, message: Returned, block: memoryview, payload: Payload, settle: Settle
    ) -> Iterator[None]:
        own = memoryview(np.empty(message.room, np.uint8))  # type: ignore[arg-type] # it is a buffer
        yield from copied(block, own)
        self._taken(message, block)
        tell(settle, [Answer(message.raised[0], payload, own)])

    def _not_copied(self, message: Returned, block: memoryview, settle: Settle, _: Exception) -> None:
        """There is no memory for it: nothing else fails there."""
        self._taken(message, block)
        tell(settle, [Answer(message.raised[0], Discarded(message.room))])

    def _taken(self, message: Returned, block: memoryview) -> None:
        """It is copied, or never will be."""
        block.release()
        self._back.taken(message.at, message.room)

    # -- the end ---------------------------------------------------------------------------------------

    def touched_bytes(self) -> int:
        """What the arena takes from the machine."""
        return self._shared.touched_bytes()

    def close(self, *, abandoned: bool) -> None:
        """The process has ended: send nothing more, tell of what came once that is copied, if anybody can be told, and then let go
        of the memory."""
        self._sending.drop()
        self._shared.close()  # it stays mapped
        if abandoned:
            self._receiving.drop()
        if self._receiving.busy:
            self._receiving.do(self._last(), _raised)
        else:
            self._let_go()

    def _last(self) -> Iterator[None]:
        self._let_go()
        yield

    def _let_go(self) -> None:
        self._back.close()
        self._memory.release()
        self._shared.buffer.close()


def _raised(error: Exception) -> None:
    raise error


def _copied(buffer: Buffer, place: memoryview) -> Iterator[None]:
    return copied_items(buffer, laid_like(buffer, place)) if has_gaps(buffer) else copied(buffer, place)
