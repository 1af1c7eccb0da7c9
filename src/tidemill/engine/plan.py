"""`Plan` with `apply`: the chain of stages over data in memory, its tables read from disk as for a run."""

from __future__ import annotations

from typing import Any

from tidemill import files
from tidemill.core import plan as core
from tidemill.stages.base import Table

__all__ = ["Plan", "read_table"]


def read_table(path: str) -> tuple[str, Table]:
    """A stage's table with the absolute path that was tried; raises `InputError` with the same."""
    return str(files.absolute(path)), files.read_table(path)


class Plan(core.Plan):
    """A pipeline without its edges: a chain of stages, checked as far as it can be before anything runs.

    ``Plan(stage, stage, ...)``; a list of stages counts as its stages, and a plan inside a plan as its stages.
    """

    def apply(self, data: Any, *, key: str = "sensor", time: str | None = None, tz: str = "UTC") -> Any:
        """The plan over data in memory, inline, without processes: the same numbers as live.

        ``data`` is a pandas or polars DataFrame, a pyarrow Table, a list of dicts or a `Batch`; the same kind comes
        back. ``key`` names the sensor's column; ``time`` the event time's, where a stage needs it.

        A record that a user's function fails on raises `StageError`: a notebook wants to know.
        """
        from tidemill.core.apply import apply

        return apply(self.prepared(read_table), data, key=key, time=time, tz=tz)
