"""Lines in posts to a server of HTTP, one after the other; what its answers mean."""

from __future__ import annotations

import enum
import http
import json
import logging
import ssl
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, NewConnectionError, SSLError
from urllib3.util import Retry, Timeout, parse_url

from tidemill.errors import InputError, OutsideError
from tidemill.printable import in_one_line
from tidemill.sinks.connecting import ANSWER_S, PROGRESS_S, Later, patiently, untrusting
from tidemill.sinks.sent_lines import REFUSED, TOO_LARGE, Sent

__all__ = ["Answer", "Meaning", "Poster", "meaning"]

_READ: Final = 4 << 10
"""Bytes of an answer that are read."""
_TOLD: Final = 200
"""Characters of it that people are told."""
_ALL_REFUSED: Final = 100
"""Lines of which each was refused by itself before any line was taken: then it is not the lines' fault."""
_GZIP: Final = 31
"""Of zlib: with gzip's header."""
_LONGEST_PAUSE_S: Final = 3600
"""That is believed of a server that asks to come later."""
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

    ``shown`` is what people are shown of the address; ``hide`` puts references back in place of what they stand for.
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
    ) -> None:
        self._shown, self._sent, self._size, self._gzip = shown, sent, size, gzip
        self._target = parse_url(url).request_uri
        self._proven, self._prove, self._hide = proven, prove, hide
        own = {
            "User-Agent": "tidemill",
            "Accept-Encoding": "identity",
            **({"Content-Encoding": "gzip"} if gzip else {}),
        }
        self._headers = {**own, **headers}
        self._refused = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        timeout = Timeout(connect=ANSWER_S, read=PROGRESS_S)
        verified = {"ssl_context": tls} if tls is not None else {}
        self._pool = urllib3.connection_from_url(url, maxsize=1, timeout=timeout, **verified)

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
        self._pool.close()

    # -- one post ------------------------------------------------------------------------------------

    def _deliver(self, lines: bytes) -> None:
        """Return when each of the lines was taken or is counted."""
        parts = [(0, len(lines))]
        while parts:
            start, end = parts.pop()
            cut = _line_end(lines, start, min(start + self._size, end))
            if cut < end:
                parts.append((cut, end))
            part = lines[start:cut]
            answer = patiently(lambda: self._asked(part))  # noqa: B023 - it is called at once
            if answer.meaning is Meaning.TAKEN:
                self._taken(part)
            elif answer.meaning is Meaning.REFUSED:
                raise self._refusing(answer)
            else:
                middle = _line_end(lines, start, start + len(part) // 2)
                if answer.meaning is Meaning.TOO_LARGE:
                    self._size = max(len(part) // 2, 1)
                if middle < cut:
                    parts += [(middle, cut), (start, middle)]
                else:
                    self._leave_out(answer)

    def _taken(self, lines: bytes) -> None:
        self._sent.went(lines)
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
        try:
            response = self._pool.urlopen(
                "POST", self._target, body=_packed(lines) if self._gzip else lines, headers=self._headers,
                retries=False, redirect=False, preload_content=False,  # nothing is asked again, or elsewhere, but by us
            )  # fmt: skip
            try:
                body = response.read(_READ, decode_content=False)
            finally:
                response.close()  # what has more to say than was read is not listened to
        except SSLError as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, ssl.SSLError):
                raise untrusting(self._shown, cause) from None
            raise OutsideError(f"{self._shown} ended the connection during TLS.") from None
        except (HTTPError, OSError) as error:
            raise OutsideError(f"{self._shown} cannot be reached: {self._hide(_why(error))}.") from None
        means = meaning(response.status)
        if means is Meaning.TAKEN:
            return Answer(means)
        told = _told(response.status, self._hide(_words(body)))
        if means is Meaning.LATER:
            raise Later(f"{self._shown} takes nothing now: it answers {told}", _after_s(response.headers))
        return Answer(means, told)


def _line_end(lines: bytes, start: int, before: int) -> int:
    """The end of the last line that has ended there, or else of the first."""
    return lines.rfind(b"\n", start, before) + 1 or lines.find(b"\n", start) + 1


def _packed(lines: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return packer.compress(lines) + packer.flush()


def _told(status: int, words: str) -> str:
    """Both as the end of a sentence."""
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
    said = in_one_line(words, longest=_TOLD).rstrip(".")
    return f"{' '.join(filter(None, (str(status), phrase)))}{': ' if said else ''}{said}."


def _words(body: bytes) -> str:
    """What a server says for people: what is under ``message`` or ``error`` in an object of JSON, or all of it."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except ValueError:
        return text
    words = (said.get("message") or said.get("error")) if isinstance(said, dict) else None
    return words if isinstance(words, str) else text


def _after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks for."""
    try:
        return min(Retry().parse_retry_after(headers.get("Retry-After", "0")), _LONGEST_PAUSE_S)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _why(error: Exception) -> str:
    slow = isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError))
    if slow and not isinstance(error, NewConnectionError):  # which urllib3 counts among them
        return "it does not answer"
    cause = error.__cause__ or (error.args[1] if len(error.args) > 1 else error)
    return in_one_line(getattr(cause, "strerror", None) or str(cause), longest=_TOLD).rstrip(".")
