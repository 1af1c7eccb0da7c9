"""What a lane that takes calls does with each message. Around it is a socket (`call_main`) or nothing (inline)."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import numpy as np

from tidemill.errors import BadResult
from tidemill.lanes.arena import ArenaBack
from tidemill.lanes.call_codec import Parcel, dumps_error, dumps_value, loads
from tidemill.lanes.cursor import Cursor
from tidemill.lanes.finished import Finished
from tidemill.lanes.framing import Payload, joined, pieces
from tidemill.lanes.keyed_objects import KeyedObjects
from tidemill.lanes.wire import Call, Forget, Function, Message, Partly, Returned, Revoke

__all__ = ["CallWorker"]

Send = Callable[[Message, bytes], None]

_LONG_NS: Final = 20_000_000
"""After so long, what a bundle has left is given back: it was made of calls that were short, and other lanes may be idle."""
_NOT_THERE: Final = (
    "The function was not called: the lane cannot import what it is made of. Lanes find modules in the folders that were in "
    "sys.path when they were opened; extend it before that."
)
_NO_LISTS: Final = (str, bytes, bytearray, Mapping, AbstractSet)
"""They have a length, and no value for each record in its place."""
_Answer = tuple[bool, Parcel]
"""Whether it raised, and what."""


class CallWorker:
    """Runs calls in the order they came, one at a time.

    ``send`` hands a message to the parent; ``wait`` blocks until more messages were handled, and is False when there
    will be none.
    """

    def __init__(
        self,
        cursor: Cursor,
        send: Send,
        wait: Callable[[], bool],
        arena: memoryview | None = None,
        finished: Finished | None = None,
    ) -> None:
        self._cursor = cursor
        self._finished = finished
        self._arena = arena
        self._back = ArenaBack(arena) if arena is not None else None
        self._leases: list[tuple[int, weakref.ref[Any]]] = []
        """Turns whose arguments lie in the arena, each with the array of that place, which all views of it keep alive. A
        function may hold on to one beyond its call; then the place is not used again while it lives."""
        self._oversized = ""
        self._send = send
        self._wait = wait
        self._functions: dict[int, Payload | Callable[..., Any]] = {}
        self._forgetting: set[int] = set()  # once the calls that came before are done
        self._queue: deque[tuple[Call, Payload]] = deque()
        self._revocations = 0
        self._revoked: set[int] = set()
        self._pid = os.getpid()

    @property
    def waiting(self) -> int:
        """Calls that came and were not started."""
        return len(self._queue)

    def handle(self, message: Message, payload: Payload) -> None:
        """Take a message; calls wait for `run_next`."""
        match message:
            case Call():
                self._queue.append((message, payload))
            case Function(function):
                self._functions[function] = payload
                self._forgetting.discard(function)
            case Forget(function):
                self._forgetting.add(function)
                self._forget()
            case Revoke(turn):
                self._revocations += 1
                if turn:
                    self._revoked.add(turn)

    def run_next(self) -> bool:
        """Run the first call that waits and send what became of it; False when the parent is gone."""
        call, payload = self._queue.popleft()
        announced = self._cursor.start(call.turn)
        while self._revocations < announced:  # the parent may be taking this very call away
            if not self._wait():
                return False
        if call.turn in self._revoked:
            self._revoked.discard(call.turn)
        else:
            start = time.perf_counter_ns()
            answers = self._answers(call, payload)
            busy_ns = time.perf_counter_ns() - start
            self._only_once()
            self._return(call, answers, busy_ns)
        if self._forgetting:
            self._forget()
        return True

    def _forget(self) -> None:
        gone = self._forgetting.difference(call.function for call, _ in self._queue)
        for function in gone:
            self._functions.pop(function, None)
        self._forgetting -= gone

    def _only_once(self) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # the function forked and both copies returned; one lane is enough

    def _return(self, call: Call, answers: list[_Answer], busy_ns: int) -> None:
        failed, parcel = answers[0]
        if len(answers) == 1 and not parcel.buffers and not self._leases:  # most calls
            self._send(Returned(call.call, busy_ns, [failed], [parcel.size]), parcel.head)
            return
        raised = [failed for failed, _ in answers]
        at = self._back.put(parcel) if len(answers) == 1 and parcel.buffers and self._back is not None else -1
        room = parcel.room if at >= 0 else 0
        parts = [parcel.head] if at >= 0 else [parcel.data for _, parcel in answers]
        for _, copied in answers:
            copied.buffers = ()  # they may be views of the arguments
        told = Returned(call.call, busy_ns, raised, list(map(len, parts)), at, room, self._released(), self._oversized)
        self._oversized = ""
        self._send(told, joined(parts))

    def _released(self) -> list[int]:
        """The turns of calls whose arguments nobody holds on to any more, in this process."""
        freed = [turn for turn, owner in self._leases if owner() is None]
        if freed:
            self._leases = [lease for lease in self._leases if lease[1]() is not None]
        return freed

    # -- one call --------------------------------------------------------------------------------------

    def _answers(self, call: Call, payload: Payload) -> list[_Answer]:
        if len(call.sizes) > 1 and not call.listed:
            try:
                one = self._function(call.function)
            except BaseException as error:  # noqa: BLE001 - what its pickle does
                return [_error(error)] * len(call.sizes)
            return self._bundle(one, call, payload)  # what fails in there but in a call ends the process
        try:
            function = self._function(call.function) if call.function else None
            if call.listed:
                assert function is not None
                return _listed(function, payload, call.sizes)
            received = loads(payload) if call.at < 0 else self._leased(call, payload)
            if function is None:
                function, arguments, options = received
            else:
                arguments, options = received
            del received
            value = function(*arguments, **options)
        except BaseException as error:  # noqa: BLE001 - sys.exit() too is an answer
            return [_error(error)] * len(call.sizes)
        raised, parcel = _answer(value)
        if raised and isinstance(function, KeyedObjects) and value is not None:
            part_raised, part = _answer(
                value[0]
            )  # what the method returned: messages name what cannot be sent from there
            parcel = part if part_raised else parcel
        if self._back is not None and parcel.room > self._back.size:
            self._oversized = type(value).__qualname__
        return [(raised, parcel)]

    def _bundle(self, function: Callable[..., Any], call: Call, payload: Payload) -> list[_Answer]:
        """One call after the other; each is finished when the next begins, whatever becomes of that. When they take long, or
        nobody wants them any more, those that are left are not begun here."""
        assert self._finished is not None
        self._finished.begin(call.turn)
        answers: list[_Answer] = []
        left = len(call.sizes)
        until_ns = time.perf_counter_ns() + _LONG_NS
        for parcel in pieces(payload, call.sizes):
            raised, answer = _alone(function, parcel)
            self._only_once()
            answers.append((raised, answer))
            left -= 1
            kept = self._finished.add(raised, answer.head)
            if time.perf_counter_ns() >= until_ns or self._cursor.is_cancelled:
                break
            if not kept and left:
                parts = [answer.head for _, answer in answers]
                self._send(Partly(call.call, [failed for failed, _ in answers], list(map(len, parts))), joined(parts))
                answers = []
                self._finished.begin(call.turn, len(call.sizes) - left)
        return answers

    def _leased(self, call: Call, payload: Payload) -> Any:
        """The arguments, with their large buffers where they lie in the arena."""
        assert self._arena is not None
        owner = np.frombuffer(self._arena, np.uint8, call.room, call.at)
        self._leases.append((call.turn, weakref.ref(owner)))
        return loads(payload, memoryview(owner))  # type: ignore[arg-type] # it is a buffer

    def _function(self, number: int) -> Callable[..., Any]:
        function = self._functions[number]
        if isinstance(function, (bytearray, memoryview)):
            try:
                function = self._functions[number] = loads(function)
            except ModuleNotFoundError as error:
                error.add_note(_NOT_THERE)
                raise
        assert not isinstance(function, (bytearray, memoryview))
        return function


def _here(error: BaseException) -> BaseException:
    """Without the frames of this file, which say nothing to the user."""
    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        error.__traceback__ = error.__traceback__.tb_next
    return error


def _answer(value: Any) -> _Answer:
    try:
        return False, dumps_value(value)
    except BaseException as error:  # noqa: BLE001 - a BadResult, or what a method of the value's raised
        return _error(error)


def _error(error: BaseException) -> _Answer:
    return True, Parcel(dumps_error(_here(error)))


def _alone(function: Callable[..., Any], parcel: memoryview) -> _Answer:
    """One call of a bundle; its value in one piece, with nothing in it that lies elsewhere."""
    try:
        arguments, options = loads(parcel)
        return False, Parcel(dumps_value(function(*arguments, **options)).data)
    except BaseException as error:  # noqa: BLE001 - sys.exit() too is an answer, and so is a value too large for the memory
        return _error(error)


# -- calls with a list of records --------------------------------------------------------------------------


def _listed(function: Callable[[list[Any]], Any], payload: Payload, sizes: list[int]) -> list[_Answer]:
    """A record that cannot be read fails alone; the function gets the others in one list. An error of more than one is narrowed
    down: each is tried alone, once, as it was sent."""
    kept = bytearray(payload) if len(sizes) > 1 else payload  # the function may write into arrays, which lie in there
    answers: dict[int, _Answer] = {}
    records: dict[int, Any] = {}
    for number, parcel in enumerate(pieces(payload, sizes)):
        try:
            records[number] = loads(parcel)
        except BaseException as error:  # noqa: BLE001 - whatever a __setstate__ raises
            answers[number] = _error(error)
    try:
        values = function(list(records.values())) if records else []
    except BaseException as error:  # noqa: BLE001 - sys.exit() too is an answer
        if len(records) > 1:
            again = pieces(kept, sizes)
            called = [_listed(function, again[number], [sizes[number]])[0] for number in records]
        else:
            called = [_error(error)]
    else:
        called = _values(values, len(records), function)
    answers.update(zip(records, called, strict=True))
    return [answers[number] for number in range(len(sizes))]


def _values(values: Any, count: int, function: Callable[..., Any]) -> list[_Answer]:
    try:
        return [_answer(value) for value in _checked(values, count, function)]
    except BaseException as error:  # noqa: BLE001 - a BadResult, or what the sequence's own methods raise
        return [_error(error)] * count


def _checked(values: Any, count: int, function: Callable[..., Any]) -> list[Any]:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if isinstance(values, _NO_LISTS) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise BadResult(
            "wrong_type",
            f"A function for lanes.batched gets a list of records and must return a list of as many values, in their order; "
            f"{name} returned a {type(values).__qualname__}.",
        )
    if len(values) != count:
        raise BadResult(
            "wrong_length",
            f"A function for lanes.batched must return one value for each record: {name} got {count} and returned "
            f"{len(values)}.",
        )
    return list(values)
