"""The page about functions over windows: it runs as it stands, and each recipe is what SciPy or pandas computes."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.signal
import scipy.stats

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "window-functions.md"
CODE = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
WINDOW = 50


@pytest.fixture(scope="module")
def page():
    """Everything that the page defines."""
    names: dict = {}
    exec(compile(CODE, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def windows():
    """Noise, waves, and a sensor that stands still for a while."""
    rng = np.random.default_rng(3)
    waves = np.sin(np.arange(WINDOW) * rng.uniform(0.1, 2, (200, 1)) + rng.uniform(0, 6, (200, 1)))
    noise = rng.normal(0, 1, (200, WINDOW))
    still = np.cumsum(rng.normal(0, 1, (200, WINDOW)), axis=1)
    still[:, -8:] = still[:, -8:-7]
    still[100:, -30:] = still[100:, -30:-29]
    heavy = rng.standard_t(2, (200, WINDOW)) * 12 + 20
    return np.concatenate([waves + 0.1 * noise, noise, np.round(noise), still, heavy])


def entropy(page, windows):
    edges = [-np.inf, *page["BINS"], np.inf]
    return [scipy.stats.entropy(np.histogram(row, edges)[0]) for row in windows]


def zero_crossings(_, windows):
    """A zero is on no side: what is left without it are the sides, one after the other."""
    sides = [[value > 0 for value in row if value] for row in windows.tolist()]
    return [sum(a != b for a, b in pairwise(row)) for row in sides]


def band_power(page, windows):
    hertz, density = scipy.signal.periodogram(windows, page["RATE"], axis=1)
    return density[:, (hertz >= 8) & (hertz < 12)].sum(axis=1) * hertz[1]


def dominant_frequency(page, windows):
    hertz, density = scipy.signal.periodogram(windows, page["RATE"], axis=1)
    return hertz[density.argmax(axis=1)]


def gross_range(_, windows):
    newest = pd.Series(windows[:, -1])
    return newest.between(-5, 50).map({True: 1, False: 4}).where(~newest.between(-5, 50) | newest.between(0, 40), 3)


def spike(_, windows):
    heights = [abs(row[-2] - np.mean([row[-3], row[-1]])) for row in windows]
    return [4 if height > 8 else 3 if height > 3 else 1 for height in heights]


def flat_line(_, windows):
    still = [[pd.Series(row).rolling(n).apply(np.ptp).iloc[-1] < 0.01 for n in (12, 6)] for row in windows]
    return [4 if fail else 3 if suspect else 1 for fail, suspect in still]


ORACLES = {
    "peak_to_peak": lambda _, w: np.ptp(w, axis=1),
    "skew": lambda _, w: scipy.stats.skew(w, axis=1),
    "kurtosis": lambda _, w: scipy.stats.kurtosis(w, axis=1),
    "mad": lambda _, w: scipy.stats.median_abs_deviation(w, axis=1),
    "entropy": entropy,
    "zero_crossings": zero_crossings,
    "crest_factor": lambda _, w: np.linalg.norm(w, np.inf, axis=1) / np.sqrt(np.square(w).sum(axis=1) / WINDOW),
    "autocorrelation": lambda _, w: [pd.Series(row).autocorr(1) for row in w],
    "band_power": band_power,
    "dominant_frequency": dominant_frequency,
    "gross_range": gross_range,
    "spike": spike,
    "flat_line": flat_line,
}


@pytest.mark.parametrize("recipe", ORACLES)
def test_a_recipe_is_what_its_oracle_computes(page, windows, recipe):
    """Over noise, waves, outliers and still sensors; and each row by itself."""
    fn = page[recipe]
    made = fn(windows)
    np.testing.assert_allclose(made, np.asarray(ORACLES[recipe](page, windows), float), rtol=1e-9, atol=1e-12)
    alone = np.concatenate([fn(row[None, :]) for row in windows])
    assert made.tobytes() == alone.astype(made.dtype).tobytes()


@pytest.mark.parametrize("recipe", sorted(set(ORACLES) - {"gross_range", "spike", "flat_line"}))
def test_a_recipe_has_nan_where_a_value_is_missing(page, windows, recipe):
    """In a window that is not full, and in one with a hole; the others are not touched by it. Flags have a 9 of their own."""
    lacking = windows[:3].copy()
    lacking[0, :5] = lacking[1, 20] = np.nan
    made = page[recipe](lacking)
    assert np.isnan(made).tolist() == [True, True, False]
    assert made[2] == page[recipe](windows[2:3])[0]


def test_the_entropy_of_a_sensor_that_stands_still_is_zero(page):
    """And not a negative one."""
    assert str(page["entropy"](np.ones((1, 5)))[0]) == "0.0"


@pytest.mark.parametrize(
    ("row", "crossings"),
    [
        ([1, 0, -1], 1),
        ([1, 0, 0, -1, 0, 1], 2),
        ([1, 0, 1], 0),
        ([0, 0, -1, 1], 1),
        ([1, -1, 0, 0], 1),
        ([0, 0, 0], 0),
        ([1, -0.0, -1], 1),
        ([1e-200, -1e-200], 1),
        ([np.inf, -np.inf], 1),
    ],
)
def test_a_sign_that_changes_over_zeros_has_changed(page, row, crossings):
    """Once, however many zeros are between; and none where it comes back to the side it was on."""
    assert page["zero_crossings"](np.array([row], float)).tolist() == [crossings]


def test_a_band_in_which_a_window_has_no_frequency_has_no_power_that_is_known(page, windows):
    """Of 8 readings at 100 Hz the frequencies are 12.5 Hz apart: none lies from 8 to 12, and 0 would say that nothing moves."""
    short = windows[:5, :8].copy()
    short[0, 0] = np.nan
    assert np.isnan(page["band_power"](short)).all()
    assert np.isnan(page["band_power"](short, 8.0, 13.0)).tolist() == [True] + [False] * 4
    np.testing.assert_allclose(
        page["band_power"](short[1:], 8.0, 13.0),
        scipy.signal.periodogram(short[1:], page["RATE"], scaling="spectrum")[1][:, 1],
    )


def test_flags_show_every_verdict(page, windows):
    """The data above have good, suspect and failing readings for each flag, so that no verdict goes untested."""
    for recipe in ("gross_range", "spike", "flat_line"):
        assert set(page[recipe](windows).tolist()) == {1, 3, 4}, recipe
    missing = np.full((1, 12), np.nan)
    assert [page[recipe](missing).tolist() for recipe in ("gross_range", "spike", "flat_line")] == [[9]] * 3
    missing[:, -2:] = 1
    assert page["spike"](missing).tolist() == [2]


def test_every_recipe_of_the_page_has_an_oracle(page):
    """A function over windows that is shown is tested."""
    shown = {
        name for name, fn in page.items() if inspect.isfunction(fn) and "windows" in inspect.signature(fn).parameters
    }
    assert shown - {"lagged", "flags", "spectrum"} == set(ORACLES)


def test_the_page_runs_as_it_stands(tmp_path):
    """Its blocks, joined in a script."""
    (tmp_path / "shown.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, "shown.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0.689 1.997",
        "1.0 2.0",
        "[3, 4, 1] [4, 4, 4] 4",
        "['temp_autocorrelation_50', 'temp_kurtosis_50', 'temp_mad_50', 'temp_skew_50']",
    ]
