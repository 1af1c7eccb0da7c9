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


def test_rows_do_not_know_of_faults_that_meet(tmp_path):
    """R5: lanes, sinks' processes, the server that forks them and engines; and again before all is as it was."""
    campaign("mixed", tmp_path)


def test_nobody_writes_who_was_asleep_when_others_took_over(tmp_path):
    """R6: lanes, whole engines (a second start is refused) and sinks' processes of a dead engine are stopped and wake up."""
    campaign("zombies", tmp_path)


def test_rows_do_not_know_how_many_lanes_there_were(tmp_path):
    """R20: from one lane to four, two, none and three, by stops and by kills."""
    campaign("rescaling", tmp_path)


def test_a_signal_ends_a_run_in_order_and_the_next_works_on_nothing_again(tmp_path):
    """R24: SIGTERM, SIGINT, to one or to all, twice, and SIGHUP."""
    campaign("signals", tmp_path)


def test_a_live_plant_has_what_it_acknowledged_and_no_more_than_was_sent(tmp_path):
    """R28: random scripts of start, add, check, stop and kill, with any number of lanes, against `Plan.apply`."""
    campaign("scripts", tmp_path)
