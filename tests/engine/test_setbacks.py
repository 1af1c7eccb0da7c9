"""What keeps a run from going on, and how long it waits before it tries again."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tidemill.engine.attempt import CHECKPOINT
from tidemill.engine.setbacks import STATE_FOLDER, Setbacks
from tidemill.errors import OutsideError
from tidemill.testing import ManualClock

AWAY = OutsideError("the database is away.")


@pytest.fixture
def readings() -> Any:
    return SimpleNamespace(shown=0, attempt_ends=lambda culprit: None)


@pytest.fixture
def attempt() -> Any:
    return SimpleNamespace(idle=False, unsaved=False, published_ns=0)


@pytest.fixture
def setbacks(readings: Any) -> Setbacks:
    return Setbacks(ManualClock(), readings)


def test_pauses_double_until_something_was_done(setbacks: Setbacks, readings: Any, attempt: Any) -> None:
    """Each is somewhere in the upper half of its span, so that many do not come back at once."""
    for longest in (0.2, 0.4, 0.8):
        assert longest / 2 <= setbacks.failed("lane 0", AWAY, attempt) <= longest
    readings.shown += 1
    assert 0.1 <= setbacks.failed("lane 0", AWAY, attempt) <= 0.2


def test_who_says_how_long_to_wait_is_heard(setbacks: Setbacks, attempt: Any) -> None:
    """An error of the outside may know better than the doubling."""
    assert setbacks.failed("sink hub", OutsideError("too many requests.", after_s=60.0), attempt) == 60.0


@pytest.mark.parametrize("culprit", ["sink rows", CHECKPOINT, STATE_FOLDER])
def test_what_fails_at_commits_is_over_with_a_checkpoint(
    setbacks: Setbacks, readings: Any, attempt: Any, culprit: str
) -> None:
    """Not with rows that were shown, nor while the run is idle and has something to save."""
    setbacks.failed(culprit, AWAY, attempt)
    readings.shown, attempt.idle, attempt.unsaved = 5, True, True
    trouble = setbacks.read(attempt)
    assert trouble is not None
    assert (trouble.culprit, trouble.tries, trouble.said) == (culprit, 1, str(AWAY))
    attempt.published_ns = 1
    assert setbacks.read(attempt) is None


def test_a_run_with_nothing_to_do_has_no_trouble(setbacks: Setbacks, attempt: Any) -> None:
    """Nor anything to save: the next attempt was well begun."""
    setbacks.failed("sink rows", AWAY, attempt)
    attempt.idle = True
    assert setbacks.read(attempt) is None


def test_the_first_failures_in_a_row_are_warnings(
    setbacks: Setbacks, attempt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are counted in the line that is written each minute."""
    with caplog.at_level(logging.DEBUG, "tidemill"):
        for _ in range(4):
            setbacks.failed("sink rows", AWAY, attempt)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3 + ["DEBUG"]
    assert caplog.messages[0].startswith("the database is away. Once more from the last checkpoint in 0.")
