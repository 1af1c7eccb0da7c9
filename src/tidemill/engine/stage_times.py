"""Where a run's time goes, stage by stage, and which function takes longer than it should."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from tidemill.core.plan import Plan
from tidemill.engine.lane import Lane
from tidemill.engine.metrics import StageReport
from tidemill.stages.base import Stage
from tidemill.stages.state import opening

__all__ = ["StageTimes"]

_NEVER_STOPPED: Final = "its lane works on nothing before, and no deadline stops it"
_log = logging.getLogger("tidemill")


class StageTimes:
    """The seconds that lanes spent in each stage, and a watch over calls that pass their stage's budget."""

    def __init__(self, plan: Plan) -> None:
        self._stages = plan.stages
        self._ns = [0] * len(plan)
        self._told: dict[int, tuple[int, int]] = {}  # per lane, the call that was told of: stage, and since when
        self.over_budget = 0
        """Calls, and openings, that took longer than their stage's budget."""

    def add(self, spent_ns: Sequence[int]) -> None:
        """What one lane spent on one slab."""
        for stage, spent in enumerate(spent_ns):
            self._ns[stage] += spent

    def watch(self, lanes: Sequence[Lane], now_ns: int) -> None:
        """Tell of each call of a user's function, and of each stage that is being opened, which has passed its stage's budget: once,
        while it goes on."""
        for lane in lanes:
            _, place, row, since_ns = lane.memory.cursor
            stage = self._stage_at(place)
            if not since_ns or stage is None or self._told.get(lane.number) == (place, since_ns):
                continue
            if now_ns - since_ns <= stage.budget_s * 1e9:
                continue
            self._told[lane.number] = place, since_ns
            self.over_budget += 1
            _log.warning(
                "lane %d: %s has taken more than %g s and goes on; %s",
                lane.number,
                _what(stage, row)
                if place >= 0
                else f"opening {stage.name}, which makes its object or loads its model,",
                stage.budget_s,
                _comes_next(stage) if place >= 0 else _NEVER_STOPPED,
                extra={"lane": lane.number, "stage": stage.name},
            )

    def called_by(self, lane: Lane) -> str:
        """The stage whose function the lane is in, or which it opens; empty while it is in none."""
        _, place, _, since_ns = lane.memory.cursor
        stage = self._stage_at(place)
        return stage.name if since_ns and stage is not None else ""

    def opened_by(self, lane: Lane) -> str:
        """The stage that the lane opens; empty while it opens none."""
        return self.called_by(lane) if lane.memory.cursor[1] < 0 else ""

    def _stage_at(self, place: int) -> Stage | None:
        """The stage of a cursor."""
        number = place if place >= 0 else opening(place)
        return self._stages[number] if 0 <= number < len(self._stages) else None

    def report(self) -> tuple[StageReport, ...]:
        """One entry per stage, in the plan's order."""
        return tuple(StageReport(stage.name, ns / 1e9) for stage, ns in zip(self._stages, self._ns, strict=True))


def _what(stage: Stage, row: int) -> str:
    return f"one call of {stage.name}{f', for row {row} of its batch,' if row >= 0 else ''}"


def _comes_next(stage: Stage) -> str:
    if stage.deadline_s is None:
        return "deadline_s= would stop it there"
    return f"it is stopped at {stage.deadline_s:g} s, its deadline_s"
