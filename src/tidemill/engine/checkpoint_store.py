"""The folder of checkpoints: written whole or not at all, read only when every byte is as it was written.

00000000000000000012.checkpoint     its number, so that names sort as they were written
.00000000000000000013.checkpoint    one that is being written
"""

from __future__ import annotations

import contextlib
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from tidemill import files
from tidemill.clock import Clock, SystemClock
from tidemill.errors import EngineError, OutsideError
from tidemill.formats.checkpoint import (
    END_BYTES,
    START_BYTES,
    Damaged,
    Newer,
    Section,
    contents_of,
    end_of,
    ending,
    facts_of,
    padding,
    section_of,
    start_of,
    starting,
    value_of,
)

__all__ = ["Checkpoint", "CheckpointStore", "Listed", "listed", "newest", "prune"]

_NAME: Final = re.compile(r"(\d{20})\.checkpoint")
_HIDDEN: Final = re.compile(r"\.\d{20}\.checkpoint")
_BLOCK: Final = 4 << 20
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class Listed:
    """One file of the store."""

    number: int
    path: Path
    bytes: int
    position: int | None
    """How many inputs are in it; None where it cannot be read."""
    written_ns: int | None
    """When, by the wall clock."""
    why: str
    """Why it cannot be used; empty when it can."""

    @property
    def whole(self) -> bool:
        """Whether it can be used, as far as was looked."""
        return not self.why


class Checkpoint:
    """One that is whole. Its arrays stay on disk until they are asked for."""

    def __init__(self, number: int, facts: dict[str, Any], sections: Iterable[Section], path: Path) -> None:
        self.number = number
        self.facts = facts
        self._sections = {section.name: section for section in sections}
        self._path = path

    def __repr__(self) -> str:
        return f"Checkpoint({self.number}, position {self.facts.get('position')})"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._path.parent

    @property
    def names(self) -> tuple[str, ...]:
        """What `array` and `blob` can be asked for."""
        return tuple(self._sections)

    def array(self, name: str) -> NDArray[Any]:
        """The array, read from disk now and read-only. Raises `OutsideError` when it is no longer as it was."""
        value = self._value(name)
        if isinstance(value, bytes):
            raise EngineError(f"{name!r} in checkpoint {self.number} is a blob, not an array")
        return value

    def blob(self, name: str) -> bytes:
        """The bytes, read from disk now. Raises `OutsideError` when they are no longer as they were."""
        value = self._value(name)
        if not isinstance(value, bytes):
            raise EngineError(f"{name!r} in checkpoint {self.number} is an array, not a blob")
        return value

    def _value(self, name: str) -> NDArray[Any] | bytes:
        section = self._sections.get(name)
        if section is None:
            raise EngineError(f"checkpoint {self.number} holds nothing of the name {name!r}")
        try:
            with _opened(self._path) as file:
                return value_of(section, file.read(section.at, section.end - section.at))
        except (OSError, Damaged) as error:
            raise OutsideError(f"the checkpoint {self._path} cannot be read any more: {_told(error)}.") from error


class CheckpointStore:
    """Writes checkpoints, keeps the last few, and gives back the newest that is whole.

    One process at a time: the state folder's lock is held. What a crash left of an unfinished one is removed here. Raises
    `OutsideError` when the folder cannot be made or read.

    >>> import tempfile, numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = CheckpointStore(Path(folder.name) / "checkpoints")
    >>> size = store.write(1, {"position": 500}, [("state", np.arange(3.0)), ("keys", b"S1 S2 S3")])
    >>> found = store.newest()
    >>> found.facts["position"], found.array("state"), found.blob("keys")
    (500, array([0., 1., 2.]), b'S1 S2 S3')
    >>> folder.cleanup()
    """

    def __init__(self, folder: Path, *, keep: int = 3, clock: Clock | None = None) -> None:
        if keep < 1:
            raise EngineError(f"keep={keep}: one checkpoint at least must be kept")
        self.folder = files.absolute(folder)
        self.keep = keep
        self._clock = clock or SystemClock()
        try:
            files.make_folder(self.folder)
            for name in files.names_in(self.folder):
                if _HIDDEN.fullmatch(name):
                    files.remove(self.folder / name)
        except OSError as error:
            raise OutsideError(f"the folder of checkpoints {self.folder} cannot be used: {_told(error)}.") from error

    def write(self, number: int, facts: Mapping[str, Any], arrays: Iterable[tuple[str, NDArray[Any] | bytes]]) -> int:
        """Write a checkpoint, and remove those that are too old; returns its bytes. Blocks: for a thread.

        ``arrays`` are taken one by one, and none is copied or kept. When this returns, the checkpoint is on disk for good;
        until then the older ones are untouched. Raises `OutsideError` when the disk refuses: the checkpoint is then not to
        be counted on, whether it can be seen or not. Raises `InputError` for a fact that has no form in a file.
        """
        place = _place(self.folder, number)
        hidden = place.with_name(f".{place.name}")
        head = starting(number, self._clock.wall_ns(), facts)
        try:
            with contextlib.suppress(FileNotFoundError):
                files.remove(hidden)  # of a try that failed
            try:
                size = _write(hidden, head, arrays)
                files.publish(hidden, place)
            except BaseException:
                with contextlib.suppress(OSError):
                    files.remove(hidden)
                raise
        except OSError as error:
            raise OutsideError(f"checkpoint {number} cannot be written to {place}: {_told(error)}.") from error
        self.prune(self.keep)
        return size

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; see `newest`."""
        return newest(self.folder)

    def listed(self) -> list[Listed]:
        """The checkpoints there are, oldest first, by what stands at their starts and ends."""
        return listed(self.folder)

    def verify(self) -> list[Listed]:
        """The same, with every byte of every one read."""
        return listed(self.folder, verify=True)

    def prune(self, keep: int) -> list[Path]:
        """Remove all but the last ``keep``; see `prune`."""
        return prune(self.folder, keep)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in a folder that is whole, every byte of it read; None when there is none at all.

    Of each newer one that is damaged a warning tells why. Raises `OutsideError` when none is whole, and when one is met
    that a newer tidemill wrote: what it knows must not be forgotten without a word.
    """
    damaged = []
    paths = _paths(folder)
    for path in reversed(paths):
        try:
            with _opened(path) as file:
                number, _, facts, sections = _read(file, path)
                _check(file, sections)
        except Newer as error:
            raise OutsideError(
                f"the checkpoint {path} cannot be used: {error}. Use the tidemill that wrote it, or a newer one; or move "
                f"the file away to go on from an older checkpoint."
            ) from error
        except (OSError, Damaged) as error:
            damaged.append(f"{path.name}: {_told(error)}")
            if path != paths[0]:
                _log.warning("the checkpoint %s cannot be used, going back to the one before: %s", path, _told(error))
            continue
        return Checkpoint(number, facts, sections, path)
    if damaged:
        raise OutsideError(
            f"no checkpoint in {folder} is whole ({'; '.join(damaged)}). Restore the folder, or start over with "
            f"--fresh."
        )
    return None


def listed(folder: Path, *, verify: bool = False) -> list[Listed]:
    """The checkpoints in a folder, oldest first; changes nothing there. Raises `OutsideError` when it cannot be read."""
    try:
        return [_listed(path, verify=verify) for path in _paths(folder)]
    except OSError as error:
        raise OutsideError(f"{folder} cannot be read: {_told(error)}.") from error


def _listed(path: Path, *, verify: bool) -> Listed:
    number, size = _number(path), 0
    position = written_ns = None
    why = ""
    try:
        with _opened(path) as file:
            size = file.size()
            _, written_ns, facts, sections = _read(file, path)
            position = facts.get("position")
            if verify:
                _check(file, sections)
    except (OSError, Damaged, Newer) as error:
        why = _told(error)
    return Listed(number, path, size, position, written_ns, why)


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove what is older than the last ``keep`` (1 at least); returns what was removed.

    A damaged one does not count, as far as its start and end show it. Raises `OutsideError` when the disk refuses.
    """
    if keep < 1:
        raise EngineError(f"keep={keep}: one checkpoint at least must be kept")
    removed: list[Path] = []
    kept = 0
    try:
        for path in reversed(_paths(folder)):
            if kept < keep:
                kept += _listed(path, verify=False).whole
                continue
            with contextlib.suppress(FileNotFoundError):  # the run that writes here was quicker
                files.remove(path)
                removed.append(path)
    except OSError as error:
        raise OutsideError(f"{folder} cannot be pruned: {_told(error)}.") from error
    return removed


# -- files ---------------------------------------------------------------------------------------------


def _place(folder: Path, number: int) -> Path:
    if not 0 <= number < 10**19:
        raise EngineError(f"{number} is no number of a checkpoint")
    return folder / f"{number:020}.checkpoint"


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in files.names_in(folder) if _NAME.fullmatch(name)]


def _number(path: Path) -> int:
    return int(path.name[:20])


def _told(error: Exception) -> str:
    return files.why(error) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[files.PlacedFile]:
    file = files.PlacedFile(path, "read")
    try:
        yield file
    finally:
        file.close()


def _write(path: Path, head: bytes, arrays: Iterable[tuple[str, NDArray[Any] | bytes]]) -> int:
    """Write the file and sync it; its name is not for good yet."""
    file = files.PlacedFile(path, "create")
    try:
        file.write(0, head)
        at = len(head)
        sections: dict[str, Section] = {}
        for name, value in arrays:
            section, data = section_of(name, value, at)
            if name in sections:
                raise EngineError(f"a checkpoint was given two parts of the name {name!r}")
            file.write(at, data)
            file.write(at + len(data), padding(len(data)))
            sections[name] = section
            at = section.end
        end = ending(list(sections.values()), at)
        file.write(at, end)
        file.sync()
    finally:
        file.close()
    return at + len(end)


def _read(file: files.PlacedFile, path: Path) -> tuple[int, int, dict[str, Any], tuple[Section, ...]]:
    """Number, time, facts and sections; nothing of the sections is read yet."""
    size = file.size()
    start = start_of(file.read(0, START_BYTES))
    if start.number != _number(path):
        raise Damaged(f"it is checkpoint {start.number} under another's name")
    end = end_of(file.read(max(size - END_BYTES, 0), END_BYTES), size, start)
    facts = facts_of(start, file.read(START_BYTES, start.facts_end - START_BYTES))
    sections = contents_of(file.read(end.contents_at, end.contents_bytes), start, end)
    return start.number, start.written_ns, facts, sections


def _check(file: files.PlacedFile, sections: Iterable[Section]) -> None:
    """Compare all sections with their checksums, a few megabytes at a time."""
    for section in sections:
        crc = 0
        for at in range(section.at, section.end, _BLOCK):
            crc = zlib.crc32(file.read(at, min(_BLOCK, section.end - at)), crc)
        if crc != section.crc:
            raise Damaged(f"{section.name!r} does not match its checksum")
