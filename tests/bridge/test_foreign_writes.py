"""A function that gets hold of its lane's socket and writes to it: its call is told, its lane is replaced."""

from __future__ import annotations

import asyncio
import logging
import sys

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied
from tidemill.lanes.framing import frame
from tidemill.lanes.wire import Committed, Failed, Partly, Returned

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


def writes(data: bytes) -> None:
    """Find the lane's own socket and write to it; then wait for what comes of it."""
    import gc
    import signal

    from tidemill.lanes.control import Control

    (control,) = (found for found in gc.get_objects() if isinstance(found, Control))
    control._socket.sendall(data)
    signal.pause()


def framed(message: object, payload: bytes = b"") -> bytes:
    return b"".join(map(bytes, frame(message, payload)))


LIES = {
    "garbage": b"\xff" * 64,
    "a header that is no message": b"\x04\0\0\0\0\0\0\0\xc1\xc1\xc1\xc1",
    "an answer to a call that never was": framed(Returned(10**9, 1, [False], [1]), b"x"),
    "an answer without answers": framed(Returned(2, 1, [], [])),
    "more flags than sizes": framed(Returned(2, 1, [False, False], [1]), b"x"),
    "sizes beyond the payload": framed(Returned(2, 1, [False], [10**9]), b"x"),
    "a size below nothing": framed(Returned(2, 1, [False, False], [-1, 2]), b"x"),
    "two answers to one": framed(Returned(2, 1, [False, False], [1, 1]), b"xx"),
    "a part of a call that has none": framed(Partly(2, [False], [1]), b"x"),
    "a part of a call that never was": framed(Partly(10**9, [False], [1]), b"x"),
    "a part that is beyond the payload": framed(Partly(2, [False], [10]), b"x"),
    "a place outside of the arena": framed(Returned(2, 1, [False], [1], 10**12, 100), b"x"),
    "a place of no size": framed(Returned(2, 1, [False], [1], 0, 0), b"x"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_ends_its_lane(lie: str, caplog: pytest.LogCaptureFixture) -> None:
    """The call that ran is told of the death, the one behind it runs, and the log says why."""
    async with tm.Lanes(1) as lanes:
        call = lanes._crew  # the first call of the application has the number 2
        assert next(call._numbers) == 2
        call._numbers = iter(range(2, 100))
        with caplog.at_level(logging.ERROR, "tidemill"):
            liar = asyncio.create_task(lanes.run(writes, LIES[lie]))
            behind = asyncio.create_task(lanes.run(square, 5))
            with pytest.raises(LaneDied):
                await liar
            assert await behind == 25
        assert lanes.statistics().lanes[0].restarts == 1
    assert any("is killed" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("message", [Committed(3), Failed("EngineError", "no")])
async def test_what_another_kind_of_process_would_say_is_passed_over(message: object) -> None:
    """It answers no call; the lane goes on."""

    def says(data: bytes) -> int:
        import gc

        from tidemill.lanes.control import Control

        (control,) = (found for found in gc.get_objects() if isinstance(found, Control))
        control._socket.sendall(data)
        return 7

    async with tm.Lanes(1) as lanes:
        assert await lanes.run(says, framed(message)) == 7
        assert lanes.statistics().lanes[0].restarts == 0
