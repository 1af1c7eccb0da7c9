"""The dead letters of slabs, in input order: what stages refused, and what no slab can hold."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final

import msgspec
import numpy as np

from tidemill.core.plan import Plan
from tidemill.engine.assembly import Share
from tidemill.engine.filling import Slab
from tidemill.engine.intake import Taken
from tidemill.lanes.wire import DEAD_ROWS_ORDER
from tidemill.letters import AT_A_TIME, OVERSIZE, DeadLetter

__all__ = ["Burials"]

_RAW_SHOWN: Final = 10_000
"""Characters of a record that was too large which its dead letter shows."""
_Dead = tuple[int, int, str, str]
_DeadRow = tuple[int, int, str, int, str, str, bytes]
"""As `tidemill.lanes.wire.Result` has them."""


class Burials:
    """Hands dead letters on: those of records to ``reject``, those of rows that stages had made to ``reject_row``; ``made``
    is told how many such rows came to which stage.

    ``counters`` is where the latter are counted, as ``dead_rows``: they are no records.
    """

    def __init__(
        self,
        plan: Plan,
        counters: dict[str, int],
        reject: Callable[[Sequence[DeadLetter]], None],
        reject_row: Callable[[Sequence[DeadLetter]], None],
        made: Callable[[int, str], None],
    ) -> None:
        self._names = [stage.name for stage in plan.stages]
        self._counters = counters
        self._reject, self._reject_row, self._made = reject, reject_row, made

    def of(self, slab: Slab, shares: Sequence[Share]) -> Generator[None, None, int]:
        """Those of a slab, step by step: others may have their turn in between. At the end, how many records they are."""
        dead: list[_Dead] = []
        for share in shares:
            for stage, rows in share.result.made_came.items():
                self._made(rows, self._names[stage])
            dead += share.result.dead
        dead.sort(key=itemgetter(0))
        for start in range(0, len(dead), AT_A_TIME):
            if start:
                yield
            self._bury(slab.taken, dead[start : start + AT_A_TIME])
        if not any(share.result.dead_rows for share in shares):
            return len(dead)
        dead_rows = heapq.merge(*(share.result.dead_rows for share in shares), key=DEAD_ROWS_ORDER)
        begun = bool(dead)
        while some := list(islice(dead_rows, AT_A_TIME)):  # sorted all at once, very many would hold the loop
            if begun:
                yield
            begun = True
            self._bury_rows(slab.taken, some)
        return len(dead)

    def _bury_rows(self, taken: Taken, dead_rows: Sequence[_DeadRow]) -> None:
        self._counters["dead_rows"] = self._counters.get("dead_rows", 0) + len(dead_rows)
        letters = []
        for place, _, key, stage, code, reason, made in dead_rows:
            row = msgspec.json.decode(made)  # without a time: a replay is not to take it for a record
            letters.append(DeadLetter(code, reason, row, stage=self._names[stage], key=key, behind=taken.index(place)))
        self._reject_row(letters)

    def _bury(self, taken: Taken, dead: Sequence[_Dead]) -> None:
        lost = taken.batch.take(np.array([row for row, *_ in dead]))
        keys = [str(lost.keys[code]) for code in lost.key]
        letters = []
        for (row, stage, code, reason), raw, key, ns in zip(
            dead, lost.to_rows(), keys, lost.time.tolist(), strict=True
        ):
            where = {"stage": self._names[stage], "key": key, "time_ns": ns, "position": taken.index(row)}
            letters.append(DeadLetter(code, reason, raw, **where))
        self._reject(letters)

    def oversize(self, taken: Taken, size: int) -> None:
        """That of a single record that does not fit in a slab of ``size`` bytes."""
        reason = f"the record does not fit in the {size >> 20} MB of a slab"
        raw = str(taken.batch.to_rows()[0])[:_RAW_SHOWN]
        self._reject([DeadLetter(OVERSIZE, reason, raw, position=taken.index(0))])
