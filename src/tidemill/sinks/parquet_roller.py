"""Stages become Parquet files in a thread, while the sink takes further rows: that needs another core, not more time.

What a stage gets is encoded as it comes, under the hidden name of the file to be. So rows are read back from a stage only
after a start, which finds no more than the stage.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tidemill.sinks.parquet_file import ParquetFile
from tidemill.sinks.parquet_stages import Kinds, RowGroups, Stage

__all__ = ["Roller"]

MOST_WAITING: Final = 2
"""Groups of rows that may wait to be encoded: then so does the sink."""


@dataclass
class _Part:
    """A file to be, as far as it is encoded."""

    groups: RowGroups
    rows: int = 0
    kinds: Kinds = field(default_factory=dict)
    file: ParquetFile | None = None


class Roller:
    """Makes one part after another, of row groups of ``capacity`` rows. It touches no stage but those, and no manifest."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._thread = ThreadPoolExecutor(1, "tidemill-parquet")
        self._taken: deque[Future[None]] = deque()
        self._begun: list[tuple[Stage, Future[int]]] = []
        self._parts: dict[int, _Part] = {}
        """Of the thread alone."""

    def take(self, stage: Stage, place: Path, table: Any) -> None:
        """Rows that the stage has just got. Raises what encoding those before them raised."""
        while self._taken and (self._taken[0].done() or len(self._taken) >= MOST_WAITING):
            self._taken.popleft().result()
        self._taken.append(self._thread.submit(self._encode, stage.number, place, stage.kinds, table))

    def begin(self, stage: Stage, place: Path) -> None:
        """Make the part of a stage that takes no more rows, and is on disk as committed."""
        self._begun.append((stage, self._thread.submit(self._finish, stage, place)))

    def done(self) -> list[tuple[Stage, int]]:
        """Wait for the parts that were begun since the last call; their bytes. Raises what making one of them raised."""
        made = [(stage, part.result()) for stage, part in self._begun]
        self._begun.clear()
        return made

    def end(self) -> None:
        """Return once nothing is written any more. What was not made is made by the next start."""
        self._thread.shutdown(cancel_futures=True)
        for part in self._parts.values():
            if part.file is not None:
                part.file.discard()
        self._parts.clear()

    # -- in the thread -------------------------------------------------------------------------------

    def _encode(self, number: int, place: Path, kinds: Kinds, table: Any) -> None:
        part = self._parts.setdefault(number, _Part(RowGroups(self._capacity)))
        part.rows += len(table)
        for group in part.groups.add(table):
            if part.file is None:
                part.kinds, part.file = kinds, ParquetFile(place, kinds)
            part.file.take(group(part.kinds))

    def _finish(self, stage: Stage, place: Path) -> int:
        part = self._parts.pop(stage.number, None)
        if part is None or part.file is None:
            return stage.roll(place, self._capacity)
        try:
            if part.rows == stage.rows and part.kinds == stage.kinds:
                for group in part.groups.rest():
                    part.file.take(group(part.kinds))
                return part.file.publish()
        except BaseException:
            part.file.discard()
            raise
        part.file.discard()  # the stage had rows before this start, or got other columns later
        return stage.roll(place, self._capacity)
