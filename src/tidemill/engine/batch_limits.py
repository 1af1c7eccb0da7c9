"""What `tidemill.Lanes.batched` can be told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.engine.options import WhenFull, check_choice, check_count, check_timeout

__all__ = ["BatchLimits", "BatchedStatistics"]


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of batches and of what waits for one; raises `CallError` for values that make no sense."""

    max_batch: int = 256
    """Records of a batch."""
    max_batch_bytes: int = 1 << 20
    """Pickled bytes of a batch of more than one record: the loop is held no longer by a batch than by a message."""
    timeout: float | None = None
    """Seconds for each record, from its call to its value, waiting included."""
    max_waiting: int = 65_536
    """Records that no lane has yet."""
    max_waiting_bytes: int = 256 << 20
    """Their bytes; the record that passes the bound is still taken."""
    when_full: WhenFull = "block"

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_batch_bytes", "max_waiting", "max_waiting_bytes"):
            check_count(name, getattr(self, name))
        check_timeout(self.timeout)
        check_choice("when_full", self.when_full)


@dataclass(frozen=True)
class BatchedStatistics:
    """How a `Batched` is; counts are since it was made."""

    waiting: int
    """Records that no lane has yet."""
    waiting_bytes: int
    blocked: int
    """Callers that wait for room among those."""
    records: int
    """Records sent."""
    batches: int
    """Calls in which they were sent."""
    cap: int
    """The most records it would put in a batch now."""
    cost_s: float
    """Seconds a record costs in a lane, as last measured."""
    timed_out: int
    rejected: int
    dropped: int
