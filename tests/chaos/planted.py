"""Ten bugs that would lose or double something, planted one at a time into a run of the tests, which must fail then.

A plugin of pytest: ``TIDEMILL_PLANTED=NAME python -m pytest -p tests.chaos.planted TEST``. The product has no switch for it:
its functions are replaced here, in the process of that run alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, settings

from tidemill import files
from tidemill.core.epochs import Epochs
from tidemill.engine.journal import Journal
from tidemill.engine.log_segments import Last
from tidemill.engine.outlets import ThreadOutlet
from tidemill.files import PlacedFile
from tidemill.sinks.sqlite import SQLite
from tidemill.sinks.sqlite_positions import KeptPosition
from tidemill.stages.state import StateMemory

__all__ = ["PLANTED", "Bug"]


@dataclass(frozen=True)
class Bug:
    """One of them, and the test that must see it."""

    plant: Callable[[], None]
    caught_by: str


def _acknowledged_before_it_is_synced() -> None:
    Last.sync = lambda self: None  # type: ignore[method-assign]


def _folders_are_not_synced() -> None:
    files.sync_folder = lambda folder: None


def _a_failed_sync_is_tried_again() -> None:
    real = Last.sync

    def sync(self: Last) -> None:
        try:
            real(self)
        except OSError:
            real(self)

    Last.sync = sync  # type: ignore[method-assign]


def _sinks_do_not_look_who_writes() -> None:
    real = KeptPosition.begin

    def begin(self: KeptPosition, connection: Any) -> bool:
        self._epoch = 1 << 62
        return real(self, connection)

    KeptPosition.begin = begin  # type: ignore[method-assign]


def _records_are_dropped_when_the_log_is_full() -> None:
    real = Journal.put

    async def put(self: Journal, batch: Any, source: str) -> None:
        if self.log.room() > 0:
            await real(self, batch, source)

    Journal.put = put  # type: ignore[method-assign]


def _the_position_is_committed_before_the_rows() -> None:
    real = SQLite.commit

    def commit(self: SQLite, position: int) -> None:
        connection = self._connection
        if self._kept is not None and connection is not None and connection.in_transaction:
            rows = connection.execute(f"SELECT MAX(rowid) FROM {self.table}").fetchone()
            connection.execute("ROLLBACK" if rows[0] else "COMMIT")
        real(self, position)

    SQLite.commit = commit  # type: ignore[method-assign]


def _the_undo_log_is_skipped() -> None:
    StateMemory.roll_back = lambda self: False  # type: ignore[method-assign]


def _sinks_are_given_what_they_have() -> None:
    async def open(self: ThreadOutlet, schema: Any) -> None:  # noqa: A001
        await self._call(lambda: self._host.open(schema))
        self.resumed_at = 0

    ThreadOutlet.open = open  # type: ignore[method-assign]


def _checkpoints_do_not_wait_for_sinks() -> None:
    def writable(self: Epochs) -> bool:
        barrier = self._barrier
        return barrier is not None and not barrier.writing and barrier.passed and not barrier.lanes

    Epochs.writable = property(writable)  # type: ignore[assignment, method-assign]


def _a_torn_tail_is_not_cut() -> None:
    PlacedFile.truncate = lambda self, size: None  # type: ignore[method-assign]


_DURABILITY = "tests/durability"
PLANTED = {
    "acknowledged before it is synced": Bug(
        _acknowledged_before_it_is_synced, f"{_DURABILITY}/test_log_power_loss.py::test_power_may_fail_at_any_moment"
    ),
    "folders are not synced": Bug(
        _folders_are_not_synced, f"{_DURABILITY}/test_log_power_loss.py::test_power_may_fail_at_any_moment"
    ),
    "a failed sync is tried again": Bug(
        _a_failed_sync_is_tried_again,
        "tests/engine/test_ingest_log.py::test_an_error_of_the_disk_breaks_the_log_for_good",
    ),
    "sinks do not look who writes": Bug(
        _sinks_do_not_look_who_writes, f"{_DURABILITY}/test_exactly_once.py::test_an_earlier_start_is_refused"
    ),
    "records are dropped when the log is full": Bug(
        _records_are_dropped_when_the_log_is_full,
        "tests/chaos/test_planted.py::test_a_full_log_makes_sources_wait_and_drops_nothing",
    ),
    "the position is committed before the rows": Bug(
        _the_position_is_committed_before_the_rows,
        f"{_DURABILITY}/test_exactly_once.py::test_rows_are_those_of_an_uninterrupted_run_however_often_it_ends",
    ),
    "the undo log is skipped": Bug(
        _the_undo_log_is_skipped, "tests/stages/test_rolling_time.py::test_roll_back_restores_every_bit"
    ),
    "sinks are given what they have": Bug(
        _sinks_are_given_what_they_have,
        f"{_DURABILITY}/test_resume.py::test_a_run_that_is_killed_goes_on_where_it_was",
    ),
    "checkpoints do not wait for sinks": Bug(
        _checkpoints_do_not_wait_for_sinks,
        "tests/chaos/test_simulation.py::test_every_input_is_in_every_sink_once_whatever_happens",
    ),
    "a torn tail is not cut": Bug(
        _a_torn_tail_is_not_cut, f"{_DURABILITY}/test_log_power_loss.py::test_power_may_fail_at_any_moment"
    ),
}


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """That a test fails is enough: nobody reads of a shorter example."""
    settings.register_profile("planted", settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("planted")


if name := os.environ.get("TIDEMILL_PLANTED"):
    PLANTED[name].plant()
