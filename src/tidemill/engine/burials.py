"""The dead letters of slabs, in input order: what stages refused, and what no slab can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from tidemill.core.plan import Plan
from tidemill.engine.assembly import Share
from tidemill.engine.filling import Slab
from tidemill.engine.intake import Taken
from tidemill.letters import OVERSIZE, DeadLetter

__all__ = ["Burials"]

_RAW_SHOWN: Final = 10_000
"""Characters of a record that was too large which its dead letter shows."""


class Burials:
    """Hands dead letters on: those of records to ``reject``, those of rows that stages had made to ``reject_row``; ``made``
    is told how many such rows came to which stage.

    ``counters`` is where the latter are counted, as ``dead_rows``: they are no records.
    """

    def __init__(
        self,
        plan: Plan,
        counters: dict[str, int],
        reject: Callable[[DeadLetter], None],
        reject_row: Callable[[DeadLetter], None],
        made: Callable[[int, str], None],
    ) -> None:
        self._names = [stage.name for stage in plan.stages]
        self._counters = counters
        self._reject, self._reject_row, self._made = reject, reject_row, made

    def of(self, slab: Slab, shares: Sequence[Share]) -> int:
        """Those of a slab; how many records they are."""
        for share in shares:
            for stage, rows in share.result.made_came.items():
                self._made(rows, self._names[stage])
            for stage, code, reason, key, made in share.result.dead_rows:
                self._counters["dead_rows"] = self._counters.get("dead_rows", 0) + 1
                row = msgspec.json.decode(made)  # without a time: a replay is not to take it for a record
                self._reject_row(DeadLetter(code, reason, row, stage=self._names[stage], key=key))
        dead = sorted(entry for share in shares for entry in share.result.dead)
        if not dead:
            return 0
        taken = slab.taken
        lost = taken.batch.take(np.array([row for row, *_ in dead]))
        keys = [str(lost.keys[code]) for code in lost.key]
        for (row, stage, code, reason), raw, key, ns in zip(
            dead, lost.to_rows(), keys, lost.time.tolist(), strict=True
        ):
            where = {"stage": self._names[stage], "key": key, "time_ns": ns, "position": taken.index(row)}
            self._reject(DeadLetter(code, reason, raw, **where))
        return len(dead)

    def oversize(self, taken: Taken, size: int) -> None:
        """That of a single record that does not fit in a slab of ``size`` bytes."""
        reason = f"the record does not fit in the {size >> 20} MB of a slab"
        raw = str(taken.batch.to_rows()[0])[:_RAW_SHOWN]
        self._reject(DeadLetter(OVERSIZE, reason, raw, position=taken.index(0)))
