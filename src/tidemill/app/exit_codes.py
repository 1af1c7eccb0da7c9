"""What the number means with which a tidemill command ends; scripts and service managers may rely on it."""

from __future__ import annotations

import enum
import signal
from typing import Self

from tidemill.errors import (
    BadResult,
    CallError,
    EngineError,
    InputError,
    LaneDied,
    MissingExtra,
    OutsideError,
    PlanError,
    RemoteError,
    RunEnded,
    StageError,
    Stalled,
    TidemillError,
    TooManyDead,
)

__all__ = ["ExitCode", "at_once", "code_of"]


class ExitCode(enum.IntEnum):
    """Stable: add, never renumber. The table in ``docs/exit-codes.md`` is compared with this one by a test."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        made = int.__new__(cls, code)
        made._value_ = code
        made.meaning = meaning
        return made

    DONE = (
        0,
        "the input ended, --seconds passed or a signal asked to stop, and everything read was finished and written",
    )
    FAILED = (
        1,
        'code of the user failed where that ends the run: a stage with on_error="stop", what Records iterates over, a Callback; of status: the run does not progress',
    )
    USAGE = 2, "the command line was not understood; nothing ran"
    BAD_PIPELINE = 3, "the pipeline cannot run as written: the file, a stage, a column or an option"
    BAD_INPUT = 4, "a file, a table or a value named by the user is missing or cannot be used"
    OUTSIDE = 5, "the world outside refused: a port in use, a full disk, a database error"
    MISSING_EXTRA = 6, "an optional library is needed and not installed"
    DIFFERS = (
        7,
        "a check found a function that looks at its neighbours in the batch, or rows that are not as in --expect",
    )
    STALLED = 8, "the run did not progress for --stall-after or --silent-after seconds, and ended itself"
    TOO_MANY_DEAD = 9, "more of the last records became dead letters than --max-dead allows, and the run ended itself"
    BUG = 70, "a promise of tidemill itself was broken; please report it"
    UNFINISHED = (
        75,
        "asked to stop, and the grace passed before everything read was written; the report counts the rest",
    )
    INTERRUPTED = (
        130,
        "a second SIGINT (Ctrl-C), or one before a run had begun, left at once; what was in flight is lost",
    )
    TERMINATED = 143, "a second SIGTERM, or one before a run had begun, left at once; what was in flight is lost"


_BY_ERROR: dict[type[TidemillError], ExitCode] = {
    PlanError: ExitCode.BAD_PIPELINE,
    InputError: ExitCode.BAD_INPUT,
    OutsideError: ExitCode.OUTSIDE,
    RunEnded: ExitCode.FAILED,
    StageError: ExitCode.FAILED,
    Stalled: ExitCode.STALLED,
    TooManyDead: ExitCode.TOO_MANY_DEAD,
    BadResult: ExitCode.FAILED,
    LaneDied: ExitCode.FAILED,
    RemoteError: ExitCode.FAILED,
    CallError: ExitCode.BAD_PIPELINE,
    MissingExtra: ExitCode.MISSING_EXTRA,
    EngineError: ExitCode.BUG,
}


def code_of(error: BaseException) -> ExitCode:
    """The exit code for an error that ended a command.

    >>> code_of(InputError("no such file")).name, code_of(ZeroDivisionError()).name
    ('BAD_INPUT', 'BUG')
    """
    for kind in type(error).__mro__:
        if kind in _BY_ERROR:
            return _BY_ERROR[kind]
    return ExitCode.BUG


def at_once(signal_number: int) -> int:
    """The exit code of leaving at once because of a signal, as shells write it: 128 + its number.

    >>> at_once(signal.SIGINT) == ExitCode.INTERRUPTED, at_once(signal.SIGTERM) == ExitCode.TERMINATED
    (True, True)
    """
    return 128 + signal.Signals(signal_number).value
