"""The engine's log, for a person at a terminal and for the machine that keeps it: one line each, on stderr.

A line is a sentence, and behind it what it is about as ``key=value``: lane, signal, source and so on; or all of it is a JSON
object. The engine gives these fields as ``extra=`` of the standard library's logging, so that an application's own handlers
have them as attributes. Whatever comes from outside, such as a sensor's name, is escaped: it makes no line of its own, and
gives a terminal no orders.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, TextIO

from tidemill.printable import lines_printable, printable

__all__ = ["LogFormat", "json_line", "logging_to_stderr"]

LogFormat = Literal["text", "json"]

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record of the standard library has."""
_TIME: Final = "%Y-%m-%dT%H:%M:%S"


def json_line(level: str, logger: str, message: str, fields: Mapping[str, Any], *, at_s: float | None = None) -> str:
    """A line of the log as a JSON object, in ASCII; its own names come before those of ``fields``.

    >>> json_line("INFO", "tidemill", "hello", {"lane": 3, "level": "none"}, at_s=0.25)
    '{"time": "1970-01-01T00:00:00.250Z", "level": "INFO", "logger": "tidemill", "message": "hello", "lane": 3}'
    """
    at = time.time() if at_s is None else at_s
    own = {
        "time": f"{time.strftime(_TIME, time.gmtime(at))}.{int(at * 1e3) % 1000:03d}Z",
        "level": level,
        "logger": logger,
        "message": message,
    }
    return json.dumps({**own, **{name: _plain(value) for name, value in fields.items() if name not in own}})


class _Text(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment] # it takes None too

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(message)s", _TIME)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's word
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's word
        return lines_printable(super().formatException(ei))

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_shown(value)}" for name, value in _fields(record).items()]
        return " ".join([super().format(record), *fields])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json_line(record.levelname, record.name, record.getMessage(), fields, at_s=record.created)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _shown(value: object) -> str:
    """As it is; in quotes when it would be taken for several words."""
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def _plain(value: object) -> object:
    """What JSON can say as itself, all else as its text."""
    is_plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and abs(value) < float("inf"))
    return value if is_plain else str(value)


class _Handler(logging.StreamHandler[TextIO]):
    """A line that cannot be written (a full disk, a terminal that is gone) is not told of by writing more to the same place."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's word
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextlib.contextmanager
def logging_to_stderr(log_format: LogFormat = "text") -> Iterator[None]:
    """While open, what ``logging.getLogger("tidemill")`` is told from INFO on is written to stderr, with UTC times."""
    logger = logging.getLogger("tidemill")
    handler = _Handler(sys.stderr)  # as it is now: the live view puts its own in place, to stay whole
    handler.setFormatter(_Json() if log_format == "json" else _Text())
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
