"""The files of the ingest log: finding them, reading one, writing the last. What the bytes mean: `tidemill.formats.log_frames`.

The order of what is done to the disk is what makes a power failure harmless:

- a segment that is full is synced before the next one is made;
- the next one's file and folder are synced before an entry in it counts, and only then is the full one marked as followed;
- the oldest is removed, and the folder synced, before the second oldest is.

So only the last segment may end in a torn write, at most one segment is half made, and none is missing between two others.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill import files
from tidemill.errors import OutsideError
from tidemill.files import PlacedFile
from tidemill.formats.log_frames import (
    FRAME_BYTES,
    FRAMES_AT,
    NONE_BEFORE,
    VERSION,
    Frame,
    Head,
    Mark,
    entry_name,
    find_frame,
    first_of,
    length_of,
    number_of,
    read_frame,
    read_head,
    read_mark,
)

__all__ = ["Last", "Segment", "damage", "find_segments", "frames", "is_blank", "scattered"]

READ_BYTES: Final = 1 << 20
PLACES_EVERY: Final = 256 << 10
"""Bytes after which the place of an entry is remembered, so that reading from one passes over few others."""
STEP: Final = 8 << 20
"""Bytes reserved at once: often enough not to hold much of the disk, seldom enough to cost nothing."""


@dataclass
class Segment:
    """One file of the log, and what is known of it."""

    path: Path
    head: Head
    mark: Mark | None
    size: int
    """Bytes that it takes on disk."""
    end: int | None = None
    """Number of the first entry of the segment after it; None while there is none."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """Numbers of some entries, and where they begin; grows while others read it."""

    @property
    def first(self) -> int:
        """Number of its first entry."""
        return self.head.first

    def note(self, number: int, place: int) -> None:
        """An entry begins there."""
        if place - (self.places[-1][1] if self.places else FRAMES_AT) >= PLACES_EVERY:
            self.places.append((number, place))

    def near(self, number: int) -> tuple[int, int]:
        """The entry at or before this one whose place is known, and its place."""
        at = bisect_right(self.places, number, key=lambda known: known[0])
        return self.places[at - 1] if at else (self.first, FRAMES_AT)


def damage(path: Path, place: int, why: str) -> OutsideError:
    """The error for a file that is not as it was written."""
    return OutsideError(
        f"the ingest log is damaged in {path} at byte {place}: {why}. Entries may be lost from there on. Look at it with "
        f"`tidemill log {path.parent}`; put the file back from a copy, or begin anew with --fresh."
    )


# -- finding -----------------------------------------------------------------------------------------------


def find_segments(folder: Path) -> tuple[list[Segment], Path | None]:
    """The segments, oldest first, and the file of one whose making was cut short, if there is one.

    Only heads are read. Raises `OutsideError` when one is damaged, missing, of another log or from a newer tidemill, and
    OSError.
    """
    named = [(first, folder / name) for name in files.names_in(folder) if (first := first_of(name)) is not None]
    found: list[Segment] = []
    half_made: Path | None = None
    for first, path in named:
        is_last = path == named[-1][1]
        followed = bool(found and found[-1].mark and found[-1].mark.followed)
        if is_last and not followed and (found or not first) and _is_half_made(path):
            half_made = path
            continue
        segment = _read(path, first, found[-1] if found else None)
        if found:
            found[-1].end = segment.first
        found.append(segment)
    if found and found[-1].mark and found[-1].mark.followed:
        raise damage(
            found[-1].path,
            found[-1].size,
            f"the segment after it, which began with entry {found[-1].mark.end}, is missing",
        )
    return found, half_made


def _is_half_made(path: Path) -> bool:
    """Whether it is empty, or reads as zeros where the head and all else should be: entries come after a head on disk."""
    file = PlacedFile(path, "read")
    try:
        return file.size() == 0 or (file.size() >= FRAMES_AT and is_blank(file, 0))
    finally:
        file.close()


def _read(path: Path, first: int, before: Segment | None) -> Segment:
    file = PlacedFile(path, "read")
    try:
        data, size = file.read(0, FRAMES_AT), file.size()
    finally:
        file.close()
    try:
        head = read_head(data)
    except ValueError as error:
        raise damage(path, 0, str(error)) from None
    if head.version > VERSION:
        raise OutsideError(
            f"the ingest log in {path.parent} was written by a newer tidemill (version {head.version} of its format; this "
            f"one knows {VERSION}); run that one, or begin anew with --fresh."
        )
    if head.first != first:
        raise damage(path, 0, f"it begins with entry {head.first}, so that this is not its name")
    if before is not None and head.log != before.head.log:
        raise damage(path, 0, f"it is of another log than {before.path.name}")
    if before is not None and head.before != before.first:
        missing = "none" if head.before == NONE_BEFORE else entry_name(head.before)
        raise damage(path, 0, f"the segment before it should be {missing}, and is {before.path.name}")
    return Segment(path, head, read_mark(data), size)


# -- reading -----------------------------------------------------------------------------------------------


def frames(file: PlacedFile, place: int, number: int, seed: int, stop: int) -> Iterator[Frame]:
    """The entries from ``number``, which begins at ``place``, up to ``stop``; ends early at the first that is not whole."""
    data, base, at, size = b"", place, 0, file.size()
    while number < stop:
        if len(data) - at < FRAME_BYTES:
            base, at, data = base + at, 0, file.read(base + at, READ_BYTES)
            if len(data) < FRAME_BYTES:
                return
        length = length_of(data, at)
        if length is None or base + at + length > size:  # before memory is taken for a length that lies
            return
        if length > len(data) - at:
            base, at, data = base + at, 0, file.read(base + at, max(length, READ_BYTES))
        frame = read_frame(data, at, seed, base)
        if frame is None or frame.number != number:
            return
        yield frame
        at += length
        number += 1


def is_blank(file: PlacedFile, place: int) -> bool:
    """Whether nothing but zeros lies from ``place`` on: room that was only reserved."""
    while data := file.read(place, READ_BYTES):
        if data.strip(b"\0"):
            return False
        place += len(data)
    return True


def scattered(file: PlacedFile, place: int, seed: int, number: int) -> Iterator[Frame]:
    """The whole frames that lie anywhere from ``place`` on, where entry ``number`` should, whatever lies between them.

    What only looks like a frame is some sender's text, perhaps on purpose: it must have a number that could be there. When of
    all that has more than sixty-four times the bytes were looked at that there are, it raises `damage`.
    """
    size = file.size()
    most = number + (size - place) // FRAME_BYTES
    budget = 64 * (size - place)
    while data := file.read(place, READ_BYTES):
        at = find_frame(data, 0)
        while 0 <= at <= len(data) - FRAME_BYTES:
            length = length_of(data, at)
            if length is not None and place + at + length <= size and number <= number_of(data, at) <= most:
                budget -= length
                if budget < 0:
                    raise damage(
                        file.path,
                        place + at,
                        "so much from here on looks like entries that it cannot be told what is one",
                    )
                frame = _frame_at(file, place, data, at, length, seed)
                if frame is not None:
                    yield frame
            at = find_frame(data, at + 1)
        if len(data) < READ_BYTES:
            return
        place += READ_BYTES - FRAME_BYTES + 1  # a header may lie across, and is not found twice


def _frame_at(file: PlacedFile, place: int, data: bytes, at: int, length: int, seed: int) -> Frame | None:
    if length > len(data) - at:
        data, place, at = file.read(place + at, length), place + at, 0
    return read_frame(data, at, seed, place)


# -- writing -----------------------------------------------------------------------------------------------


class Last:
    """The last segment, open for writing. One thread; every method raises OSError."""

    def __init__(self, segment: Segment, file: PlacedFile, place: int, end: int) -> None:
        self.segment = segment
        self.file = file
        self.place = place
        """Where the next frame goes."""
        self.end = end
        """Number of the next entry."""

    @classmethod
    def make(cls, folder: Path, head: Head) -> Last:
        """A new segment; it is there for good when this returns."""
        path = folder / entry_name(head.first)
        file = PlacedFile(path, "create")
        try:
            file.write(0, head.pack())
            file.sync()
            files.sync_folder(folder)
        except BaseException:
            file.close()
            raise
        return cls(Segment(path, head, None, FRAMES_AT), file, FRAMES_AT, head.first)

    @classmethod
    def recover(cls, segment: Segment) -> Last:
        """The last segment of a log that may have ended in any way: cut behind its last whole entry, and on disk.

        Raises `OutsideError` when an entry is damaged that had been on disk.
        """
        file = PlacedFile(segment.path, "update")
        try:
            return cls._recovered(segment, file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _recovered(cls, segment: Segment, file: PlacedFile) -> Last:
        seed, mark = segment.head.seed, segment.mark
        number, place, sure = segment.first, FRAMES_AT, FRAMES_AT
        for frame in frames(file, place, number, seed, 1 << 64):
            if frame.on_disk == frame.number:  # the first that was written together: all before was on disk
                sure = frame.place
            segment.note(number, place)
            number, place = number + 1, frame.end
        on_disk = max((frame.on_disk for frame in scattered(file, place, seed, number)), default=0)
        on_disk = max(on_disk, mark.end if mark else 0)
        if on_disk > number:
            why = f"entry {number} is not whole, though all below {on_disk} were on disk"
            raise damage(segment.path, place, why)
        if not is_blank(file, place):
            file.truncate(place)
        # After a failed sync the cache of the operating system may show what the disk never got, and a sync of it would
        # succeed. So what no later entry confirms is written again.
        for start in range(sure, place, READ_BYTES):
            file.write(start, file.read(start, min(READ_BYTES, place - start)))
        file.sync()
        files.sync_folder(segment.path.parent)
        segment.size = file.size()
        return cls(segment, file, place, number)

    def write(self, data: bytes, count: int) -> None:
        """Put ``count`` frames behind the last; they are on disk after the next `sync`."""
        self._reserve(len(data))
        self.file.write(self.place, data)
        self.segment.note(self.end, self.place)
        self.place += len(data)
        self.end += count

    def _reserve(self, length: int) -> None:
        needed = self.place + length - self.segment.size
        if needed <= 0:
            return
        try:
            self.file.allocate(self.segment.size, max(needed, STEP))
        except OSError as error:
            if error.errno != errno.ENOSPC or needed >= STEP:
                raise
            self.file.allocate(self.segment.size, needed)  # the disk is nearly full: what is needed may still fit
        self.segment.size = self.file.size()

    def sync(self) -> None:
        """Return when all that was written is on disk."""
        self.file.sync()

    def finish(self, *, followed: bool) -> None:
        """Say in the file what it holds, once that is on disk; give back what was only reserved; close."""
        mark = Mark(self.end, self.place, followed)
        try:
            self.file.write(*mark.pack())
            self.file.truncate(self.place)
            self.file.sync()
        finally:
            self.file.close()
        self.segment.size = self.place
