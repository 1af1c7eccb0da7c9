"""Every error tidemill raises on purpose, by whose fault it is.

    TidemillError
    ├── PlanError        the pipeline as written: a stage, a column, an option. Nothing has run yet.
    ├── InputError       something named by the user is missing or malformed: a file, a table, a time zone.
    │   └── OutputExists  a sink's place is taken, and ``if_exists="fail"``: a run would not begin, a check may.
    ├── OutsideError     the world outside: a port in use, a full disk, a database that refuses.
    ├── StageError       the user's code failed where that ends the run: a stage with ``on_error="stop"``, `Records`, `Callback`.
    ├── Stalled          the run did not progress for as long as it may, and has ended itself.
    ├── TooManyDead      more of the last records became dead letters than may, and the run has ended itself.
    ├── MissingExtra     an optional library is not installed; the message holds the command that installs it.
    ├── CallError        a call on `Lanes` that cannot be made: an argument that cannot be pickled, closed lanes.
    │   └── LanesFull    as many calls wait as may: this one was refused, or dropped for a newer one.
    ├── LaneDied         the process that ran the user's function ended: a crash, a kill, ``os._exit``.
    ├── RemoteError      the user's function raised something that cannot travel between processes.
    ├── BadResult        the user's function returned something else than a stage can use; a matter of its batch.
    └── EngineError      ours: a promise of tidemill was broken. Please report it.

Each message is one readable paragraph that names the culprit and says what to do.
"""

from __future__ import annotations

__all__ = [
    "BadResult",
    "CallError",
    "EngineError",
    "InputError",
    "LaneDied",
    "LanesFull",
    "MissingExtra",
    "OutputExists",
    "OutsideError",
    "PlanError",
    "RemoteError",
    "RunEnded",
    "StageError",
    "Stalled",
    "TidemillError",
    "TooManyDead",
]


class TidemillError(Exception):
    """The root of the tree; catching it catches everything tidemill raises on purpose."""


class PlanError(TidemillError):
    """The pipeline cannot run as written; found before the first record, or at its first batch."""


class InputError(TidemillError):
    """A file, table or value that the user named cannot be used as it is."""


class OutputExists(InputError):
    """Something is where a sink is to write, and ``if_exists`` says to leave it alone."""


class OutsideError(TidemillError):
    """The outside world refused: a port in use, a full disk, a closed pipe, a database error.

    ``after_s``  seconds for which who refused wants to be left alone, where that was said
    """

    def __init__(self, *told: object, after_s: float = 0.0) -> None:
        super().__init__(*told)
        self.after_s = after_s


class Stalled(TidemillError):
    """The run has not progressed for as long as its ``stall_after`` or ``silent_after`` allows, and has ended itself;
    what was in flight was given its ``grace``, as at any stop."""


class TooManyDead(TidemillError):
    """More of the last records became dead letters than ``max_dead`` allows, and the run has ended itself; what was in
    flight was given its ``grace``, as at any stop."""


class RunEnded(TidemillError):
    """The run has ended, so that what was waited for will not come. It leaves the block of ``tm.serve`` without a word, as its end
    does: the run is over."""


class StageError(TidemillError):
    """The user's own code failed where that ends the run. Of a function under ``on_error="stop"``, the remote traceback is in
    the message; else what was raised is the cause."""


class BadResult(TidemillError):
    """The user's function returned the wrong length or a wrong type; ``reason_code`` says which, for the dead letter."""

    def __init__(self, reason_code: str, message: str) -> None:
        super().__init__(message)
        self.reason_code = reason_code

    def __reduce__(self) -> tuple[type[BadResult], tuple[str, str]]:
        return BadResult, (self.reason_code, str(self))


class CallError(TidemillError, RuntimeError):
    """The call was refused before any lane had it; a RuntimeError too, as users of executors expect."""


class LanesFull(CallError):
    """As many calls waited as the lanes' ``max_waiting`` or ``max_waiting_bytes`` allow; this one was not run."""


class LaneDied(TidemillError):
    """The lane's process ended while it ran the function. Other calls are not affected; the lane was replaced.

    ``signal`` is the number of the signal that ended it, or None; ``code`` its exit code, or None; ``stderr`` the end of
    what Python code in it wrote to its standard streams, with the traceback of a crash. What C code wrote itself, such as
    glibc's last message, is only where stderr goes.
    """

    def __init__(self, message: str, signal: int | None = None, code: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.signal = signal
        self.code = code
        self.stderr = stderr

    def __str__(self) -> str:
        told = super().__str__()
        return f"{told}\nIt wrote last:\n{self.stderr}" if self.stderr else told

    def __reduce__(self) -> tuple[type[LaneDied], tuple[str, int | None, int | None, str]]:
        return LaneDied, (self.args[0], self.signal, self.code, self.stderr)


class RemoteError(TidemillError):
    """Stands for what the function raised; ``type_name`` says what that was, the message and the cause the rest."""

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(message)
        self.type_name = type_name

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str]]:
        return RemoteError, (self.type_name, str(self))


class EngineError(TidemillError):
    """A promise of tidemill itself was broken."""


class MissingExtra(TidemillError):
    """An optional library is needed and absent.

    >>> raise MissingExtra("pyarrow", "parquet", "Parquet files")
    Traceback (most recent call last):
    tidemill.errors.MissingExtra: Parquet files need the library pyarrow, which is not installed; \
install it with: pip install "tidemill[parquet]"
    """

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} need the library {library}, which is not installed; "
            f'install it with: pip install "tidemill[{extra}]"'
        )
        self.library = library
        self.extra = extra
