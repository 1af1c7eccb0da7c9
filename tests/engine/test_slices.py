"""Slices: work on the loop's thread, a part of each turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from tidemill.engine import slices
from tidemill.engine.slices import Slices, Turns, copied_items

SLICE_S = 0.00004


class Clock:
    """Goes on by what the test says that work takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(slices, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def work(clock: Clock, done: list[str], name: str = "", many: int = 100) -> Iterator[None]:
    for _ in range(many):
        clock.now += SLICE_S
        done.append(name)
        yield


def raised(error: Exception) -> None:
    raise error


async def turns_until_done(clock: Clock, queue: Slices, done: list[str], others_s: float) -> list[int]:
    """How many slices each turn did, when others take so long in each."""
    counts = []
    while queue.busy:
        before = len(done)
        clock.now += others_s
        await asyncio.sleep(0)
        counts.append(len(done) - before)
    return counts


@pytest.mark.parametrize(("others_s", "longest_s"), [(0.00001, 0.0005), (0.001, 0.0001)])
async def test_slices_have_half_a_millisecond_of_a_turn_alone_and_a_tenth_among_others(
    clock: Clock, others_s: float, longest_s: float
) -> None:
    """So that the loop's other work waits for ever so little, and large buffers alone lose no time with turns."""
    queue, done = Slices(Turns()), []
    queue.do(work(clock, done), raised)
    counts = await turns_until_done(clock, queue, done, others_s)
    assert len(done) == 100
    assert max(counts) * SLICE_S < longest_s + SLICE_S
    assert all(count * SLICE_S >= longest_s - SLICE_S for count in counts[:-1])


async def test_queues_have_a_slice_in_turn(clock: Clock) -> None:
    """None waits for another that has much to do, and all together have no more of a turn than one."""
    turns, done = Turns(), []
    first, second = Slices(turns), Slices(turns)
    first.do(work(clock, done, "first"), raised)
    at = len(done)
    second.do(work(clock, done, "second"), raised)
    counts = await turns_until_done(clock, first, done, 0.001)
    assert done[at : at + 160] == ["first", "second"] * 80
    assert max(counts) * SLICE_S < 0.0001 + SLICE_S


async def test_what_a_slice_brings_has_its_part_of_the_same_turn(clock: Clock) -> None:
    """A result that is whole lets its caller send the next argument, at once: together they have no more of the turn than one."""
    turns, done = Turns(), []
    first, second = Slices(turns), Slices(turns)

    def brings() -> Iterator[None]:
        yield from work(clock, done, "first", many=1)
        second.do(work(clock, done, "second"), raised)

    first.do(brings(), raised)
    counts = await turns_until_done(clock, second, done, 0.001)
    assert done.count("second") == 100
    assert max(counts) * SLICE_S < 0.0001 + SLICE_S


async def test_a_queue_that_is_dropped_does_nothing_more(clock: Clock) -> None:
    """What it was about is gone."""
    queue, done = Slices(Turns()), []
    queue.do(work(clock, done), raised)
    queue.drop()
    so_far = len(done)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(done) == so_far < 100


async def test_a_job_that_raises_keeps_those_behind_it_from_nothing(clock: Clock) -> None:
    """What it raised is told, without the frames that hold what it worked on."""
    queue, done, told = Slices(Turns()), [], []

    def raises() -> Iterator[None]:
        yield from work(clock, done, many=20)
        raise MemoryError("of the test")

    queue.do(raises(), told.append)
    queue.do(work(clock, done), raised)
    await turns_until_done(clock, queue, done, 0.001)
    assert len(done) == 120
    (error,) = told
    assert isinstance(error, MemoryError)
    assert error.__traceback__ is None


async def test_what_is_left_need_not_wait_for_its_turns(clock: Clock) -> None:
    """Of all queues, a slice each time: their lanes are being closed."""
    turns, done = Turns(), []
    first, second = Slices(turns), Slices(turns)
    first.do(work(clock, done, "first"), raised)
    second.do(work(clock, done, "second", many=3), raised)
    for _ in turns.rest():
        pass
    assert (done.count("first"), done.count("second")) == (100, 3)
    assert not first.busy
    assert not second.busy


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[::-1, 3], np.s_[5:, ::2, ::3], np.s_[:3, :2], np.s_[3, 3, :1]])
def test_items_that_lie_apart_are_copied_a_bit_each_time(cut: object) -> None:
    """Of any shape; to the end, and not much at once."""
    source = np.arange(64 * 24 * 100.0).reshape(64, 24, 100)[cut]
    target = np.zeros(source.shape)
    before = 0
    for _ in copied_items(source, target):
        now = np.count_nonzero(target)
        assert (now - before) * 8 <= 32 * 1024
        before = now
    np.testing.assert_array_equal(target, source)
