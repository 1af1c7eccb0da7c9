"""Which stage does what a function that looks at its neighbours wants to do, told from the names that its code uses."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np

import tidemill

__all__ = ["hint_for", "hint_for_objects", "hint_for_windows", "names_in", "stages_named"]


class _Hint(NamedTuple):
    names: str
    """That give it away, in a function's code."""
    stages: str
    """To use instead, the best one first."""
    what: str
    """For which purpose."""


_HINTS: Final = (
    _Hint("shift", "Lag Keyed", "for each sensor's earlier values"),
    _Hint("diff ediff1d pct_change gradient", "Diff Rate", "for the step since each sensor's last record"),
    _Hint("rolling sliding_window_view", "Rolling MapWindows", "over the last records or seconds of each sensor"),
    _Hint("ewm", "Ewm", "weighted by age, for each sensor"),
    _Hint(
        "cumsum cumprod cummax cummin cumcount expanding accumulate", "scan Keyed", "for what runs on, sensor by sensor"
    ),
    _Hint("convolve correlate fft rfft lfilter filtfilt interpolate", "MapWindows", "over each sensor's last records"),
    _Hint("ffill bfill", "Resample Keyed", "for each sensor's last value"),
    _Hint("drop_duplicates duplicated", "Dedup", "by sensor and time, or by a counter"),
    _Hint(
        "rank argsort sort sort_values nlargest nsmallest percentile quantile nanpercentile nanquantile median nanmedian",
        "Rolling MapWindows",
        "among the last records of each sensor",
    ),
    _Hint("groupby resample", "Aggregate Resample Rolling", "where each sensor is a group already"),
    _Hint(
        "mean std var min max sum nanmean nanstd nanvar nanmin nanmax nansum average zscore",
        "Rolling Aggregate",
        "of each sensor; or, for constants that are known, tm.Calibrate",
    ),
)
_OTHERWISE: Final = _Hint("", "MapWindows Keyed Rolling", "for what a record needs of its sensor's earlier ones")
_DEEPEST: Final = 4  # functions that call functions


def hint_for(*fns: object) -> str:
    """One sentence: the name in their code that gives it away, and the stage to use.

    >>> print(hint_for(lambda frame: frame["value"].rolling(5).mean())[:33])
    It uses rolling(): use tm.Rolling
    """
    used = _used(fns)
    for hint in _HINTS:
        found = next((name for name in hint.names.split() if name in used), None)
        if found is not None and (known := stages_named(*hint.stages.split())):
            return f"It uses {found}(): use {known} instead, {hint.what}."
    if "vectorize" in used:
        return "It uses vectorize(): give it otypes=[float], or else the first value says of which kind all others are."
    return f"Use {stages_named(*_OTHERWISE.stages.split())}, {_OTHERWISE.what}."


def hint_for_windows(*fns: object) -> str:
    """The same for functions that are given windows already, of one record in each row.

    >>> print(hint_for_windows(lambda windows: windows[:, -1] - windows.mean())[:33])
    It uses mean(): work along axis=1
    """
    return f"{_first_of(fns)}ork along axis=1, so that each row, a window, is computed by itself."


def hint_for_objects(factory: object) -> str:
    """The same for objects of sensors, which are given some of their sensor's records at once."""
    return (
        f"{_first_of([factory])}ork record by record: how many come at once is not said; what is needed of earlier ones, the "
        "object keeps."
    )


def _first_of(fns: Iterable[object]) -> str:
    used = _used(fns)
    found = next((name for hint in _HINTS for name in hint.names.split() if name in used), None)
    return "W" if found is None else f"It uses {found}(): w"


def stages_named(*stages: str) -> str:
    """Those of these stages that there are: ``tm.Rolling or tm.Aggregate``."""
    return " or ".join(f"tm.{stage}" for stage in stages if stage in tidemill.__all__)


def _used(fns: Iterable[object]) -> frozenset[str]:
    return frozenset(chain.from_iterable(map(names_in, fns)))


def names_in(fn: object) -> frozenset[str]:
    """The names of globals, attributes and methods in the function's code, and in the user's functions that it calls."""
    return frozenset(_names(fn, _DEEPEST))


def _names(fn: object, deeper: int) -> Iterator[str]:
    if isinstance(fn, type):
        for member in vars(fn).values():
            yield from _names(member, deeper)
        return
    inner: Any = getattr(fn, "func", None) or getattr(fn, "__func__", None) or fn
    if isinstance(inner, np.vectorize):
        yield from ("vectorize",) if inner.otypes is None else ()
        inner = inner.pyfunc
    wrapped = getattr(inner, "__wrapped__", None)
    if wrapped is not None and deeper:
        yield from _names(wrapped, deeper - 1)
    if not isinstance(inner, types.FunctionType):
        yield from _names(type(inner), deeper) if _is_users(type(inner)) else ()
        return
    names = set(_of_code(inner.__code__))
    yield from names
    if deeper:
        for other in chain(map(inner.__globals__.get, names), _enclosed(inner)):
            own = getattr(other, "__wrapped__", other)
            if isinstance(other, np.vectorize) or (
                isinstance(own, types.FunctionType) and own.__globals__ is inner.__globals__
            ):
                yield from _names(other, deeper - 1)


def _enclosed(fn: types.FunctionType) -> Iterator[object]:
    """What its closure holds."""
    for cell in fn.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing yet
            yield cell.cell_contents


def _is_users(kind: type) -> bool:
    """Whether the class was written in Python, with a ``__call__``."""
    return any(isinstance(vars(base).get("__call__"), types.FunctionType) for base in kind.__mro__)


def _of_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
