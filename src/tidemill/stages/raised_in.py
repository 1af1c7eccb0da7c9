"""Where the user's code raised, with its file: for messages about more than one record."""

from __future__ import annotations

import traceback
from typing import Final

__all__ = ["raised_in"]

_OURS: Final = __file__.rpartition("stages")[0]
"""The package's folder."""


def raised_in(error: BaseException) -> str:
    """Function, file and line, after a comma; empty where it was raised by code of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if not frame.filename.startswith(_OURS)), None)
    return "" if place is None else f", in {place.name}, {place.filename}, line {place.lineno}"
