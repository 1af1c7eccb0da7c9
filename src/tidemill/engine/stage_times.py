"""Where a run's time goes, stage by stage, and which function takes longer than it should."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tidemill.core.plan import Plan
from tidemill.engine.lane import Lane
from tidemill.engine.metrics import StageReport

__all__ = ["StageTimes"]

_log = logging.getLogger("tidemill")


class StageTimes:
    """The seconds that lanes spent in each stage, and a watch over calls that pass their stage's budget."""

    def __init__(self, plan: Plan) -> None:
        self._stages = plan.stages
        self._ns = [0] * len(plan)
        self._told: dict[int, tuple[int, int]] = {}  # per lane, the call that was told of: stage, and since when
        self.over_budget = 0
        """Calls that took longer than their stage's budget."""

    def add(self, spent_ns: Sequence[int]) -> None:
        """What one lane spent on one slab."""
        for stage, spent in enumerate(spent_ns):
            self._ns[stage] += spent

    def watch(self, lanes: Sequence[Lane], now_ns: int) -> None:
        """Tell of each call of a user's function that has passed its stage's budget, once, while it goes on."""
        for lane in lanes:
            _, stage, row, since_ns = lane.memory.cursor
            if not since_ns or not 0 <= stage < len(self._stages) or self._told.get(lane.number) == (stage, since_ns):
                continue
            budget_s = self._stages[stage].budget_s
            if now_ns - since_ns <= budget_s * 1e9:
                continue
            self._told[lane.number] = stage, since_ns
            self.over_budget += 1
            name = self._stages[stage].name
            _log.warning(
                "lane %d: one call of %s%s has taken more than %g s and goes on; deadline_s= would stop it there",
                lane.number,
                name,
                f", for row {row} of its batch," if row >= 0 else "",
                budget_s,
                extra={"lane": lane.number, "stage": name},
            )

    def called_by(self, lane: Lane) -> str:
        """The stage whose function the lane is in; empty while it is in none."""
        _, stage, _, since_ns = lane.memory.cursor
        return self._stages[stage].name if since_ns and 0 <= stage < len(self._stages) else ""

    def report(self) -> tuple[StageReport, ...]:
        """One entry per stage, in the plan's order."""
        return tuple(StageReport(stage.name, ns / 1e9) for stage, ns in zip(self._stages, self._ns, strict=True))
