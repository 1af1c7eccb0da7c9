"""`Latest`: the newest row of each sensor, for the application to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, LoopSink, SinkStatistics, Where

__all__ = ["Latest"]

_SPARE_ROWS: Final = 10_000


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
        self._newest: dict[str, dict[str, Any] | tuple[Batch, int]] = {}
        self._held = 0
        self._rows = 0

    async def open(self, schema: Schema) -> None:
        if self.if_exists == "replace":
            self._newest.clear()
            self._held = 0

    async def write(self, batch: Batch) -> None:
        if not len(batch):
            return
        newest = batch.take(_last_of_each(batch.key, len(batch.keys)))  # a copy: the batch is lent only for this call
        names = batch.keys[newest.key].tolist()
        # A dict is made when somebody looks; until then the row is a place in its batch.
        self._newest.update(zip(names, zip(repeat(newest), range(len(newest))), strict=False))
        self._rows += len(batch)
        self._held += len(newest)
        if self._held > 4 * len(self._newest) + _SPARE_ROWS:
            self._let_go()

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(self.name, self._rows)

    # -- reading -------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> dict[str, Any]:
        found = self._newest[key]
        return dict(found) if isinstance(found, dict) else _row(*found)

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
        return {key: self[key] for key in self}

    def _let_go(self) -> None:
        """Turn places into dicts, so that batches of which few rows are newest do not stay in memory."""
        self._newest = dict(self.snapshot())
        self._held = 0


def _row(batch: Batch, place: int) -> dict[str, Any]:
    return dict(batch.slice(place, place + 1).to_rows()[0])


def _last_of_each(codes: NDArray[np.int32], keys: int) -> NDArray[np.intp]:
    """Positions of the last record of each key, in input order."""
    if keys <= 4 * len(codes) + 1024:
        last = np.full(keys, -1, np.intp)
        last[codes] = np.arange(len(codes))  # of several, the last one stays
        return np.sort(last[last >= 0])
    _, reverse = np.unique(codes[::-1], return_index=True)
    return np.sort(len(codes) - 1 - reverse)
