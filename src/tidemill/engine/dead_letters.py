"""Dead letters: the records that could not go on, as NDJSON that `sources.DeadLetters` can replay after a fix."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import reprlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tidemill import files
from tidemill.errors import InputError
from tidemill.formats.lines import shown
from tidemill.letters import DeadLetter

__all__ = ["DEFAULT_PATH", "MAX_BYTES", "NEWEST", "DeadLetterFile", "DeadLettersStatistics"]

DEFAULT_PATH: Final = "dead_letters.ndjson"
MAX_BYTES: Final = 100 << 20
"""Beyond this, letters are counted and only the newest are kept, so that a bad night cannot fill the disk."""
NEWEST: Final = 100
"""Letters beyond the cap that are written at the end, into a file beside the full one."""
_WRITE_EVERY_S: Final = 0.2
_SAMPLES: Final = 3  # letters
_SAMPLE_LETTERS: Final = 2_000  # of a line
_DEEPEST: Final = 50  # levels of nesting that are written as such
_UNPRINTABLE: Final = re.compile(r"[^ -~]")  # not all of what it finds is
_AS_WHO_WRITES: Final = os.access in os.supports_effective_ids
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class DeadLettersStatistics:
    """How a file of dead letters is."""

    letters: int
    """Letters since the beginning, written or not."""
    waiting: int
    """Letters that are to be written."""
    file_bytes: int
    """Of the file, with what was in it before this run."""
    full: bool
    """Whether letters are only counted and sampled from now on."""


@dataclass(frozen=True)
class _Bookmark:
    """Stands among the letters, and learns how long the file is there."""

    length: asyncio.Future[int]

    def settle(self, length: int) -> None:
        if not self.length.done():
            self.length.set_result(length)


def _why_not(path: Path) -> str:
    """Why the system would not have it written, though its modes would; empty when it would."""
    if not path.exists():
        return files.why_not_whole(path)
    if path.is_file():
        try:
            files.open_write(path, append=True).close()
        except OSError as error:
            return error.strerror or str(error)
    return ""


class DeadLetterFile:
    """Counts letters at once and writes them, off the loop, a few times a second. The file is made by the first.

    Once the file is full, the newest letters are kept in memory and replace the file `newest_path` at the end.

    ``keep_bytes`` is how long the file was at the checkpoint that the run goes on from: letters behind it come again.
    """

    def __init__(
        self, path: str | Path | None = None, *, max_bytes: int = MAX_BYTES, keep_bytes: int | None = None
    ) -> None:
        self._given = path is not None and path != ""
        self.path = Path(path or DEFAULT_PATH)
        self.newest_path = self.path.with_name(f"{self.path.stem}.newest{self.path.suffix}")
        """Where the newest letters go that the full file had no room for."""
        self._max_bytes = max_bytes
        self._waiting: list[DeadLetter | _Bookmark] = []
        self._keep_bytes = keep_bytes
        self._bytes: int | None = None
        self._line_end = b""
        self._full_told = False
        self._newest: deque[DeadLetter] = deque(maxlen=NEWEST)
        self._wake = asyncio.Event()
        self._unsynced = False
        self._writing: asyncio.Future[list[tuple[_Bookmark, int]]] | None = None
        self.reasons: Counter[str] = Counter()
        self.samples: list[DeadLetter] = []
        """The first few, for messages."""

    def check(self, *, default: bool = False) -> None:
        """Refuse a given path that cannot be written, with `InputError` and the absolute path; makes no file.

        ``default`` has the default path refused too, for a run whose input cannot be read again. Else that is tried only when a
        letter comes: a clean run in a read-only folder is no mistake.
        """
        if not self._given and not default:
            return
        tried = files.absolute(self.path)
        folder = tried.parent
        if tried.is_dir():
            why = "it is a folder"
        elif not folder.is_dir():
            why = f"{folder} is {'not a folder' if folder.exists() else 'not there'}"
        elif not os.access(tried if tried.exists() else folder, os.W_OK, effective_ids=_AS_WHO_WRITES):
            why = "this user may not write there"
        elif not (why := _why_not(tried)):
            return
        raise InputError(
            f"the dead letters cannot be written to {tried}: {why}. Name another file with dead_letters= (--dead-letters)."
        )

    @property
    def count(self) -> int:
        return self.reasons.total()

    def go_on_from(self, reasons: Counter[str], samples: Iterable[DeadLetter]) -> None:
        """Before the first letter: those of an earlier attempt, which are in the file."""
        self.reasons.update(reasons)
        self.samples.extend(samples)

    def statistics(self) -> DeadLettersStatistics:
        """How it is, now."""
        return DeadLettersStatistics(self.count, len(self._waiting), self._bytes or 0, self._full_told)

    def add(self, letter: DeadLetter) -> None:
        """Count a letter and queue it for writing."""
        self.add_all([letter])

    def add_all(self, letters: Sequence[DeadLetter]) -> None:
        """The same with as many as there are."""
        self.reasons.update([letter.reason_code for letter in letters])
        self.samples.extend(letters[: max(_SAMPLES - len(self.samples), 0)])
        self._waiting.extend(letters)
        if self._full_told:
            self._keep_newest()
        else:
            self._wake.set()

    @property
    def pending(self) -> bool:
        """Whether some are not in the file yet."""
        return bool(self._waiting) or self._writing is not None

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
        if self._newest:
            data = b"".join(_encoded(letter) + b"\n" for letter in self._newest)
            await asyncio.to_thread(files.write_whole, self.newest_path, data)

    def bookmark(self) -> asyncio.Future[int]:
        """The length of the file with all letters so far, and none that comes later, once it is on the disk."""
        length: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Bookmark(length))
        self._wake.set()
        return length

    def _keep_newest(self) -> None:
        letters: list[DeadLetter] = []
        for letter in self._waiting:
            if isinstance(letter, _Bookmark):
                letter.settle(self._bytes or 0)
            else:
                letters.append(letter)
        self._newest.extend(map(_short, letters[-NEWEST:]))
        self._waiting.clear()

    async def _flush(self) -> None:
        if self._full_told:
            self._keep_newest()
            return
        letters, self._waiting = self._waiting, []
        if letters:
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._append, letters))
            marked = await asyncio.shield(self._writing)
            self._writing = None
            for bookmark, length in marked:
                bookmark.settle(length)

    def _append(self, letters: list[DeadLetter | _Bookmark]) -> list[tuple[_Bookmark, int]]:
        self._bytes = self._begin() if self._bytes is None else min(self._bytes, self._length())
        data = bytearray()
        marked: list[tuple[_Bookmark, int]] = []
        left = deque(letters)
        letters.clear()  # each is let go of here when it is written: to free thousands of records at once holds the loop
        while left:
            letter = left.popleft()
            if isinstance(letter, _Bookmark):
                marked.append((letter, self._bytes + len(data)))
                continue
            line = self._line_end + _encoded(letter) + b"\n"
            if self._full_told or self._bytes + len(data) + len(line) > self._max_bytes:
                self._newest.append(_short(letter))
                self._full_told = True
                continue
            data += line
            self._line_end = b""
        self._unsynced |= bool(data)
        if data or (marked and self._unsynced):
            files.append(self.path, bytes(data), sync=bool(marked))
            self._unsynced = not marked
            self._bytes += len(data)
        if self._full_told:
            _log.warning(
                "%s has reached %d MB; further dead letters are counted, and the newest %d of them written to %s at the end",
                self.path,
                self._max_bytes >> 20,
                NEWEST,
                self.newest_path,
                extra={"dead_letters": self.count},
            )
        return marked

    def _begin(self) -> int:
        """The length of the file; what is behind the checkpoint that the run goes on from comes again."""
        there = self._length()
        if self._keep_bytes is not None and there > self._keep_bytes:
            files.truncate(self.path, self._keep_bytes)
            there = self._keep_bytes
        if there and not self._is_whole():
            self._line_end = b"\n"  # the last letter was cut short: keep ours apart from it
        return there

    def _is_whole(self) -> bool:
        try:
            with files.open_read(self.path, packed=True) as handle:
                return files.ends_in_newline(handle)
        except InputError:  # a file that may be written to, and not be read
            return True

    def _length(self) -> int:
        """Less than was written when somebody has moved the file away meanwhile, as programs that rotate logs do."""
        return self.path.stat().st_size if self.path.exists() else 0


def _short(letter: DeadLetter) -> DeadLetter:
    """A sample that may wait in memory till the end of the run: of a long line only the beginning."""
    if not isinstance(letter.raw, str) or len(letter.raw) <= _SAMPLE_LETTERS:
        return letter
    return replace(letter, raw=shown(letter.raw.encode("utf-8", "replace")))


def _encoded(letter: DeadLetter) -> bytes:
    fields = {
        "reason_code": letter.reason_code,
        "reason": letter.reason,
        "source": letter.source,
        "stage": letter.stage,
        "key": letter.key,
        "time": None if letter.time_ns is None else _time_text(letter.time_ns),
        "position": letter.position,
        "raw": letter.raw,
    }
    if letter.time_ns is None and letter.arrival:
        del fields["time"]  # a replay may stamp it, as its source would have
    if letter.header:
        fields["header"] = letter.header
    try:
        data = msgspec.json.encode(fields, enc_hook=_shown)
        if b"null" not in data or _is_finite(letter.raw):
            return _harmless(data)
    except Exception:  # noqa: BLE001, S110 - half a surrogate pair, endless nesting, a class or a zone of the user's that raises
        pass
    return _harmless(msgspec.json.encode({name: _plain(value) for name, value in fields.items()}, enc_hook=_shown))


def _harmless(data: bytes) -> bytes:
    """The same JSON, with everything escaped that moves, colours or reorders what a terminal shows."""
    if data.isascii() and b"\x7f" not in data:
        return data
    text = data.decode()
    return data if text.isprintable() else _UNPRINTABLE.sub(_escaped, text).encode()


def _escaped(one: re.Match[str]) -> str:
    return one[0] if one[0].isprintable() else json.dumps(one[0])[1:-1].replace("\x7f", "\\u007f")


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
                for name, item in dict.items(value)  # of a class of the user's, its own may raise
            }
        return [_plain(item, inside) for item in value]
    return _shown(value)


def _time_text(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns')}Z"


def _shown(value: Any) -> str:
    """Anything at all, as a short text; reprlib survives what raises, and what never ends."""
    if isinstance(value, np.datetime64):
        return f"{value}Z"
    return reprlib.repr(value).encode("utf-8", "backslashreplace").decode()
