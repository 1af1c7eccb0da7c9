"""Of the errors of a group of tasks, the one to tell."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator
from typing import Final

from tidemill.errors import OutsideError
from tidemill.lanes.fork_client import NO_ROOM

__all__ = ["first_error", "one_error"]

_NO_THREAD: Final = "can't start new thread"
"""All that Python says of it."""
_NO_FILES: Final = "Let this process open more (ulimit -n, or LimitNOFILE= of a service), or give it fewer lanes, sinks or connections."

_NO_MEMORY: Final = (
    "This process, its container or the machine has as much as it may (ulimit -v, memory.max, MemoryMax=); raise that limit, or "
    "give it fewer lanes and sinks."
)


@contextlib.asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """Around a TaskGroup: raises the first leaf of what it raises."""
    try:
        yield
    except (BaseExceptionGroup, RuntimeError, OSError, MemoryError) as error:
        first = first_error(error)
        if first is error:
            raise
        raise first from first.__cause__


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a group: the others followed from it. That there is no thread, no further file or no
    memory to be had is the outside's fault."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if type(error) is RuntimeError and str(error) == _NO_THREAD:
        return OutsideError(f"no thread could be started. {NO_ROOM}")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return OutsideError(f"no further file could be opened: {error.strerror}. {_NO_FILES}")
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return OutsideError(f"no more memory could be had. {_NO_MEMORY}")
    return error
