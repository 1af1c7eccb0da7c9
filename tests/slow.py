"""Which tests `make test-fast` leaves out beside whole folders: functions that take half a second or more, in ``slow.txt``.

    make test-fast ARGS="--durations=0 --durations-min=0.5" | .venv/bin/python -m tests.slow

adds those of a run on a quiet machine. To have one back, delete its line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["slow_tests"]

LIST: Final = Path(__file__).with_suffix(".txt")
LONG_S: Final = 0.5
_TOOK: Final = re.compile(r"([0-9.]+)s (?:call|setup|teardown) +(\S+?::[^\[\s]+)")


def slow_tests() -> frozenset[str]:
    """As ``path::function``, with the class in between where there is one."""
    return frozenset(LIST.read_text().split())


def _long(durations: Iterable[str]) -> set[str]:
    took = filter(None, map(_TOOK.match, durations))
    return {found[2] for found in took if float(found[1]) >= LONG_S}


if __name__ == "__main__":
    LIST.write_text("".join(f"{test}\n" for test in sorted(slow_tests() | _long(sys.stdin))))
