"""Keys under fire: order kept and state exact through deaths, cancels, timeouts and recycling."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


class Journal:
    """Keeps what it was told, in order; dies, raises or hangs on demand."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def __call__(self, number: int, how: str = "") -> list[int]:
        self.told.append(number)
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(3)
        if how == "raise":
            raise KeyError(number)
        while how == "hang":
            pass
        return list(self.told)


@pytest.mark.parametrize("how", ["die", "exit", "raise"])
async def test_a_failed_call_leaves_no_trace(two: tm.Lanes, how: str) -> None:
    """Calls before and after it, made at once, are in order; the failed one is in no journal."""
    journals = two.keyed(Journal)
    calls = [journals("S1", number, how if number == 4 else "") for number in range(9)]
    other = [journals("S2", number) for number in range(9)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ends[4], KeyError if how == "raise" else LaneDied)
    kept = [number for number in range(9) if number != 4]
    for number, end in enumerate(ends):
        assert number == 4 or end == [one for one in kept if one <= number]
    assert await asyncio.gather(*other) == [list(range(number + 1)) for number in range(9)]


async def test_a_cancelled_call_leaves_no_trace(two: tm.Lanes) -> None:
    """Waiting or running; those behind it go on from the state before it."""
    journals = two.keyed(Journal)
    assert await journals("S1", 0) == [0]
    hung, waits, last = journals("S1", 1, "hang"), journals("S1", 2), journals("S1", 3)
    for _ in range(20):
        await asyncio.sleep(0)
    waits.cancel()
    hung.cancel()
    assert await last == [0, 3]
    assert await journals("S1", 4) == [0, 3, 4]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("recycle", [None, 5])
async def test_a_storm_over_many_keys(seed: int, recycle: int | None) -> None:
    """Deaths, errors, cancels and kills from outside at random: each journal is exactly the calls that returned."""
    random = Random(seed)
    async with tm.Lanes(2, recycle_after=recycle, grace=0) as lanes:
        journals = lanes.keyed(Journal)

        async def sensor(key: str) -> None:
            kept: list[int] = []
            for number in range(25):
                how = random.choice(["", "", "", "", "", "raise", "die"])
                call = asyncio.ensure_future(journals(key, number, how))
                for _ in range(random.randrange(12)):
                    await asyncio.sleep(0)
                if random.random() < 0.1:
                    call.cancel()
                (end,) = await asyncio.gather(call, return_exceptions=True)
                if isinstance(end, list):
                    kept.append(number)
                    assert end == kept
                else:
                    assert isinstance(end, (KeyError, LaneDied, asyncio.CancelledError))
                pid = lanes.statistics().lanes[number % 2].pid
                if pid is not None and random.random() < 0.03:
                    with contextlib.suppress(ProcessLookupError):  # it has ended, and the word of it is on the way
                        os.kill(pid, signal.SIGKILL)
            final = await asyncio.gather(journals(key, 99), return_exceptions=True)
            assert final == [[*kept, 99]] or isinstance(final[0], LaneDied)

        await asyncio.gather(*(sensor(f"S{number}") for number in range(8)))


async def test_order_and_affinity_of_plain_calls(two: tm.Lanes) -> None:
    """``key=`` of run: one process, one after the other in the order of calling, other keys beside them."""
    seen: list[tuple[int, int]] = []

    def note(number: int) -> tuple[int, int]:
        seen.append((os.getpid(), number))
        return os.getpid(), len(seen)

    for key in ("S1", "S2", "S3", b"S4"):
        ends = await asyncio.gather(*(two.run(note, number, key=key) for number in range(20)))
        assert len({pid for pid, _ in ends}) == 1
        assert [count for _, count in ends] == sorted(count for _, count in ends)


async def test_calls_of_a_key_whose_lane_dies(two: tm.Lanes) -> None:
    """They wait for its next process, in order; calls without a key go on elsewhere."""
    calls = [two.run(os._exit, 1, key="S1") if number == 2 else two.run(abs, -number, key="S1") for number in range(9)]
    free = [two.run(abs, -number) for number in range(20)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ends.pop(2), LaneDied)
    assert ends == [0, 1, 3, 4, 5, 6, 7, 8]
    assert await asyncio.gather(*free) == list(range(20))


async def test_affinity_with_recycling_is_refused() -> None:
    """State in a process that will be replaced is a mistake; the message names what to use."""
    async with tm.Lanes(1, recycle_after=5) as lanes:
        with pytest.raises(CallError, match="keyed"):
            await lanes.run(abs, -1, key="S1")
        assert await lanes.keyed(Journal)("S1", 1) == [1]


async def test_keyed_calls_when_the_lanes_close() -> None:
    """Each is told; none hangs."""
    async with tm.Lanes(1) as lanes:
        journals = lanes.keyed(Journal)
        calls = [asyncio.ensure_future(journals("S1", 0, "hang")), *(journals("S1", number) for number in range(5))]
        await asyncio.sleep(0)
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, CallError) for end in ends)
    with pytest.raises(CallError, match="closed"):
        journals("S1", 1)


async def test_a_cancel_after_every_number_of_turns(two: tm.Lanes) -> None:
    """The journal is exactly the calls that have a value, whenever one of them is given up; other keys do not notice."""
    journals = two.keyed(Journal)
    count = finished = 0
    while finished < 3:
        key = f"S{count}"
        calls = [journals(key, number) for number in range(7)]
        other = journals("other", count)
        for _ in range(count):
            await asyncio.sleep(0)
        calls[3].cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        kept = [number for number, end in enumerate(ends) if not isinstance(end, asyncio.CancelledError)]
        assert set(range(7)) - set(kept) <= {3}
        for number in kept:
            assert ends[number] == [one for one in kept if one <= number]
        assert await journals(key, 7) == [*kept, 7]
        assert (await other)[-1] == count
        finished += 3 in kept
        count += 1 if count < 100 else count // 4
    assert journals.statistics().open == 0


class Guarded:
    """Notes when it is restored, and holds a lock on its key's file while it lives."""

    def __init__(self, folder: str, hang: Callable[[], object]) -> None:
        self.folder = folder
        self.hang = hang
        self.count = 0
        self.lock: int | None = None

    def __call__(self, key: str, how: str = "") -> tuple[int, int]:
        if self.lock is None:
            self.lock = os.open(Path(self.folder, key), os.O_CREAT)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error if it is on another live worker
        self.count += 1
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            self.hang()
        return self.count, os.getpid()

    def snapshot(self) -> int:
        return self.count

    def restore(self, count: int) -> None:
        with Path(self.folder, "restored").open("ab", buffering=0) as log:
            log.write(f"{count}\n".encode())
        self.count = count


@pytest.mark.parametrize("how", ["die", "hang"])
async def test_a_replacement_restores_an_object_once(tmp_path: Path, telephone, home, how: str) -> None:
    """After a death or a cancel, when it is called next; and no key is ever on two workers that live."""
    folder, port = str(tmp_path), telephone.port
    async with tm.Lanes(2, grace=0) as lanes:
        objects = lanes.keyed(lambda: Guarded(folder, lambda: home(port, "hangs")))
        keys = [f"S{number}" for number in range(6)]
        for key in keys:
            assert (await objects(key, key))[0] == 1
        replaced = 0
        for number in range(2, 8):
            before = dict(
                zip(keys, await asyncio.gather(*(objects.call(key, "__call__", key) for key in keys)), strict=True)
            )
            assert {count for count, _ in before.values()} == {number}
            victim = objects(keys[number % 6], keys[number % 6], how)
            if how == "hang":
                await telephone.hear("hangs")
                telephone.lines.pop("hangs")  # not closed: who is hung up on does not hang
                victim.cancel()
            (end,) = await asyncio.gather(victim, return_exceptions=True)
            assert isinstance(end, LaneDied if how == "die" else asyncio.CancelledError)
            gone = before[keys[number % 6]][1]
            replaced += sum(pid == gone for _, pid in before.values())
        after = await asyncio.gather(*(objects(key, key) for key in keys))
        assert [count for count, _ in after] == [8] * 6
        restored = (await asyncio.to_thread(Path(folder, "restored").read_text)).split()
        assert len(restored) == replaced == objects.statistics().restored
