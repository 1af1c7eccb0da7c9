"""The batcher as a state machine, and in a simulated run at three loads."""

import itertools
from collections import deque
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tidemill.core.batching import Batcher, Limits


class BatcherMachine(RuleBasedStateMachine):
    @initialize(
        cap=st.integers(1, 50_000), target_s=st.floats(1e-4, 1.0), queued=st.integers(1, 4), lanes=st.integers(1, 4)
    )
    def begin(self, cap, target_s, queued, lanes):
        self.limits = Limits(max_records=cap, target_s=target_s, queued_per_lane=queued)
        self.batcher = Batcher(self.limits, longest_s=0.5)
        self.lanes = lanes
        self.largest = self.same = self.last = 0

    @rule(waiting=st.integers(0, 200_000), free=st.integers(0, 12), one_lane=st.booleans(), data=st.data())
    def ask(self, waiting, free, one_lane, data):
        """Never 0 while a lane is idle, a record waits and a slab is free; never more than there is, or than the cap, but where
        so much waits that a quarter of its time, or ten targets, is more than the cap takes: then at most twice the last."""
        in_flight = data.draw(st.lists(st.integers(0, 6), min_size=self.lanes, max_size=self.lanes))
        slack_s = data.draw(st.just(inf) | st.floats(-1, 1))
        records = self.batcher.records(
            waiting=waiting, in_flight=in_flight, free_slabs=free, slack_s=slack_s, one_lane=one_lane
        )
        now = self.batcher.statistics()
        assert 0 <= records <= min(waiting, self.limits.max_records)
        if records > now.cap:
            assert records <= 2 * self.last
            longest_s = 10 * max(self.limits.target_s, 2 * now.fixed_s)
            assert now.fixed_s + records * now.cost_s <= 1.0001 * min(
                longest_s, waiting * now.cost_s / 4, slack_s / 4, 0.5
            )
        if min(in_flight) == 0 and free and waiting:
            assert records, "a lane is idle"
            if not one_lane and not now.travel_s and slack_s == inf:
                assert records >= min(waiting, now.cap)
        if not free or min(in_flight) >= self.limits.queued_per_lane:
            assert records == 0
        if records and min(in_flight) and not now.travel_s and slack_s == inf:
            assert records >= now.cap, "a lane that has work gets only full slabs"
        if records:
            self.batcher.sent(records)
            self.last = max(records, self.last // 2)
            self.largest = max(self.largest, records)
            assert now.cap <= self.batcher.statistics().cap <= max(now.cap, 2 * records)

    @rule(share=st.floats(0, 1), busy_s=st.floats(1e-9, 10.0), travel_s=st.none() | st.floats(-1e-3, 1.0))
    def measure(self, share, busy_s, travel_s):
        """The cap grows to twice the largest slab at most, and falls at once to what the target allows."""
        records = max(1, round(share * self.limits.max_records))
        before = self.batcher.statistics().cap
        self.batcher.measured(records, busy_s, travel_s=travel_s)
        after, fixed_s = self.batcher.statistics().cap, self.batcher.statistics().fixed_s
        assert after <= max(before, 2 * max(records, self.largest))
        target_s = max(self.limits.target_s, 2 * fixed_s)
        self.same = self.same + 1 if records in (before, after, self.last) else 0
        if busy_s > target_s:
            most = max(1, round(records * (target_s - fixed_s) / (busy_s - fixed_s)))
            assert after <= most or (after <= 2 * most and self.same != 0) or after == 2 * records
        elif busy_s <= target_s / 25:
            assert after >= before, "so short a time is mostly a slab's own and says little of a larger one's"

    @rule()
    def measure_nothing(self):
        before = self.batcher.statistics()
        self.batcher.measured(0, 1.0)
        self.batcher.measured(10, 0.0)
        assert self.batcher.statistics() == before

    @rule(sizes=st.lists(st.integers(0, 1000)), records=st.integers(1, 20), room=st.integers(1, 3000))
    def fit(self, sizes, records, room):
        """As many as fit, in order; one that is too large goes alone."""
        fitting = Batcher(Limits(max_bytes=room)).fitting(sizes, records)
        assert fitting == min(len(sizes), 1) or sum(sizes[:fitting]) <= room
        assert fitting <= records
        if fitting < min(len(sizes), records):
            assert sum(sizes[: fitting + 1]) > room

    @invariant()
    def is_bounded(self):
        if hasattr(self, "batcher"):
            self.batcher.validate()
            assert 1 <= self.batcher.statistics().cap <= self.limits.max_records


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

FIXED_S = 80e-6
RECORD_S = 0.2e-6


class Simulation:
    """One lane that takes a fixed time a slab and a time a record; ``now`` in seconds is moved by hand."""

    def __init__(self, load, *, fixed_s=FIXED_S, record_s=RECORD_S, high=131_072):
        self.batcher = Batcher()
        self.high = high  # the intake holds no more; the source waits
        self.fixed_s, self.record_s = fixed_s, record_s
        self.every_s = record_s / load
        self.sizes = []
        self.waited = []
        self.delays = []

    def run(self, seconds):
        now, arrived, taken = 0.0, 0, 0
        queue = deque()  # (records, end of work)
        high = self.high
        while now < seconds:
            arrived = min(int(now / self.every_s) + 1, taken + high)
            while queue and queue[0][1] <= now:
                records, _, busy_s = queue.popleft()
                self.batcher.measured(records, busy_s)
            while n := self.batcher.records(
                waiting=arrived - taken, in_flight=[len(queue)], free_slabs=12 - len(queue)
            ):
                self.batcher.sent(n)
                busy_s = self.fixed_s + n * self.record_s
                start = queue[-1][1] if queue else now
                queue.append((n, start + busy_s, busy_s))
                self.delays.append(now - taken * self.every_s)
                self.sizes.append(n)
                self.waited.append(arrived - taken)
                taken += n
            due = (arrived * self.every_s) if arrived - taken < high else seconds
            full = now + max(self.batcher.statistics().cap - (arrived - taken), 1) * self.every_s
            now = min(queue[0][1], max(due, full)) if queue else max(due, now + 1e-9)
        return self

    def median(self):
        """Of the second half: the batcher has settled."""
        return float(np.median(self.sizes[len(self.sizes) // 2 :]))


@pytest.mark.slow
def test_batch_sizes_follow_the_load():
    """At 1 %, 50 % and 120 % load the median batch differs by 10x and more, with no option changed."""
    low, half, over = (Simulation(load).run(0.5).median() for load in (0.01, 0.5, 1.2))
    assert low <= 10
    assert half >= 10 * low
    assert over >= 10 * half


@pytest.mark.slow
def test_overload_fills_slabs_to_the_target_time():
    """Under overload, with little waiting, a slab's time settles at the target, neither far below it nor above."""
    busy = Simulation(1.2, high=60_000).run(0.5)
    seconds = FIXED_S + busy.median() * RECORD_S
    assert 0.8 * busy.batcher.limits.target_s <= seconds <= busy.batcher.limits.target_s


def test_where_much_waits_slabs_work_longer():
    """With a second of dear records waiting, a slab works ten targets, so that what it costs beside its records is a
    tenth of that; with less waiting, a quarter of what waits, and with little as long as ever."""
    busy = {high: Simulation(1.2, record_s=1e-3, high=high).run(4.0) for high in (1_000, 80, 15)}
    seconds = {high: FIXED_S + run.median() * 1e-3 for high, run in busy.items()}
    assert 0.039 <= seconds[1_000] <= 0.0502
    assert 0.014 <= seconds[80] <= 0.021
    assert 0.003 <= seconds[15] <= 0.0051


@pytest.mark.parametrize("record_s", [0.006, 0.05, 1.0])
@pytest.mark.parametrize(("waiting", "slack_s"), [(100, inf), (4, inf), (10, 3.0), (50, 1.0)])
def test_records_dearer_than_the_target_stay_alone_as_far_as_was_promised(record_s, waiting, slack_s):
    """A cap of one record that is worth ten targets is not to be multiplied: never more than ten targets, or a quarter of
    what waits or of what callers have left."""
    batcher = flooded(0.0, record_s)
    records = batcher.records(waiting=waiting, in_flight=[0, 1], free_slabs=3, slack_s=slack_s, one_lane=True)
    assert records == 1 or records * record_s <= min(0.05, waiting * record_s / 4, slack_s / 4)


def test_a_backlog_is_worked_off_in_slabs_that_grow_shorter():
    """The slabs follow what is left at once: the last of a backlog goes in slabs as short as ever."""
    batcher, left, sizes = flooded(0.0, 1e-3), 1_000, []
    while left:
        records = batcher.records(waiting=left, in_flight=[0], free_slabs=3)
        batcher.sent(records)
        batcher.measured(records, records * 1e-3)
        sizes.append(records)
        left -= records
    assert max(sizes) in (49, 50)
    assert all(
        records <= max(5, (left + records) / 4 + 1)
        for records, left in zip(sizes, 1_000 - np.cumsum(sizes), strict=True)
    )
    assert all(after <= 2 * before for before, after in itertools.pairwise(sizes))


def test_a_lone_record_goes_at_once():
    """At a load of a record a second nothing ever waits, and every slab holds one record."""
    lonely = Simulation(RECORD_S).run(100.0)
    assert set(lonely.sizes) == {1}
    assert max(lonely.delays) < 1e-6


@pytest.mark.slow
@given(load=st.floats(0.001, 1.5), fixed_s=st.floats(1e-6, 1e-3), record_s=st.floats(1e-6, 1e-3))
@settings(max_examples=20, deadline=None)
def test_a_slab_stays_near_its_target_time(load, fixed_s, record_s):
    """Whatever a record and a slab cost, only the few slabs that teach it take longer than the target, or a quarter of
    what waits."""
    run = Simulation(load, fixed_s=fixed_s, record_s=record_s).run(0.5)
    limit = 1.02 * run.batcher.limits.target_s
    assert (
        sum(
            n > 1 and fixed_s + n * record_s > max(limit, waited * record_s / 3)
            for n, waited in zip(run.sizes, run.waited, strict=True)
        )
        <= 8
    )


def asked(batcher):
    """As many as it sends while a batch's worth waits."""
    return batcher.records(waiting=batcher.statistics().cap, in_flight=[0])


def test_a_slow_function_gets_small_slabs_at_once():
    """One slab that took far too long is enough: the next is as small as its cost demands."""
    batcher = Batcher()
    batcher.measured(64, 0.64)  # 10 ms a record, and a target of 5 ms
    assert asked(batcher) == 1


def test_a_slow_start_is_forgotten_soon():
    """A process's first batch imports and compiles; a dozen later ones are as large as their own cost allows."""
    batcher = Batcher(Limits(max_records=256))
    batcher.measured(64, 0.64)
    for _ in range(12):
        records = asked(batcher)
        batcher.sent(records)
        batcher.measured(records, records * 2e-6)
    assert asked(batcher) > 64


def test_one_dear_batch_in_twenty_keeps_the_cap_down():
    """The cost over many records remembers what the last few batches did not show."""
    batcher = Batcher()
    caps = []
    for number in range(200):
        records = asked(batcher)
        batcher.sent(records)
        batcher.measured(records, records * (100e-6 if number % 20 == 10 else 5e-6))
        caps.append(records)
    assert max(caps[100:]) <= 1000  # 5 ms of the cheap ones alone
    assert min(caps[100:]) >= 16


def test_a_flood_ramps_up_in_one_slab_of_each_size():
    """The next slab doubles as soon as one of its size is on its way; only one doubling is unmeasured."""
    ramp = Simulation(3.0, record_s=0.05e-6).run(0.01)
    sizes = ramp.sizes
    start = next(number for number, size in enumerate(sizes) if size >= 64)
    ramp_up = [size for size in sizes[start:] if size < 8192]
    assert len(ramp_up) <= 9, sizes[:30]  # of eight sizes


def flooded(fixed_s, record_s, batches=60):
    """The batcher after so many batches of a flood, each as large as it asks for."""
    batcher = Batcher()
    for _ in range(batches):
        records = batcher.records(waiting=100_000, in_flight=[0], free_slabs=3)
        batcher.sent(records)
        batcher.measured(records, fixed_s + record_s * records)
    return batcher


@pytest.mark.parametrize("fixed_s", [0.001, 0.003, 0.01, 0.05])
def test_what_a_batch_costs_itself_does_not_keep_batches_small(fixed_s):
    """A DataFrame takes a millisecond to make, of one record or of a thousand: its batches grow until they work as long."""
    batcher = flooded(fixed_s, 1e-6)
    records = batcher.statistics().cap
    assert records * 1e-6 >= min(0.5 * fixed_s, 0.03)
    assert fixed_s + records * 1e-6 <= max(0.006, 2.5 * fixed_s)


@pytest.mark.parametrize("record_s", [0.0005, 0.004, 0.1, 2.0])
def test_dear_records_keep_batches_small(record_s):
    """What costs as much for two as twice for one has no cost of its own: batches stay at the target, or of one record."""
    batcher = flooded(0.0, record_s)
    assert batcher.statistics().cap in {max(1, int(0.99 * 0.005 / record_s)), max(1, int(0.005 / record_s))}
    assert batcher.statistics().fixed_s < 0.1 * record_s


@pytest.mark.parametrize("lanes", [2, 4])
def test_each_lane_tells_its_fixed_cost_apart(lanes):
    """A batch of one record is in one lane, and the dearest lane decides: what another has learned by then keeps it from
    nothing."""
    batcher, chance = Batcher(), np.random.default_rng(7)
    for _ in range(150):
        records = batcher.records(waiting=100_000, in_flight=[0] * lanes)
        batcher.sent(records)
        shares = chance.multinomial(records, [1 / lanes] * lanes)
        for lane in np.flatnonzero(shares):
            batcher.measured(records, 0.1 + 1e-6 * shares[lane], int(lane))
        batcher.validate()
    assert records >= 1_000
