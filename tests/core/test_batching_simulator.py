"""The batcher against fixed sizes, in a simulated parent with lanes: Poisson arrivals, noisy costs, no real time."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import pytest

from tidemill.core.batching import Batcher, Limits

pytestmark = pytest.mark.slow

LANES = 2
LOADS = (0.01, 0.1, 0.5, 0.9, 1.2)
SIZES = (1, 8, 64, 512)
RECORDS = 3_000


Policy = Callable[[int, list[int], float], int]
"""Records of the next batch, from how many wait, the batches in each lane, and the age of the oldest record."""


@dataclass(frozen=True)
class World:
    """What a frame and a record cost; seconds. The parent is one server, each lane another."""

    record_s: float
    frame_s: float = 50e-6
    """In the parent, there and back."""
    handling_s: float = 3e-6
    """In the parent, of one record, there and back."""
    wake_s: float = 20e-6
    """A lane's own cost of a frame, which it does not measure."""

    @property
    def per_s(self) -> float:
        """Records a second, if frames cost nothing."""
        return min(LANES / self.record_s, 1 / self.handling_s)


LANE_BOUND = World(record_s=30e-6)
PARENT_BOUND = World(record_s=1e-6)
WORLDS = {"lanes": LANE_BOUND, "parent": PARENT_BOUND}


@dataclass
class Run:
    """What became of the records."""

    latencies_s: np.ndarray
    seconds: float
    sizes: list[int]

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    def quantile_s(self, share: float) -> float:
        return float(np.quantile(self.latencies_s, share))


class Tide:
    """The batcher, asked as `lanes.batched` asks it."""

    def __init__(self, limits: Limits | None = None, slack_s: float = inf) -> None:
        self.batcher = Batcher(limits or Limits(max_records=4096))
        self.slack_s = slack_s

    def __call__(self, waiting: int, in_flight: list[int], oldest_s: float) -> int:
        """Records of a batch, 0 for none now."""
        slack_s = self.slack_s - oldest_s
        return self.batcher.records(waiting=waiting, in_flight=in_flight, slack_s=slack_s, one_lane=True)


def up_to(size: int) -> Policy:
    """Whatever waits when a lane is idle, up to a fixed size."""
    return lambda waiting, in_flight, _: min(waiting, size) if min(in_flight) == 0 else 0


def filled(size: int) -> Policy:
    """Batches of exactly this size, as a chunk size is in other pools; two for each lane at most."""
    return lambda waiting, in_flight, _: size if waiting >= size and min(in_flight) < 2 else 0


class Simulation:
    """Every record once, in order; ``now`` is moved by hand, and by what the parent does."""

    def __init__(self, world: World, policy: Policy, arrivals_s: np.ndarray, costs_s: np.ndarray) -> None:
        self.world, self.policy, self.arrivals_s = world, policy, arrivals_s
        self.batcher: Batcher | None = getattr(policy, "batcher", None)
        self.work_s = np.concatenate([[0.0], np.cumsum(costs_s)])
        self.done_s = np.zeros(len(arrivals_s))
        self.lane_free_s, self.in_flight = [0.0] * LANES, [0] * LANES
        self.replies: list[tuple[float, int, int, int, float | None]] = []
        self.now = 0.0
        self.taken = 0
        self.sizes: list[int] = []

    def run(self) -> Run:
        count = len(self.arrivals_s)
        while self.taken < count or self.replies:
            while self.replies and self.replies[0][0] <= self.now:
                self._reply(*heapq.heappop(self.replies))
            arrived = int(np.searchsorted(self.arrivals_s, self.now, "right"))
            waiting = arrived - self.taken
            if waiting:
                records = self.policy(waiting, self.in_flight, self.now - self.arrivals_s[self.taken])
                if records:
                    self._send(records)
                    continue
            next_reply_s = self.replies[0][0] if self.replies else inf
            next_s = min(next_reply_s, self.arrivals_s[arrived] if arrived < count else inf)
            if next_s == inf:  # nothing more comes: what a fixed size would keep waiting for ever goes
                self.policy = up_to(count)
            else:
                self.now = max(self.now, next_s)
        return Run(self.done_s - self.arrivals_s, self.now - float(self.arrivals_s[0]), self.sizes)

    def _send(self, records: int) -> None:
        began_s = self.now
        self.now += self.world.frame_s / 2 + records * self.world.handling_s / 2
        lane = self.in_flight.index(min(self.in_flight))
        sent_s = None if self.in_flight[lane] else began_s
        worked_s = self.work_s[self.taken + records] - self.work_s[self.taken]
        self.lane_free_s[lane] = max(self.now, self.lane_free_s[lane]) + self.world.wake_s + worked_s
        heapq.heappush(self.replies, (self.lane_free_s[lane], lane, self.taken, records, sent_s))
        self.in_flight[lane] += 1
        self.sizes.append(records)
        if self.batcher:
            self.batcher.sent(records)
            self.batcher.validate()
        self.taken += records

    def _reply(self, _: float, lane: int, first: int, records: int, sent_s: float | None) -> None:
        came_s = self.now
        self.now += self.world.frame_s / 2 + records * self.world.handling_s / 2
        self.in_flight[lane] -= 1
        self.done_s[first : first + records] = self.now
        if self.batcher:
            busy_s = self.work_s[first + records] - self.work_s[first]
            self.batcher.measured(records, busy_s, travel_s=None if sent_s is None else came_s - sent_s - busy_s)
            self.batcher.validate()


def traffic(world: World, load: float, records: int = RECORDS, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Poisson arrivals at a share of the most that lanes and parent could do, and costs that vary by a half."""
    chance = np.random.default_rng(seed)
    arrivals_s = np.cumsum(chance.exponential(1 / (load * world.per_s), records))
    return arrivals_s, world.record_s * chance.gamma(4, 1 / 4, records)


def policies() -> dict[str, Policy]:
    fixed = {f"{make.__name__} {size}": make(size) for make in (up_to, filled) for size in SIZES}
    return {"tide": Tide(), **fixed}


def all_runs() -> dict[tuple[str, float], dict[str, Run]]:
    """Every policy in every world at every load, from the same arrivals and costs."""
    return {
        (name, load): {
            policy: Simulation(world, decide, *traffic(world, load)).run() for policy, decide in policies().items()
        }
        for name, world in WORLDS.items()
        for load in LOADS
    }


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, float], dict[str, Run]]:
    return all_runs()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("load", LOADS[:4])
def test_latency_is_about_that_of_the_best_fixed_size(table, world, load):
    """At each load another size is the best, for the median and for the tail; the batcher is near it with no option."""
    runs = dict(table[world, load])
    tide = runs.pop("tide")
    for share, factor in ((0.5, 1.15), (0.99, 1.5)):
        best = min(run.quantile_s(share) for run in runs.values())
        assert tide.quantile_s(share) <= factor * best, (share, tide.quantile_s(share), best)


@pytest.mark.parametrize("world", WORLDS)
def test_throughput_over_the_limit_is_that_of_the_best_fixed_size(table, world):
    """At 120 % of what is possible, where only efficiency counts."""
    runs = dict(table[world, 1.2])
    tide = runs.pop("tide")
    assert tide.per_s >= 0.95 * max(run.per_s for run in runs.values())


def test_no_fixed_size_is_good_everywhere(table):
    """The comparison can fail: each fixed size is somewhere 1.3 times as late as the batcher, or a tenth slower."""
    for policy in table["lanes", 0.5]:
        worse = [
            run.quantile_s(0.99) > 1.3 * runs["tide"].quantile_s(0.99) or run.per_s < 0.9 * runs["tide"].per_s
            for runs in table.values()
            if (run := runs[policy])
        ]
        assert any(worse) == (policy != "tide"), policy


@pytest.mark.parametrize("timeout_s", [0.002, 0.01])
def test_callers_in_a_hurry_get_small_batches_and_overload_stays_efficient(timeout_s):
    """With little time left batches are shorter; when all are late already, that does not make them later."""
    world = World(record_s=30e-6)
    calm = Simulation(world, Tide(), *traffic(world, 0.9)).run()
    hurried = Simulation(world, Tide(slack_s=timeout_s), *traffic(world, 0.9)).run()
    assert max(hurried.sizes) <= max(calm.sizes)
    over = Simulation(world, Tide(slack_s=timeout_s), *traffic(world, 1.2)).run()
    assert over.per_s >= 0.9 * Simulation(world, Tide(), *traffic(world, 1.2)).run().per_s


@pytest.mark.parametrize("load", [0.1, 0.9, 1.2])
def test_records_that_become_dear_get_small_batches_at_once(load):
    """Cheap, then 100 times as dear (joblib #1220): what was under way is late, nothing after it."""
    world = World(record_s=5e-6)
    arrivals_s, costs_s = traffic(world, load)
    costs_s[RECORDS // 2 :] = 100 * world.record_s
    simulation = Simulation(world, Tide(), arrivals_s, costs_s)
    run = simulation.run()
    first = np.concatenate([[0], np.cumsum(run.sizes)[:-1]])
    worked_s = simulation.work_s[first + run.sizes] - simulation.work_s[first]
    dear = first >= RECORDS // 2
    assert (worked_s[dear] > 0.005).sum() <= LANES * 2
    assert np.median(worked_s[dear]) <= 0.005


@pytest.mark.parametrize("seed", range(5))
def test_no_batch_is_more_than_twice_the_largest_before_it(seed):
    """However the load jumps; and the ramp of a flood takes one batch of each size, not one of each for every lane."""
    world = World(record_s=0.2e-6, handling_s=0.05e-6)
    run = Simulation(world, Tide(Limits(max_records=32_768)), *traffic(world, 1.5, 200_000, seed)).run()
    largest = np.maximum.accumulate(run.sizes)
    assert (np.array(run.sizes[1:]) <= np.maximum(2 * largest[:-1], Batcher.START)).all()


def show() -> None:
    """The table of decision 11."""
    for (world, load), runs in all_runs().items():
        for policy, run in runs.items():
            p50, p99 = (1e6 * run.quantile_s(share) for share in (0.5, 0.99))
            size = np.mean(run.sizes)
            sys.stdout.write(
                f"{world:7}{load:5}  {policy:12}p50 {p50:7.0f}  p99 {p99:7.0f} us  {run.per_s:8.0f}/s  mean {size:5.1f}\n"
            )


if __name__ == "__main__":
    show()
