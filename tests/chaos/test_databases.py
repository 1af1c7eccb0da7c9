"""PostgreSQL as the sink of whole runs: whatever dies in a commit, its table is that of an uninterrupted run."""

from __future__ import annotations

import pytest
from tests.chaos.campaigns import campaign

pytestmark = pytest.mark.timeout(400)


def test_a_table_does_not_know_in_which_commits_its_run_was_killed(tmp_path):
    """R25: the engine, its sink or both, at the rows, the position, the word COMMIT and its answer; by the next start when
    they had slept; and a line that is cut and a server that crashes there, after which the run is started again."""
    campaign("postgres", tmp_path)


def test_a_table_does_not_know_what_a_live_run_has_gone_through(tmp_path):
    """R25: the line, the server and the sink's process, in the same windows, of a run that goes on by itself."""
    campaign("postgres-live", tmp_path)


def test_a_server_that_is_away_for_a_minute_under_load_leaves_no_gap(tmp_path):
    """What comes meanwhile goes into the log and is acknowledged; memory is flat, and the pages name the sink and count tries."""
    campaign("outage", tmp_path, strikes=1)
