"""Dead letters: the records that could not go on, as NDJSON that `sources.DeadLetters` can replay after a fix."""

from __future__ import annotations

import asyncio
import logging
import math
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec

from tidemill import files
from tidemill.letters import DeadLetter

__all__ = ["DEFAULT_PATH", "MAX_BYTES", "DeadLetterFile"]

DEFAULT_PATH: Final = "dead_letters.ndjson"
MAX_BYTES: Final = 100 << 20
"""Beyond this, letters are counted and no longer written, so that a bad night cannot fill the disk."""
_WRITE_EVERY_S: Final = 0.2
_DEEPEST: Final = 50  # levels of nesting that are written as such
_log = logging.getLogger("tidemill")


class DeadLetterFile:
    """Counts letters at once and writes them, off the loop, a few times a second. The file is made by the first."""

    def __init__(self, path: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path or DEFAULT_PATH)
        self._max_bytes = max_bytes
        self._waiting: list[DeadLetter] = []
        self._bytes: int | None = None
        self._full_told = False
        self._wake = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None
        self.reasons: Counter[str] = Counter()
        self.samples: list[DeadLetter] = []
        """The first few, for messages."""

    @property
    def count(self) -> int:
        return self.reasons.total()

    def add(self, letter: DeadLetter) -> None:
        """Count a letter and queue it for writing."""
        self.reasons[letter.reason_code] += 1
        if len(self.samples) < 3:
            self.samples.append(letter)
        if not self._full_told:
            self._waiting.append(letter)
            self._wake.set()

    async def write(self) -> None:
        """Write what comes, until cancelled; `aclose` writes the rest."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()
            await asyncio.sleep(_WRITE_EVERY_S)

    async def aclose(self) -> None:
        """Write what is left; what was being written when `write` was cancelled comes first."""
        if self._writing is not None:
            await self._writing
        await self._flush()

    async def _flush(self) -> None:
        letters, self._waiting = self._waiting, []
        if letters and not self._full_told:
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._append, letters))
            await asyncio.shield(self._writing)
            self._writing = None

    def _append(self, letters: list[DeadLetter]) -> None:
        if self._bytes is None:
            self._bytes = self.path.stat().st_size if self.path.exists() else 0
        data = bytearray()
        for letter in letters:
            line = _encoded(letter) + b"\n"
            if self._bytes + len(data) + len(line) > self._max_bytes:
                self._full_told = True
                break
            data += line
        if data:
            files.append(self.path, bytes(data))
            self._bytes += len(data)
        if self._full_told:
            _log.warning(
                "%s has reached %d MB; further dead letters are only counted", self.path, self._max_bytes >> 20
            )


def _encoded(letter: DeadLetter) -> bytes:
    fields = {
        "reason_code": letter.reason_code,
        "reason": letter.reason,
        "source": letter.source,
        "stage": letter.stage,
        "key": letter.key,
        "position": letter.position,
        "raw": letter.raw,
    }
    try:
        data = msgspec.json.encode(fields, enc_hook=_shown)
        if b"null" not in data or _is_finite(letter.raw):
            return data
    except (TypeError, ValueError, OverflowError, RecursionError):  # half a surrogate pair, endless nesting
        pass
    return msgspec.json.encode({name: _plain(value) for name, value in fields.items()}, enc_hook=_shown)


def _is_finite(value: Any) -> bool:
    """Whether JSON can say it: of an infinite number it would make null, and hide what is wrong with the record."""
    if isinstance(value, float):
        return not math.isinf(value)
    if isinstance(value, dict | list | tuple):
        return all(_is_finite(item) for item in (value.values() if isinstance(value, dict) else value))
    return True


def _plain(value: Any, around: tuple[int, ...] = ()) -> Any:
    """The value as JSON can hold it; ``around`` are the ids of what it lies in."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return repr(value) if math.isinf(value) else value
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, dict | list | tuple) and len(around) < _DEEPEST and id(value) not in around:
        inside = (*around, id(value))
        if isinstance(value, dict):
            return {
                _plain(name) if isinstance(name, str) else _shown(name): _plain(item, inside)
                for name, item in value.items()
            }
        return [_plain(item, inside) for item in value]
    return _shown(value)


def _shown(value: Any) -> str:
    """Anything at all, as a short text; reprlib survives what raises, and what never ends."""
    return reprlib.repr(value).encode("utf-8", "backslashreplace").decode()
