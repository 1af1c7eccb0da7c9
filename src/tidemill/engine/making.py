"""How the processes of `tidemill.Lanes` are made, and what is said when they cannot be."""

from __future__ import annotations

import errno
import pickle
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.engine.call_process import CallProcess, Request
from tidemill.engine.functions_sent import FunctionsSent, name_of
from tidemill.engine.options import check_count, check_plain, check_timeout
from tidemill.errors import CallError, LaneDied
from tidemill.lanes.beginning import Imports, Initializer, NotImported, begin
from tidemill.lanes.call_codec import dumps_arguments
from tidemill.lanes.channel import Exit

__all__ = ["ATTEMPTS", "Making"]

LEAST_ARENA: Final = 1 << 20
MOST_ARENA: Final = 1 << 40

_MOST_NICE: Final = (1 << 31) - 1
"""The system takes no larger number, and uses 40 of them."""
ATTEMPTS: Final = 4
"""Rounds of processes in a row that were never ready, after which callers are told."""


@dataclass(frozen=True)
class Making:
    """How processes are made, and when they have served long enough; raises `CallError` for what makes no sense."""

    nice: int = 0
    preload: Sequence[str] = ()
    initializer: Callable[..., object] | None = None
    initargs: Sequence[Any] = ()
    initializer_timeout: float | None = None
    """Seconds."""
    recycle_after: int | None = None
    """Items."""
    recycle_rss: int | None = None
    """Bytes of resident memory."""
    arena_bytes: int = 0
    """Shared memory for large arguments and results of one process, half for each; 0 for none."""

    def __post_init__(self) -> None:
        if self.initializer is not None:
            if not callable(self.initializer):
                raise CallError(
                    f"initializer={self.initializer!r} is not a function; give its arguments as initargs=(...)."
                )
            check_plain(self.initializer)
        if not isinstance(self.initargs, (list, tuple)):
            raise CallError(
                f"initargs={self.initargs!r} must be a tuple of arguments, such as initargs=('model.bin',)."
            )
        if not isinstance(self.preload, (list, tuple, set, frozenset)) or not all(
            isinstance(name, str) and name for name in self.preload
        ):
            raise CallError(f"preload={self.preload!r} must be a list of names of modules, such as preload=['numpy'].")
        if not isinstance(self.nice, int) or isinstance(self.nice, bool) or not -_MOST_NICE <= self.nice <= _MOST_NICE:
            raise CallError(f"nice={self.nice!r} must be a whole number, which is added to the processes' priority.")
        check_timeout(self.initializer_timeout, "initializer_timeout")
        for name in ("recycle_after", "recycle_rss"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("arena_bytes", self.arena_bytes, least=LEAST_ARENA if self.arena_bytes else 0, most=MOST_ARENA)

    @property
    def recycles(self) -> bool:
        """Whether processes wear out at all."""
        return self.recycle_after is not None or self.recycle_rss is not None

    def first_call(self, functions: FunctionsSent) -> Request:
        """What a process must answer to be ready; raises `CallError` when it cannot be sent."""
        where = {"the initializer": self.initializer, "initargs": self.initargs}
        initializer: object = self.initializer
        if isinstance(initializer, types.FunctionType):
            initializer = Initializer(initializer)
        arguments = (tuple(self.preload), initializer, tuple(self.initargs))
        parcel = dumps_arguments((arguments, {}), where)
        return Request("the initializer", functions.of(begin), [parcel], lambda _: None)

    def imports(self) -> bytes:
        """For the fork server: all that is imported before it forks."""
        return pickle.dumps([begin, Imports(self.preload)])

    def imports_one_by_one(self) -> dict[str, bytes]:
        """The same by module, so that one that ends the server can be named."""
        return {name: pickle.dumps([begin, Imports([name])]) for name in self.preload} or {"": self.imports()}

    # -- why they cannot be made -----------------------------------------------------------------------

    def ended_the_server(self, module: str) -> CallError:
        """A module that cannot be loaded before the fork."""
        return CallError(
            f"preload: the import of the module {module!r} ended the process that imported it (os._exit, or a crash); "
            "see the messages on stderr, and leave it out of preload."
        )

    def not_started(self, error: Exception) -> CallError:
        """There is no process to be had: of the system, or with the interpreter that is named."""
        number = error.errno if isinstance(error, OSError) else 0
        each = "each lane, and the spare, takes"
        if number in (errno.EMFILE, errno.ENFILE):
            what = (
                f": {each} {5 if self.arena_bytes else 3} descriptors of this process. Let it open more (ulimit -n, or "
                "LimitNOFILE= of a service), or open fewer lanes."
            )
        elif number == errno.ENOMEM:
            what = (
                f": {each} up to {self.arena_bytes >> 20} MB of address space for its arena. Open them with a smaller "
                "arena_bytes, or fewer of them, or let this process have more (ulimit -v)."
            )
        else:
            what = ""
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        refused = CallError(f"A process of the lanes cannot be started: {told}{what}")
        refused.__cause__ = error
        return refused

    def raised(self, error: Exception) -> CallError:
        """The first call of a process failed."""
        if isinstance(error, NotImported):
            refused = CallError(self._refusal("preload:", str(error)))
        elif self.initializer is None:
            refused = CallError(self._refusal("A process of the lanes", f"failed with {type(error).__name__}: {error}"))
        else:
            refused = CallError(self._refusal(self._initializer, f"raised {type(error).__name__}: {error}"))
        refused.__cause__ = error
        return refused

    def hung(self) -> CallError:
        """The first call of a process has not returned in time."""
        what = f"did not return within {self.initializer_timeout} s (initializer_timeout={self.initializer_timeout})"
        return CallError(self._refusal(self._initializer, what))

    def died(self, process: CallProcess, how: Exit) -> CallError | LaneDied:
        """A process ended before it was ready."""
        if how.error:
            return CallError(self._refusal("A process of the lanes", str(how)))
        told = self._refusal(self._initializer, f"ended its process ({how})")
        return LaneDied(told, how.signal, how.code, process.last_words())

    @property
    def _initializer(self) -> str:
        return "A process of the lanes" if self.initializer is None else f"The initializer {name_of(self.initializer)}"

    def _refusal(self, who: str, what: str) -> str:
        return (
            f"{who} {what}, in each of {ATTEMPTS} attempts to start a process; no call can run without it. See the "
            "traceback above, or the messages on stderr."
        )
