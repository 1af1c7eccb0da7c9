"""R29: who has found no failure may be blind. So bugs are planted in whole runs, and campaigns must find each."""

from __future__ import annotations

import pytest
from tests.chaos.planted_in_runs import PLANTED, outcome

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", PLANTED)
def test_a_bug_that_is_planted_in_a_run_is_found(name, tmp_path):
    """By the campaign that the table in docs/reliability.md names for it."""
    caught, said = outcome(name, tmp_path)
    assert caught, f"{PLANTED[name].caught_by} did not find that {name}:\n{said[-3000:]}"
