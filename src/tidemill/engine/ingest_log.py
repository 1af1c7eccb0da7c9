"""The ingest log: what was taken from sources that cannot seek, on disk before it is acknowledged or computed with.

Entries are opaque bytes here, numbered from 0 for ever. The event loop appends, one worker thread syncs, another may read;
nothing here knows asyncio. How the bytes lie on disk: `tidemill.engine.log_segments`; why: `docs/decisions/0039`.
"""

from __future__ import annotations

import errno
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from tidemill import files
from tidemill.engine.log_segments import Last, Segment, damage, find_segments, frames
from tidemill.errors import EngineError, OutsideError
from tidemill.files import PlacedFile
from tidemill.formats.log_frames import FRAME_BYTES, FRAMES_AT, MAX_ENTRY, NONE_BEFORE, Head, frame_head

__all__ = ["IngestLog", "IngestLogStatistics"]

SEGMENTS: Final = 8
"""Of so many, at least, a full log consists: room is made by whole segments, and the last one stays."""
SMALLEST_SEGMENT: Final = 64 << 10
PIECE: Final = 4 << 20
"""Bytes joined for one write: a group is one write, unless it is larger than this."""


@dataclass(frozen=True)
class IngestLogStatistics:
    """How the log is; entries are told by their numbers."""

    first: int
    """The oldest entry that is kept."""
    end: int
    """The number that the next entry will get."""
    durable: int
    """Entries below this are on disk."""
    bytes: int
    """Taken on disk, with what is only reserved."""
    segments: int
    """Files."""
    buffered_bytes: int
    """In memory, not yet on disk."""


class IngestLog:
    """An append-only log of entries in a folder, synced in groups.

    **Guarantees.** An entry whose number is below `durable` survives a crash of the process and a power failure, bit for bit.
    What is there beyond after a crash is a beginning of what was appended, in order, without a gap. Damage to an entry that
    was on disk is found, at the opening (in the last segment) or when it is read, but for one case: after a crash, damage to the very last
    group looks like a write that the crash has torn. (Whoever has noted a number elsewhere compares it with `end`.)

    **Errors.** `OutsideError` when the disk is full, fails, or holds a damaged log. After a failed write or sync the log is broken
    for good: nothing of that group counts, each later `append` and `sync` raises the same, and nothing is tried again, since a
    second sync would report success for data that is lost. A new `IngestLog` on the folder goes on from what is there.

    **Threads.** `append`, `room` and `statistics` never wait for the disk. `sync`, `forget` and reading are each done by one
    thread at a time, which may be three; `look` by any, `look_again` by the one that syncs. The folder must belong to one process alone (`tidemill.files.lock`).

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = IngestLog(Path(folder.name) / "log")
    >>> log.append(b"51.3"), log.append(b"51.4"), log.durable
    (0, 1, 0)
    >>> log.sync(), list(log.read(1))
    (2, [(1, b'51.4')])
    >>> log.close()
    >>> again = IngestLog(Path(folder.name) / "log")
    >>> again.end, again.close(), folder.cleanup()
    (2, None, None)
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = 10 << 30, min_free: int = 1 << 30, segment_bytes: int = 64 << 20
    ) -> None:
        self.folder = files.absolute(folder)
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._segment_bytes = min(segment_bytes, max(max_bytes // SEGMENTS, SMALLEST_SEGMENT))
        self._lock = threading.Lock()  # for the buffer and the list of segments; never held while the disk is used
        self._buffer: list[list[bytes]] = []
        self._buffered = 0  # bytes that are not on disk, those which a sync is writing included
        self._kept = 0  # bytes that are on disk, those which a sync is writing not included
        self._needed_from = 0  # entries below are not
        self._broken = ""
        self._closed = False
        self._segments: list[Segment] = []
        try:
            self._last = self._open()
            self._kept = self._size()
            self._free = self._look()
        except OSError as error:
            raise self._outside(error, "cannot be opened") from error
        self.end = self._last.end
        """The number that the next entry will get."""
        self.durable = self._last.end
        """Entries below this are on disk."""

    def _open(self) -> Last:
        files.make_folder(self.folder)
        found, half_made = find_segments(self.folder)
        if half_made is not None:
            files.remove(half_made)
        if not found:
            last = Last.make(self.folder, Head(uuid.uuid4().bytes, 0, NONE_BEFORE))
            found = [last.segment]
        else:
            last = Last.recover(found[-1])
        self._segments = found
        return last

    @property
    def first(self) -> int:
        """Number of the oldest entry that is kept; `end` in an empty log."""
        return self._segments[0].first

    # -- taking --------------------------------------------------------------------------------------------

    def append(self, entry: bytes | memoryview | list[bytes]) -> int:
        """Take one entry, given whole or in parts, into memory, and return its number. It is on disk after the next `sync`.

        A memoryview is copied, bytes are not. Takes it even without `room`, which is the caller's to ask for.
        """
        parts = list(entry) if isinstance(entry, list) else [bytes(entry)]
        length = sum(map(len, parts))
        if length > MAX_ENTRY:
            raise EngineError(f"an entry of {length} bytes is too large for the ingest log, which takes {MAX_ENTRY}")
        with self._lock:
            self._refuse_broken()
            number = self.end
            self._buffer.append(parts)
            self._buffered += FRAME_BYTES + length
            self.end += 1
        return number

    def sync(self) -> int:
        """Write and sync what was appended before the call; return `durable`. Blocks; one write and one sync for all of it.

        With nothing to write it only looks anew how much room there is.
        """
        with self._lock:
            self._refuse_broken()
            group, self._buffer = self._buffer, []
            taken = self._buffered
        try:
            if group:
                self._write(group)
            free = self._look()
        except OSError as error:
            self._break(error, "cannot be written")
        except BaseException as error:  # the group is in no buffer any more
            self._broken = f"the ingest log in {self.folder} was stopped by {error!r}."
            raise
        with self._lock:
            self._free = free
            self._kept = self._size()
            self._buffered -= taken
            self.durable += len(group)
            return self.durable

    def _write(self, group: list[list[bytes]]) -> None:
        pieces: list[bytes] = []
        number, size, count = self.durable, 0, 0
        seed = self._last.segment.head.seed
        for parts in group:
            length = FRAME_BYTES + sum(map(len, parts))
            used = self._last.place + size
            if used + length > self._segment_bytes and used > FRAMES_AT:
                self._last.write(b"".join(pieces), count)
                self._begin_segment()
                pieces, size, count = [], 0, 0
                seed = self._last.segment.head.seed
            elif size > PIECE:
                self._last.write(b"".join(pieces), count)
                pieces, size, count = [], 0, 0
            pieces += [frame_head(number, self.durable, parts, seed), *parts]
            size, count, number = size + length, count + 1, number + 1
        self._last.write(b"".join(pieces), count)
        self._last.sync()

    def _begin_segment(self) -> None:
        """The order matters: see `tidemill.engine.log_segments`."""
        full = self._last
        full.sync()
        head = full.segment.head
        self._last = Last.make(self.folder, Head(head.log, full.end, head.first))
        full.finish(followed=True)
        full.segment.end = full.end
        with self._lock:
            self._segments = [*self._segments, self._last.segment]

    # -- giving --------------------------------------------------------------------------------------------

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """The entries from ``start`` on with their numbers, up to `durable` as it is when it is reached. Blocks.

        Raises `OutsideError` when ``start`` is not kept any more, and at an entry that is damaged or cannot be read.
        """
        if start < self.first:
            raise self._forgotten(start)
        return self._read(start)

    def _read(self, number: int) -> Iterator[tuple[int, bytes]]:
        while number < self.durable:
            segment = self._segment_of(number)
            try:
                file = PlacedFile(segment.path, "read")
            except FileNotFoundError:
                raise self._forgotten(number) from None
            except OSError as error:
                raise self._outside(error, "cannot be read") from error
            try:
                for frame in self._frames(segment, file, number):
                    number = frame[0] + 1
                    yield frame
            except OSError as error:
                raise self._outside(error, "cannot be read") from error
            finally:
                file.close()

    def _frames(self, segment: Segment, file: PlacedFile, number: int) -> Iterator[tuple[int, bytes]]:
        """Of one segment, up to its end or to what is on disk."""
        at, place = segment.near(number)
        while at < (stop := self._stop(segment)):
            # Each round reads anew: what it had read before of a place that was not on disk then may be old.
            for frame in frames(file, place, at, segment.head.seed, stop):
                if segment.end is not None:  # else `sync` notes places there, in its thread
                    segment.note(at, place)
                at, place = at + 1, frame.end
                if frame.number >= number:
                    yield frame.number, frame.entry
            if at < stop:
                raise damage(segment.path, place, f"entry {at} is not whole, though all below {stop} were on disk")

    def _segment_of(self, number: int) -> Segment:
        segments = self._segments
        for segment in reversed(segments):
            if segment.first <= number:
                return segment
        raise self._forgotten(number)

    def _stop(self, segment: Segment) -> int:
        """The entry before which reading this segment ends."""
        durable = self.durable  # first: a segment has its end before an entry of the next one is on disk
        return durable if segment.end is None else min(durable, segment.end)

    # -- room ----------------------------------------------------------------------------------------------

    def forget(self, before: int) -> int:
        """Delete the segments of which all entries are below ``before``; return the bytes that are free again. Blocks.

        The last segment stays, till `look_again`. An entry that is being read meanwhile is still read.
        """
        freed = 0
        with self._lock:
            self._needed_from = max(self._needed_from, before)
        try:
            while (oldest := self._let_go()) is not None:
                files.remove(oldest.path)
                freed += oldest.size
            free = self._look()
        except OSError as error:
            self._break(error, "cannot forget")
        with self._lock:
            self._free = free
        return freed

    def _let_go(self) -> Segment | None:
        """The oldest segment, if nothing in it is needed, which is the log's no more."""
        with self._lock:
            if len(self._segments) < 2 or self._segments[1].first > min(self._needed_from, self.durable):
                return None
            oldest, self._segments = self._segments[0], self._segments[1:]
            self._kept -= oldest.size
            return oldest

    def look_again(self) -> None:
        """Of a full log, to which nobody appends: find out whether there is room by now, and make some where all of the last
        segment is forgotten, since one entry may fill the log. Blocks; by the thread that syncs."""
        with self._lock:
            self._refuse_broken()
            useless = self._last.segment.first < self.durable == self.end <= self._needed_from
        if useless:
            try:
                self._begin_segment()
            except OSError as error:
                self._break(error, "cannot be written")
            with self._lock:
                self._kept = self._size()
            self.forget(self._needed_from)
        else:
            self.look()

    def _look(self) -> int:
        """Bytes of the disk that may be taken, those which the last segment has reserved included."""
        return files.free_space(self.folder) + self._last.segment.size - self._last.place - self._min_free

    def look(self) -> None:
        """Find out anew how much the disk has left, for `room`. Blocks."""
        try:
            free = self._look()
        except OSError as error:
            raise self._outside(error, "cannot be looked at") from error
        with self._lock:
            self._free = free

    def room(self) -> int:
        """Bytes that may still be taken before ``max_bytes`` or ``min_free`` is reached, each entry with 24 of its own.

        What is buffered counts as taken. The free space of the disk is as the last `sync`, `forget` or `look` has found it.
        """
        with self._lock:
            return self._room()

    @property
    def filled(self) -> float:
        """Share of what the log may take that is taken, 0 to 1."""
        with self._lock:
            taken = self._kept + self._buffered
            return taken / max(taken + self._room(), 1)

    def _room(self) -> int:
        return max(min(self._max_bytes - self._kept, self._free) - self._buffered, 0)

    def _size(self) -> int:
        return sum(segment.size for segment in self._segments[:-1]) + self._last.place

    def why_full(self) -> str:
        """Which limit leaves no `room`, and what would make some."""
        with self._lock:
            if self._free - self._buffered <= 0:
                return f"the disk has {self._min_free} bytes left (log_min_free) or fewer; make room there"
            return f"{self._max_bytes} bytes are in it (log_max_bytes), and the sinks are behind"

    def statistics(self) -> IngestLogStatistics:
        """How the log is now."""
        with self._lock:
            return IngestLogStatistics(
                first=self.first,
                end=self.end,
                durable=self.durable,
                bytes=sum(segment.size for segment in self._segments),
                segments=len(self._segments),
                buffered_bytes=self._buffered,
            )

    # -- ending --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Sync what was appended, say in the file that this is all, and close it. Again is nothing. Blocks."""
        if self._closed:
            return
        try:
            if not self._broken:
                self.sync()
                self._last.finish(followed=False)
        except OSError as error:
            self._break(error, "cannot be closed")
        finally:
            self._closed = True
            self._broken = self._broken or f"the ingest log in {self.folder} was closed."
            self._last.file.close()

    def _refuse_broken(self) -> None:
        if self._broken:
            raise OutsideError(self._broken)

    def _break(self, error: OSError, what: str) -> NoReturn:
        """For good: see the class."""
        outside = self._outside(error, what)
        with self._lock:
            self._broken = str(outside)
        raise outside from error

    def _outside(self, error: OSError, what: str) -> OutsideError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutsideError(
                f"the disk of the ingest log in {self.folder} is full: {error.strerror}. Nothing is acknowledged that is not "
                f"on disk; make room and start again, and it goes on from there."
            )
        return OutsideError(
            f"the ingest log in {self.folder} {what}: {files.why(error)}. What is not known to be on disk was not "
            f"acknowledged; look after the disk and start again, and it goes on from there."
        )

    def _forgotten(self, number: int) -> OutsideError:
        return OutsideError(
            f"the ingest log in {self.folder} does not hold entry {number} any more; its oldest is {self.first}."
        )
