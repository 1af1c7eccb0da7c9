"""Which records a user's function fails on: found by halves, and told in one line each."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tidemill.errors import BadResult, StageError, TidemillError
from tidemill.letters import RAISED, Reject
from tidemill.stages.base import Stage
from tidemill.stages.raised_in import raising_frame

__all__ = ["Piece", "encodable", "narrowed", "rejected", "told"]

_CALLS: Final = 32
"""Calls spent on halving a batch in which the user's function fails, before going row by row."""
_LONGEST_REASON: Final = 1_000  # characters

T = TypeVar("T")


@dataclass(frozen=True)
class Piece(Generic[T]):
    """Consecutive records that a function was called with, and what came of it."""

    start: int
    stop: int
    made: T | Reject


def narrowed(start: int, stop: int, attempt: Callable[[int, int], T | Reject]) -> list[Piece[T]]:
    """Call ``attempt(start, stop)``, and where it gives a `Reject` halve until the failing records are alone.

    The largest failing pieces are halved first, within a budget of 32 calls; then the rest goes row by row. The pieces
    cover all records, in order; only pieces of one record are left rejected. ``attempt`` must be safe to repeat: of a
    record that was called with others which failed, the last call is the one that counts.

    >>> def attempt(start, stop):
    ...     return Reject(0, "raised", "no") if 5 in range(start, stop) else "ok"
    >>> [(piece.start, piece.stop) for piece in narrowed(0, 8, attempt)]
    [(0, 4), (4, 5), (5, 6), (6, 8)]
    """
    whole = Piece(start, stop, attempt(start, stop))
    if not isinstance(whole.made, Reject):
        return [whole]
    calls = _CALLS
    pieces: list[Piece[T]] = []
    failing = deque([whole])

    def tried(start: int, stop: int) -> None:
        piece = Piece(start, stop, attempt(start, stop))
        (failing if isinstance(piece.made, Reject) else pieces).append(piece)

    while failing:
        piece = failing.popleft()
        if piece.stop - piece.start == 1:
            pieces.append(piece)
        elif calls <= 0:
            pieces.extend(Piece(row, row + 1, attempt(row, row + 1)) for row in range(piece.start, piece.stop))
        else:
            middle = (piece.start + piece.stop) // 2
            tried(piece.start, middle)
            tried(middle, piece.stop)
            calls -= 2
    return sorted(pieces, key=lambda piece: piece.start)


def rejected(stage: Stage, error: BaseException, row: int = 0) -> Reject:
    """What a failure of the stage's function makes of the record at ``row``; raises `StageError` for one that stops.

    Call it where the error was caught: the traceback that it quotes is the present one's.
    """
    if stage.on_error == "stop":
        trace = encodable(traceback.format_exc())
        raise StageError(f"{stage.name} failed: {told(error)}\n{trace}") from error
    return Reject(row, error.reason_code if isinstance(error, BadResult) else RAISED, told(error))


def told(error: BaseException) -> str:
    """One line: what was raised, and where in the user's code."""
    try:
        text = encodable(str(error))
    except BaseException:  # noqa: BLE001 - the message is code of the user's too
        text = "its message cannot be shown"
    if isinstance(error, TidemillError):
        return text[:_LONGEST_REASON]
    frame = raising_frame(error)
    place = "" if frame is None else f" ({frame.name}, line {frame.lineno})"
    return f"{type(error).__name__}: {text[:_LONGEST_REASON]}{place}"


def encodable(text: str) -> str:
    """Text as UTF-8 can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()
