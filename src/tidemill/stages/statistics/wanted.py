"""Statistics by name, and which numbers the kernels make for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import PlanError
from tidemill.stages.statistics import kernels as places

__all__ = ["STATISTICS", "Quantile", "Statistic", "Wanted", "quantile"]

_MADE: Final[Mapping[str, int]] = {
    "count": places.COUNT,
    "sum": places.SUM,
    "mean": places.MEAN,
    "var": places.VAR,
    "std": places.STD,
    "min": places.MIN,
    "max": places.MAX,
    "rms": places.RMS,
    "first": places.FIRST,
    "last": places.LAST,
    "delta": places.DELTA,
    "rate": places.RATE,
    "slope": places.SLOPE,
}
"""The statistics that kernels make, and their places there."""

STATISTICS: Final = (
    "count", "sum", "mean", "var", "std", "min", "max", "range", "median", "first", "last", "delta", "slope", "rate", "rms",
    "zscore",
)  # fmt: skip
"""The statistics by name; `quantile` makes the others."""


@dataclass(frozen=True)
class Quantile:
    """The value below which a share ``q`` of the values lies, by linear interpolation."""

    q: float

    @property
    def name(self) -> str:
        """As it stands in the name of a column: ``q95``, ``q99.9``."""
        return f"q{(Decimal(str(self.q)) * 100).normalize():f}"

    def __repr__(self) -> str:
        return f"quantile({self.q:g})"


Statistic = str | Quantile


def quantile(q: float) -> Quantile:
    """The statistic below which a share ``q`` (0 to 1) of a window's values lies: ``stats=["mean", quantile(0.95)]``.

    Between two values it is interpolated linearly, as pandas and NumPy do: with the n values in order, it is the one at
    place ``(n - 1) * q``. Its columns are named ``value_q95_50``. Raises `PlanError` for anything but a number from 0 to 1.

    >>> quantile(0.95).name, quantile(0.999).name
    ('q95', 'q99.9')
    """
    if isinstance(q, bool) or not isinstance(q, Real) or not 0 <= q <= 1:
        raise PlanError(f"quantile({q!r}): a number from 0 to 1 is needed, such as 0.95.")
    return Quantile(float(q))


class Wanted:
    """The kernels' share of ``stats``, and what is made of it.

    ``windows`` says that the windows themselves are wanted too. ``stage`` names the stage in messages. Raises `PlanError` for what is no statistic, or is there twice.
    """

    def __init__(self, stats: Sequence[Statistic], stage: str, *, windows: bool = False) -> None:
        self.windows = windows
        for stat in stats:
            if not isinstance(stat, Quantile) and stat not in STATISTICS:
                raise PlanError(
                    f"{stage}: {stat!r} is not a statistic; there are {', '.join(STATISTICS)} and quantile(q)."
                )
        self.stats = tuple(stats)
        self.names = tuple(stat.name if isinstance(stat, Quantile) else stat for stat in stats)
        made = dict.fromkeys(need for stat in stats for need in _needs(stat))
        self.made = tuple(stat for stat in made if isinstance(stat, str))
        """The statistics by name that kernels make."""
        self.quantiles = tuple(stat for stat in made if isinstance(stat, Quantile))
        self.fractions = np.array([stat.q for stat in self.quantiles] or [0.0])
        self.timed = not {"rate", "slope"}.isdisjoint(self.made)
        """Whether event times matter to them."""

    def rows(self, names: Sequence[str], first: int, last: int) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Of ``names``, those that are made; and per place from ``first`` to ``last`` its row, -1 where there is none."""
        own = tuple(name for name in names if name in self.made)
        rows = np.full(last - first + 1, -1, np.int64)
        for row, name in enumerate(own):
            rows[_MADE[name] - first] = row
        return own, rows

    def of(
        self, made: Mapping[Statistic, NDArray[np.float64]], values: NDArray[np.float64]
    ) -> list[NDArray[np.float64]]:
        """The statistics, in order, from what the kernels made of ``values``."""
        return [_derived(stat, made, values) for stat in self.stats]


def _needs(stat: Statistic) -> tuple[Statistic, ...]:
    if stat == "median":
        return (Quantile(0.5),)
    if stat == "range":
        return ("min", "max")
    if stat == "zscore":
        return ("mean", "std")
    return (stat,)


def _derived(
    stat: Statistic, made: Mapping[Statistic, NDArray[np.float64]], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    if stat == "median":
        return made[Quantile(0.5)]
    if stat not in ("range", "zscore"):
        return made[stat]
    with np.errstate(all="ignore"):
        if stat == "range":
            result = made["max"] - made["min"]
        else:
            result = (values - made["mean"]) / np.where(made["std"] > 0, made["std"], np.nan)
    result[np.isnan(result)] = np.nan  # which of two NaN's bits are left is the processor's choice
    return result
