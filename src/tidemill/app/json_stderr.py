"""stderr as JSON objects, one a line, whoever writes there: the log, functions in lanes, a library, a traceback.

    fd 2 of this process and of its children ──▶ pipe ──▶ a thread ──▶ stderr as it was

What is a line of JSON passes as it is; anything else becomes the message of one, a traceback as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from tidemill.app.logs import json_line

__all__ = ["Wrapped", "stderr_as_json"]

_READ: Final = 65_536
_LONGEST: Final = 65_536
"""Bytes of a line, or of a traceback; what is longer becomes several."""
_TRACEBACK: Final = "Traceback (most recent call last):"


class Wrapped:
    """Bytes in, lines of JSON out: a decision, without files.

    >>> lines = []
    >>> wrapped = Wrapped(lambda line: lines.append(json.loads(line)["message"]))
    >>> wrapped.feed(b"a line\\nand ha"); wrapped.feed(b"lf\\n\\n"); wrapped.feed(b"the rest"); wrapped.end()
    >>> lines
    ['a line', 'and half', 'the rest']
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._rest = b""
        self._traceback: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        while len(self._rest) >= _LONGEST:
            self._line(self._rest[:_LONGEST])
            self._rest = self._rest[_LONGEST:]

    def end(self) -> None:
        """There are no more."""
        self._line(self._rest)
        self._rest = b""
        self._end_traceback()

    def _line(self, data: bytes) -> None:
        line = data.decode("utf-8", "backslashreplace").rstrip("\r")
        if _is_object(line):
            self._end_traceback()
            self._write(line)
        elif self._traceback and line.startswith((" ", "\t")) and self._size < _LONGEST:
            self._traceback.append(line)
            self._size += len(line)
        elif self._traceback:  # the line behind the frames says what was raised
            self._traceback.append(line)
            self._end_traceback()
        elif line == _TRACEBACK:
            self._traceback, self._size = [line], 0
        elif line:
            self._write(json_line("INFO", "stderr", line, {}))

    def _end_traceback(self) -> None:
        lines, self._traceback = self._traceback, []
        if lines:
            self._write(json_line("ERROR", "stderr", lines[-1], {"traceback": "\n".join(lines)}))


def _is_object(line: str) -> bool:
    if not line.startswith("{") or not line.endswith("}"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@contextlib.contextmanager
def stderr_as_json() -> Iterator[None]:
    """While open. What this process writes before the end is out when this returns; what its children write, as far as it
    has come by then."""
    sys.stderr.flush()
    was = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    os.set_blocking(reading, False)
    over, end = os.pipe()

    def write(line: str) -> None:
        data = memoryview(line.encode() + b"\n")
        with contextlib.suppress(OSError):  # it takes nothing; what comes is read on, or those who write would wait
            while data:
                data = data[os.write(was, data) :]

    thread = threading.Thread(
        target=_pass_on, args=(reading, over, Wrapped(write)), name="tidemill-stderr", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the user may have put another stream there, which does anything
            sys.stderr.flush()
        os.dup2(was, 2)
        os.close(end)
        thread.join()
        for fd in (reading, over, was):
            os.close(fd)


def _pass_on(reading: int, over: int, wrapped: Wrapped) -> None:
    """Until nobody writes any more, or ``over`` is shut and what was written has been read."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(over, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reading, _READ):
                wrapped.feed(data)
            break  # all writers are gone
        if over in ready:
            break
    wrapped.end()
