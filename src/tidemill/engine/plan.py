"""`Plan` with `apply`: the chain of stages over data in memory, its tables read from disk as for a run."""

from __future__ import annotations

from typing import Any

from tidemill import files
from tidemill.core import plan as core
from tidemill.durations import duration_ns
from tidemill.stages.base import Table

__all__ = ["Plan", "read_table"]


def read_table(path: str) -> tuple[str, Table]:
    """A stage's table with the absolute path that was tried; raises `InputError` with the same."""
    return str(files.absolute(path)), files.read_table(path)


class Plan(core.Plan):
    """A pipeline without its edges: a chain of stages, checked as far as it can be before anything runs.

    ``Plan(stage, stage, ...)``; a list of stages counts as its stages, and a plan inside a plan as its stages.
    """

    def apply(
        self,
        data: Any,
        *,
        key: str = "sensor",
        time: str | None = None,
        tz: str = "UTC",
        lag: str | float | None = None,
    ) -> Any:
        """The plan over data in memory, inline, without processes: the same numbers as live.

        ``data`` is a pandas or polars DataFrame, a pyarrow Table, a list of dicts or a `Batch`; the same kind comes
        back. ``key`` names the sensor's column; ``time`` the event time's, where a stage needs it. ``lag`` is that of
        `Pipeline`, for stages that work in event time: by default as much as the rows' order is off, so that none is late.

        A record that a user's function fails on raises `StageError`: a notebook wants to know.
        """
        from tidemill.core.apply import apply

        lag_ns = None if lag is None else duration_ns(lag, name="apply: lag", zero=True)
        return apply(self.prepared(read_table), data, key=key, time=time, tz=tz, lag_ns=lag_ns)
