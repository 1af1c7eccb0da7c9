"""Real recordings through the whole engine, against pandas."""

from __future__ import annotations

import pandas as pd
import pytest

import tidemill as tm
from tidemill.testing import ListSink

pytestmark = pytest.mark.slow

STATISTICS = ["count", "mean", "std", "min", "max", "median"]


@pytest.fixture(scope="module")
def nab(recordings) -> pd.DataFrame:
    """All 31 files, each its own sensor, in the order of the merge."""
    frames = []
    for path in sorted(recordings.glob("nab/data/*/*.csv")):
        frame = pd.read_csv(path)
        frame["key"] = path.stem
        frames.append(frame)
    assert len(frames) == 31
    return pd.concat(frames)


@pytest.mark.parametrize("lanes", [0, 2])
def test_all_nab_recordings_together_equal_pandas(recordings, nab, lanes):
    """152,965 rows of 31 sensors, six of which look like integers: every statistic of every window as pandas has it."""
    sink = ListSink()
    source = tm.sources.Replay(recordings / "nab" / "data" / "*" / "*.csv", key="{stem}", time="timestamp")
    plan = tm.Plan(
        tm.Rolling("value", window=50, stats=STATISTICS), tm.Map(lambda batch: {"key": batch.keys[batch.key]})
    )
    report = tm.run(tm.Pipeline(source, plan, sink), lanes=lanes)
    assert (report.records_in, report.rows_out, report.dead_letters) == (152_965, 152_965, 0)
    ours = pd.DataFrame(sink.rows)
    for key, theirs in nab.groupby("key", sort=False):
        mine = ours[ours["key"] == key].reset_index(drop=True)
        assert mine["timestamp"].tolist() == theirs["timestamp"].tolist(), (
            key
        )  # each file's own order, clock steps included
        window = theirs["value"].reset_index(drop=True).rolling(50, min_periods=1)
        scale = max(1.0, theirs["value"].abs().max())
        for statistic in STATISTICS:
            expected = getattr(window, statistic)()
            pd.testing.assert_series_equal(
                mine[f"value_{statistic}_50"],
                expected,
                check_names=False,
                check_dtype=False,
                rtol=1e-9,
                atol=1e-7 * scale,
            )


def test_a_clock_that_steps_back_changes_nothing_in_a_count_window(recordings):
    """machine_temperature: 3,300 s back at row 10,149; the windows go by arrival."""
    path = recordings / "nab/data/realKnownCause/machine_temperature_system_failure.csv"
    frame = pd.read_csv(path)
    assert not pd.to_datetime(frame["timestamp"]).is_monotonic_increasing
    sink = ListSink()
    source = tm.sources.Replay(path, key="{stem}", time="timestamp")
    tm.run(tm.Pipeline(source, tm.Rolling("value", 50, ["min", "max"]), sink), lanes=2)
    ours = pd.DataFrame(sink.rows)
    assert ours["timestamp"].tolist() == frame["timestamp"].tolist()
    window = frame["value"].rolling(50, min_periods=1)
    assert ours["value_min_50"].tolist() == window.min().tolist()
    assert ours["value_max_50"].tolist() == window.max().tolist()
