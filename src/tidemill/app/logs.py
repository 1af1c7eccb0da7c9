"""The engine's log, for a person at a terminal and for the machine that keeps it: one line each, on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

__all__ = ["logging_to_stderr"]


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """While open, what ``logging.getLogger("tidemill")`` is told from INFO on is written to stderr, with UTC times."""
    logger = logging.getLogger("tidemill")
    handler = logging.StreamHandler(sys.stderr)  # as it is now: the live view puts its own in place, to stay whole
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a root logger that the user's file set up would say everything twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
