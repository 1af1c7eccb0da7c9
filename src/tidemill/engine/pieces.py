"""Records on their way through the intake: those of one read that wait, and those that were taken for one slab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.formats.packed import compact_texts
from tidemill.schema import Kind

__all__ = ["SLICE_BYTES", "SLICE_PIECES", "SLICE_RECORDS", "Piece", "Taken", "put_together"]

SLICE_RECORDS: Final = 32_768
"""The most records handled in one turn of the loop: about a millisecond of the parent's work."""
SLICE_BYTES: Final = 4 << 20
"""The most bytes of different texts, or what takes as long: copying numbers is quick, encoding texts and objects not."""
SLICE_PIECES: Final = 256
"""The most reads whose records are joined in one turn of the loop: some milliseconds, however few records each has brought."""
_NOBODY = np.empty(0, np.int32)
_NO_TEXTS = np.empty(0, object)


@dataclass(frozen=True)
class Taken:
    """Consecutive records, ready to become a slab."""

    batch: Batch
    codes: NDArray[np.int32]
    """Run-wide key code of each record."""
    devices: NDArray[np.int32] | None
    """That of its device, where the plan places sensors by it."""
    positions: NDArray[np.int64]
    """Each record's place in the input, counted from 1: what was rejected and decided meanwhile counts too."""
    arrivals: list[tuple[int, int]]
    """(records, monotonic ns of the read that brought them), in order."""
    walls: list[int | None]
    """Of each of these reads, the wall clock at its arrival as the ingest log has it; None where there is none."""
    bytes: float
    """What the records hold in memory, roughly."""
    text_bytes: float
    """What there is to encode, as bytes of text that would take as long."""
    came: Mapping[str, Kind] = field(default_factory=dict)
    """Every column that had come when the records did, where that matters."""

    @classmethod
    def nothing(cls, end: int) -> Taken:
        """No records, up to there in the input."""
        batch = Batch({}, key=Column(Kind.TEXT, _NOBODY, texts=_NO_TEXTS), time=np.empty(0, np.int64))
        return cls(batch, _NOBODY, _NOBODY, np.array([end]), [], [], 0.0, 0.0)

    @property
    def turns(self) -> float:
        """How much of what may be handled in one turn of the loop this is."""
        return max(len(self.batch) / SLICE_RECORDS, self.text_bytes / SLICE_BYTES, len(self.arrivals) / SLICE_PIECES)

    @property
    def end(self) -> int:
        """Up to where in the input it reaches."""
        return int(self.positions[-1])

    def index(self, row: int) -> int:
        """The record's input index, counted from 0."""
        return int(self.positions[row]) - 1

    def split(self, records: int) -> tuple[Taken, list[Piece]]:
        """The first ``records``, and the rest as it waited."""
        record_bytes, text_bytes = self.bytes / len(self.batch), self.text_bytes / len(self.batch)
        ends = np.cumsum([count for count, _ in self.arrivals]).tolist()
        kept: list[tuple[int, int]] = []
        rest: list[Piece] = []
        for end, (count, arrived_ns), wall_ns in zip(ends, self.arrivals, self.walls, strict=True):
            start = max(end - count, records)
            if records > end - count:
                kept.append((min(end, records) - (end - count), arrived_ns))
            if start < end:
                batch = self.batch.slice(start, end).with_columns({})
                batch.arrived_ns = arrived_ns
                devices = None if self.devices is None else self.devices[start:end]
                positions = self.positions[start:end]
                rest.append(
                    Piece(
                        batch,
                        self.codes[start:end],
                        devices,
                        positions,
                        wall_ns,
                        record_bytes,
                        text_bytes,
                        self.came,
                    )
                )
        returned = len(self.batch) - records
        first = Taken(
            self.batch.slice(0, records),
            self.codes[:records],
            None if self.devices is None else self.devices[:records],
            self.positions[:records],
            kept,
            self.walls[: len(kept)],
            self.bytes - record_bytes * returned,
            self.text_bytes - text_bytes * returned,
            self.came,
        )
        return first, rest


@dataclass(frozen=True)
class Piece:
    """Waiting records of one read."""

    batch: Batch
    codes: NDArray[np.int32]
    devices: NDArray[np.int32] | None
    positions: NDArray[np.int64]
    wall_ns: int | None
    record_bytes: float
    record_text_bytes: float
    came: Mapping[str, Kind] = field(default_factory=dict)
    """As of `Taken`; pieces with another have other columns."""

    @property
    def bytes(self) -> float:
        return self.record_bytes * len(self.batch)

    def part(self, start: int, stop: int) -> Piece:
        return Piece(
            self.batch.slice(start, stop),
            self.codes[start:stop],
            None if self.devices is None else self.devices[start:stop],
            self.positions[start:stop],
            self.wall_ns,
            self.record_bytes,
            self.record_text_bytes,
            self.came,
        )

    def rows_until(self, position: int) -> int:
        """How many of its records lie before, or at, this position."""
        return int(np.searchsorted(self.positions, position, "right"))


def put_together(pieces: Sequence[Piece], text_bytes: float) -> Taken:
    """Consecutive pieces as one; joining batches means copying them."""
    devices = [piece.devices for piece in pieces if piece.devices is not None]
    return Taken(
        Batch.concat(_compact([piece.batch for piece in pieces])),
        _joined([piece.codes for piece in pieces]),
        _joined(devices) if devices else None,
        pieces[0].positions if len(pieces) == 1 else np.concatenate([piece.positions for piece in pieces]),
        [(len(piece.batch), piece.batch.arrived_ns) for piece in pieces],
        [piece.wall_ns for piece in pieces],
        sum(piece.bytes for piece in pieces),
        text_bytes,
        pieces[0].came,
    )


def _joined(codes: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return codes[0] if len(codes) == 1 else np.concatenate(codes)


def _compact(batches: list[Batch]) -> list[Batch]:
    """The batches to be joined, without the texts they do not use: joining tables takes time for each text in them."""
    if len(batches) == 1:
        return batches
    tables: dict[str, set[int]] = {}
    for batch in batches:
        for name, column in batch.columns.items():
            tables.setdefault(name, set()).add(id(column.texts))
    made = []
    for batch in batches:
        smaller = {
            name: compact_texts(column)
            for name, column in batch.columns.items()
            if column.kind is Kind.TEXT and len(tables[name]) > 1
        }
        made.append(batch.with_columns(smaller))
        made[-1].origin_names = batch.origin_names  # the same values
        made[-1].arrived_ns = batch.arrived_ns
    return made
