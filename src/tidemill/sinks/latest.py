"""`Latest`: the newest row of each sensor, for the application to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, LoopSink, SinkStatistics, Where

__all__ = ["Latest"]

_SPARE_ROWS: Final = 10_000
_ROWS_AT_ONCE: Final = 8_192
"""Rows taken up, or gone through again, in one turn of the loop: some milliseconds."""
_BLOCKS_AT_ONCE: Final = 64
"""The same of blocks, each of which takes its time however few rows it has."""


@dataclass(frozen=True)
class _Block:
    """Rows that were the newest of their sensors when they came."""

    batch: Batch
    names: list[str]
    """The sensor of each."""


class Latest(LoopSink, Mapping[str, dict[str, Any]]):
    """A read-only mapping from sensor to its newest row (the last in input order), as a dict.

    ``latest["S12"]``, ``latest.get("S12")``, ``"S12" in latest``, ``len(latest)``, iteration over the sensors, and
    `snapshot` for all of them at once. Read it on the event loop: there it never changes between two awaits.
    A function given as ``where`` runs there too, and the report shows its time apart, as ``user_code``. Memory is bounded by the number of sensors. Rows of an earlier run of the same object stay until newer ones come;
    ``if_exists="replace"`` forgets them at the start.

    Delivery: a row is there when its batch was written; nothing is kept after the run.

    >>> import asyncio
    >>> from tidemill.column import Column
    >>> latest = Latest()
    >>> batch = Batch.from_rows([{"sensor": "S1", "value": 20}, {"sensor": "S1", "value": 21}])
    >>> batch.key_column = batch.column("sensor")
    >>> asyncio.run(latest.write(batch))
    >>> latest["S1"], list(latest)
    ({'sensor': 'S1', 'value': 21}, ['S1'])
    """

    delivery = "newest row of each key, in memory"

    def __init__(
        self,
        *,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        self._newest: dict[str, int] = {}
        """Of each sensor the block of its newest row, and the place there: ``block * _ROWS_AT_ONCE + place``."""
        self._blocks: dict[int, _Block] = {}
        """By number; the one that was gone through longest ago comes first."""
        self._made = 0
        self._held = 0
        self._rows = 0

    async def open(self, schema: Schema) -> None:
        if self.if_exists == "replace":
            self._newest.clear()
            self._blocks.clear()
            self._held = 0

    async def write(self, batch: Batch) -> None:
        for start in range(0, len(batch), _ROWS_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._take_up(batch.slice(start, start + _ROWS_AT_ONCE))
            while self._held > 4 * len(self._newest) + _SPARE_ROWS:
                await asyncio.sleep(0)
                self._go_through(self._longest_ago())

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(self.name, self._rows)

    # -- reading -------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> dict[str, Any]:
        number, place = divmod(self._newest[key], _ROWS_AT_ONCE)
        return self._blocks[number].batch.slice(place, place + 1).to_rows()[0]

    def __contains__(self, key: object) -> bool:
        return key in self._newest

    def __iter__(self) -> Iterator[str]:
        return iter(self._newest)

    def __len__(self) -> int:
        return len(self._newest)

    def __bool__(self) -> bool:
        return True  # a sink, also while it is empty

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Sensor → newest row, for all sensors; yours to keep."""
        rows: dict[str, dict[str, Any]] = {key: {} for key in self._newest}
        for number, block in self._blocks.items():
            live = self._live(number, block)
            names = [block.names[place] for place in live.tolist()]
            rows.update(zip(names, block.batch.take(live).to_rows(), strict=True))
        return rows

    # -- keeping -------------------------------------------------------------------------------------

    def _take_up(self, batch: Batch) -> None:
        last = _last_of_each(batch.key, len(batch.keys))
        names = batch.keys[batch.key[last]].tolist()
        self._keep(_of_rows_alone(batch.take(last)), names)  # a copy: the batch is lent only for this call
        self._rows += len(batch)

    def _keep(self, batch: Batch, names: list[str]) -> None:
        """A dict is made when somebody looks; until then a row is a place in a block."""
        first = self._made * _ROWS_AT_ONCE
        self._blocks[self._made] = _Block(batch, names)
        self._newest.update(zip(names, range(first, first + len(names)), strict=True))
        self._made += 1
        self._held += len(names)

    def _live(self, number: int, block: _Block) -> NDArray[np.intp]:
        """Places in the block of the rows that still are the newest of their sensors."""
        newest = np.fromiter(map(self._newest.__getitem__, block.names), np.int64, len(block.names))
        first = number * _ROWS_AT_ONCE
        return np.flatnonzero(newest == np.arange(first, first + len(newest)))

    def _longest_ago(self) -> dict[int, _Block]:
        """The blocks whose turn it is, no more rows and blocks than one turn may take; out of the books."""
        blocks: dict[int, _Block] = {}
        rows = 0
        for number, block in self._blocks.items():
            rows += len(block.names)
            if blocks and (rows > _ROWS_AT_ONCE or len(blocks) == _BLOCKS_AT_ONCE):
                break
            blocks[number] = block
        for number, block in blocks.items():
            del self._blocks[number]
            self._held -= len(block.names)
        return blocks

    def _go_through(self, blocks: Mapping[int, _Block]) -> None:
        """Keep of these blocks only the rows that are newest, in as few new ones as their columns allow: blocks of which few
        rows are, and the texts that came with them, do not stay in memory."""
        alike: dict[object, list[_Block]] = {}
        for number, block in blocks.items():
            live = self._live(number, block)
            if len(live):
                names = [block.names[place] for place in live.tolist()]
                alike.setdefault(_columns(block.batch), []).append(_Block(block.batch.take(live), names))
        for parts in alike.values():
            batch = Batch.concat([part.batch for part in parts])
            own = batch.with_columns({})
            own.columns = {name: column.without_unused_texts() for name, column in batch.columns.items()}
            self._keep(own, [name for part in parts for name in part.names])


def _of_rows_alone(batch: Batch) -> Batch:
    """What `Batch.to_rows` needs."""
    batch.key_column = batch.time_ns = batch.sequence = None
    return batch


def _columns(batch: Batch) -> object:
    """The same for batches that can be joined without a cell more than they have: rows of an earlier run may have columns of
    other kinds, and rows with other columns would be wide with what they lack."""
    return tuple((name, column.kind, column.is_missing) for name, column in batch.columns.items())


def _last_of_each(codes: NDArray[np.int32], keys: int) -> NDArray[np.intp]:
    """Positions of the last record of each key, in input order."""
    if keys <= 4 * len(codes) + 1024:
        last = np.full(keys, -1, np.intp)
        last[codes] = np.arange(len(codes))  # of several, the last one stays
        return np.sort(last[last >= 0])
    _, reverse = np.unique(codes[::-1], return_index=True)
    return np.sort(len(codes) - 1 - reverse)
