"""Lines in posts to a server of HTTP, one after the other; what its answers mean."""

from __future__ import annotations

import contextlib
import email.utils
import enum
import http
import json
import logging
import math
import re
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import quote, urlsplit

from tidemill.errors import InputError, OutsideError
from tidemill.printable import in_one_line
from tidemill.sinks.connecting import PROGRESS_S, connected, patiently
from tidemill.sinks.sent import REFUSED, TOO_LARGE, Sent, line_end

__all__ = ["Answer", "Meaning", "Poster", "meaning"]

_PIECE: Final = 1 << 14
"""Bytes that the server must take within `connecting.PROGRESS_S`."""
_READ: Final = 4 << 10
"""Bytes of an answer that are read."""
_TOLD: Final = 200
"""Characters of it that people are told."""
_ALL_REFUSED: Final = 100
"""Lines of which each was refused by itself before any line was taken: then it is not the lines' fault."""
_GZIP: Final = 31
"""Of zlib: with gzip's header."""
_LONGEST_PAUSE_S: Final = 3600.0
"""That is believed of a server that asks to come later."""
_AGAIN: Final = 32
"""Posts in a row that were taken, after which a larger one is tried than was too large before."""
_BODY_S: Final = 1.0
"""In which each part of the body of an answer comes that says that all is well."""
_LOOK_S: Final = 1.0
"""How often a deadline is looked at."""
_INTERIMS: Final = 100
"""Words before an answer, each with headers, that are read past."""
_INTERIM: Final = re.compile(rb"HTTP/1\.1 1[0-9][0-9]")
_SAFE: Final = "%/:?#[]@!$&'()*+,;=~"
"""What stands for itself in an address, whoever has written it."""
_PORTS: Final = {"http": 80, "https": 443}
_log = logging.getLogger("tidemill")


class Meaning(enum.Enum):
    """What a status says of a post."""

    TAKEN = enum.auto()
    BAD_LINES = enum.auto()
    """Some line of it, perhaps not all."""
    TOO_LARGE = enum.auto()
    LATER = enum.auto()
    REFUSED = enum.auto()
    """Whatever is posted: the address, the token, or a right."""


def meaning(status: int) -> Meaning:
    """What a status says of the lines that were posted.

    >>> meaning(204).name, meaning(400).name, meaning(413).name, meaning(503).name, meaning(401).name, meaning(301).name
    ('TAKEN', 'BAD_LINES', 'TOO_LARGE', 'LATER', 'REFUSED', 'REFUSED')
    """
    if 200 <= status < 300:
        return Meaning.TAKEN
    if status in (400, 422):
        return Meaning.BAD_LINES
    if status == 413:
        return Meaning.TOO_LARGE
    return Meaning.LATER if status in (408, 425, 429) or status >= 500 else Meaning.REFUSED


@dataclass(frozen=True)
class Answer:
    """What came of a post."""

    meaning: Meaning
    told: str = ""
    """Of one that is not taken: the status, and the words that came with it."""


class Poster:
    """Posts lines in order, at most ``size`` bytes of them at a time, and waits for each answer.

    What `meaning` says is wrong with a post is looked for by halves: a line that is refused by itself is counted, its neighbours
    are taken. A post without an answer, and one that is to come later, is posted again: at least once.

    ``prove`` is called when the server takes lines for the first time. What is refused whole before that is refused for good, and
    raises `InputError`; later it was right once, and raises `OutsideError`, as does a server that is away for longer than
    `connecting.PATIENCE_S`.

    ``shown`` is what people are shown of the address; ``hide`` takes what is secret out of what the server says; ``tried`` is told of
    each try.
    """

    def __init__(
        self,
        url: str,
        shown: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        sent: Sent,
        *,
        size: int,
        gzip: bool,
        proven: bool,
        prove: Callable[[], None],
        hide: Callable[[str], str],
        tried: Callable[[str], None],
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        self._target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_SAFE)
        self._shown, self._tls, self._sent, self._gzip = shown, tls, sent, gzip
        self._proven, self._prove, self._hide, self._tried = proven, prove, hide, tried
        own = {"User-Agent": "tidemill", "Accept-Encoding": "identity"}
        self._headers = {**own, **({"Content-Encoding": "gzip"} if gzip else {}), **headers}
        self._largest = self._size = size
        self._taken_in_a_row = 0
        self._refused = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._connection: HTTPConnection | None = None
        self._given_up = threading.Event()
        self._deadline = _Deadline(self._cut)

    def send(self, lines: bytes) -> None:
        self._waiting.append(lines)
        self._waiting_bytes += len(lines)
        if self._waiting_bytes >= self._size:
            self.drain()

    def drain(self) -> None:
        lines, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        if lines:
            self._deliver(lines)

    def close(self) -> None:
        self._deadline.end()
        self._drop()

    def give_up(self) -> None:
        self._given_up.set()
        self._cut()

    def _cut(self) -> None:
        """Whoever waits for the server is told that the connection has ended."""
        if (connection := self._connection) is not None:
            _shut(connection.sock)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- one post ------------------------------------------------------------------------------------

    def _deliver(self, lines: bytes) -> None:
        """Return when each of the lines was taken or is counted."""
        parts = [(0, len(lines))]
        while parts:
            start, end = parts.pop()
            cut = line_end(lines, start, min(start + self._size, end))
            if cut < end:
                parts.append((cut, end))
            part = lines[start:cut]
            answer = patiently(lambda: self._asked(part), self._given_up, self._tried)  # noqa: B023 - called at once
            if answer.meaning is Meaning.TAKEN:
                self._taken(part)
                continue
            if answer.meaning is Meaning.REFUSED:
                raise self._refusing(answer)
            middle = line_end(lines, start, start + len(part) // 2)
            if middle == cut:
                self._leave_out(answer)
                continue
            parts += [(middle, cut), (start, middle)]
            if answer.meaning is Meaning.TOO_LARGE:
                self._size = min(self._size, max(len(part) // 2, 1))
                self._taken_in_a_row = 0

    def _taken(self, lines: bytes) -> None:
        self._sent.went(lines)
        self._taken_in_a_row += 1
        if self._taken_in_a_row >= _AGAIN and self._size < self._largest:
            self._size, self._taken_in_a_row = min(2 * self._size, self._largest), 0
        if not self._proven:
            self._prove()
            self._proven = True

    def _leave_out(self, answer: Answer) -> None:
        reason = TOO_LARGE if answer.meaning is Meaning.TOO_LARGE else REFUSED
        if reason not in self._sent.left_out:
            _log.warning("%s refuses a line: it answers %s", self._shown, answer.told)
        self._sent.leave_out(reason)
        self._refused += 1
        if self._refused >= _ALL_REFUSED and not self._proven:
            raise InputError(
                f"{self._shown} has refused each of the first {_ALL_REFUSED} lines, and has taken none: it answers {answer.told}"
            )

    def _refusing(self, answer: Answer) -> InputError | OutsideError:
        told = f"{self._shown} refuses what is posted: it answers {answer.told}"
        return OutsideError(told) if self._proven else InputError(told)

    def _asked(self, lines: bytes) -> Answer:
        """Post once. Raises `OutsideError` when there is no answer, or one that says later."""
        self._require_wanted()
        why = ""
        try:
            connection = self._connected()
            self._require_wanted()
            wire = connection.sock
            whole = self._post(connection, _packed(lines) if self._gzip else lines)
            with self._deadline.within(PROGRESS_S):
                response = connection.getresponse()
                means = meaning(response.status)
                wire.settimeout(min(_BODY_S, PROGRESS_S))
                body, whole = _body(response, whole=whole)
            if connection.sock is not None:  # else it was closed with the answer
                wire.settimeout(PROGRESS_S)
        except (HTTPException, OSError, ValueError) as error:
            why = f"{self._shown} does not answer: {self._hide(_why(error))}."
        except BaseException:
            self._drop()
            raise
        if why:  # not from within: a traceback holds what is half read, and with it the connection
            self._drop()
            self._require_wanted()
            raise OutsideError(why)
        if not whole or response.will_close:
            self._drop()
        if means is Meaning.TAKEN:
            return Answer(means)
        told = _told(response.status, self._hide(_words(body)))
        if means is Meaning.LATER:
            after_s = _after_s(response.headers.get("Retry-After", ""))
            raise OutsideError(f"{self._shown} takes nothing now: it answers {told}", after_s=after_s)
        return Answer(means, told)

    def _require_wanted(self) -> None:
        if self._given_up.is_set():
            raise OutsideError(f"{self._shown} was given up.")

    def _connected(self) -> HTTPConnection:
        """The connection of the last post if it is as that left it, or another."""
        if (there := self._connection) is not None:
            if there.sock is not None and not _readable(there.sock):
                return there
            self._drop()
        made = (
            HTTPConnection(self._host, self._port)
            if self._tls is None
            else HTTPSConnection(self._host, self._port, context=self._tls)
        )
        made.response_class = _Response
        made.sock = connected(self._host, self._port, self._tls, self._shown)
        made.sock.settimeout(PROGRESS_S)
        self._connection = made
        return made

    def _post(self, connection: HTTPConnection, body: bytes) -> bool:
        """Whether all of it was sent: a server may say before that it does not want it."""
        connection.putrequest("POST", self._target, skip_accept_encoding=True)
        for name, value in self._headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        for start in range(0, len(body), _PIECE):
            if start and _has_answered(connection.sock):
                return False
            try:
                connection.send(body[start : start + _PIECE])
            except (BrokenPipeError, ConnectionResetError):  # it may have said why
                return False
        return True


class _Response(HTTPResponse):
    """The answer, and not what a server says before it: 102, 103 and the like. The library reads past 100 alone."""

    def begin(self) -> None:
        for _ in range(_INTERIMS):
            super().begin()
            if not 100 <= self.status < 200 or self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return
            self.headers = None  # type: ignore[assignment] # it has not begun
        raise HTTPException("it says 102, 103 and the like, and never answers")


def _body(response: HTTPResponse, *, whole: bool) -> tuple[bytes, bool]:
    """The beginning of what the answer says, and whether the connection is good for another. Its status has been said: a body that
    is none, or comes to no end, does not change that."""
    try:
        body = response.read(_READ)
        return body, whole and response.isclosed()
    except (HTTPException, OSError, ValueError):
        return b"", False


class _Deadline:
    """Within which all of an answer comes: each byte of it would have as long otherwise. One thread looks at it now and then."""

    def __init__(self, cut: Callable[[], None]) -> None:
        self._cut = cut
        self._until_s = math.inf
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self._until_s = time.monotonic() + seconds
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, args=[min(_LOOK_S, seconds / 4)], daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._until_s = math.inf

    def end(self) -> None:
        self._ended.set()

    def _watch(self, each_s: float) -> None:
        while not self._ended.wait(each_s):
            if time.monotonic() > self._until_s:
                self._cut()


def _shut(connected: socket.socket | None) -> None:
    """Whoever waits for it is told that it has ended."""
    if connected is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # of TLS, too: the wire itself


def _has_answered(connected: socket.socket) -> bool:
    """Whether the other side has said something that ends a post, or has gone. Of TLS, what has come may be its own business."""
    if isinstance(connected, ssl.SSLSocket):
        return connected.pending() > 0
    return _readable(connected) and not _INTERIM.match(connected.recv(_READ, socket.MSG_PEEK))


def _readable(connected: socket.socket) -> bool:
    """Whether the other side has said something, or has gone."""
    if isinstance(connected, ssl.SSLSocket) and connected.pending():
        return True
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))


def _packed(lines: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return packer.compress(lines) + packer.flush()


def _told(status: int, words: str) -> str:
    """Both as the end of a sentence."""
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
    if status in (401, 403):
        phrase += " (see token=, headers= or url)"
    said = in_one_line(words, longest=_TOLD).rstrip(".")
    return f"{' '.join(filter(None, (str(status), phrase)))}{': ' if said else ''}{said}."


def _words(body: bytes) -> str:
    """What a server says for people: what is under ``message`` or ``error`` in an object of JSON, or all of it."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    words = (said.get("message") or said.get("error")) if isinstance(said, dict) else None
    return words if isinstance(words, str) else text


def _after_s(said: str) -> float:
    """Seconds that a server asks for: a number of them, or a date."""
    if said.isascii() and said.isdigit():
        return min(float(said[:9]), _LONGEST_PAUSE_S)
    try:
        after_s = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(after_s, 0.0), _LONGEST_PAUSE_S)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it has done nothing for {PROGRESS_S:.0f} s"
    return in_one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__, longest=_TOLD).rstrip(
        "."
    )
