"""stdin, stdout and stderr of a command, of which some may be closed, and some take nothing: a full disk, a terminal that is gone.

A descriptor that was closed is taken, so that no file or socket of ours gets its number, which others write to. What goes to stderr
is for people: where it takes nothing, the command does its work all the same. What goes to stdout was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

from tidemill.errors import OutsideError

__all__ = ["detach", "take_closed_ones", "tell", "untaken", "write_out"]


def take_closed_ones() -> None:
    """Before anything is opened. A write to a stdout that was closed raises `OSError`; a stdin stays None, as Python has it."""
    for descriptor, way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, way)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we are
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as above


def tell(text: str, stream: TextIO | None = None) -> None:
    """Write to stderr, or to the live view that stands for it; nobody can be told of one that takes nothing."""
    stream = sys.stderr if stream is None else stream
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()


def write_out(text: str) -> None:
    """Write to stdout what was asked for. Raises `OutsideError` where it takes nothing, and `BrokenPipeError` where nobody reads."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        detach(sys.stdout)  # what is left in it would be tried again
        raise untaken(error) from error


def untaken(error: OSError) -> OutsideError:
    """What to say of an error of stdout's."""
    why = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
    return OutsideError(f"standard output cannot be written to: {why}.")


def detach(stream: TextIO) -> None:
    """Keep the interpreter from complaining, while it exits, about a stdout that nobody reads, or a stderr that takes nothing."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test's has no descriptor
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
        stream.flush()
