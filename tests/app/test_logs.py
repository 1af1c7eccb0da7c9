"""The log on stderr: a sentence, and what it is about as fields."""

from __future__ import annotations

import errno
import io
import logging
import re
import sys

import pytest

from tidemill.app.logs import logging_to_stderr


def told(monkeypatch: pytest.MonkeyPatch, *arguments: object, **options: object) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with logging_to_stderr():
        logging.getLogger("tidemill").warning(*arguments, **options)
    return stream.getvalue()


def test_fields_stand_behind_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With UTC times, each field once, quoted when it would read as several words."""
    line = told(monkeypatch, "lane %d: gone", 3, extra={"lane": 3, "signal": None, "why": 'a "word" = two\n', "no": ""})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING lane 3: gone lane=3 signal=None "
        r'why="a \\"word\\" = two\\n" no=""\n',
        line,
    )


def test_a_sentence_without_fields_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put behind it."""
    assert told(monkeypatch, "stopping").endswith("Z WARNING stopping\n")


def test_a_run_without_the_command_line_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers and levels are as they were when the block is left."""
    logger = logging.getLogger("tidemill")
    before = (list(logger.handlers), logger.level, logger.propagate)
    told(monkeypatch, "x")
    assert (list(logger.handlers), logger.level, logger.propagate) == before


def test_what_comes_from_outside_makes_no_line_of_its_own_and_gives_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensor may be called anything."""
    line = told(monkeypatch, "sensor %s is new", "a\n2026-01-01T00:00:00Z ERROR all is lost\x1b[2J\u202e")
    assert line.count("\n") == 1
    assert line.endswith(r"WARNING sensor a\n2026-01-01T00:00:00Z ERROR all is lost\x1b[2J\u202e is new" + "\n")


def test_a_line_that_cannot_be_written_is_not_told_of_at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk does not get a traceback for each line that it has no room for."""

    class Full(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise OSError(errno.ENOSPC, "no space")

    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    with logging_to_stderr():
        logging.getLogger("tidemill").warning("the disk is full")
    assert full.tries == 1
