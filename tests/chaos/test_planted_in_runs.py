"""R29: who has found no failure may be blind. So bugs are planted, and each must be caught."""

from __future__ import annotations

import pytest
from tests.chaos.planted import PLANTED, outcome

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name, tmp_path):
    """By the test or the campaign that the table in docs/reliability.md names for it."""
    caught, said = outcome(name, tmp_path)
    assert caught, f"{PLANTED[name].caught_by} did not catch that {PLANTED[name].told}:\n{said[-3000:]}"
