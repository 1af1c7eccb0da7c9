"""One recording, block by block: what a thread reads and decodes while the loop is free."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from tidemill import files
from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.errors import InputError, MissingExtra
from tidemill.formats.csv_lines import CsvDecoder
from tidemill.formats.edge import Edge
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.lines import LINE_LIMIT, LineSplitter, shown
from tidemill.interchange import columns_of_arrow, naive_times
from tidemill.letters import OVERSIZE, DeadLetter

__all__ = ["BLOCK", "FORMATS", "Decoder", "JsonDecoder", "Reader", "decoder_for", "format_of"]

Delivery = tuple[Batch, list[DeadLetter]]

BLOCK: Final = 1 << 16
"""Bytes of one read: a JSON block of this size is decoded in less than a millisecond, with the GIL held."""
_ROWS: Final = 8_192
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
            f'give format="csv", "ndjson" or "parquet".'
        ) from None


class Decoder(Protocol):
    """Bytes in, records out."""

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery: ...

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery: ...


class JsonDecoder:
    """NDJSON bytes of one input, fed as they come, as batches through an `Edge`."""

    def __init__(self, edge: Edge, *, known: Mapping[str, str] | None = None, limit: int = LINE_LIMIT) -> None:
        self._edge = edge
        self._known = known
        self._splitter = LineSplitter(limit)

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery:
        return self._decode(self._splitter.feed(data), arrived_ns, wall_ns)

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery:
        return self._decode(self._splitter.finish(), arrived_ns, wall_ns)

    def _decode(self, block: bytes, arrived_ns: int, wall_ns: int) -> Delivery:
        rows, bad = decode_json_lines(block) if block else ([], [])
        letters = [self._edge.refuse(line.reason_code, line.reason, line.raw, known=self._known) for line in bad]
        for line in self._splitter.oversize:
            reason = f"the line is longer than {self._splitter.limit} bytes"
            letters.append(self._edge.refuse(OVERSIZE, reason, shown(line.head)))
        self._splitter.oversize.clear()
        batch, more = self._edge.rows(rows, arrived_ns=arrived_ns, wall_ns=wall_ns, known=self._known, parsed=True)
        return batch, letters + more


def decoder_for(
    kind: str, edge: Edge, *, named: str, known: Mapping[str, str] | None = None, limit: int = LINE_LIMIT
) -> Decoder:
    """The decoder of a format of lines."""
    if kind == "csv":
        return CsvDecoder(edge, named=named, known=known, limit=limit)
    return JsonDecoder(edge, known=known, limit=limit)


class Reader:
    """Reads one file in blocks; a file is opened at its first read.

    The key's template may name ``stem``, ``name`` (of the file) and ``folder`` (that it lies in).
    """

    def __init__(self, path: Path, kind: str, edge: Edge, *, limit: int = LINE_LIMIT) -> None:
        self.path = path
        self._limit = limit
        self.edge = edge
        self.known = {"stem": files.stem(path), "name": path.name, "folder": path.parent.name}
        self._kind = kind
        self._handle: BinaryIO | None = None
        self._deliveries: Iterator[Delivery] | None = None
        self._clock: Clock | None = None

    def read(self, clock: Clock | None = None) -> Delivery | None:
        """The records of the next block, which may be none; None at the end. Blocks; call it in a thread."""
        self._clock = clock
        if self._deliveries is None:
            self._handle = files.open_read(self.path)
            self._deliveries = self._parquet(self._handle) if self._kind == "parquet" else self._lines(self._handle)
        return next(self._deliveries, None)

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            self._handle.close()

    def _now(self) -> int:
        return self._clock.monotonic_ns() if self._clock is not None else 0

    def _lines(self, handle: BinaryIO) -> Iterator[Delivery]:
        decoder = decoder_for(self._kind, self.edge, named=str(self.path), known=self.known, limit=self._limit)
        for block in files.read_blocks(self.path, handle, BLOCK):
            yield decoder.feed(block, arrived_ns=self._now())
        yield decoder.finish(arrived_ns=self._now())

    def _parquet(self, handle: BinaryIO) -> Iterator[Delivery]:
        for table in _parquet_tables(self.path, handle):
            arrived_ns = self._now()
            yield self.edge.columns(
                columns_of_arrow(table),
                rows=table.num_rows,
                arrived_ns=arrived_ns,
                known=self.known,
                naive=naive_times(table),
            )


def _parquet_tables(path: Path, handle: BinaryIO) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", "Parquet files") from None
    if path.name.lower().endswith(".gz"):  # Parquet is read from its end, which a gzip stream has only when unpacked
        handle = io.BytesIO(b"".join(files.read_blocks(path, handle, 1 << 20)))
    try:
        yield from pq.ParquetFile(handle).iter_batches(batch_size=_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}.") from error
