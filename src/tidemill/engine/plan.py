"""`Plan` with `apply`: the chain of stages over data in memory, its tables and models read from disk as for a run."""

from __future__ import annotations

from typing import Any, Final

from tidemill import files
from tidemill.core import plan as core
from tidemill.durations import duration_ns
from tidemill.stages.base import Table

__all__ = ["FROM_DISK", "FromDisk", "Plan"]


class FromDisk:
    """How stages are given their tables and models: with the absolute path that was tried, which errors hold too."""

    def table(self, path: str) -> tuple[str, Table]:
        return str(files.absolute(path)), files.read_table(path)

    def file(self, path: str) -> tuple[str, bytes]:
        with files.open_read(path) as handle:
            return str(files.absolute(path)), b"".join(files.read_blocks(path, handle, 1 << 20))


FROM_DISK: Final = FromDisk()


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
        place_by: str | None = None,
    ) -> Any:
        """The plan over data in memory, inline, without processes: the same numbers as live.

        ``data`` is a pandas or polars DataFrame, a pyarrow Table, a list of dicts or a `Batch`; the same kind comes
        back. ``key`` names the sensor's column; ``time`` the event time's, where a stage needs it. ``lag`` is that of
        `Pipeline`, for stages that work in event time: by default as much as the rows' order is off, so that none is late.
        ``place_by`` is that of `Pipeline` too. ``tz`` is the zone of times without one: functions see the moments that they are, and
        such a column comes back without a zone, as it was.

        A record that a user's function fails on raises `StageError`: a notebook wants to know. It is warned too
        (``RuntimeWarning``, once for each stage) where windows of time lack records (``window_overflow``), and where records
        that came late are left out.
        """
        from tidemill.core.apply import apply

        lag_ns = None if lag is None else duration_ns(lag, name="apply: lag", zero=True)
        return apply(self.prepared(FROM_DISK), data, key=key, time=time, tz=tz, lag_ns=lag_ns, place_by=place_by)
