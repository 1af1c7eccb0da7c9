"""How many lanes: what the machine, or the container, lets this process use; and whether there can be any."""

from __future__ import annotations

import sys

from tidemill.errors import PlanError, TidemillError
from tidemill.lanes.forkserver import inside_lane
from tidemill.lanes.platform import allowed_cpus, no_lanes_here

__all__ = ["default_lanes", "no_processes", "resolved_lanes"]


def default_lanes() -> int:
    """The physical cores that the affinity mask and the cgroup's CPU quota allow; at least 1."""
    import psutil

    allowed = allowed_cpus()
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


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
    if elsewhere := no_lanes_here():
        return elsewhere
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
