"""Calls: every one is run once or reported once, whatever lanes and callers do."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidemill.core.call_commands import Command, Dropped, Hung, Interrupt, Lost, Send, Steal, TimedOut
from tidemill.core.calls import Bounds, Calls
from tidemill.core.stillness import DOUBTED, HUNG
from tidemill.errors import EngineError

LANES = 3


def up(lanes: int = 2) -> Calls:
    calls = Calls(lanes)
    for lane in range(lanes):
        assert calls.attached(lane) == []
    return calls


def test_an_idle_lane_goes_before_a_busy_one() -> None:
    """Every lane gets a first call before any gets a second, and none gets a third."""
    calls = up()
    sent = [command for number in range(1, 7) for command in calls.add(number)]
    assert sent == [Send(0, 1), Send(1, 2), Send(0, 3), Send(1, 4)]
    assert calls.waiting == 2
    assert calls.returned(0, 1) == [Send(0, 5)]


def test_a_call_that_waits_behind_another_moves_to_an_idle_lane() -> None:
    """The lane that fell idle takes what was queued elsewhere, once it is known not to have been started."""
    calls = up()
    for number in (1, 2, 3):
        calls.add(number)
    assert calls.returned(1, 2) == [Steal(0, 3)]
    assert calls.revoked(0, 3) == [Send(1, 3)]


def test_a_cancelled_call_that_waits_is_never_sent() -> None:
    """Nothing is sent for it when a lane has room."""
    calls = Calls(1)
    calls.add(1)
    assert calls.cancel(1) == []
    assert calls.attached(0) == []


def test_a_cancelled_call_in_a_lane_is_interrupted_once() -> None:
    """A second cancel, or a timeout after it, has no effect."""
    calls = up(1)
    calls.add(1, deadline_ns=10)
    assert calls.cancel(1) == [Interrupt(0, 1)]
    assert calls.cancel(1) == []
    assert calls.expired(20) == []


def test_a_timeout_tells_the_caller_and_stops_the_work() -> None:
    """At the deadline, not before."""
    calls = up(1)
    calls.add(1, deadline_ns=10)
    assert calls.next_deadline_ns == 10
    assert calls.expired(9) == []
    assert calls.expired(10) == [TimedOut(1), Interrupt(0, 1)]
    calls.killed(0)
    assert calls.died(0, running=1) == []
    assert calls.next_deadline_ns is None


def test_innocents_of_a_killed_lane_run_again_in_their_order() -> None:
    """What waited behind the killed call goes first to the replacement."""
    calls = up(1)
    for number in (1, 2, 3):
        calls.add(number)
    calls.cancel(1)
    calls.killed(0)
    assert calls.died(0, running=1) == []
    assert calls.attached(0) == [Send(0, 2), Send(0, 3)]


def test_calls_are_given_up_when_lanes_die_before_they_run_anything() -> None:
    """Not at the first such death, and later calls start afresh."""
    calls = up(1)
    calls.add(1)
    for _ in range(Calls.MAX_FRUITLESS - 1):
        assert calls.died(0) == []
        assert calls.attached(0) == [Send(0, 1)]
    assert calls.died(0) == [Lost(1)]
    calls.add(2)
    assert calls.attached(0) == [Send(0, 2)]


def test_deaths_that_were_wanted_are_not_counted() -> None:
    """However many processes are killed before they run anything, because nobody wants what they read."""
    calls = up(1)
    calls.add(1)
    for _ in range(2 * Calls.MAX_FRUITLESS):
        assert calls.died(0, wanted=True) == []
        assert calls.attached(0) == [Send(0, 1)]


def test_a_number_is_used_once() -> None:
    """Adding it twice is an error of ours."""
    calls = up()
    calls.add(1)
    with pytest.raises(EngineError, match="twice"):
        calls.add(1)


def test_deadlines_of_ended_calls_do_not_pile_up() -> None:
    """A million calls with timeouts leave a small heap."""
    calls = up(1)
    calls.add(1, deadline_ns=1)
    for number in range(2, 2000):
        calls.add(number, deadline_ns=10**6 + number)
        assert calls.next_deadline_ns == 1
        calls.cancel(number)
        calls.revoked(0, number)
    assert len(calls._deadlines) < 100


def test_calls_of_one_pin_stay_in_their_lane_and_order() -> None:
    """Through a death, a cancel in between, and an idle lane beside them."""
    calls = up()
    assert [calls.add(number, pin=0) for number in (1, 2, 3, 4)] == [[Send(0, 1)], [Send(0, 2)], [], []]
    assert calls.add(5) == [Send(1, 5)]
    assert calls.returned(1, 5) == []  # idle, and takes none of them
    assert calls.cancel(3) == []
    assert calls.died(0, running=1) == [Lost(1)]
    assert calls.attached(0) == [Send(0, 2), Send(0, 4)]


def test_a_lane_shares_its_room_between_pinned_calls_and_others() -> None:
    """The older goes first."""
    calls = up(1)
    for number, pin in ((1, None), (2, None), (3, None), (4, 0), (5, None)):
        calls.add(number, pin=pin)
    assert [calls.returned(0, number) for number in (1, 2, 3)] == [[Send(0, 3)], [Send(0, 4)], [Send(0, 5)]]


def test_a_deeper_lane_holds_more_and_gives_half_of_it_away() -> None:
    """What an idle lane takes is the newer half of what the fullest has not started."""
    calls = Calls(2)
    calls.attached(0)
    for number in range(1, 9):
        calls.add(number)
    assert calls.deepen(6) == [Send(0, number) for number in (3, 4, 5, 6)]
    assert calls.attached(1) == [Send(1, 7), Send(1, 8)]
    assert calls.returned(1, 7) == []
    assert calls.returned(1, 8) == [Steal(0, 6), Steal(0, 5), Steal(0, 4)]
    assert calls.revoked(0, 6) == [Send(1, 6)]
    assert calls.deepen(1) == []
    assert calls.depth == 2


def test_large_arguments_keep_a_lane_shallow() -> None:
    """The next call goes along, a third one only below the bound of bytes."""
    calls = Calls(1, Bounds(lane_bytes=100))
    calls.attached(0)
    calls.deepen(8)
    assert [bool(calls.add(number, size=60)) for number in (1, 2, 3)] == [True, True, False]
    assert calls.returned(0, 1) == [Send(0, 3)]


def test_what_waits_is_bounded_and_the_oldest_makes_room() -> None:
    """By count and by bytes; pinned calls count too."""
    calls = Calls(1, Bounds(waiting=2))
    calls.add(1, pin=0)
    assert not calls.full
    calls.add(2)
    assert calls.full
    assert calls.make_room() == [Dropped(1)]
    calls = Calls(1, Bounds(waiting_bytes=100))
    calls.add(1, size=99)
    assert not calls.full
    calls.add(2, size=1000)
    assert calls.make_room() == [Dropped(1), Dropped(2)]
    assert calls.waiting_bytes == 0


def steps(act: Callable[[], object]) -> int:
    """Instructions of Python's that it takes."""
    count = 0

    def traced(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def test_what_is_bounded_elsewhere_does_not_stand_in_the_way_of_the_oldest() -> None:
    """To make room takes as many steps behind two thousand calls that are kept as behind two, in every lane's line."""
    counts = []
    for kept in (2, 2000):
        calls = Calls(2, Bounds(waiting=1))
        for number in range(1, kept + 1):
            calls.add(number, pin=(None, 0, 1)[number % 3], kept=True)
        calls.add(kept + 1)
        calls.add(kept + 2, pin=1)
        counts.append(steps(calls.make_room))
        assert calls.waiting == kept
    assert counts[0] == counts[1]


def test_what_is_bounded_elsewhere_is_never_dropped_and_takes_no_room() -> None:
    """While it waits for its first lane, and after a death."""
    calls = Calls(1, Bounds(waiting=1, waiting_bytes=100))
    calls.add(1, size=500, kept=True)
    assert not calls.full
    calls.add(2, size=500)
    assert calls.full
    assert calls.make_room() == [Dropped(2)]
    assert calls.attached(0) == [Send(0, 1)]
    calls.add(3, size=500, kept=True)
    calls.died(0)
    assert calls.waiting == 2
    assert not calls.full
    calls.validate()


def test_a_lane_that_is_held_gives_back_what_it_can() -> None:
    """It keeps what runs and what is pinned, gets nothing new, and goes on when it is attached again."""
    calls = Calls(2)
    calls.attached(0)
    calls.deepen(4)
    for number, pin in ((1, None), (2, 0), (3, None), (4, None)):
        calls.add(number, pin=pin)
    assert calls.held(0) == [Steal(0, 4), Steal(0, 3), Steal(0, 1)]
    assert calls.revoked(0, 4) == []
    assert calls.revoked(0, 3) == []
    assert calls.attached(1) == [Send(1, 3), Send(1, 4)]
    assert calls.returned(0, 1) == []
    assert calls.has(0) == 1
    calls.add(5, pin=0)
    assert calls.attached(0) == [Send(0, 5)]


def test_when_no_lane_can_be_started_what_waits_is_given_up() -> None:
    """All of it; or, while another lane lives, only what is pinned to the dead one."""
    calls = Calls(2)
    calls.add(1)
    calls.add(2, pin=1)
    assert calls.given_up() == [Lost(1), Lost(2)]
    calls.attached(0)
    calls.add(3, pin=1)
    calls.add(4)
    assert calls.given_up() == [Lost(3)]


def test_a_lane_that_begins_nothing_gives_its_calls_away_and_is_replaced() -> None:
    """One look that finds it as it was is none; what is pinned to it runs in its next process."""
    calls = up()
    calls.add(1)
    calls.add(2, pin=0)
    assert calls.looked(0, "as it was") == []
    assert not calls.doubted(0)
    assert calls.looked(0, "as it was") == [Steal(0, 1)]
    assert calls.doubted(0)
    assert calls.revoked(0, 1) == [Send(1, 1)]
    assert calls.add(3) == [Send(1, 3)]
    assert [calls.looked(0, "as it was") for _ in range(HUNG - 1)] == [[]] * (HUNG - 2) + [[Hung(0)]]
    assert calls.died(0) == []
    assert not calls.doubted(0)
    assert calls.attached(0) == [Send(0, 2)]


def test_a_lane_that_does_something_is_trusted_again() -> None:
    """Whatever it does between two looks, and when it has begun all, or runs a call for as long as it likes."""
    calls = up()
    for sign in (1, 2, None, None, None, None, None, 2, 3, 3):
        calls.looked(0, sign)
    assert calls.doubted(0)
    assert calls.add(1) == [Send(1, 1)]
    calls.looked(0, 4)
    assert not calls.doubted(0)
    assert calls.attached(0) == []
    assert calls.add(2) == [Send(0, 2)]
    assert calls.looked(0, 4) == []


def test_a_lane_that_waits_for_the_machine_does_not_hang() -> None:
    """However long it has work that does not show; it does once it sleeps over it."""
    calls = up()
    assert [calls.looked(0, 1, at_work=number != 5) for number in range(100)].count([]) == 100
    assert calls.doubted(0)
    assert [calls.looked(0, 1) for _ in range(HUNG - 1)][-1] == [Hung(0)]


def test_a_lane_whose_threads_compute_is_not_replaced_but_gets_nothing() -> None:
    """One of them may hold Python's lock for long, and give it back; one that only holds it does not."""
    calls = up()
    calls.add(1)
    looks = [calls.looked(0, 1, computes=True) for _ in range(100)]
    assert looks == [[], [Steal(0, 1)], *[[]] * 98]
    assert calls.doubted(0)
    assert calls.looked(0, 1) == [Hung(0)]


def test_a_call_that_could_not_be_sent_is_gone() -> None:
    """Its place is another's, and it says nothing of the lane."""
    calls = up(1)
    for call in (1, 2, 3):
        calls.add(call)
    calls.fruitless = 1
    assert calls.unsent(0, 2) == [Send(0, 3)]
    assert calls.fruitless == 1
    assert calls.cancel(2) == calls.unsent(0, 2) == []
    calls.validate()


class AnyOrder(RuleBasedStateMachine):
    """Lanes that answer, die and hang, callers that give up: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls(LANES, Bounds(waiting=6, waiting_bytes=40, lane_bytes=20))
        self.pins: dict[int, int] = {}
        self.began: list[list[int]] = [[] for _ in range(LANES)]  # pinned calls, as each lane started them
        self.lanes: list[deque[int]] = [deque() for _ in range(LANES)]  # what each process has been sent
        self.running = [0] * LANES
        self.alive = [False] * LANES
        self.dying = [False] * LANES
        self.passed_by = [0] * LANES  # calls that each process was sent and must pass by: they were revoked
        self.hangs = [False] * LANES  # and begins nothing more
        self.did = [0] * LANES  # how much each has begun
        self.still = [-1] * LANES  # looks that have found each as it was while it has calls to begin
        self.open: set[int] = set()
        self.ended: set[int] = set()
        self.kept: set[int] = set()
        self.runs: dict[int, int] = {}
        self.number = 0
        self.now = 0
        self.fails = False  # whether the next call cannot be sent

    def perform(self, commands: list[Command]) -> None:
        todo = deque(commands)
        while todo:
            command = todo.popleft()
            match command:
                case Send(lane, call):
                    assert self.alive[lane]
                    assert not self.dying[lane]
                    assert call in self.open
                    assert self.pins.get(call, lane) == lane
                    if self.fails:
                        self.fails = False
                        self.end(call)
                        todo.extend(self.calls.unsent(lane, call))
                        continue
                    self.lanes[lane].append(call)
                case Interrupt(lane, call) | Steal(lane, call):
                    if self.running[lane] == call:
                        if isinstance(command, Interrupt):
                            self.dying[lane] = True
                            todo.extend(self.calls.held(lane))
                    elif call in self.lanes[lane]:
                        self.lanes[lane].remove(call)
                        self.passed_by[lane] += 1
                        todo.extend(self.calls.revoked(lane, call))
                case TimedOut(call) | Lost(call):
                    self.end(call)
                case Dropped(call):
                    assert call not in self.kept
                    self.end(call)
                case Hung(lane):
                    assert self.still[lane] >= HUNG
                    self.dying[lane] = True

    def end(self, call: int) -> None:
        assert call in self.open, "told once"
        self.open.remove(call)
        self.ended.add(call)

    @rule(
        timeout=st.none() | st.integers(1, 5),
        size=st.integers(0, 15),
        pin=st.none() | st.integers(0, LANES - 1),
        kept=st.booleans(),
    )
    def add(self, timeout: int | None, size: int, pin: int | None, kept: bool) -> None:
        self.perform(self.calls.make_room())
        assert not self.calls.full
        self.number += 1
        self.open.add(self.number)
        if pin is not None:
            self.pins[self.number] = pin
        if kept:
            self.kept.add(self.number)
        due = None if timeout is None else self.now + timeout
        self.perform(self.calls.add(self.number, due, size=size, pin=pin, kept=kept))

    @rule(depth=st.integers(0, 6))
    def deepen(self, depth: int) -> None:
        self.perform(self.calls.deepen(depth))

    @rule(lane=st.integers(0, LANES - 1))
    def hold(self, lane: int) -> None:
        """To recycle it, say; it dies, or is attached again, later."""
        if self.alive[lane]:
            self.dying[lane] = True
            self.perform(self.calls.held(lane))

    @rule(lane=st.integers(0, LANES - 1))
    def let_go(self, lane: int) -> None:
        if self.alive[lane] and self.dying[lane] and not self.calls.doubted(lane):
            self.dying[lane] = False
            self.still[lane] = -1
            self.perform(self.calls.attached(lane))

    @rule(lane=st.integers(0, LANES - 1))
    def hang(self, lane: int) -> None:
        self.hangs[lane] = self.alive[lane]

    @rule(looks=st.lists(st.integers(0, LANES - 1), max_size=3 * HUNG), at_work=st.booleans())
    def look(self, looks: list[int], at_work: bool) -> None:
        """A lane that runs a call hangs not; one that was given calls, and that begins none from look to look, does."""
        for lane in looks:
            if not self.alive[lane]:
                continue
            begins = not self.running[lane] and (self.lanes[lane] or self.passed_by[lane])
            if not begins:
                self.still[lane] = -1
            elif self.still[lane] < 0 or not at_work:
                self.still[lane] += 1
            doubted = self.calls.doubted(lane)
            self.perform(self.calls.looked(lane, self.did[lane] if begins else None, at_work=at_work))
            assert self.calls.doubted(lane) == (self.still[lane] >= DOUBTED)
            if doubted and not self.calls.doubted(lane) and not self.dying[lane]:
                self.perform(self.calls.attached(lane))

    @rule()
    def cannot_be_sent(self) -> None:
        self.fails = True

    @rule()
    def give_up(self) -> None:
        self.perform(self.calls.given_up())

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.open)))
        self.end(call)
        self.perform(self.calls.cancel(call))

    @rule(step=st.integers(1, 3))
    def time_passes(self, step: int) -> None:
        self.now += step
        self.perform(self.calls.expired(self.now))

    @rule(lane=st.integers(0, LANES - 1))
    def begin(self, lane: int) -> None:
        if not self.alive[lane] or self.hangs[lane] or self.running[lane]:
            return
        if self.lanes[lane] or self.passed_by[lane]:
            self.did[lane] += 1
            self.still[lane], self.passed_by[lane] = -1, 0
        if self.lanes[lane]:
            call = self.running[lane] = self.lanes[lane].popleft()
            self.runs[call] = self.runs.get(call, 0) + 1
            if call in self.pins:
                self.began[lane].append(call)

    @rule(lane=st.integers(0, LANES - 1))
    def answer(self, lane: int) -> None:
        call, self.running[lane] = self.running[lane], 0
        if call:
            if call in self.open:
                self.end(call)
            self.perform(self.calls.returned(lane, call))

    @rule(lane=st.integers(0, LANES - 1))
    def die(self, lane: int) -> None:
        if self.alive[lane]:
            running, self.running[lane] = self.running[lane], 0
            self.alive[lane] = self.dying[lane] = self.hangs[lane] = False
            self.lanes[lane].clear()
            self.still[lane], self.passed_by[lane] = -1, 0
            self.perform(self.calls.died(lane, running))

    @rule(lane=st.integers(0, LANES - 1))
    def attach(self, lane: int) -> None:
        if not self.alive[lane]:
            self.alive[lane] = True
            self.perform(self.calls.attached(lane))

    @invariant()
    def rules_hold(self) -> None:
        self.calls.validate()
        assert all(began == sorted(began) for began in self.began), "calls of a pin run in order"
        assert all(count == 1 for count in self.runs.values()), "a call that was started is never started again"
        assert self.open.isdisjoint(self.ended)

    def teardown(self) -> None:
        """Once each lane has a process, every call that is still wanted is answered, though some hang."""
        for lane in range(LANES):
            self.attach(lane)
        for _ in range(3 * self.number + 3 + HUNG):
            for lane in range(LANES):
                if self.dying[lane]:
                    self.die(lane)
                    self.attach(lane)
                self.begin(lane)
                self.answer(lane)
                self.look([lane], at_work=False)
        assert self.open == set()
        assert self.calls.statistics().waiting == 0
        assert self.calls.statistics().in_lanes == (0,) * LANES


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
