"""How state is kept: what a user may say of it beside where."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.errors import PlanError

__all__ = ["StateOptions"]


@dataclass(frozen=True)
class StateOptions:
    """``fresh``               start over; the state so far is moved aside
    ``checkpoint_s``        seconds between checkpoints, and between commits of the sinks: how long rows wait to be seen
    ``checkpoint_records``  a checkpoint also after so many inputs
    ``log_max_bytes``       what the ingest log may take; then sources wait
    ``log_min_free``        what it leaves free on the disk
    ``drop_state``          names of stages that are no longer in the plan, whose state may go
    """

    fresh: bool = False
    checkpoint_s: float = 1.0
    checkpoint_records: int | None = None
    log_max_bytes: int = 10 << 30
    log_min_free: int = 1 << 30
    drop_state: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.checkpoint_s > 0:
            raise PlanError(f"checkpoint_s={self.checkpoint_s!r} must be more than 0 seconds.")
        if self.checkpoint_records is not None and self.checkpoint_records < 1:
            raise PlanError(f"checkpoint_records={self.checkpoint_records!r} must be 1 or more.")
        if self.log_max_bytes < 1 << 20:
            raise PlanError(f"log_max_bytes={self.log_max_bytes!r} must be a number of bytes, at least a megabyte.")
        if self.log_min_free < 0:
            raise PlanError(f"log_min_free={self.log_min_free!r} must be 0 bytes or more.")
