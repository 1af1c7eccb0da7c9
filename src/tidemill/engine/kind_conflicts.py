"""Settling a slab in which lanes made different kinds of one column.

A function's columns are learned from one record before slabs flow (see decision 5). What that record did not show, a field
that comes late or was null so far, can reach two lanes at once as two kinds. The first row in input order decides; the
rows of the other kind are dead letters that name both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from tidemill.column import INTEGER_TAG, VALUE_TAG, Column, object_array
from tidemill.engine.assembly import Share
from tidemill.formats.packed import Unpacker
from tidemill.kinds import Kinds
from tidemill.lanes.worker import pack_frame
from tidemill.letters import WRONG_TYPE
from tidemill.schema import Kind

__all__ = ["settled"]


def settled(shares: Sequence[Share], fixed: dict[str, Kind], unpacker: Unpacker, last_stage: int) -> list[Share]:
    """The shares with every framed column of the kind it has in ``fixed``, which learns the columns it did not know."""
    if all(share.result.framed is None for share in shares):
        return list(shares)
    framed = [share for share in shares if share.result.framed is not None and share.result.kept]
    in_order = sorted(framed, key=lambda share: int(share.survivors.min()))
    replaced: dict[int, Share] = {}
    for share in in_order:
        odd = _odd_columns(share, fixed, unpacker)
        if odd:
            replaced[id(share)] = _without(share, odd, fixed, unpacker, last_stage)
    return [replaced.get(id(share), share) for share in shares]


def _odd_columns(share: Share, fixed: dict[str, Kind], unpacker: Unpacker) -> list[str]:
    framed = share.result.framed
    assert framed is not None
    odd = []
    for place in framed.columns:
        kind = Kind(place.kind)
        if kind is fixed.get(place.name):
            continue
        if kind is Kind.OBJECT and unpacker.column(place, share.payload, framed.rows).is_missing:
            continue
        if fixed.setdefault(place.name, kind) is not kind:
            odd.append(place.name)
    return odd


def _without(share: Share, odd: list[str], fixed: dict[str, Kind], unpacker: Unpacker, last_stage: int) -> Share:
    """The share less the rows whose values are of another kind."""
    assert share.result.framed is not None
    frame = unpacker.batch(share.result.framed, share.payload)
    columns = dict(frame.columns)
    wrong: dict[int, str] = {}
    for name in odd:
        column, known = columns[name], fixed[name]
        if known is Kind.OBJECT:
            columns[name] = Column(Kind.OBJECT, object_array(column.to_list()), tags=column.tags)
            continue
        columns[name], rows = _as_kind(name, column, known)
        for row in rows:
            wrong.setdefault(row, f"a function made {name!r} {column.kind.value}; it has been {known.value} so far")
    keep = np.array([row for row in range(len(frame)) if row not in wrong], np.intp)
    survivors = share.survivors
    dead = [(int(survivors[row]), last_stage, WRONG_TYPE, reason) for row, reason in wrong.items()]
    kept = survivors[keep]
    orders = None if frame.orders is None else (frame.orders[0].take(keep), frame.orders[1])
    payload, packed, kept_at = pack_frame({n: c.take(keep) for n, c in columns.items()}, len(kept), kept, orders)
    result = msgspec.structs.replace(
        share.result, framed=packed, kept_at=kept_at, kept=len(kept), dead=[*share.result.dead, *dead]
    )
    return Share(share.rows, result, payload)


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
