"""Options of stages that several of them have: numbers of records, names of columns, kinds that are declared."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TypeGuard

import numpy as np

from tidemill.errors import PlanError
from tidemill.schema import Kind

__all__ = ["declared_kinds", "is_number", "names_of", "whole_number"]


def whole_number(value: object, *, name: str, must: str, least: int = 0, most: int | None = None) -> int:
    """``value`` as a Python int, of whatever library it is; raises `PlanError` for a bool, and for what is out of range.

    ``name`` stands before the value in the message (``"Lag('v'): n"``), ``must`` says behind it what is wanted.

    >>> import numpy as np
    >>> whole_number(np.int64(50), name="Lag('v'): n", must="be a number of records")
    50
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise PlanError(f"{name}={value!r} must {must}.")
    return number


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, of whatever library; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def names_of(given: object, *, name: str, what: str = "column") -> tuple[str, ...]:
    """One name or several, as a tuple of them; raises `PlanError` for anything else.

    >>> names_of("value", name="Lag: columns"), names_of(["value", "temp"], name="Lag: columns")
    (('value',), ('value', 'temp'))
    """
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(one, str) for one in names):
        raise PlanError(f"{name}={given!r} must be the name of a {what}, or a list of names.")
    return names


def declared_kinds(adds: object, *, name: str) -> dict[str, Kind]:
    """The kinds of columns as they are declared for a function; raises `PlanError` for what declares none.

    >>> declared_kinds({"feature": float}, name="Map(f): adds")
    {'feature': <Kind.FLOAT: 'float'>}
    """
    if not isinstance(adds, Mapping):
        raise PlanError(f'{name}={adds!r} must be a dict of columns and their kinds, such as {{"feature": float}}.')
    return {column: Kind.of(kind) for column, kind in adds.items()}
