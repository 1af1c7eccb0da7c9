"""Large arguments and results: through the arena, or the socket when it is full; never wrong, never another's."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied
from tidemill.lanes.parcels import LARGE, Parcel

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

MB = 1 << 20


def ones(bytes_: int, value: float = 1.0) -> np.ndarray:
    return np.full(bytes_ // 8, value)


def same(value: Any) -> Any:
    return value


def hashed(value: Any) -> str:
    return hashlib.sha256(cloudpickle.dumps(value)).hexdigest()


VALUES = {
    "array": lambda: np.arange(500_000.0),
    "just below": lambda: np.arange(LARGE - 1, dtype=np.uint8),
    "just large": lambda: np.arange(LARGE).astype(np.uint8),
    "fortran": lambda: np.asfortranarray(np.arange(400_000.0).reshape(400, 1000)),
    "strided": lambda: np.arange(400_000.0)[::3],
    "times": lambda: (np.arange(200_000).astype("M8[ms]"), {"t": np.arange(60_000).astype("m8[s]")[::-1]}),
    "objects": lambda: np.array(["x", 1, None] * 30_000, object),
    "columns": lambda: {"a": np.arange(100_000.0), "b": np.arange(100_000, dtype=np.int8), "c": np.zeros(0)},
    "nested": lambda: (1, {"a": [np.arange(100_000.0), "text"]}, np.arange(50_000)),
    "bytes": lambda: bytes(range(256)) * 4_000,
    "bytearray": lambda: bytearray(range(256)) * 4_000,
    "bytes within": lambda: {"a": bytes(range(256)) * 4_000, "b": [bytearray(300_001)]},
    "text": lambda: "ü" * 1_000_000,
    "rows of a table": lambda: pa.table({"x": np.arange(100_000.0), "s": ["a", "b"] * 50_000}).slice(7, 20_000),
    "table": lambda: pa.table({"x": np.arange(100_000.0), "s": ["a", "b"] * 50_000}),
    "larger than any arena": lambda: np.arange(20 * MB, dtype=np.uint8),
}


@pytest.fixture(scope="module", params=[0, 2, 32], ids=["no arena", "a small arena", "an arena"])
def megabytes(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize("kind", VALUES)
async def test_there_and_back(megabytes: int, kind: str) -> None:
    """Four at once come back equal, and can be written to; the inputs are as they were."""
    right, given = VALUES[kind](), VALUES[kind]()
    async with tm.Lanes(1, arena_bytes=megabytes * MB) as lanes:
        for own in await asyncio.gather(*(lanes.run(same, given) for _ in range(4))):
            assert type(own) is type(right)
            if isinstance(right, np.ndarray):
                np.testing.assert_array_equal(own, right)
                assert own.flags.writeable
            elif isinstance(right, pa.Table):
                assert own.equals(right)
            else:
                np.testing.assert_equal(own, right)
    np.testing.assert_equal(given, right)


async def test_an_argument_may_be_written_to() -> None:
    """It is the call's own: neither the caller nor another call sees it."""

    def doubled_in_place(array: np.ndarray) -> float:
        array *= 2
        return float(array.sum())

    async with tm.Lanes(2) as lanes:
        array = ones(MB)
        assert await asyncio.gather(*(lanes.run(doubled_in_place, array) for _ in range(20))) == [2 * len(array)] * 20
        assert (array == 1).all()


async def test_a_kept_argument_stays_what_it_was() -> None:
    """A function may hold on to its argument, or a part of it, beyond the call; what comes later goes elsewhere."""

    def keeps(array: np.ndarray) -> list[float]:
        import builtins

        kept = builtins.__dict__.setdefault("kept", [])
        kept.append(array[10:20])
        return [float(part.sum()) for part in kept]

    def lets_go() -> None:
        import builtins

        del builtins.__dict__["kept"]

    async with tm.Lanes(1, arena_bytes=8 * MB) as lanes:
        for number in range(12):  # more than the arena holds
            assert await lanes.run(keeps, ones(MB, number)) == [10.0 * kept for kept in range(number + 1)]
        await lanes.run(lets_go)
        taken = lanes._crew.staff.seats[0].large._out  # what was kept is free again
        await lanes.run(same, ones(MB))
        assert taken._free == [(64, 4 * MB)]


async def test_a_result_that_is_a_view_of_the_argument() -> None:
    """It comes back as it was, though its memory is the argument's."""
    async with tm.Lanes(1) as lanes:
        for number in range(5):
            part = await lanes.run(lambda array: array[5:-5:2], ones(4 * MB, number))
            assert (part == number).all()
            assert len(part) == (4 * MB // 8 - 10) // 2


async def test_results_are_the_callers_own() -> None:
    """Ten that are kept differ; writing to one changes no other."""
    async with tm.Lanes(1, arena_bytes=8 * MB) as lanes:
        kept = await asyncio.gather(*(lanes.run(ones, MB, float(number)) for number in range(10)))
        kept[0][:] = -1
        assert [array[0] for array in kept] == [-1, *range(1, 10)]
        assert [array[-1] for array in kept] == [-1, *range(1, 10)]


async def test_a_result_larger_than_the_arena_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It comes, and one warning names its type."""
    async with tm.Lanes(1, arena_bytes=2 * MB) as lanes:
        with caplog.at_level(logging.WARNING, "tidemill"):
            for _ in range(3):
                assert len(await lanes.run(ones, 3 * MB)) == 3 * MB // 8
    (told,) = [record.getMessage() for record in caplog.records]
    assert "a ndarray, of 3" in told
    assert "arena_bytes" in told


@pytest.mark.parametrize("megabytes", [0, 2], ids=["no arena", "no room"])
async def test_what_finds_no_room_is_sent_from_where_it_lies(megabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of the loop puts it into one piece: it goes to the socket a bound number of bytes at a time."""
    async with tm.Lanes(1, arena_bytes=megabytes * MB) as lanes:

        def refused(_: Parcel) -> bytes:
            raise AssertionError("it was copied into one piece")

        monkeypatch.setattr(Parcel, "data", property(refused))
        for kind in ("array", "columns", "nested", "bytes", "bytearray", "bytes within", "table"):
            value = [VALUES[kind]()] if kind == "bytearray" else VALUES[kind]()
            np.testing.assert_equal(await lanes.run(hashed, value), hashed(value))


@pytest.mark.parametrize("megabytes", [0, 32], ids=["no arena", "an arena"])
async def test_a_bytearray_is_sent_as_it_is_at_the_call(megabytes: int) -> None:
    """However large: who reads into one buffer again and again need not know when a lane has taken it."""

    async def read() -> AsyncIterator[bytearray]:
        data = bytearray(MB)
        for number in range(8):
            data[0] = number
            yield data
        data += b"more"

    async with tm.Lanes(1, arena_bytes=megabytes * MB) as lanes:
        assert [byte async for byte in lanes.stream(lambda data: data[0], read(), window=8)] == list(range(8))


@pytest.mark.parametrize("megabytes", [0, 32], ids=["no arena", "an arena"])
async def test_a_bytearray_can_grow_again_however_its_call_has_ended(megabytes: int) -> None:
    """Nothing holds its memory any more."""
    async with tm.Lanes(1, arena_bytes=megabytes * MB) as lanes:
        data = bytearray(3 * MB)
        for function in (len, lambda _: 1 / 0, lambda _: os._exit(1)):
            await asyncio.gather(lanes.run(function, data), return_exceptions=True)
            data += b"more"


async def test_a_call_that_is_cancelled_before_its_arguments_are_copied(telephone, home) -> None:
    """It leaves no place taken, and those behind it run."""
    async with tm.Lanes(1, arena_bytes=64 * MB) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        cancelled = asyncio.create_task(lanes.run(same, ones(16 * MB)))
        behind = [asyncio.create_task(lanes.run(np.sum, ones(MB, number))) for number in range(3)]
        await asyncio.sleep(0)
        cancelled.cancel()
        await telephone.tell("running")
        assert await asyncio.gather(*behind) == [number * MB / 8 for number in range(3)]
        await asyncio.wait([running, cancelled])
        assert cancelled.cancelled()
        await lanes.run(same, ones(MB))
        assert lanes._crew.staff.seats[0].large._out._free == [(64, 32 * MB)]


async def test_kills_among_large_calls() -> None:
    """Each call has its own result, or died; nothing is mixed up."""
    async with tm.Lanes(2, arena_bytes=16 * MB) as lanes:

        def negated(array: np.ndarray, die: bool) -> np.ndarray:
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            return -array

        async def call(number: int) -> None:
            try:
                result = await lanes.run(negated, ones(MB, number), number % 7 == 3)
            except LaneDied:
                assert number % 7 == 3
            else:
                assert (result == -number).all()

        await asyncio.gather(*(call(number) for number in range(60)))


async def test_the_arena_is_counted_and_bounded() -> None:
    """The statistics say what it takes of the machine; a size that makes no sense is refused."""
    async with tm.Lanes(1, arena_bytes=16 * MB) as lanes:
        before = lanes.statistics().lanes[0].arena_bytes
        await asyncio.gather(*(lanes.run(same, ones(MB)) for _ in range(30)))
        after = lanes.statistics().lanes[0].arena_bytes
        assert before <= 4096 < 2 * MB <= after <= 16 * MB
    for wrong in (-1, 1.5, "1 MB", True, 1000):
        with pytest.raises(CallError, match="arena_bytes"):
            tm.Lanes(1, arena_bytes=wrong)


async def test_inline_lanes_take_large_values_too() -> None:
    """The same values without processes."""
    async with tm.Lanes(0) as lanes:
        for made in VALUES.values():
            np.testing.assert_equal(await lanes.run(same, made()), made())
