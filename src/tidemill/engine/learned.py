"""What a run learns of the columns that functions make: their names and kinds, one kind for the whole run (see decision 5)."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.batch import Batch
from tidemill.core.plan import Plan
from tidemill.engine.assembly import Share
from tidemill.engine.kind_conflicts import settled
from tidemill.formats.packed import Unpacker
from tidemill.schema import Kind

__all__ = ["Learned"]

_PROBES = 1_000
"""Records sent one by one, at most, until one has passed every function and so shown its columns and their kinds."""

_BEHIND = 1 << 62
"""Where a share without records stands: what it shows is of rows that stages made."""


class Learned:
    """The kinds that are known. Slabs are given to it in input order, so that it learns the same in every run."""

    def __init__(self, plan: Plan, unpacker: Unpacker) -> None:
        self._unpacker = unpacker
        self._last_stage = max(len(plan) - 1, 0)
        self._framed: dict[str, Kind] = {}  # columns that came in frames
        self._probed = 0
        self.kinds: dict[int, dict[str, str]] = {}
        """Per stage, the kinds of the columns it adds: what lanes are told."""
        self.probing = plan.learns
        """Whether records go one by one, because no record has yet shown what functions make."""

    def learn(self, shares: Sequence[Share]) -> tuple[list[Share], bool]:
        """The shares of one slab without the rows in which a column is of another kind than the first row made it; and whether a
        column was new. The first row in input order to show a column fixes its kind, for all lanes."""
        left, decided = settled(shares, self._framed, self._unpacker, self._last_stage)
        if not any(share.result.kinds for share in left):
            return left, False
        known = sum(map(len, self.kinds.values()))
        for name, number in decided.items():
            for stage, columns in (left[number].result.kinds or {}).items():
                if name in columns:
                    self.kinds.setdefault(stage, {}).setdefault(name, columns[name])
        for share in sorted(left, key=lambda share: int(share.rows[0]) if len(share.rows) else _BEHIND):
            for stage, columns in (share.result.kinds or {}).items():
                own = self.kinds.setdefault(stage, {})
                for name, kind in columns.items():
                    own.setdefault(name, kind)
        return left, sum(map(len, self.kinds.values())) > known

    def probe(self, before: Batch, shares: Sequence[Share], after: Batch) -> None:
        """Whether the probing may end with this slab."""
        if self.probing:
            self._probed += 1
            self.probing = self._probed < _PROBES and not _shows(before, shares, after)


def _shows(before: Batch, shares: Sequence[Share], after: Batch) -> bool:
    """Whether a record has passed every function, and left a value in every column that they make."""
    own = {id(column) for column in before.columns.values()}
    made = [column for column in after.columns.values() if id(column) not in own]
    failed = any(share.result.counts.get("failed_as_nan") for share in shares)
    return bool(len(after)) and not failed and not any(column.is_missing for column in made)
