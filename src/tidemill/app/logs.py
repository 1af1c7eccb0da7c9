"""The engine's log, for a person at a terminal and for the machine that keeps it: one line each, on stderr.

A line is a sentence, and behind it what it is about as ``key=value``: lane, signal, source and so on. The engine gives
these as ``extra=`` of the standard library's logging, so that an application's own handlers have them as attributes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Final

__all__ = ["logging_to_stderr"]

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record of the standard library has."""


class _Formatter(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment] # it takes None too

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_shown(value)}" for name, value in vars(record).items() if name not in _OWN]
        return " ".join([super().format(record), *fields])


def _shown(value: object) -> str:
    """As it is; in quotes when it would be taken for several words."""
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """While open, what ``logging.getLogger("tidemill")`` is told from INFO on is written to stderr, with UTC times."""
    logger = logging.getLogger("tidemill")
    handler = logging.StreamHandler(sys.stderr)  # as it is now: the live view puts its own in place, to stay whole
    handler.setFormatter(_Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
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
