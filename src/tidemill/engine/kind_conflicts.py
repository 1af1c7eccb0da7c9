"""Settling a slab in which lanes made different kinds of one column.

A function's columns are learned from one record before slabs flow (see decision 5). What that record did not show, a field
that comes late, was null so far, or is made of rows that stages make, can reach two lanes at once as two kinds. The first row in
input order that has a value there decides; the rows of the other kind are dead letters that name both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import INTEGER_TAG, VALUE_TAG, Column
from tidemill.core.watermark import BEGIN
from tidemill.engine.assembly import Share
from tidemill.formats.packed import Packed, TextTables, Unpacker
from tidemill.kinds import Kinds
from tidemill.lanes.wire import DEAD_ROWS_ORDER
from tidemill.lanes.worker import pack_frame, pack_rows, row_as_json
from tidemill.letters import WRONG_TYPE
from tidemill.schema import Kind

__all__ = ["settled"]

_Order = tuple[int, int, str]
"""What orders rows: place in the slab, `BEGIN` or what orders those that stages made there, and then their sensor."""


@dataclass(frozen=True)
class _Part:
    """Some rows of a share, in input order."""

    packed: Packed
    payload: memoryview
    places: NDArray[np.int32]
    ends: NDArray[np.int64] | None = None
    """None where all are records' own."""
    slots: NDArray[np.int32] | None = None
    names: NDArray[np.object_] | None = None

    def order(self, row: int) -> _Order:
        end = BEGIN if self.ends is None else int(self.ends[row])
        return int(self.places[row]), end, "" if end == BEGIN else self.sensor(row)

    def sensor(self, row: int) -> str:
        assert self.names is not None
        assert self.slots is not None
        return str(self.names[self.slots[row]])


def settled(
    shares: Sequence[Share], fixed: dict[str, Kind], unpacker: Unpacker, last_stage: int
) -> tuple[list[Share], dict[str, int]]:
    """The shares with every column that is not in the slab of the kind it has in ``fixed``, which learns the columns it did not
    know; and of those on which lanes did not agree, whose share decided."""
    if not any(share.result.made or share.result.framed for share in shares):
        return list(shares), {}  # every column is in the slab
    decided: dict[str, int] = {}
    odd: dict[int, list[str]] = {}
    for name, kinds in _shown(shares, fixed, unpacker).items():
        if name not in fixed:
            first = next(iter(kinds))
            if any(kind is not kinds[first] for kind in kinds.values()):
                decided[name] = first = min(kinds, key=lambda number: _first_value(shares[number], name, unpacker))
            fixed[name] = kinds[first]
        for number, kind in kinds.items():
            if kind is not fixed[name]:
                odd.setdefault(number, []).append(name)
    made = [
        _without(share, odd[number], fixed, unpacker, last_stage) if number in odd else share
        for number, share in enumerate(shares)
    ]
    return made, decided


def _shown(shares: Sequence[Share], fixed: Mapping[str, Kind], unpacker: Unpacker) -> dict[str, dict[int, Kind]]:
    """Of each column in which a share has another kind than it is to have, if that is known: the kind by share."""
    shown: dict[str, dict[int, Kind]] = {}
    for number, share in enumerate(shares):
        for part in _parts(share):
            for place in part.packed.columns:
                kind = Kind(place.kind)
                if kind is fixed.get(place.name):
                    continue
                undecided = kind is Kind.OBJECT or place.name not in fixed
                if undecided and not unpacker.column(place, part.payload, part.packed.rows).has_values:
                    continue
                shown.setdefault(place.name, {})[number] = kind
    return shown


def _parts(share: Share) -> Iterator[_Part]:
    for piece in share.pieces():
        yield _Part(piece.packed, piece.payload, piece.places, piece.ends, piece.slots, share.names)
    if share.result.framed is not None and share.result.kept:
        yield _Part(share.result.framed, memoryview(share.payload), share.survivors)


def _first_value(share: Share, name: str, unpacker: Unpacker) -> tuple[bool, _Order]:
    """What orders the share's first row with a value in the column; behind all others where none has one."""
    for part in _parts(share):
        for place in part.packed.columns:
            if place.name == name:
                rows = _with_value(unpacker.column(place, part.payload, part.packed.rows))
                if len(rows):
                    return False, part.order(int(rows[0]))
    return True, (0, 0, "")


def _without(share: Share, odd: list[str], fixed: dict[str, Kind], unpacker: Unpacker, last_stage: int) -> Share:
    """The share less the rows whose values are of another kind."""
    result, kept = share.result, 0
    dead, dead_rows = list(result.dead), list(result.dead_rows)
    payload, made, tables = bytearray(), [], TextTables()
    framed, kept_at = result.framed, result.kept_at
    for part in _parts(share):
        frame = unpacker.batch(part.packed, part.payload)
        columns, wrong = _conformed(frame, odd, fixed)
        for row, reason in wrong.items():
            place, end, sensor = part.order(row)
            if end == BEGIN:
                dead.append((place, last_stage, WRONG_TYPE, reason))
            else:
                was = row_as_json(frame.slice(row, row + 1).to_rows()[0])
                dead_rows.append((place, end, sensor, last_stage, WRONG_TYPE, reason, was))
        keep = np.array([row for row in range(len(frame)) if row not in wrong], np.intp)
        left = frame.holding(columns, frame.orders).take(keep)
        kept += len(left)
        if part.ends is None:
            payload, framed, kept_at = pack_frame(left.columns, len(left), part.places[keep], left.orders)
        elif len(left):
            assert part.slots is not None
            made.append(pack_rows(payload, tables, left, (part.places[keep], part.ends[keep], part.slots[keep])))
    changed = msgspec.structs.replace(
        result,
        framed=framed,
        kept_at=kept_at,
        kept=kept,
        dead=dead,
        made=None if result.made is None else made,
        dead_rows=sorted(dead_rows, key=DEAD_ROWS_ORDER),
    )
    return Share(share.rows, changed, payload, share.names)


def _conformed(frame: Batch, odd: Sequence[str], fixed: Mapping[str, Kind]) -> tuple[dict[str, Column], dict[int, str]]:
    """The columns, each of its kind, and why rows cannot be that."""
    columns = dict(frame.columns)
    wrong: dict[int, str] = {}
    for name in odd:
        if (column := columns.get(name)) is None:
            continue
        known = fixed[name]
        if known is Kind.OBJECT:
            columns[name] = column.as_objects()
            continue
        columns[name], rows = _as_kind(name, column, known)
        for row in rows:
            wrong.setdefault(row, f"a function made {name!r} {column.kind.value}; it has been {known.value} so far")
    return columns, wrong


def _as_kind(name: str, column: Column, kind: Kind) -> tuple[Column, list[int]]:
    """The column as one of this kind, and the rows whose values are of another: not all of those in a column of objects are."""
    if column.kind is Kind.OBJECT:
        made, rejects = Kinds({name: kind}).column(name, column.to_list())
        return made, [reject.row for reject in rejects]
    return Column.missing(kind, len(column)), _with_value(column).tolist()


def _with_value(column: Column) -> Any:
    if column.tags is None:
        return np.arange(len(column))
    return np.flatnonzero((column.tags == VALUE_TAG) | (column.tags == INTEGER_TAG))
