"""Dead letters: the records that could not go on, as NDJSON that `sources.DeadLetters` can replay after a fix."""

from __future__ import annotations

import asyncio
import logging
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
        """Write what is left."""
        await self._flush()

    async def _flush(self) -> None:
        letters, self._waiting = self._waiting, []
        if letters and not self._full_told:
            await asyncio.to_thread(self._append, letters)

    def _append(self, letters: list[DeadLetter]) -> None:
        if self._bytes is None:
            self._bytes = self.path.stat().st_size if self.path.exists() else 0
        data = b"".join(_encoded(letter) + b"\n" for letter in letters)
        if self._bytes + len(data) > self._max_bytes:
            self._full_told = True
            _log.warning(
                "%s has reached %d MB; further dead letters are only counted", self.path, self._max_bytes >> 20
            )
            return
        files.append(self.path, data)
        self._bytes += len(data)


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
        return msgspec.json.encode(fields, enc_hook=_plain)
    except (TypeError, ValueError, RecursionError):  # surrogates, integers beyond 64 bits, endless nesting
        return msgspec.json.encode({**fields, "raw": repr(letter.raw)[:10_000]}, enc_hook=_plain)


def _plain(value: Any) -> Any:
    return repr(value)
