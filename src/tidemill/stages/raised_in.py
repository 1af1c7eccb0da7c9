"""Where the user's code raised."""

from __future__ import annotations

import traceback
from typing import Final

__all__ = ["came_by_user_code", "raised_in", "raising_frame"]

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
    own = [frame for frame in frames if not _is_of_a_library(frame.filename)] or frames
    return own[-1] if own else None


def came_by_user_code(error: BaseException) -> bool:
    """Whether any code but ours and that of libraries led to the error, from where it was caught."""
    frames = traceback.extract_tb(error.__traceback__)
    return not all(frame.filename.startswith(_OURS) or _is_of_a_library(frame.filename) for frame in frames)


def _is_of_a_library(filename: str) -> bool:
    return (
        filename.startswith((_STANDARD, "<frozen ")) or "/site-packages/" in filename or "/dist-packages/" in filename
    )
