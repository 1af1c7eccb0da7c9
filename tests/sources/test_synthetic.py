"""Synthetic: the same records for the same seed, whatever the timing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.sources import Synthetic


async def test_the_pace_changes_nothing(drain: Any, script_clock: Any) -> None:
    """Unpaced, paced, and at another time: the same records in the same order."""
    options: dict[str, Any] = {
        "sensors": 7,
        "count": 5_000,
        "seed": 3,
        "spikes": 0.01,
        "gaps": 0.05,
        "late": 0.1,
        "duplicates": 0.02,
    }
    fast = await drain(Synthetic(rate=1e9, **options))
    paced = await drain(Synthetic(rate=1e9, **options), clock=script_clock)
    assert fast.count == 5_000
    assert fast.rows == paced.rows
    assert fast.keys == paced.keys == [row["sensor"] for row in fast.rows]
    other = await drain(Synthetic(rate=1e9, **{**options, "seed": 4}))
    assert other.rows != fast.rows


async def test_the_rate_is_kept(drain: Any, script_clock: Any) -> None:
    """At 100 records a second, a second of the clock gives 100 records, spaced evenly in event time."""
    began = script_clock.now_ns
    drained = await drain(Synthetic(sensors=10, rate=100.0, count=101), clock=script_clock)
    assert (script_clock.now_ns - began) / 1e9 == pytest.approx(1.0, abs=1e-3)
    assert set(np.diff(drained.times).tolist()) == {10_000_000}


async def test_stopping_ends_it(drain: Any) -> None:
    """An endless source ends when the run wants to end."""
    source = Synthetic(sensors=10, rate=None)
    assert not source.finite
    assert (await drain(source, until=lambda drained: drained.count > 20_000)).count > 20_000


def test_every_irregularity_happens() -> None:
    """Late records have older times than those before them; gaps and duplicates change the count; spikes leap."""

    def whole(**options: Any) -> Batch:
        return next(Synthetic(sensors=100, rate=None, **options).blocks())

    plain = whole()
    assert (np.diff(plain.time) >= 0).all()
    assert (np.diff(whole(late=0.1).time) < 0).any()
    assert len(whole(gaps=0.1)) < len(plain) < len(whole(duplicates=0.1))
    assert np.abs(whole(spikes=0.01)["value"] - plain["value"]).max() == pytest.approx(50.0)
    drifted = whole(drift=10.0)["value"] - plain["value"]
    assert drifted[-1] == pytest.approx(10.0 * (plain.time[-1] - plain.time[0]) / 3.6e12)


@pytest.mark.parametrize("shape", ["sine", "walk", "mixed"])
def test_every_shape_is_finite(shape: Any) -> None:
    """Values are finite and each sensor's own."""
    batch = next(Synthetic(sensors=40_000, rate=None, shape=shape).blocks())
    assert len(batch) == 40_000
    assert np.isfinite(batch["value"]).all()
    assert len(set(batch["value"].tolist())) > 39_000
    assert batch["unit"][0] == "C"


@pytest.mark.parametrize("options", [{"sensors": 0}, {"rate": 0}, {"late": 1.0}, {"shape": "square"}, {"count": -1}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    """The error names the option."""
    with pytest.raises(PlanError, match=next(iter(options))):
        Synthetic(**options)
