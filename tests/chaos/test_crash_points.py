"""Each system call that changes the disk may be the last one, or one that fails."""

from __future__ import annotations

import pytest
from tests.chaos.campaigns import campaign

pytestmark = pytest.mark.timeout(600)


def test_rows_do_not_know_at_which_call_everything_was_killed(tmp_path):
    """R3: writes, syncs, renames and removals of engine, sinks and checkpoints, and of the run that goes on."""
    campaign("crash-points", tmp_path)


def test_rows_do_not_know_at_which_call_a_run_with_lanes_was_killed(tmp_path):
    """R3: the same where lanes and sinks have processes of their own."""
    campaign("crash-points-lanes", tmp_path)


def test_a_call_that_fails_is_told_and_never_tried_again(tmp_path):
    """R9, R10: ENOSPC and EIO wherever they come; one sentence, no second sync, and on from there."""
    campaign("failing-calls", tmp_path)
