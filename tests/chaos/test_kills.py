"""kill -9 at any instant: the output is that of an uninterrupted run, row by row and bit by bit."""

from __future__ import annotations

import pytest
from tests.chaos.campaigns import campaign

pytestmark = pytest.mark.timeout(400)


def test_rows_do_not_know_how_many_lanes_were_killed(tmp_path):
    """R1: lanes at work, inside a checkpoint, and their successors as soon as they are there."""
    campaign("lanes", tmp_path)


def test_rows_do_not_know_how_often_the_engine_was_killed(tmp_path):
    """R2: the engine alone or all its processes at once, also while it begins again and while it writes a checkpoint."""
    campaign("engines", tmp_path)
