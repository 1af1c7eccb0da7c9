"""Where the user's code raised."""

from __future__ import annotations

import traceback
from typing import Final

__all__ = ["raised_in", "raising_frame"]

_OURS: Final = __file__.rpartition("stages")[0]
"""The package's folder."""
_STANDARD: Final = traceback.__file__.rpartition("traceback")[0]
"""The folder of Python's own modules."""


def raised_in(error: BaseException) -> str:
    """Function, file and line, after a comma; empty where it was raised by code of ours."""
    place = raising_frame(error)
    return "" if place is None else f", in {place.name}, {place.filename}, line {place.lineno}"


def raising_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The user's line that led to the error; where none did, the library's that was called. None where it came to no code but
    ours, such as a call that does not fit."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    own = [frame for frame in frames if not _is_of_a_library(frame.filename)]
    return (own or frames or [None])[-1]


def _is_of_a_library(filename: str) -> bool:
    return (
        filename.startswith((_STANDARD, "<frozen ")) or "/site-packages/" in filename or "/dist-packages/" in filename
    )
