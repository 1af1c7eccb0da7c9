"""How many lanes: what the machine, or the container, lets this process use; and whether there can be any."""

from __future__ import annotations

import math
import os
import sys

from tidemill import files
from tidemill.errors import PlanError, TidemillError
from tidemill.lanes.forkserver import inside_lane

__all__ = ["default_lanes", "no_processes", "resolved_lanes"]


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


def resolved_lanes(asked: int | None, error: type[TidemillError] = PlanError) -> int:
    """The number to start; raises the error for one that makes no sense."""
    if asked is None:
        return default_lanes()
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        raise error(f"lanes={asked!r} must be 0 (inline) or a number of processes.")
    return asked


def no_processes() -> str:
    """Why no lane's process can be started from this one: a sentence, or nothing."""
    if inside_lane():
        return "This code runs in a lane already, and there are no lanes within lanes."
    if not sys.platform.startswith("linux"):
        return "Lanes run on Linux so far."
    if not sys.executable:
        return (
            f"Lanes are started with the Python interpreter that sys.executable names, and it is {sys.executable!r} "
            "here, as in a program that embeds Python: set it to the path of one."
        )
    if getattr(sys, "frozen", False):
        return (
            "Lanes are started with a Python interpreter, and this is a frozen application (sys.frozen), of which "
            f"{sys.executable} is the whole program."
        )
    return ""
