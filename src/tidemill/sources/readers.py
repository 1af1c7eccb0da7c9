"""One recording, block by block: what a thread reads and decodes while the loop is free."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from tidemill import files
from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.errors import InputError, MissingExtra
from tidemill.formats.csv_lines import CsvDecoder
from tidemill.formats.decoded import Decoded
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import LineFormat, known_of, line_format
from tidemill.formats.lines import LINE_LIMIT, LineSplitter, shown
from tidemill.interchange import columns_of_arrow, first_twice, naive_times
from tidemill.letters import OVERSIZE, DeadLetter, Letters

__all__ = [
    "BLOCK",
    "FORMATS",
    "Decoder",
    "Delivery",
    "LinesDecoder",
    "Place",
    "Reader",
    "decoder_for",
    "format_of",
    "header_of",
]

Delivery = tuple[Batch, Sequence[DeadLetter]]

BLOCK: Final = 1 << 16
"""Bytes of one read: a JSON block of this size is decoded in less than a millisecond, with the GIL held."""
_ROWS: Final = 8_192
_COUNTED_ANEW: Final = 1 << 18
"""Rows of a Parquet file after which, at the end of a row group, batches are counted anew."""
FORMATS: Final = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}


def format_of(path: Path, given: str | None) -> str:
    """The format of a file: as given, else by its suffix. Raises `InputError` when nothing says it."""
    if given is not None:
        return given
    try:
        return FORMATS[files.suffix(path)]
    except KeyError:
        raise InputError(
            f"nothing says what {path} is: its name ends in none of {', '.join(FORMATS)} (or those with .gz); "
            f'give format="csv", "ndjson" or "parquet". Line protocol is read by Lines({str(path)!r}, format="influx").'
        ) from None


class Decoder(Protocol):
    """Bytes in, records out."""

    @property
    def between(self) -> bool:
        """Whether a decoder that is fed from the last line's end on would go on as this one does."""

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery: ...

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery: ...


class LinesDecoder:
    """Bytes of one input whose every line stands for itself, fed as they come, as batches through an `Edge`."""

    between = True

    def __init__(
        self,
        edge: Edge,
        form: LineFormat,
        *,
        known: Mapping[str, str] | None = None,
        limit: int = LINE_LIMIT,
        begun: bool = False,
    ) -> None:
        self._edge = edge
        self._form = form
        self._known = known
        self._splitter = LineSplitter(limit, begun=begun)

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery:
        return self._delivered(self._form.decode(self._splitter.feed(data)), arrived_ns, wall_ns)

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery:
        return self._delivered(self._form.decode(self._splitter.finish()), arrived_ns, wall_ns)

    def parts(self, data: bytes | None, *, arrived_ns: int = 0, wall_ns: int = 0) -> Iterator[Delivery]:
        """What `feed` makes, or of None `finish`, but of a long line in parts."""
        block = self._splitter.finish() if data is None else self._splitter.feed(data)
        return (self._delivered(made, arrived_ns, wall_ns) for made in self._form.parts(block))

    def _delivered(self, made: Decoded, arrived_ns: int, wall_ns: int) -> Delivery:
        bad = self._edge.refused(made.bad, known=self._known)
        reason = f"the line is longer than {self._splitter.limit} bytes"
        oversize = [self._edge.refuse(OVERSIZE, reason, shown(line.head)) for line in self._splitter.oversize]
        self._splitter.oversize.clear()
        known = known_of(made, self._known) if self._known else made.known
        batch, more = self._edge.rows(made.rows, arrived_ns=arrived_ns, wall_ns=wall_ns, known=known, parsed=True)
        return batch, Letters.joined(bad, oversize, more)


def decoder_for(
    kind: str,
    edge: Edge,
    *,
    named: str,
    known: Mapping[str, str] | None = None,
    limit: int = LINE_LIMIT,
    header: Sequence[str] | None = None,
    begun: bool = False,
    precision: str | None = None,
) -> Decoder:
    """The decoder of a format of lines; ``begun`` and ``header`` when what it is fed is not the input's start."""
    if kind == "csv":
        return CsvDecoder(edge, named=named, known=known, limit=limit, header=header)
    return LinesDecoder(edge, line_format(kind, precision), known=known, limit=limit, begun=begun)


@dataclass(frozen=True)
class Place:
    """Where a block of a file begins, and what must be known to read and decode it as it was the first time."""

    at: tuple[int, ...]
    """Of lines: the byte, the block's length, and the byte from which a decoder must be fed to stand as ours did
    (before the block's when a line or a record of several lines reaches into it). Of Parquet: the row group from
    which the batches are counted, and the number of the batch."""
    known: int
    """How many fields the source had learned the kinds of."""


class Reader:
    """Reads one file in blocks; a file is opened at its first read.

    The key's template may name ``stem``, ``name`` (of the file) and ``folder`` (that it lies in), unless ``known`` says
    what else. ``size`` is where a file of lines that is not packed ends for us, whatever is added to it meanwhile.
    ``make`` makes the decoder of a file of lines, at its start or, with ``begun``, further on.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        edge: Edge,
        *,
        limit: int = LINE_LIMIT,
        known: Mapping[str, str] | None = None,
        size: int | None = None,
        wall_ns: int = 0,
        make: Callable[[bool], Decoder] | None = None,
    ) -> None:
        self.path = path
        self._limit = limit
        self.edge = edge
        self.known = (
            {"stem": files.stem(path), "name": path.name, "folder": path.parent.name} if known is None else known
        )
        self.place: Place | None = None
        """Of the block that was read last."""
        self.end: int | None = None
        """Of a file of lines that was read to its end: the byte."""
        self._kind = kind
        self._size = size
        self._wall_ns = wall_ns
        self._make = make
        self._from: Place | None = None
        self._handle: BinaryIO | None = None
        self._file: files.RestingFile | None = None
        self._deliveries: Iterator[Delivery] | None = None
        self._clock: Clock | None = None

    def seek(self, place: Place) -> None:
        """Before the first read: read that block first, and then those behind it."""
        self._from = place

    def read(self, clock: Clock | None = None) -> Delivery | None:
        """The records of the next block, which may be none, and all letters; None at the end. Blocks; call it in a thread."""
        self._clock = clock
        if self._deliveries is None:
            self._handle, self._file = files.open_resting(self.path)
            self._deliveries = self._parquet(self._handle) if self._kind == "parquet" else self._lines(self._handle)
        delivery = next(self._deliveries, None)
        return None if delivery is None else (delivery[0], list(delivery[1]))

    def rest(self) -> None:
        """Have the file closed until the next read."""
        if self._file is not None:
            self._file.rest()

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None and self._file is not None:
            self._handle.close()
            self._file.close()

    def _now(self) -> int:
        return self._clock.monotonic_ns() if self._clock is not None else 0

    def _placed(self, *at: int) -> None:
        self.place = Place(at, len(self.edge.kinds.learned))

    # -- lines -------------------------------------------------------------------------------------

    def _lines(self, handle: BinaryIO) -> Iterator[Delivery]:
        start, length, safe = self._from.at if self._from is not None else (0, BLOCK, 0)
        decoder = self._decoder(safe)
        if safe:
            files.skip(self.path, handle, safe)
        position = line = safe
        for block in self._blocks(handle, start - safe):
            decoder.feed(block)
            line = position + block.rfind(b"\n") + 1 if b"\n" in block else line
            position += len(block)
        while True:
            most = length if self._size is None else min(length, self._size - position)
            block = next(self._blocks(handle, most), b"")
            self._placed(position, len(block), safe)
            if not block:
                self.end = position
                break
            line = position + block.rfind(b"\n") + 1 if b"\n" in block else line
            position += len(block)
            delivery = decoder.feed(block, arrived_ns=self._now(), wall_ns=self._wall_ns)
            if decoder.between:
                safe = line
            yield delivery
            length = BLOCK
        yield decoder.finish(arrived_ns=self._now(), wall_ns=self._wall_ns)

    def _decoder(self, safe: int) -> Decoder:
        if self._make is not None:
            return self._make(bool(safe))
        named = str(self.path)
        header = header_of(self.path, self._limit) if safe and self._kind == "csv" else None
        return decoder_for(
            self._kind, self.edge, named=named, known=self.known, limit=self._limit, header=header, begun=bool(safe)
        )

    def _blocks(self, handle: BinaryIO, count: int) -> Iterator[bytes]:
        """The next bytes, ``count`` of them or as many as there are."""
        while count > 0 and (block := next(files.read_blocks(self.path, handle, min(count, BLOCK)), b"")):
            count -= len(block)
            yield block

    # -- Parquet -----------------------------------------------------------------------------------

    def _parquet(self, handle: BinaryIO) -> Iterator[Delivery]:
        group, skipped = self._from.at if self._from is not None else (0, 0)
        for group, number, table in _parquet_tables(self.path, handle, group, skipped):  # noqa: B020
            self._placed(group, number)
            yield self.edge.columns(
                columns_of_arrow(table),
                rows=table.num_rows,
                arrived_ns=self._now(),
                known=self.known,
                naive=naive_times(table),
            )


def header_of(path: Path, limit: int) -> list[str] | None:
    """The header of a CSV file; None where it has no line."""
    decoder = CsvDecoder(Edge(), named=str(path), limit=limit)
    with files.open_read(path) as handle:
        for block in files.read_blocks(path, handle, 1 << 12):
            decoder.feed(block)
            if decoder.header is not None:
                return decoder.header
    decoder.finish()
    return decoder.header


def _parquet_tables(path: Path, handle: BinaryIO, group: int, skipped: int) -> Iterator[tuple[int, int, Any]]:
    """The batches from row group ``group`` on but for the first ``skipped``, each with its row group and number.

    Batches are counted anew every so many row groups, so that those before need not be read to find one. A file without a
    row is one batch of none, which has its columns.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", "Parquet files") from None
    if path.name.lower().endswith(".gz"):  # Parquet is read from its end, which a gzip stream has only when unpacked
        handle = io.BytesIO(b"".join(files.read_blocks(path, handle, 1 << 20)))
    try:
        file = pq.ParquetFile(handle)
        if (name := first_twice(file.schema_arrow.names)) is not None:
            raise InputError(f"{path} has the column {name!r} twice.")
        if not file.metadata.num_rows:
            yield 0, 0, file.schema_arrow.empty_table()
            return
        while group < file.num_row_groups:
            end, rows = group, 0
            while end < file.num_row_groups and rows < _COUNTED_ANEW:
                rows += file.metadata.row_group(end).num_rows
                end += 1
            for number, table in enumerate(file.iter_batches(batch_size=_ROWS, row_groups=list(range(group, end)))):
                if number >= skipped:
                    yield group, number, table
            group, skipped = end, 0
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}.") from error
