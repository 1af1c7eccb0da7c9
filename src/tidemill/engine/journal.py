"""The journal: the way from sources that cannot seek to the intake, through the ingest log.

    sources ──put──▶ log (memory) ──sync──▶ disk ──▶ acknowledged ──feed──▶ intake
                                                          └ from memory while the intake keeps up, else read back: the spool

What enters the intake is on the disk: nothing behind it, in a sink or a checkpoint, can know of an input that a power cut
takes away. The log's order is the input order, and whatever replays it gets the very same inputs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.core.epochs import NEARLY_FULL
from tidemill.core.rate import Rate
from tidemill.engine.ingest_log import IngestLog
from tidemill.errors import InputError, OutsideError
from tidemill.formats.entries import ControlEntry, RecordsEntry, decode_entry, encode_entry, find_unkept
from tidemill.letters import AT_A_TIME, DeadLetter
from tidemill.sources.base import Source

__all__ = ["Journal", "JournalStatistics"]

Entry = RecordsEntry | ControlEntry

_GROUP_S: Final = 0.001
"""How long an entry waits at most for others to be synced together with it."""
_UNSYNCED: Final = 16 << 20
"""Bytes that may wait to be synced before sources wait too."""
_REMEMBERED: Final = 32 << 20
"""Bytes of entries that are kept for the intake; what does not fit is read back from the disk."""
_READ_BYTES: Final = 4 << 20
_READ_ENTRIES: Final = 256
_LOOK_S: Final = 0.1
"""How often a full log is looked at again."""
_LOOKED_AT_S: Final = 10.0
"""Seconds of input after which a run says for how long its log has room."""
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class JournalStatistics:
    """How a journal is."""

    unsynced: int
    """Entries that are not on the disk yet."""
    waiting: int
    """Entries on the disk that the intake has not been given."""
    remembered_bytes: int
    """Of these, the bytes that need not be read back."""
    room_bytes: int
    """What the log may still take."""
    full: bool
    """Whether sources wait for that."""
    seconds_left: float
    """How long that lasts at the rate of the last seconds, while nothing is taken out; infinite while nothing comes."""


@dataclass(frozen=True)
class _Remembered:
    number: int
    size: int
    entry: Entry


class Journal:
    """One run's way through its log; sources that can seek are told where they stand behind what is in it. ``begin`` is called
    before what has come reaches the disk, in a thread."""

    def __init__(
        self, log: IngestLog, clock: Clock, sources: Sequence[Source], *, begin: Callable[[], None] = lambda: None
    ) -> None:
        self.log = log
        self._begin = begin
        self._sources = {source.name: source for source in sources}
        self._clock = clock
        self._remembered: deque[_Remembered] = deque()
        self._bytes = 0
        self._given: dict[str, int] = {}
        self._unacknowledged: deque[tuple[int, str, int]] = deque()  # (entry, source, its entries up to that one)
        self._appended = asyncio.Event()
        self._synced = asyncio.Condition()
        self._letters: dict[str, list[DeadLetter]] = {}
        self.closed = False
        """Whether nothing more will come."""
        self._rate = Rate(clock.monotonic_ns())
        self.full = False
        """Whether sources wait for room in the log."""
        self._fed = 0
        self._syncing: asyncio.Future[int] | None = None
        self._looking: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "tidemill-log")
        """Of its own: neither work of the application nor a limit on threads, once it is there, keeps the log from the disk."""

    def statistics(self) -> JournalStatistics:
        """How it is, now."""
        log = self.log
        room = log.room()
        return JournalStatistics(
            log.end - log.durable,
            max(log.durable - self._fed, 0),
            self._bytes,
            room,
            self.full,
            self._rate.seconds_for(room, self._clock.monotonic_ns()),
        )

    def seek(self, start: int, offsets: Mapping[str, Any]) -> None:
        """Let sources that can seek go on behind what is in the log: ``offsets`` as of entry ``start``, and what is behind
        it. Blocks. Raises `OutsideError` when the log is not the one that the checkpoint goes on in.
        """
        first, end = self.log.first, self.log.end
        if not first <= start <= end:
            raise OutsideError(
                f"the ingest log in {self.log.folder} has entries {first:,} to {end:,}, and the checkpoint goes on at "
                f"{start:,}: was it removed, or put back from an older copy? Restore it, or start over with --fresh."
            )
        found = dict(offsets)
        if any(source.seekable for source in self._sources.values()):
            for _, data in self.log.read(start):
                entry = decode_entry(data)
                if isinstance(entry, RecordsEntry) and entry.offset is not None:
                    found[entry.source] = entry.offset
        for name, offset in found.items():
            if name in self._sources and self._sources[name].seekable:
                self._sources[name].seek(offset)

    def rewind(self, start: int) -> None:
        """All from entry ``start`` on is to be given once more."""
        self._fed = start

    # -- in ------------------------------------------------------------------------------------------------

    def begins(self, source: str) -> None:
        """A stream of this source begins, in which its batches are counted from the first on."""
        self._append_letters(source)
        self._given[source] = 0
        self._unacknowledged = deque(one for one in self._unacknowledged if one[1] != source)

    def refuse(self, letter: DeadLetter, source: str) -> None:
        """A source could not make a record of something; it comes before the source's next batch."""
        letters = self._letters.setdefault(source, [])
        letters.append(letter)
        if len(letters) == 1:
            asyncio.get_running_loop().call_soon(self._append_letters, source)
        elif len(letters) >= AT_A_TIME:  # now: a source that can seek stands right behind this one
            self._append_letters(source)

    def _append_letters(self, source: str) -> None:
        if letters := self._letters.pop(source, []):
            self._append_records(source, Batch({}, rows=0), tuple(letters))

    def _append_all_letters(self) -> None:
        for source in list(self._letters):
            self._append_letters(source)

    async def put(self, batch: Batch, source: str) -> None:
        """Add a source's batch, behind the letters it has refused; waits while the log is full, or the disk behind."""
        letters = tuple(self._letters.pop(source, ()))
        number = await self._append_batch(source, batch, letters) if len(batch) or letters else self.log.end - 1
        self._given[source] = self._given.get(source, 0) + 1
        self._unacknowledged.append((number, source, self._given[source]))
        if number < self.log.durable:  # no record is in it, and no sync will come for it
            self._tell()
        await self._wait_for_room()

    def ends(self, source: str) -> None:
        """A stream of this source has ended: where, if it can go on there, is known to the next start."""
        if self._sources[source].seekable:
            letters = tuple(self._letters.pop(source, ()))
            self._append_records(source, Batch({}, rows=0), letters)

    async def _append_batch(self, source: str, batch: Batch, letters: tuple[DeadLetter, ...]) -> int:
        try:
            return self._append_records(source, batch, letters)
        except InputError:
            if self._sources[
                source
            ].seekable:  # it stands behind the whole batch, which is in the log whole or not at all
                return self._append_kept(source, batch, letters)
        number = self.log.end
        for start in range(0, len(batch), AT_A_TIME):
            number = self._append_kept(source, batch.slice(start, start + AT_A_TIME), letters)
            letters = ()
            await asyncio.sleep(0)
        return number

    def _append_records(self, source: str, batch: Batch, letters: tuple[DeadLetter, ...]) -> int:
        stands = self._sources[source]
        offset = stands.offset() if stands.seekable else None
        return self._append(RecordsEntry(source, batch.without_origin(), letters, self._clock.wall_ns(), offset))

    def _append_kept(self, source: str, batch: Batch, letters: tuple[DeadLetter, ...]) -> int:
        """The batch, less the records that no file can keep: these become letters."""
        unkept = find_unkept(batch)
        if not unkept:
            return self._append_records(source, batch, letters)
        lost = np.array([reject.row for reject in unkept])
        away = batch.take(lost)
        rows = zip(unkept, away.to_rows(), away.key.tolist(), away.time.tolist(), strict=True)
        more = [
            DeadLetter(reject.reason_code, reject.reason, row, source, key=str(away.keys[code]), time_ns=ns)
            for reject, row, code, ns in rows
        ]
        kept = batch.take(np.setdiff1d(np.arange(len(batch)), lost))
        return self._append_records(source, kept, (*letters, *more))

    def decide(self, entry: ControlEntry) -> int:
        """Add a control record, behind the letters that came before; its number."""
        self._append_all_letters()
        return self._append(entry)

    def close(self) -> None:
        """Nothing more will come: `feed` returns when it has given all."""
        self._append_all_letters()
        self.closed = True
        self._appended.set()

    def _append(self, entry: Entry) -> int:
        parts = encode_entry(entry)
        size = sum(map(len, parts))
        number = self.log.append(parts)
        self._remembered.append(_Remembered(number, size, entry))
        self._bytes += size
        self._rate.add(size, self._clock.monotonic_ns())
        while self._bytes > _REMEMBERED and len(self._remembered) > 1:
            self._bytes -= self._remembered.popleft().size
        self._appended.set()
        return number

    @property
    def nearly_full(self) -> bool:
        """Whether sources wait for room in the log, or soon will."""
        return self.full or self.log.filled > NEARLY_FULL

    async def _wait_for_room(self) -> None:
        log = self.log
        if log.statistics().buffered_bytes > _UNSYNCED:
            async with self._synced:
                await self._synced.wait_for(lambda: log.statistics().buffered_bytes <= _UNSYNCED)
        while log.room() <= 0:
            if not self.full:
                self.full = True
                _log.warning("the ingest log is full, so sources wait: %s", log.why_full())
            await self._clock.sleep(_LOOK_S)
            # With nothing to sync, nobody else would see that there is room again.
            self._looking = asyncio.get_running_loop().run_in_executor(self._thread, log.look_again)
            await asyncio.shield(self._looking)
        if self.full:
            self.full = False
            _log.info("the ingest log has room again")

    # -- to the disk ---------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Bring entries to the disk, group by group, until the journal is closed and all are there."""
        while not self._ended:
            await self._appended.wait()
            self._appended.clear()
            while self.log.durable < self.log.end:
                self._syncing = asyncio.get_running_loop().run_in_executor(self._thread, self._sync)
                await asyncio.shield(self._syncing)
                self._tell()
                async with self._synced:
                    self._synced.notify_all()
                await asyncio.sleep(_GROUP_S)
        async with self._synced:
            self._synced.notify_all()

    def _sync(self) -> int:
        self._begin()
        return self.log.sync()

    async def synced(self) -> None:
        """Return at once, or when the sync that is under way has ended: no entry of now is on the disk any sooner."""
        if self._syncing is not None and not self._syncing.done():
            async with self._synced:
                await self._synced.wait()

    async def settle(self) -> None:
        """Return when no thread syncs any more; raises nothing."""
        under_way = [future for future in (self._syncing, self._looking) if future is not None]
        await asyncio.gather(*under_way, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def tell_of_room(self) -> None:
        """After some seconds of input: how long the sinks may be away."""
        await self._clock.sleep(_LOOKED_AT_S)
        statistics = self.statistics()
        if statistics.seconds_left < math.inf:
            _log.info(
                "should the sinks ever be away, the ingest log has room for %.1f hours at the present rate",
                statistics.seconds_left / 3600,
                extra={"log_seconds_left": round(statistics.seconds_left)},
            )

    def _tell(self) -> None:
        told: dict[str, int] = {}
        while self._unacknowledged and self._unacknowledged[0][0] < self.log.durable:
            _, source, entries = self._unacknowledged.popleft()
            told[source] = entries
        for source, entries in told.items():
            if self._sources[source].acknowledges:
                self._sources[source].kept(entries)

    # -- to the intake -------------------------------------------------------------------------------------

    async def feed(self, start: int, give: Callable[[int, Entry], Awaitable[None]]) -> None:
        """Give entries in order, from number ``start`` on, once they are on the disk; until the end of a closed journal."""
        self._fed = number = start
        reading: Iterator[tuple[int, bytes]] | None = None
        while await self._there(number):
            if self._remembered and self._remembered[0].number <= number:
                reading = None
                some = [(number, self._recalled(number))]
            else:
                reading = reading or self.log.read(number)
                some = await asyncio.to_thread(_some, reading)
                reading = reading if some else None
            for at, entry in some:
                await give(at, entry)
                self._fed = number = at + 1
                await asyncio.sleep(0)  # with room for them all, nothing else would let others have a turn

    async def _there(self, number: int) -> bool:
        if number >= self.log.durable:
            async with self._synced:
                await self._synced.wait_for(lambda: number < self.log.durable or self._ended)
        return number < self.log.durable

    @property
    def _ended(self) -> bool:
        return self.closed and self.log.durable == self.log.end

    def _recalled(self, number: int) -> Entry:
        while self._remembered[0].number < number:
            self._bytes -= self._remembered.popleft().size
        first = self._remembered.popleft()
        self._bytes -= first.size
        return first.entry


def _some(entries: Iterator[tuple[int, bytes]]) -> list[tuple[int, Any]]:
    """The next entries, decoded: what takes a few milliseconds of a thread."""
    read: list[tuple[int, Any]] = []
    size = 0
    for number, data in entries:
        read.append((number, decode_entry(data)))
        size += len(data)
        if size >= _READ_BYTES or len(read) >= _READ_ENTRIES:
            break
    return read
