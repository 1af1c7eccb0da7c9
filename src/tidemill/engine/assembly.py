"""Putting a slab's output together: what the lanes made of their rows, in input order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import DTYPES, Column
from tidemill.core.order import input_order
from tidemill.core.watermark import BEGIN
from tidemill.formats.packed import Packed, Unpacker
from tidemill.lanes.framing import Payload
from tidemill.lanes.wire import Output, Result, Slot
from tidemill.lanes.worker import MADE_AT_ONCE
from tidemill.orders import Orders, Part, joined, placed
from tidemill.schema import KINDS, Kind

__all__ = ["MadePiece", "Share", "assemble", "assemble_made"]


@dataclass(frozen=True)
class MadePiece:
    """Some of a lane's rows, of which stages made some, as views of what came; in the order in which they are to leave."""

    packed: Packed
    """Where their columns lie in ``payload``."""
    payload: memoryview
    places: NDArray[np.int32]
    ends: NDArray[np.int64]
    slots: NDArray[np.int32]


@dataclass
class Share:
    """One lane's part of a slab."""

    rows: NDArray[np.int32]
    """Its rows' positions in the slab."""
    result: Result
    payload: Payload
    names: NDArray[np.object_] | None = None
    """The lane's sensors by key slot, where there are rows that stages made."""

    @property
    def survivors(self) -> NDArray[np.int32]:
        """Positions in the slab of the rows that came out."""
        if self.result.kept_at < 0:
            return self.rows
        return np.frombuffer(self.payload, np.int32, self.result.kept, self.result.kept_at)

    def pieces(self) -> Iterator[MadePiece]:
        """Its rows, where stages made some; none where all are records' own."""
        payload = memoryview(self.payload)
        for piece in self.result.made or ():
            own, rows = payload[piece.at :], piece.packed.rows
            yield MadePiece(
                piece.packed,
                own,
                np.frombuffer(own, np.int32, rows, piece.places_at),
                np.frombuffer(own, np.int64, rows, piece.ends_at),
                np.frombuffer(own, np.int32, rows, piece.slots_at),
            )

    def made_rows(self) -> int:
        """How many of its rows stages made without a record."""
        return sum(int(np.count_nonzero(piece.ends != BEGIN)) for piece in self.pieces())


def assemble(batch: Batch, shares: Sequence[Share], slots: Sequence[Slot], buffer: Any, unpacker: Unpacker) -> Batch:
    """The slab's output rows, in input order; result columns are views of the slab until something must be copied."""
    shares = [share for share in shares if share.result.kept]
    if not shares:
        return batch.take(np.empty(0, np.intp))
    if sum(share.result.kept for share in shares) == len(batch):
        if _alike(batch, shares):
            return _overlaid(batch, shares[0].result.outputs, slots, buffer)
        rows, base = None, batch
    else:
        rows = np.sort(np.concatenate([share.survivors for share in shares]))
        base = batch.take(rows)
    maker = _Maker(batch, base, rows, shares, {slot.name: slot for slot in slots}, buffer, unpacker)
    names = placed(base.columns, maker.names)
    columns = {name: maker.column(name) for name in names}
    return base.holding(columns, maker.orders(names))


def _alike(batch: Batch, shares: Sequence[Share]) -> bool:
    """Whether all lanes have left or made the same columns, each as it came or in the slab."""
    outputs = shares[0].result.outputs
    return batch.orders is None and all(
        share.result.framed is None and share.result.outputs == outputs for share in shares
    )


def _overlaid(batch: Batch, outputs: Sequence[Output], slots: Sequence[Slot], buffer: Any) -> Batch:
    """The batch with the columns that lie whole in the slab: what most slabs are."""
    rows, places = len(batch), {slot.name: slot for slot in slots}
    columns = {
        output.name: batch.columns[output.source]
        if output.how == "carried"
        else _in_slab(places[output.name], rows, buffer)
        for output in outputs
    }
    return batch.holding(columns, None)


def _in_slab(slot: Slot, rows: int, buffer: Any) -> Column:
    kind = KINDS[slot.kind]
    return Column(kind, np.frombuffer(buffer, DTYPES[kind], rows, slot.at))


def assemble_made(
    batch: Batch, shares: Sequence[Share], slots: Sequence[Slot], buffer: Any, unpacker: Unpacker
) -> Iterator[tuple[Batch, int] | None]:
    """The same where some rows have no record of their own: piece by piece, each with how many of these are in it.

    Every row comes out at its place, as `tidemill.core.order` has it. Each step does a bounded part of the work, and many bring
    None; there is one piece at least, if only without rows, and all have the same columns.
    """
    lanes: list[_Coming] = []
    looked_at = 0
    for share in shares:
        if not share.result.kept:
            continue
        if share.result.made is None:
            part = assemble(batch, [share], slots, buffer, unpacker)
            pieces = iter([_Piece(part, share.survivors, np.full(len(part), BEGIN))])
        else:
            pieces = _made(share, unpacker)
        lanes.append(_Coming(pieces, share.result.kept))
        looked_at += lanes[-1].look_on()
        if looked_at >= MADE_AT_ONCE:
            looked_at = 0
            yield None
    if not lanes:
        yield batch.take(np.empty(0, np.intp)), 0
    while any(lane.rows for lane in lanes):
        yield _next_piece(lanes)
        for lane in lanes:
            if lane.look_on():
                yield None


@dataclass
class _Piece:
    """Some of a lane's rows, in the order in which they come out."""

    batch: Batch
    places: NDArray[np.int32]
    ends: NDArray[np.int64]

    def key(self, row: int) -> tuple[int, int, str]:
        """What orders the row among those of other lanes."""
        end = int(self.ends[row])
        return int(self.places[row]), end, "" if end == BEGIN else self.batch.keys[self.batch.key[row]]


_NO_ROWS: Final = _Piece(Batch({}), np.empty(0, np.int32), np.empty(0, np.int64))


def _made(share: Share, unpacker: Unpacker) -> Iterator[_Piece]:
    """One lane's rows where stages made some, with their sensors."""
    assert share.names is not None
    for piece in share.pieces():
        part = unpacker.batch(piece.packed, piece.payload)
        used, codes = np.unique(piece.slots, return_inverse=True)
        part.key_column = Column(Kind.TEXT, codes.astype(np.int32), texts=share.names[used])
        yield _Piece(part, piece.places, piece.ends)


class _Coming:
    """What is still to come of one lane's rows; one piece of them is looked at."""

    def __init__(self, pieces: Iterator[_Piece], rows: int) -> None:
        self._pieces = pieces
        self._piece = _NO_ROWS
        self._at = 0
        self.rows = rows

    def look_on(self) -> int:
        """Look at the next piece if all of this one is out; how many rows it has."""
        if not self.rows or self._at < len(self._piece.batch):
            return 0
        self._piece, self._at = next(self._pieces), 0
        return len(self._piece.batch)

    def end(self, most: int) -> tuple[int, int, str] | None:
        """What orders the last of the next rows, so many at most; None if nothing comes behind it."""
        stop = self._stop(most)
        return self._piece.key(stop - 1) if self.rows > stop - self._at else None

    def until(self, most: int, end: tuple[int, int, str] | None, *, with_it: bool) -> _Piece:
        """The next rows, so many at most, as far as they come before this end."""
        piece, start, stop = self._piece, self._at, self._stop(most)
        if end is not None:
            bisect = bisect_right if with_it else bisect_left
            stop = start + bisect(range(start, stop), end, key=piece.key)
        self._at = stop
        self.rows -= stop - start
        return _Piece(piece.batch.slice(start, stop), piece.places[start:stop], piece.ends[start:stop])

    def _stop(self, most: int) -> int:
        return min(self._at + most, len(self._piece.batch))


def _next_piece(lanes: Sequence[_Coming]) -> tuple[Batch, int]:
    """The rows that come before all others, and how many of them stages made."""
    most = max(MADE_AT_ONCE // sum(lane.rows > 0 for lane in lanes), 1)
    ends = [(end, number) for number, lane in enumerate(lanes) if (end := lane.end(most)) is not None]
    end, last = min(ends, default=(None, 0))
    # Of equal rows those of the first lane come first, so that of a lane behind the last one none may come yet.
    parts = [lane.until(most, end, with_it=number <= last) for number, lane in enumerate(lanes)]
    made = sum(int(np.count_nonzero(part.ends != BEGIN)) for part in parts)
    if len(parts) == 1:
        return parts[0].batch, made
    whole = Batch.concat([part.batch for part in parts])
    places, own = np.concatenate([part.places for part in parts]), np.concatenate([part.ends for part in parts])
    return whole.take(input_order(places, own, whole.key, whole.keys)), made


class _Maker:
    def __init__(
        self,
        batch: Batch,
        base: Batch,
        rows: NDArray[np.int32] | None,
        shares: Sequence[Share],
        slots: dict[str, Slot],
        buffer: Any,
        unpacker: Unpacker,
    ) -> None:
        self._batch, self._base, self._rows = batch, base, rows
        self._shares, self._slots, self._buffer = shares, slots, buffer
        self._outputs = [{output.name: output for output in share.result.outputs} for share in shares]
        self._frames = [
            unpacker.batch(share.result.framed, share.payload) if share.result.framed is not None else None
            for share in shares
        ]
        self._order: NDArray[np.intp] | None = None

    @property
    def names(self) -> list[list[str]]:
        """Each lane's columns, in its order."""
        return [list(outputs) for outputs in self._outputs]

    def orders(self, names: Sequence[str]) -> Orders | None:
        """The order of each row's fields: what its lane says, or that of the record that entered."""
        parts = []
        for share, own, frame in zip(self._shares, self.names, self._frames, strict=True):
            orders = None if frame is None else frame.orders
            if orders is None and self._batch.orders is not None:
                orders = (self._batch.orders[0].take(share.survivors), self._batch.orders[1])
            parts.append(Part(own, orders, share.result.kept))
        whole = joined(parts, names)
        if whole is None or (self._base.orders is not None and whole[1] is self._base.orders[1]):
            return self._base.orders
        return whole[0].take(self._in_input_order()), whole[1]

    def column(self, name: str) -> Column:
        ways = {(outputs[name].how, outputs[name].source) if name in outputs else None for outputs in self._outputs}
        if len(ways) == 1:
            way = next(iter(ways))
            assert way is not None
            if way[0] == "carried":
                return self._base.columns[way[1]]
            if way[0] == "slab":
                column = self._in_slab(name)
                return column if self._rows is None else column.take(self._rows)
        parts = [self._part(number, name) for number in range(len(self._shares))]
        return self._joined(parts)

    def _in_slab(self, name: str) -> Column:
        return _in_slab(self._slots[name], len(self._batch), self._buffer)

    def _part(self, number: int, name: str) -> Column | None:
        """One lane's rows of the column, in the lane's order."""
        output = self._outputs[number].get(name)
        share = self._shares[number]
        if output is None:
            return None
        if output.how == "carried":
            return self._batch.columns[output.source].take(share.survivors)
        if output.how == "slab":
            return self._in_slab(name).take(share.survivors)
        frame = self._frames[number]
        assert frame is not None
        return frame.columns[name]

    def _joined(self, parts: Sequence[Column | None]) -> Column:
        pieces = [
            Batch({} if part is None else {"": part}, rows=share.result.kept)
            for part, share in zip(parts, self._shares, strict=True)
        ]
        column = Batch.concat(pieces).columns[""]
        return column if len(self._shares) == 1 else column.take(self._in_input_order())

    def _in_input_order(self) -> NDArray[np.intp]:
        """Where each output row is among the shares' rows, one share after another."""
        if self._order is None:
            self._order = np.argsort(np.concatenate([share.survivors for share in self._shares]), kind="stable")
        return self._order
