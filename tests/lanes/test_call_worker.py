"""What a lane does with a bundle, message by message, by a clock that its functions move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tidemill.lanes import call_worker
from tidemill.lanes.call_codec import dumps_call, dumps_function, loads
from tidemill.lanes.call_worker import CallWorker
from tidemill.lanes.cursor import CURSOR_BYTES, Cursor
from tidemill.lanes.finished import FINISHED_BYTES, Finished
from tidemill.lanes.framing import joined, pieces
from tidemill.lanes.wire import Call, Forget, Function, Partly, Returned

Sent = list[tuple[Any, list[Any]]]


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(call_worker, "time", made)
    return made


def run(function: Callable[[int], Any], values: list[int], cursor: Cursor | None = None) -> Sent:
    """The messages that come of one bundle, with their values."""
    sent: Sent = []

    def send(message: Any, payload: bytes) -> None:
        sent.append((message, [loads(part) for part in pieces(bytearray(payload), message.sizes)]))

    finished = Finished(bytearray(FINISHED_BYTES))
    worker = CallWorker(cursor or Cursor(bytearray(CURSOR_BYTES)), send, lambda: False, None, finished)
    worker._functions[1] = function
    parcels = [dumps_call((value,), {}).data for value in values]
    worker.handle(Call(7, 1, 1, listed=False, sizes=list(map(len, parcels))), bytearray(joined(parcels)))
    assert worker.run_next()
    return sent


def test_all_answers_come_in_one_message(clock: Clock) -> None:
    """While they are short and small."""
    ((message, values),) = run(lambda x: -x, [1, 2, 3])
    assert isinstance(message, Returned)
    assert values == [-1, -2, -3]


def test_what_is_left_after_long_calls_is_given_back(clock: Clock) -> None:
    """Unbegun: another lane may be idle."""
    begun = []

    def fn(x: int) -> int:
        begun.append(x)
        clock.ns += 8_000_000
        return x

    ((_, values),) = run(fn, list(range(9)))
    assert values == begun == [0, 1, 2]


def test_when_nobody_wants_a_bundle_any_more_the_rest_is_not_begun(clock: Clock) -> None:
    """The parent says so in the cursor."""
    cursor = Cursor(bytearray(CURSOR_BYTES))

    def fn(x: int) -> int:
        if x == 1:
            cursor.cancel(1)
        return x

    ((_, values),) = run(fn, [0, 1, 2, 3], cursor)
    assert values == [0, 1]


def test_answers_without_room_go_ahead(clock: Clock) -> None:
    """Each once, in order, and the last message is never empty."""
    for length in (FINISHED_BYTES // 6, FINISHED_BYTES // 2, FINISHED_BYTES + 5_000):
        sent = run(lambda x, length=length: bytes([x]) * length, list(range(10)))
        assert [type(message) for message, _ in sent[:-1]] == [Partly] * (len(sent) - 1)
        assert len(sent) > 1
        assert isinstance(sent[-1][0], Returned)
        assert sent[-1][1]
        assert [value[0] for _, values in sent for value in values] == list(range(10))


def test_a_function_is_forgotten_once_the_calls_before_are_done(clock: Clock) -> None:
    """The word of it comes while a call of it still waits; and the function may come again before that has run."""
    sent: list[Any] = []
    worker = CallWorker(Cursor(bytearray(CURSOR_BYTES)), lambda message, _: sent.append(message), lambda: False)
    worker._functions[1] = abs
    parcel = dumps_call((-1,), {}).data
    for turn in (1, 2):
        worker.handle(Call(turn, turn, 1, listed=False, sizes=[len(parcel)]), bytearray(parcel))
    worker.handle(Forget(1), bytearray())
    worker.run_next()
    worker.run_next()
    assert [message.raised for message in sent] == [[False], [False]]
    assert not worker._functions

    worker._functions[1] = abs
    worker.handle(Call(3, 3, 1, listed=False, sizes=[len(parcel)]), bytearray(parcel))
    worker.handle(Forget(1), bytearray())
    worker.handle(Function(1), bytearray(dumps_function(abs)))
    worker.run_next()
    worker.handle(Call(4, 4, 1, listed=False, sizes=[len(parcel)]), bytearray(parcel))
    worker.run_next()
    assert sent[-1].raised == [False]
