"""The anomaly score that the Numenta Anomaly Benchmark publishes for its windowed Gaussian detector, of every row."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm

FILES = "realKnownCause"
STREAMS = [
    "ambient_temperature_system_failure",
    "cpu_utilization_asg_misconfiguration",
    "ec2_request_latency_system_failure",
    "machine_temperature_system_failure",
]


@pytest.fixture(scope="module")
def detector(example):
    return example("anomaly").WindowedGaussian


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS)
def test_every_published_score_is_reproduced(recordings, example, rows_of, stream):
    """52,044 rows in four files, through a `Keyed` object in two lanes: to the twelve decimals that are printed."""
    published = pd.read_csv(recordings / f"nab/results/windowedGaussian/{FILES}/windowedGaussian_{stream}.csv")
    source = tm.sources.Replay(recordings / f"nab/data/{FILES}/{stream}.csv", key="{stem}", time="timestamp")
    rows = rows_of(source, example("anomaly").plan)
    assert len(rows) == len(published)
    assert [row["timestamp"] for row in rows] == published["timestamp"].tolist()
    error = np.abs(np.array([row["score"] for row in rows]) - published["anomaly_score"].to_numpy()).max()
    print(f"{stream}: {len(rows):,} rows, greatest error {error:.1e}")
    assert error <= 1e-9


@pytest.mark.slow
def test_streams_side_by_side_have_the_scores_that_they_have_alone(recordings, example, rows_of):
    """Seven sensors at once, merged by time over two lanes: bit for bit the scores of a plan applied to one stream."""
    plan = example("anomaly").plan
    folder = recordings / "nab/data" / FILES
    frames = {stream: pd.read_csv(folder / f"{stream}.csv") for stream in STREAMS}
    source = tm.sources.Replay(folder / "*.csv", key="{stem}", time="timestamp")
    together = pd.DataFrame(rows_of(source, tm.Plan(plan, tm.Map(lambda batch: {"key": batch.keys[batch.key]}))))
    for stream, frame in frames.items():
        alone = plan.apply(frame.assign(sensor=stream), time="timestamp")["score"].tolist()
        assert together.loc[together["key"] == stream, "score"].tolist() == alone


def test_the_score_is_the_normal_distributions(detector):
    """After the values 1, 2 and 3: one standard deviation off the mean has 1 - 0.5 erfc(1 / sqrt 2)."""
    scorer = detector(window=10, step=5)
    for value in (1.0, 2.0, 3.0):
        scorer.update({"value": value})
    off = math.sqrt(2 / 3)
    expected = 1 - 0.5 * math.erfc(1 / math.sqrt(2))
    assert scorer.score(2 + off) == pytest.approx(expected, abs=1e-15)
    assert scorer.score(2 - off) == pytest.approx(expected, abs=1e-15)
    assert scorer.score(2.0) == 0.5


@given(st.lists(st.floats(-1e6, 1e6), max_size=40), st.integers(0, 40))
def test_a_restored_detector_goes_on_as_the_one_that_was_kept(detector, values, cut):
    """Bit for bit, wherever in its window and its step it was."""
    scorer = detector(window=10, step=4)
    scores = [scorer.update({"value": value}) for value in values]
    first = detector(window=10, step=4)
    before = [first.update({"value": value}) for value in values[:cut]]
    second = detector(window=10, step=4)
    second.restore(pickle.loads(pickle.dumps(first.snapshot())))
    assert before + [second.update({"value": value}) for value in values[cut:]] == scores


def test_the_window_moves_by_steps(detector):
    """A window of 4 that moves by 2: refitted on values 3 to 6 with the sixth, and not with the fifth."""
    scorer = detector(window=4, step=2)
    means = []
    for value in range(1, 9):
        scorer.update({"value": value})
        means.append(scorer.mean)
    assert means == [1.0, 1.5, 2.0, 2.5, 2.5, 4.5, 4.5, 6.5]


def test_a_sensor_that_stands_still_is_sure_of_its_value(detector):
    """A spread of nothing is read as a millionth: the value itself scores 0.5, any other 1."""
    scorer = detector(window=4, step=2)
    for _ in range(20):
        made = scorer.update({"value": 7})
    assert made == {"score": 0.5, "learned": 5}
    assert scorer.score(7.1) == 1.0
