"""Functions of the user's among the statistics of `Rolling`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import BadResult, PlanError
from tidemill.letters import WRONG_LENGTH
from tidemill.schema import Kind
from tidemill.stages.functions import called, check_function, made_column, own_name

__all__ = ["Function", "WindowFunctions", "check_rows"]

Function = Callable[[NDArray[np.float64]], Any]
"""From windows of shape ``(rows, window)`` to ``(rows,)`` numbers; or a class of such functions."""


class WindowFunctions:
    """The functions of ``stats``, by their places there.

    Each gets the windows of one column, shape ``(rows, window)``, and returns ``(rows,)`` numbers; a class is called once
    per lane, and its object is the function. ``stage`` names the stage in messages. Raises `PlanError` for what cannot be
    called.
    """

    def __init__(self, stats: Sequence[Any], stage: str, *, min_periods: int) -> None:
        self._stage, self._min_periods = stage, min_periods
        self._functions: dict[int, Callable[..., Any]] = {}
        for place, stat in enumerate(stats):
            if callable(stat):
                check_function(stat, stage)
                self._functions[place] = stat

    def __bool__(self) -> bool:
        return bool(self._functions)

    def opened(self) -> Self:
        """The copy that runs in one lane."""
        lane = copy.copy(self)
        lane._functions = {place: called(fn, self._stage) for place, fn in self._functions.items()}
        return lane

    def named(self, others: Sequence[str], *, anyhow: bool) -> list[str]:
        """The names of all the statistics, those of the ``others`` given; raises `PlanError` for a function that has
        none, unless they are wanted ``anyhow``."""
        names = list(others)
        for place, fn in self._functions.items():
            name = own_name(fn)
            if name == "<lambda>" and not anyhow:
                raise PlanError(f"{self._stage}: a lambda has no name for its column; give names=[...], or use def.")
            names.insert(place, name)
        return names

    def among(
        self,
        others: Sequence[NDArray[np.float64]],
        names: Sequence[str],
        windows: NDArray[np.float64],
        part: Batch,
    ) -> list[Column]:
        """All the statistics of one column: the ``others`` given, and what the functions make of its windows.

        Like any statistic, a function's has no result where the window holds fewer than ``min_periods`` values.
        """
        columns = [Column(Kind.FLOAT, array) for array in others]
        lacking = self._lacking(windows)
        for place, fn in self._functions.items():
            result = _numbers(fn(windows))
            check_rows(self._stage, names[place], result)
            column = made_column(self._stage, names[place], result, part, Kind.FLOAT)
            if lacking.any():
                column = Column(Kind.FLOAT, np.where(lacking, np.nan, column.values))
            columns.insert(place, column)
        return columns

    def _lacking(self, windows: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which windows hold too few values; only where one of the newest is missing must all be counted."""
        least = self._min_periods
        lacking: NDArray[np.bool_] = np.zeros(len(windows), np.bool_)
        np.any(np.isnan(windows[:, windows.shape[1] - least :]), axis=1, out=lacking)
        lacking[lacking] = np.count_nonzero(~np.isnan(windows[lacking]), axis=1) < least
        return lacking


def _numbers(result: Any) -> Any:
    """A bool is a number here, 1 or 0, as `Aggregate` takes it of a function."""
    made = np.array(result) if isinstance(result, list) and all(isinstance(one, bool) for one in result) else result
    return np.asarray(made, np.float64) if getattr(made, "dtype", None) == np.bool_ else result


def check_rows(stage: str, name: str, given: Any) -> None:
    """Raises `BadResult` for one value in place of one a row: of all windows together, which ``axis=1`` would keep apart."""
    if np.ndim(given) == 0 and not hasattr(given, "__len__"):
        raise BadResult(
            WRONG_LENGTH,
            f"{stage} returned one value of {name!r} for all windows; a function is to work along axis=1 and return one "
            "for each row",
        )
