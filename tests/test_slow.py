"""The list of slow tests names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.slow import slow_tests

ROOT = Path(__file__).parents[1]


def test_each_line_is_a_test() -> None:
    """One that was renamed would be in the fast ones again, and nobody would know why they are slow."""
    for test in sorted(slow_tests()):
        path, *names = test.split("::")
        text = (ROOT / path).read_text()
        name = names[0]
        assert re.search(rf"(def {name}\(|class {name}\b|^{name} = )", text, re.MULTILINE), test
