"""What the lanes of a run have done, for whichever attempt: time was spent, whatever became of the rows."""

from __future__ import annotations

from tidemill.core.plan import Plan
from tidemill.engine.lane import LaneWork
from tidemill.engine.metrics import BatchSizes
from tidemill.engine.stage_times import StageTimes

__all__ = ["Work"]


class Work:
    """Of one run; each attempt adds to it."""

    def __init__(self, plan: Plan, lanes: int) -> None:
        self.lanes = [LaneWork() for _ in range(lanes)]
        self.stages = StageTimes(plan)
        self.batches = BatchSizes()
        """Records in a slab."""
        self.first_done_ns = 0
        """When all lanes were through with the first slab; 0 before."""
