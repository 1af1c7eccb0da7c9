"""Values of options: each is checked in one place and refused in one sentence, with `CallError`."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from tidemill.errors import CallError

__all__ = ["WHEN_FULL", "WhenFull", "check_callable", "check_choice", "check_count", "check_seconds", "check_timeout"]

WhenFull = Literal["block", "reject", "drop_oldest"]
WHEN_FULL: Final = ("block", "reject", "drop_oldest")
"""What a call meets when as much waits as may."""


def check_callable(value: object) -> None:
    """Something to call, not what a call returned."""
    if not callable(value):
        raise CallError(f"{value!r} is not a function; write lanes.run(function, argument), without calling it.")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CallError(f"{name}={value!r} must be a whole number, at least {least}.")


def check_timeout(value: Any, name: str = "timeout") -> float | None:
    """None, or more than 0 seconds, as a float."""
    if value is None:
        return None
    if not _is_number(value) or not value > 0:
        raise CallError(f"{name}={value!r} must be more than 0 seconds; leave it out for none.")
    return float(value)


def check_seconds(name: str, value: Any) -> None:
    """0 seconds or more."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise CallError(f"{name}={value!r} must be a number of seconds, 0 or more.")


def check_choice(name: str, value: Any, choices: tuple[str, ...] = WHEN_FULL) -> None:
    """One of some words."""
    if value not in choices:
        raise CallError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.")


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (str, bytes))
