"""The head of a file, read before the run: which fields there are, of what kinds, and whether the roles are among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tidemill.batch import Batch
from tidemill.errors import InputError
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import LINE_FORMATS, line_format, set_up
from tidemill.formats.rejects import suggestion
from tidemill.kinds import Kinds
from tidemill.schema import Kind
from tidemill.sources.readers import BLOCK, Decoder, Delivery, Reader, header_of

__all__ = ["fields_at_head", "learn_kinds"]


def fields_at_head(
    path: Path, kind: str, edge: Edge, *, limit: int, make: Callable[[Edge], Decoder] | None = None
) -> tuple[str, ...]:
    """The fields of one file, none where nothing tells of them; ``edge`` learns their kinds. Raises `InputError` for a file
    without the roles.

    ``make`` makes the decoder of a file whose format needs more than its name.
    """
    looking = edge.twin()
    by_vote = kind in LINE_FORMATS
    if by_vote:
        looking.kinds = Kinds(edge.declared, edge.times.column)  # the look decides by vote, below
        set_up(looking, line_format(kind))
    reader = Reader(path, kind, looking, limit=limit, make=None if make is None else lambda _: make(looking))
    try:
        batch, raws = _first_records(reader, limit)
    finally:
        reader.close()
    if by_vote:
        learn_kinds(edge, [*batch.to_rows(), *raws])
    names = looking.fields or batch.names
    if kind == "csv" and not names:
        names = tuple(header_of(path, limit) or ())
    if names or raws or len(batch):
        _require(path, tuple(dict.fromkeys((*names, *(name for raw in raws for name in raw)))), reader, edge, kind)
    return batch.names or names


def _first_records(reader: Reader, limit: int) -> tuple[Batch, list[dict[str, object]]]:
    """Those of the first block in which there are some, and of what was rejected of it the records. The longest line that may
    come is read to its end; a file of nothing but bad lines is not."""
    read: Delivery | None
    batch = Batch({}, rows=0)
    raws: list[dict[str, object]] = []
    for _ in range(2 + limit // BLOCK):
        if (read := reader.read()) is None:
            break
        batch, letters = read
        raws = [letter.raw for letter in letters if isinstance(letter.raw, dict)]
        if len(batch) or raws:
            break
    return batch, raws


def learn_kinds(edge: Edge, rows: Sequence[Mapping[str, object]]) -> None:
    """Each field gets the kind that most of these first records give it, of those that it may be of, not that of one odd record."""
    for name in dict.fromkeys(name for row in rows for name in row):
        votes = Counter(_kind_of(row[name]) for row in rows if row.get(name) is not None)
        may_be = [kind for kind, _ in votes.most_common() if edge.kinds.may_be(name, kind)]
        if may_be:
            edge.kinds.learn(name, may_be[0])


def _kind_of(item: object) -> Kind:
    return Kinds().column("", [item])[0].kind


def _require(path: Path, fields: tuple[str, ...], reader: Reader, edge: Edge, kind: str) -> None:
    hint = f"the fields seen are: {', '.join(fields)}; try {suggestion(fields)}"
    found = (
        f" This finds them and writes a plan: tidemill new plan.py --from {path}" if kind in ("csv", "ndjson") else ""
    )
    apart = next((mark for mark in ";\t|" if len(fields) == 1 and mark in fields[0]), None)
    if apart is not None:
        raise InputError(
            f"{path} has one column, {fields[0]!r}: its cells are apart by {apart!r}, it seems, and only commas are read. "
            f"This writes a plan that reads it: tidemill new plan.py --from {path}"
        )
    if edge.roles.time not in fields and not edge.roles.arrival:
        raise InputError(f"{path} has no field {edge.roles.time!r} to read the time from; {hint}.{found}")
    for name in edge.roles.key_fields:
        if name not in fields and name not in reader.known and edge.roles.fallback is None:
            raise InputError(f"{path} has no field {name!r} to read the sensor from; {hint}, or key='{{stem}}'.{found}")
