"""What `tidemill.Lanes.keyed` can be told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidemill.engine.options import check_choice, check_count

__all__ = ["KeyedLimits", "KeyedStatistics"]


@dataclass(frozen=True)
class KeyedLimits:
    """Bounds of what is kept and of what waits; raises `CallError` for values that make no sense."""

    max_keys: int
    """Objects."""
    max_bytes: int
    """Of their states."""
    max_waiting: int
    """Calls that were taken and have not ended."""
    max_waiting_bytes: int
    """Bytes of their arguments; the call that passes the bound is still taken."""
    when_full: Literal["block", "reject"]
    """None is dropped for a newer one: the next of its key would be run without it."""

    def __post_init__(self) -> None:
        for name in ("max_keys", "max_bytes", "max_waiting", "max_waiting_bytes"):
            check_count(name, getattr(self, name))
        check_choice("when_full", self.when_full, ("block", "reject"))


@dataclass(frozen=True)
class KeyedStatistics:
    """How the objects of one `tidemill.Lanes.keyed` are."""

    keys: int
    """Objects."""
    state_bytes: int
    """Bytes that the application keeps of them."""
    waiting: int
    """Calls that wait for an earlier one of their key."""
    open: int
    """Calls that were taken and have not ended, waiting or not."""
    open_bytes: int
    """Bytes of their arguments."""
    blocked: int
    """Callers that wait for room among those."""
    rejected: int
    restored: int
    """Times that an object was made again from its state: after a death, a cancel, an error, or a recycling."""
