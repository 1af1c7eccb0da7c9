"""Results for which the application has no memory: their own callers are told, the lanes live, the others go on."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.engine import large_buffers
from tidemill.errors import BadResult, LaneDied
from tidemill.lanes import framing
from tidemill.lanes.channel import ProcessChannel
from tidemill.lanes.wire import Committed

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

MB = 1 << 20
TOLD = r"The function ran, but there is no memory in this process for its result \([89],\d\d\d,\d\d\d bytes came\)"


@pytest.fixture
def little() -> Iterator[None]:
    """Memory for pieces of less than 4 MB."""
    empty = np.empty

    def only_small(shape: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(shape, int) and shape > 4 * MB:
            raise MemoryError
        return empty(shape, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", only_small)
        yield


def none(*_: object) -> None:
    raise MemoryError


def ones(megabytes: int) -> np.ndarray:
    return np.ones(megabytes * MB // 8)


def text(megabytes: int) -> str:
    return "x" * (megabytes * MB)


def texts(megabytes: list[int]) -> list[str]:
    return [text(each) for each in megabytes]


class Texts:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, megabytes: int) -> str:
        self.calls += 1
        return text(megabytes)

    def count(self) -> int:
        return self.calls


@pytest.mark.parametrize("make", [ones, text], ids=["arena", "socket"])
async def test_a_result_for_which_there_is_no_memory(one: tm.Lanes, little: None, make: Any) -> None:
    """Its caller is told what it is, and not that its process died; calls before and behind it have their results."""
    restarts = one.statistics().lanes[0].restarts
    for _ in range(3):
        ends = await asyncio.gather(one.run(make, 1), one.run(make, 8), one.run(make, 2), return_exceptions=True)
        with pytest.raises(BadResult, match=TOLD):
            raise ends[1]
        assert [len(ends[0]), len(ends[2])] == [len(make(1)), len(make(2))]
    assert one.statistics().lanes[0].restarts == restarts


@pytest.mark.parametrize("slices", [0, 1])
async def test_memory_that_runs_out_while_a_result_is_copied(slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller is told, later large results of the process arrive, and nothing keeps its memory when it has ended."""
    copied, left = large_buffers.copied, [slices]

    def copied_in_part(source: Any, target: memoryview) -> Iterator[None]:
        for number, _ in enumerate(copied(source, target)):
            if left and number == left[0]:
                left.clear()
                raise MemoryError
            yield

    async with tm.Lanes(1, arena_bytes=64 * MB) as lanes:
        assert lanes._crew is not None
        process = lanes._crew.staff.seats[0]
        monkeypatch.setattr(large_buffers, "copied", copied_in_part)
        ends = await asyncio.gather(*(lanes.run(ones, 8) for _ in range(3)), return_exceptions=True)
        with pytest.raises(BadResult, match=TOLD):
            raise ends.pop(0)
        assert [len(end) for end in ends] == [MB, MB]
        assert process is lanes._crew.staff.seats[0]
        with pytest.raises(LaneDied):
            await lanes.run(os._exit, 1)
        assert len(await lanes.run(ones, 8)) == MB
        assert process.memory.buffer.closed


async def test_records_of_a_batch_whose_results_find_no_memory_go_alone(one: tm.Lanes, little: None) -> None:
    """The one that is too large fails alone."""
    predict = one.batched(texts)
    ends = await asyncio.gather(*map(predict, [1, 2, 8, 1]), return_exceptions=True)
    with pytest.raises(BadResult, match=TOLD):
        raise ends.pop(2)
    assert [len(end) for end in ends] == [MB, 2 * MB, MB]


async def test_a_result_of_a_stream_for_which_there_is_no_memory(one: tm.Lanes, little: None) -> None:
    """It is told at its place, and nothing is run twice."""
    stream = one.stream(text, [1, 8, 1], return_exceptions=True)
    first, told, last = [end async for end in stream]
    assert len(first) == len(last) == MB
    with pytest.raises(BadResult, match=TOLD):
        raise told


async def test_a_method_whose_result_finds_no_memory_leaves_no_trace(one: tm.Lanes, little: None) -> None:
    """As one that raised."""
    keyed = one.keyed(Texts)
    await keyed("a", 1)
    with pytest.raises(BadResult, match=TOLD):
        await keyed("a", 8)
    assert await keyed.call("a", "count") == 1


async def test_no_other_message_may_lack_its_payload(caplog: pytest.LogCaptureFixture) -> None:
    """A process whose rows find no memory is killed, and the log says why."""
    ours, theirs = socket.socketpair()
    killed, received = asyncio.Event(), []
    with theirs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "READ_BYTES", 100)
        patch.setattr(framing.np, "empty", none)
        channel = ProcessChannel(ours, killed.set, lambda *message: received.append(message), lambda _: None)
        theirs.sendall(b"".join(framing.frame(Committed(1), bytes(1000))))
        await killed.wait()
        channel.close()
    assert not received
    assert "a frame of 1000 bytes, for which there is no memory" in caplog.text
