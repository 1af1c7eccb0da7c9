"""How many lanes: what the machine, or the container, lets this process use."""

from __future__ import annotations

import math
import os

from tidemill import files
from tidemill.errors import PlanError

__all__ = ["default_lanes", "resolved_lanes"]


def default_lanes() -> int:
    """The physical cores that the affinity mask and the cgroup's CPU quota allow; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    if quota is not None:
        allowed = min(allowed, max(1, math.floor(quota)))
    import psutil

    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


def _quota() -> float | None:
    """CPUs that the cgroup allows, v2 or v1; None for no limit."""
    v2 = files.read_bytes("/sys/fs/cgroup/cpu.max")
    if v2 is not None:
        limit, _, period = v2.decode().strip().partition(" ")
        return None if limit == "max" else int(limit) / int(period or 100_000)
    limit_v1 = files.read_bytes("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_v1 = files.read_bytes("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if limit_v1 is None or period_v1 is None or int(limit_v1) <= 0:
        return None
    return int(limit_v1) / int(period_v1)


def resolved_lanes(asked: int | None) -> int:
    """The number to start; raises `PlanError` for one that makes no sense."""
    if asked is None:
        return default_lanes()
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        raise PlanError(f"lanes={asked!r} must be 0 (inline) or a number of processes.")
    return asked
