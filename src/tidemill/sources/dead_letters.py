"""`DeadLetters`: what was rejected, once more."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from tidemill import files
from tidemill.batch import Batch
from tidemill.column import NAT
from tidemill.formats.csv_lines import CsvDecoder
from tidemill.formats.edge import Edge
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.lines import LineSplitter, shown
from tidemill.formats.roles import DEFAULT_KEY, DEFAULT_TIME
from tidemill.formats.times import TimeReader
from tidemill.letters import MALFORMED, OVERSIZE, DeadLetter
from tidemill.schema import Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import checked_limit
from tidemill.sources.heads import learn_kinds
from tidemill.sources.readers import Delivery, Reader
from tidemill.sources.recorded import RecordedSource

__all__ = ["DeadLetters"]

_OF_LETTER: Final = "\0"
"""The name under which an edge is given the key and the time of a letter: no field of a record has it."""


@dataclass(frozen=True)
class _Told:
    """What a letter holds."""

    raw: Any
    header: tuple[str, ...]
    key: str | None
    time_ns: int | None
    arrival: bool
    """A record without a time gets that of this replay."""

    @property
    def roles(self) -> tuple[bool, bool, bool]:
        """Whether the letter has the key and the time, and whether its record may lack one."""
        return self.key is not None, self.time_ns is not None, self.arrival


class DeadLetters(RecordedSource):
    """The records of a dead-letters file (NDJSON), replayed after a fix.

    Each line of the file is one letter. Its ``raw`` is the record, or the text of what was none: repair it there. A line of
    NDJSON or CSV is repaired as such a line; in the place of any other text (a line of line protocol or of Telegraf's JSON,
    an MQTT payload) put the record that it should have been, as a JSON object, and its sensor in ``key``.
    Its ``key`` and ``time`` are what the record had in the run that rejected it, and it has them again, wherever they
    were read from; correct them in the letter, or name the fields to read instead with ``key=`` and ``time=``. A letter
    without them is read from the fields ``sensor`` and ``time``. Where the source stamped arrivals, a record without a
    time gets that of the beginning of this replay. What is still bad is rejected again. A letter of a message out of which
    ``value=`` had taken columns has all of the message: a `Select` behind this source keeps what else is in it from the rows.
    ``limit`` is the bytes of one letter, ``columns`` the kinds of fields that are not to be learned, as `Source` has them.

    Delivery: every letter once, in the file's order; letters that come meanwhile are for the next replay; with state, it goes on
    where the run stood. Raises `InputError` with the absolute path tried.
    """

    arrival = True
    looked_up_options = frozenset({"path"})

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        limit: int = 16 << 20,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        self.path = path
        self.limit = checked_limit(limit, "DeadLetters")
        self._edges: dict[tuple[bool, bool, bool], Edge] = {}

    @property
    def kind(self) -> str:
        return "dead_letters"

    @property
    def accepted(self) -> int:
        return self._accepted_before + sum(edge.accepted for edge in self._edges.values())

    def doubt(self, batch: Batch) -> str:
        timed = any(has_time for _, has_time, _ in tuple(self._edges))  # a thread may add to them
        return "" if timed else super().doubt(batch)

    def check(self) -> None:
        files.open_read(self.path).close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        return self.unpaced(context)

    def _recordings(self) -> list[tuple[Path, str]]:
        return [(path, "letters") for path in files.expand(self.path)]

    def _reader(self, path: Path, kind: str, size: int | None) -> Reader:
        def make(begun: bool) -> _Letters:
            return _Letters(self, begun)

        return Reader(path, kind, self.edge, known={}, size=size, wall_ns=self._wall_ns, make=make)

    # -- letters, in a thread ------------------------------------------------------------------------

    def _decoded(self, block: bytes, arrived_ns: int, wall_ns: int) -> Iterator[Delivery]:
        lines, bad = decode_json_lines(block) if block else ([], [])
        refused = list(self.edge.refused(bad))
        told = []
        for line in lines:
            letter = self._told(line)
            if letter is None:
                refused.append(self.edge.refuse(MALFORMED, "the line is no dead letter: it has no field 'raw'", line))
            elif isinstance(letter, DeadLetter):
                refused.append(letter)
            else:
                told.append(letter)
        learn_kinds(self.edge, [letter.raw for letter in told if isinstance(letter.raw, dict)])
        yield Batch({}, rows=0), refused
        for (header, roles), run in groupby(told, key=lambda letter: (letter.header, letter.roles)):
            if header:
                for letter in run:
                    yield self._line(letter, arrived_ns, wall_ns)
            else:
                yield self._rows(list(run), self._edge(roles), arrived_ns, wall_ns)

    def _told(self, line: Mapping[str, Any]) -> _Told | DeadLetter | None:
        """What a line says; the letter it becomes again when its text is still no record; None when it is no letter."""
        if "raw" not in line:
            return None
        raw, time, named = line["raw"], line.get("time"), line.get("header") or []
        for field, fits in (
            ("header", isinstance(named, list) and all(isinstance(name, str) for name in named)),
            ("key", isinstance(line.get("key"), str | int | float | None)),
        ):
            if not fits:
                reason = f"the line is no dead letter: its field {field!r} is not what a run writes there"
                return self.edge.refuse(MALFORMED, reason, line)
        header = tuple(named) if isinstance(raw, str) else ()  # what was repaired to a record is none of CSV any more
        key = str(line["key"]) if line.get("key") and self.key is None else None
        if isinstance(raw, str) and not header:
            rows, bad = decode_json_lines(raw.encode("utf-8", "replace"))
            if bad:
                known = {} if key is None else {self.edge.roles.key: key}
                return self.edge.refuse(bad[0].reason_code, bad[0].reason, raw, known=known)
            raw = rows[0] if rows else {}
        time_ns = NAT if time is None or self.time is not None else TimeReader().one(time)
        return _Told(raw, header, key, None if time_ns == NAT else time_ns, "time" not in line)

    # -- records -------------------------------------------------------------------------------------

    def _edge(self, roles: tuple[bool, bool, bool]) -> Edge:
        """The edge for records that get these roles from their letters."""
        if roles not in self._edges:
            has_key, has_time, arrival = roles
            key = f"{{{_OF_LETTER}}}" if has_key else self.key or DEFAULT_KEY
            time = _OF_LETTER if has_time else self.time or DEFAULT_TIME
            arrival = has_time or (arrival and self.time is None)
            self._edges[roles] = self.edge.reading(key, time, arrival=arrival)
        return self._edges[roles]

    def _rows(self, letters: list[_Told], edge: Edge, arrived_ns: int, wall_ns: int) -> Delivery:
        return edge.rows(
            [letter.raw for letter in letters],
            arrived_ns=arrived_ns,
            wall_ns=np.array([wall_ns if letter.time_ns is None else letter.time_ns for letter in letters], np.int64),
            known=[_known(letter) for letter in letters],
            parsed=True,
        )

    def _line(self, letter: _Told, arrived_ns: int, wall_ns: int) -> Delivery:
        """A line of CSV that could not be split."""
        decoder = CsvDecoder(
            self._edge(letter.roles), named=str(self.path), known=_known(letter), header=letter.header, limit=self.limit
        )
        wall_ns = wall_ns if letter.time_ns is None else letter.time_ns
        batch, refused = decoder.feed(f"{letter.raw}\n".encode(), arrived_ns=arrived_ns, wall_ns=wall_ns)
        return (batch, refused) if len(batch) or refused else decoder.finish(arrived_ns=arrived_ns, wall_ns=wall_ns)


class _Letters:
    """Bytes of a file of letters in, their records out: the rejects of each block, and then its records."""

    between = True

    def __init__(self, source: DeadLetters, begun: bool) -> None:
        self._source = source
        self._splitter = LineSplitter(source.limit, begun=begun)

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery:
        return self._joined(self._splitter.feed(data), arrived_ns, wall_ns)

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> Delivery:
        return self._joined(self._splitter.finish(), arrived_ns, wall_ns)

    def _joined(self, block: bytes, arrived_ns: int, wall_ns: int) -> Delivery:
        deliveries = list(self._source._decoded(block, arrived_ns, wall_ns))
        reason = f"the letter is longer than {self._splitter.limit} bytes"
        letters = [self._source.edge.refuse(OVERSIZE, reason, shown(line.head)) for line in self._splitter.oversize]
        self._splitter.oversize.clear()
        letters += [letter for _, refused in deliveries for letter in refused]
        batches = [batch for batch, _ in deliveries if len(batch)]
        made = Batch.concat(batches) if batches else Batch({}, rows=0)
        made.arrived_ns = arrived_ns
        return made, letters


def _known(letter: _Told) -> dict[str, str]:
    return {} if letter.key is None else {_OF_LETTER: letter.key}
