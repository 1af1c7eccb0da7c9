"""Same input, same output: byte for byte, whatever the lanes, the batches, the timing and the crashes."""

from __future__ import annotations

import os
import random
import signal

import pytest

import tidemill as tm
from tidemill.core.batching import Limits

pytestmark = pytest.mark.timeout(300)

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def golden(small_w1, tmp_path_factory) -> bytes:
    """What a run without processes writes."""
    return small_w1.features(tmp_path_factory.mktemp("golden"), "inline", lanes=0)


@pytest.mark.parametrize("lanes", [0, 1, 2, 3])
@pytest.mark.parametrize("cap", [pytest.param(1, marks=SLOW), pytest.param(7, marks=SLOW), 1000])
def test_lanes_and_batch_caps_change_no_byte(small_w1, golden, tmp_path, lanes, cap):
    """0, 1, 2 and 3 lanes write the same bytes with batches of at most 1, 7 and 1000 records."""
    assert small_w1.features(tmp_path, "out", lanes=lanes, limits=Limits(max_records=cap)) == golden


def test_the_plan_applied_in_memory_gives_the_same_values(small_w1):
    """plan.apply over a DataFrame gives what the lanes gave."""
    import pandas as pd

    frame = pd.DataFrame({"sensor": small_w1.texts[small_w1.ids], "time": small_w1.time, "value": small_w1.value})
    applied = small_w1.plan().apply(frame, key="sensor", time="time")
    rows = tm.testing.ListSink()
    tm.run(tm.Pipeline(small_w1.source(), small_w1.plan(), rows), lanes=2)
    expected = pd.DataFrame(rows.rows)
    pd.testing.assert_frame_equal(applied, expected, check_exact=True, check_dtype=False)


class Killer:
    """Kills a random lane each time the output passes a random row, if that lane has work in flight; else at the next output, of
    which there is enough behind the last."""

    def __init__(self, records: int, kills: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.thresholds = sorted(self.random.sample(range(records // 20, records // 2), kills))
        self.rows = 0
        self.kills = 0
        self.run = None
        self.pids: set[int] = set()

    def __call__(self, batch: tm.Batch) -> None:
        self.rows += len(batch)
        while self.run and self.thresholds and self.rows >= self.thresholds[0]:
            lanes = self.run.statistics().lanes
            busy = [lane for lane in lanes if lane.in_flight and lane.pid is not None and lane.pid not in self.pids]
            if not busy:
                return  # this instant does not count; the next output is as good
            self.thresholds.pop(0)
            victim = self.random.choice(busy)
            os.kill(victim.pid, signal.SIGKILL)
            self.pids.add(victim.pid)
            self.kills += 1


@SLOW
@pytest.mark.parametrize("seed", [1, 2])
async def test_twenty_killed_lanes_change_no_byte(w1, tmp_path, tmp_path_factory, seed):
    """A lane SIGKILLed at 20 random instants in the middle of W1, with work in flight, leaves the output as it was."""
    whole = tmp_path_factory.getbasetemp() / "w1-whole.ndjson"
    if not whole.exists():
        await tm.run_async(tm.Pipeline(w1.source(), w1.plan(), tm.sinks.Lines(whole)), lanes=2)
    killer = Killer(len(w1.ids), 20, seed)
    sinks = [tm.sinks.Lines(tmp_path / "killed.ndjson"), tm.sinks.Callback(killer)]
    pipeline = tm.Pipeline(w1.source(), w1.plan(), sinks)
    async with tm.serve(pipeline, lanes=2, limits=Limits(max_records=2048)) as run:
        killer.run = run
        await run.wait()
    assert killer.kills == 20
    assert sum(lane.restarts for lane in run.report.lanes) == 20
    assert run.report.dead_letters == 0
    assert (tmp_path / "killed.ndjson").read_bytes() == whole.read_bytes()
