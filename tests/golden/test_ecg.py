"""Heart beats of record 100 of the MIT-BIH Arrhythmia Database, against its cardiologists' annotations."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind

RATE = 360  # samples per second
NEAR = 36  # samples: 100 ms


def batch_of(values):
    return Batch({"MLII": Column(Kind.FLOAT, np.asarray(values, np.float64))})


def pairs(found, true):
    """Each true place with the found place of its own within 100 ms, where there is one; both ascend."""
    made, place = [], 0
    for beat in true:
        while place < len(found) and found[place] < beat - NEAR:
            place += 1
        if place < len(found) and found[place] <= beat + NEAR:
            made.append((beat, found[place]))
            place += 1
    return made


@pytest.fixture(scope="module")
def signal(recordings):
    return pd.read_csv(recordings / "mitbih_ecg/100_adc.csv.gz")["MLII"].to_numpy(np.float64)


@pytest.mark.slow
def test_every_beat_is_found_and_no_other(recordings, example, rows_of):
    """650,000 samples through a `Keyed` object in the lanes: 2,273 beats, one of them 9 samples before the end.

    A beat stands out after a third of a second; the recording does not last so long after its last one.
    """
    annotations = pd.read_csv(recordings / "mitbih_ecg/100_atr.csv")
    true = annotations.loc[annotations["symbol"] != "+", "sample"].tolist()
    source = tm.sources.Replay(recordings / "mitbih_ecg/100_adc.csv.gz", key="{stem}", time="sample")
    rows = rows_of(source, example("ecg").plan)
    found = [int(row["sample"]) - round(row["ago_s"] * RATE) for row in rows]
    hits = pairs(found, true)
    off = max(abs(beat - place) for beat, place in hits) / RATE
    latest = max(row["ago_s"] for row in rows)
    print(f"beats: found {len(hits)}, false {len(found) - len(hits)}, missed {len(true) - len(hits)}")
    print(f"at most {1e3 * off:.1f} ms off, told {latest:.2f} s after the beat at the latest")
    assert len(true) == 2_273
    assert len(found) == len(hits)
    assert [beat for beat, _ in hits] == true[:-1]
    assert off < 0.01
    assert latest < 0.5
    rates = [row["bpm"] for row in rows[1:]]
    assert rates == pytest.approx((60 * RATE / np.diff(found)).tolist())


def test_a_minute_in_batches_of_any_size_is_the_minute_as_a_whole(signal, example):
    """Bit for bit: row by row, halves, and three hundred cuts at random."""
    values = signal[100_000 : 100_000 + 60 * RATE]
    whole = example("ecg").Beats().update_many(batch_of(values))
    assert whole["beat"].sum() > 60
    chance = np.random.default_rng(100)
    for cuts in ([len(values) // 2], range(1, 3_000), sorted(chance.choice(len(values), 300, replace=False).tolist())):
        beats = example("ecg").Beats()
        parts = [
            beats.update_many(batch_of(values[start:stop]))
            for start, stop in itertools.pairwise([0, *cuts, len(values)])
            if start < stop
        ]
        for name, expected in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), expected, equal_nan=True)


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=300), st.integers(1, 40))
def test_a_moving_mean_depends_on_its_window_alone(example, values, width):
    """Each one is the mean of a window, with the bits that the window alone gives."""
    moving_mean = example("ecg").moving_mean
    signal = np.array([0.0] * (width - 1) + values)
    means = moving_mean(signal, width)
    assert len(means) == len(values)
    windows = np.lib.stride_tricks.sliding_window_view(signal, width)
    assert means == pytest.approx(windows.mean(axis=1), rel=1e-9, abs=1e-6, nan_ok=True)
    for window, mean in zip(windows, means, strict=True):
        assert np.array_equal(moving_mean(window, width), [mean], equal_nan=True)


def test_a_gap_hides_no_beat_for_long(signal, example):
    """One missing sample: its neighbours of four seconds are not judged, and all later beats are the same."""
    values = signal[: 30 * RATE].copy()
    whole = example("ecg").Beats().update_many(batch_of(values))
    values[10 * RATE] = np.nan
    gap = example("ecg").Beats().update_many(batch_of(values))
    after = slice(15 * RATE, None)
    assert gap["beat"][after].sum() > 10
    assert np.array_equal(gap["beat"][after], whole["beat"][after])
    assert np.array_equal(gap["ago_s"][after], whole["ago_s"][after], equal_nan=True)
