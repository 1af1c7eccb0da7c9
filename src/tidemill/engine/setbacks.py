"""What keeps a run with state from going on: attempts that failed since it last got something done, and the pause before the next."""

from __future__ import annotations

import logging
from typing import Final

from tidemill.clock import Clock
from tidemill.core.backoff import Backoff, level_of_try
from tidemill.core.flows import Trouble, TroubleBook
from tidemill.engine.attempt import CHECKPOINT, Attempt
from tidemill.engine.readings import Readings
from tidemill.errors import OutsideError

__all__ = ["STATE_FOLDER", "Setbacks"]

STATE_FOLDER: Final = "state folder"
"""The culprit when another attempt cannot even begin."""
_BACK_OFF_S: Final = (0.2, 30.0)
"""Seconds before the next attempt: at first, and at most; doubled each time, and spread by chance."""
_log = logging.getLogger("tidemill")


class Setbacks:
    """Of one run, whose ``latest`` attempt is asked whether something was done since."""

    def __init__(self, clock: Clock, readings: Readings) -> None:
        self._clock, self._readings = clock, readings
        self._book = TroubleBook()
        self._backoff = Backoff(*_BACK_OFF_S)
        self._done_before = (0, 0)

    def failed(self, culprit: str, error: BaseException, latest: Attempt) -> float:
        """An attempt has failed, and another is to come; seconds until then."""
        self._look(latest)
        if not self._book.open:
            self._backoff = Backoff(*_BACK_OFF_S)
        self._done_before = self._done(latest)
        tried, now = self._readings.attempt_ends(culprit), self._clock.monotonic_ns()
        self._book.failed(culprit, str(error), now, tried)
        wait_s = self._backoff.failed(now)
        if isinstance(error, OutsideError):
            wait_s = max(wait_s, error.after_s)
        told = "%s. Once more from the last checkpoint in %.1f s; nothing is lost."
        _log.log(level_of_try(self._book.failures), told, str(error).rstrip("."), wait_s)
        return wait_s

    def read(self, latest: Attempt) -> Trouble | None:
        """What there is, now."""
        self._look(latest)
        return self._book.read(self._clock.monotonic_ns())

    def _look(self, latest: Attempt) -> None:
        """What failed is over once it was done since, or the run goes on and has nothing to do: a sink that is away may take rows,
        and fail when it is to commit them."""
        if not self._book.open:
            return
        culprit = self._book.culprit
        of_commits = culprit in (CHECKPOINT, STATE_FOLDER) or culprit.startswith("sink ")
        idle = latest.idle and not (of_commits and latest.unsaved)
        if idle or self._done(latest)[of_commits] > self._done_before[of_commits]:
            self._book.over()

    def _done(self, latest: Attempt) -> tuple[int, int]:
        """Batches that sinks have shown, and when the newest checkpoint was published."""
        return self._readings.shown, latest.published_ns
