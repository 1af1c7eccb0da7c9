"""What type each option of a run has; one of another type is refused in a sentence, by its name."""

from __future__ import annotations

import numbers
import os
from typing import Any, Final

from tidemill.core.batching import Limits
from tidemill.engine.state import State
from tidemill.errors import PlanError

__all__ = ["check_types"]

_SECONDS: Final = (numbers.Real,), "a number of seconds, such as 30.0"
_PATH: Final = (str, os.PathLike), "the path of a file"
_TYPES: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    **dict.fromkeys(("seconds", "grace", "stall_after", "silent_after"), _SECONDS),
    **dict.fromkeys(("dead_letters", "report"), _PATH),
    "max_dead": ((str,), 'a share or a number and a time, such as "50%/60s" or "100/60s"'),
    "state": ((bool, str, os.PathLike, State), "a folder, True, False or a tm.State"),
    "metrics": ((bool, str), 'True, False or HOST:PORT, such as "127.0.0.1:9464"'),
    "limits": ((Limits,), "a tm.Limits"),
}


def check_types(**options: Any) -> None:
    """Raises `PlanError` for the first of the options that has another type. None is that of one that is not given."""
    for name, value in options.items():
        types, what = _TYPES[name]
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise PlanError(f"{name}={value!r} must be {what}.")
