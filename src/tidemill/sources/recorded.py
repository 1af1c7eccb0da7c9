"""What the sources of files have in common: blocks of one or several files in one order, and going on anywhere in it."""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill import files
from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.errors import InputError
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import EdgedSource, in_turns, pieces
from tidemill.sources.merge import Merge
from tidemill.sources.readers import BLOCK, Delivery, Place, Reader
from tidemill.sources.standing import OR_FRESH, Known, head_of, identified, is_packed, still_there

__all__ = ["RecordedSource", "Taken"]

_MOST_OPEN: Final = 128
"""Files of one source that may be open at a time, however few the process may have; half of what it may have, where that is
more: a file that rests must still be there when it is read on."""
Taken = tuple[Batch, NDArray[np.int64], bool]
"""Records, the times by which they are merged, and whether the pace begins anew with them."""


class RecordedSource(EdgedSource):
    """A source of files, which it reads in blocks and merges.

    The rejects of a block come before its records, and a block is read when no record can go without it: their order
    follows from the files alone. A file that grows while it is read is read to where it ended when the stream began; a
    stream that goes on from the end of one reads what was added since, and files that are new. In the middle of the
    files, an offset leaves both to a later stream.

    The offset holds, for each file, the block whose records are on their way. It is read and decoded again, as it was
    the first time, up to the record that the stream stood at.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sought: dict[str, Any] | None = None
        self._known: list[Known] = []
        self._at: list[dict[str, Any] | None] = []
        """Of each file: None when it is not begun, the block read last, or the end. Replaced, never changed."""
        self._done = 0
        """Records given of those that were taken from the merge last; ``_at`` is as before these were taken."""
        self._handing: tuple[int, int] | None = None
        """While the rejects of a block are handed over: the file, and how many of them."""
        self._wall_ns = 0
        self._readers: list[Reader] = []
        self._open: deque[Reader] = deque()
        """Those whose files are open, that read last at the end."""
        self._most_open = _MOST_OPEN

    @abc.abstractmethod
    def _recordings(self) -> list[tuple[Path, str]]:
        """The files that there are now, and their formats."""

    @abc.abstractmethod
    def _reader(self, path: Path, kind: str, size: int | None) -> Reader:
        """The reader of a file."""

    @property
    def reads(self) -> Sequence[Path]:
        return [path for path, _ in self._recordings()]

    @property
    def seekable(self) -> bool:
        return True

    # -- where it stands ---------------------------------------------------------------------------

    def offset(self) -> Any:
        if self._sought is not None:
            return self._sought
        at = self._at
        if self._handing is not None:
            place, rejects = self._handing
            at = [*at]
            at[place] = {**(at[place] or {}), "rejects": rejects}
        return {
            "of": self.kind,
            "files": self._known,
            "at": at,
            "done": self._done,
            "learned": self.edge.kinds.learned,
            "accepted": self.accepted,
            "wall_ns": self._wall_ns,
        }

    def beginning(self, wall_ns: int) -> Any:
        known = [identified(path) for path, _ in self._recordings()]
        return {
            "of": self.kind,
            "files": [{**file, "head": head_of(file)} for file in known],
            "at": [None] * len(known),
            "done": 0,
            "learned": self.edge.kinds.learned,
            "accepted": self.accepted,
            "wall_ns": wall_ns,
        }

    def seek(self, offset: Any) -> None:
        self.check_offset(offset)
        known, at = offset["files"], offset["at"]
        if not known:
            self._sought = None
            return
        now = still_there(known, at)
        there = {str(path) for path, _ in self._recordings()}
        for file, entry in zip(known, at, strict=True):
            if file["path"] not in there and not _ended(entry):
                raise InputError(
                    f"the state tells of {file['path']}, which source {self.name} does not read any more; "
                    f"give the path that it had, or start over with --fresh."
                )
        if all(map(_ended, at)):
            offset = {**offset, **self._beyond(now, at, there, len(offset["learned"]))}
        self._sought = offset

    def _beyond(
        self, now: list[Known], at: Sequence[dict[str, Any]], there: set[str], learned: int
    ) -> dict[str, list[Any]]:
        """The files and where to go on in them, when all of them have been read to their ends: with what came since."""
        found: dict[str, tuple[Known, dict[str, Any] | None]] = {path: (identified(Path(path)), None) for path in there}
        for known, entry in zip(now, at, strict=True):
            end = entry["end"]
            if end is not None and files.stamp(known["path"]) is not None and known["size"] > entry["size"]:
                found[known["path"]] = {**known, "head": None}, {"begin": end, "known": learned, "last": entry["last"]}
            else:
                found[known["path"]] = known, entry
        paths = sorted(found, key=Path)
        return {"files": [found[path][0] for path in paths], "at": [found[path][1] for path in paths]}

    # -- the run -----------------------------------------------------------------------------------

    async def unpaced(self, context: SourceContext) -> AsyncIterator[Batch]:
        """All records as fast as they are taken, for `stream`."""
        self._connected = True
        try:
            async for batch, _, _ in self.flow(context):
                for piece in pieces(batch):
                    if context.stopping.is_set():
                        return
                    yield self.given(piece)
                await asyncio.sleep(0)
        finally:
            self._connected = False
            self.close()

    async def flow(self, context: SourceContext, *, sequence: bool = False) -> AsyncIterator[Taken]:
        """The records, merged by time or with ``sequence`` file by file. Whoever takes them says `given` of each part
        before it is yielded, and `close` at the end."""
        sought = await asyncio.to_thread(self._begin, context)
        groups = [[reader] for reader in self._readers] if sequence else [self._readers]
        base = 0
        for readers in groups:
            merge = Merge(len(readers))
            if sought is not None:
                await self._go_back(context, merge, readers, base, sought["learned"])
            async for taken in self._merged(context, merge, readers, base):
                yield taken
            base += len(readers)

    def given(self, batch: Batch) -> Batch:
        """``batch``, counted: the next part of what was taken, which is about to be yielded."""
        self._records += len(batch)
        self._done += len(batch)
        return batch

    def close(self) -> None:
        """Let go of the files."""
        for reader in self._readers:
            reader.close()

    def _begin(self, context: SourceContext) -> dict[str, Any] | None:
        recordings = self._recordings()
        sought, self._sought = self._sought, None
        self._handing = None
        if sought is None:
            self._known = [identified(path) for path, _ in recordings]
            self._at, self._done, self._wall_ns = [None] * len(recordings), 0, context.clock.wall_ns()
        else:
            self._known, self._at = sought["files"], sought["at"]
            self._done, self._wall_ns = sought["done"], sought["wall_ns"]
            self.edge.kinds.relearn(sought["learned"])
            self._go_on_counting(sought["accepted"])
        self._open.clear()
        self._most_open = max(_MOST_OPEN, (files.may_be_open() or 0) // 2)
        kinds = dict(recordings)
        self._readers = [
            self._reader(path, kinds.get(path, ""), _size(path, known["size"]))
            for known in self._known
            for path in [Path(known["path"])]
        ]
        return sought

    async def _go_back(
        self, context: SourceContext, merge: Merge, readers: list[Reader], base: int, learned: list[list[str]]
    ) -> None:
        """Read the blocks again whose records were on their way, each with what was known when it was read first."""
        total = self.accepted
        for place, reader in enumerate(readers):
            entry = self._at[base + place]
            if entry is None:
                continue
            merge.begin(place, entry["last"])
            if _ended(entry):
                merge.finish(place)
                continue
            if "begin" in entry:
                reader.seek(Place((entry["begin"], BLOCK, entry["begin"]), entry["known"]))
                continue
            reader.seek(Place(tuple(entry["at"]), entry["known"]))
            self.edge.kinds.relearn(learned[: entry["known"]])
            delivery = await asyncio.to_thread(self._block, reader, context.clock)
            if delivery is None:
                raise InputError(f"{reader.path} is not what it was: it ends too early; {OR_FRESH}.")
            batch, letters = delivery
            merge.add(place, batch, gone=entry["records"])
            self.edge.kinds.relearn(learned)
            self._go_on_counting(total)
            if len(letters) > entry["rejects"]:
                self._set(base + place, {**entry, "rejects": len(letters)})
                await self._hand_over(context, base + place, delivery, entry["rejects"])

    async def _merged(
        self, context: SourceContext, merge: Merge, readers: list[Reader], base: int
    ) -> AsyncIterator[Taken]:
        first = True
        arrived_ns = 0
        while not context.stopping.is_set():
            for place in merge.wanting():
                while merge.wants(place):  # so that what is read next follows from where the files stand
                    arrived_ns = await self._read(context, merge, place, readers[place], base) or arrived_ns
                    if context.stopping.is_set():
                        return
            taken = merge.take()
            if taken is None:
                return
            batch, times = taken
            if self._done:
                batch, times = batch.slice(self._done, len(batch)), times[self._done :]
            batch.arrived_ns = arrived_ns or context.clock.monotonic_ns()  # of the read that releases it
            if len(batch):
                yield batch, times, first
                first = False
            if context.stopping.is_set():
                return
            self._note_gone(merge, base, len(readers))

    async def _read(self, context: SourceContext, merge: Merge, place: int, reader: Reader, base: int) -> int | None:
        """Read a block of a file into the merge; when it came."""
        if self._known[base + place]["head"] is None:
            known = [*self._known]
            known[base + place] = {**known[base + place], "head": await asyncio.to_thread(head_of, known[base + place])}
            self._known = known
        delivery = await asyncio.to_thread(self._block, reader, context.clock)
        last = merge.last(place)
        if delivery is None:
            reader.close()
            merge.finish(place)
            size = self._known[base + place]["size"]
            self._set(base + place, {"end": reader.end, "size": size, "last": last})
            return None
        batch, letters = delivery
        assert reader.place is not None
        entry = {"at": list(reader.place.at), "known": reader.place.known, "last": last}
        self._set(base + place, {**entry, "records": 0, "rejects": len(letters)})
        await self._hand_over(context, base + place, delivery, 0)
        merge.add(place, batch)
        return batch.arrived_ns

    def _block(self, reader: Reader, clock: Clock) -> Delivery | None:
        """The next block of a file, in a thread; of many files, those read longest ago rest meanwhile."""
        delivery = reader.read(clock)
        if reader in self._open:
            self._open.remove(reader)
        self._open.append(reader)
        if len(self._open) > self._most_open:
            self._open.popleft().rest()
        return delivery

    async def _hand_over(self, context: SourceContext, place: int, delivery: Delivery, start: int) -> None:
        async for number, letter in in_turns(delivery[1][start:]):
            self._handing = place, start + number
            self._rejected += 1
            context.reject(letter)
        self._handing = None

    def _set(self, place: int, entry: dict[str, Any]) -> None:
        self._at = [*self._at]
        self._at[place] = entry

    def _note_gone(self, merge: Merge, base: int, readers: int) -> None:
        """The records taken last are given, all of them."""
        at = [*self._at]
        for place in range(readers):
            entry = at[base + place]
            if entry is not None and entry.get("records") != merge.gone(place) and "records" in entry:
                at[base + place] = {**entry, "records": merge.gone(place)}
        self._at, self._done = at, 0


def _ended(entry: Any) -> bool:
    return entry is not None and "end" in entry


def _size(path: Path, size: int) -> int | None:
    """Where a reader ends; None where the file does."""
    return None if is_packed(path) or not size else size
