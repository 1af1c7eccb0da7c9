"""The arena's books: no place is given twice, what is full says so, and what was put is what is taken."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidemill.lanes.arena import ArenaBack, ArenaOut
from tidemill.lanes.memory import ALIGN
from tidemill.lanes.parcels import Parcel

SIZE = 64 * 1024


class Out(RuleBasedStateMachine):
    """The way out: places taken and given back in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.out = ArenaOut(SIZE)
        self.taken: dict[int, int] = {}

    @rule(size=st.integers(1, SIZE // 3))
    def take(self, size: int) -> None:
        """A place overlaps with no other, and lies within the way out; there is one whenever there is a gap for it."""
        at = self.out.take(size)
        ends = sorted(
            [(64, 64), *((start, start + held) for start, held in self.taken.items()), (SIZE // 2, SIZE // 2)]
        )
        gaps = [later[0] - (-(-earlier[1] // ALIGN) * ALIGN) for earlier, later in itertools.pairwise(ends)]
        if at is None:
            assert max(gaps) < -(-size // ALIGN) * ALIGN
            return
        assert at % ALIGN == 0
        assert 64 <= at <= at + size <= SIZE // 2
        assert all(at + size <= start or start + held <= at for start, held in self.taken.items())
        self.taken[at] = size

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.taken)))
        self.out.give_back(at, self.taken.pop(at))

    @invariant()
    def all_of_it_can_be_had_when_nothing_is_taken(self) -> None:
        if not self.taken:
            at = self.out.take(SIZE // 2 - 64)
            assert at == 64
            self.out.give_back(at, SIZE // 2 - 64)


class Back(RuleBasedStateMachine):
    """The way back: the process puts, the parent takes in the same order."""

    def __init__(self) -> None:
        super().__init__()
        memory = memoryview(bytearray(SIZE))
        self.process, self.parent = ArenaBack(memory), ArenaBack(memory)
        self.there: list[tuple[int, list[bytes], int]] = []

    @rule(sizes=st.lists(st.integers(1, SIZE // 4), min_size=1, max_size=3), seed=st.integers(0, 99))
    def put(self, sizes: list[int], seed: int) -> None:
        """What is put does not touch what was not taken; an empty ring takes all that it can hold."""
        buffers = [random.Random(seed).randbytes(size) for size in sizes]
        parcel = Parcel(b"head", buffers)
        at = self.process.put(parcel)
        if at < 0:
            assert self.there or parcel.room > self.process.size
        else:
            assert self.parent.holds(at, parcel.room)
            self.there.append((at, buffers, parcel.room))

    @precondition(lambda self: self.there)
    @rule()
    def take(self) -> None:
        at, _, room = self.there.pop(0)
        self.parent.taken(at, room)

    @invariant()
    def nothing_was_written_over(self) -> None:
        for at, buffers, room in self.there:
            block = self.parent.block(at, room)
            start = 0
            for buffer in buffers:
                assert bytes(block[start : start + len(buffer)]) == buffer
                start += -(-len(buffer) // ALIGN) * ALIGN


for machine in (Out, Back):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOut = Out.TestCase
TestBack = Back.TestCase


@pytest.mark.parametrize(("at", "room"), [(-5, 1), (0, 0), (0, SIZE // 2 + 1), (SIZE // 2 - 1, 2), (10, -1)])
def test_a_place_that_lies_is_known(at: int, room: int) -> None:
    """Outside of the ring, across its end, before what was taken, or of no size."""
    back = ArenaBack(memoryview(bytearray(SIZE)))
    assert not back.holds(at, room)


def test_what_was_taken_cannot_be_taken_again() -> None:
    """A position that lies in the past is refused."""
    back = ArenaBack(memoryview(bytearray(SIZE)))
    at = back.put(Parcel(b"", [np.zeros(100)]))
    back.taken(at, 800)
    assert not back.holds(at, 800)
