"""Writing files bit by bit, and what makes that last: syncing, naming, cutting and removing them for good."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from typing import BinaryIO

from tidemill.errors import OutsideError
from tidemill.files.folders import sync_folder
from tidemill.files.names import absolute
from tidemill.files.placed import PlacedFile

__all__ = ["append", "open_write", "publish", "remove", "sync", "truncate", "why"]


def open_write(path: str | os.PathLike[str], *, append: bool = False) -> io.FileIO:
    """The file opened for writing bytes, unbuffered, made empty unless ``append``. Raises OSError."""
    return io.FileIO(absolute(path), "a+" if append else "w")


def sync(handle: BinaryIO | io.FileIO) -> None:
    """Return when what was written through ``handle`` has reached the disk. Raises OSError."""
    handle.flush()
    os.fsync(handle.fileno())


def append(path: str | os.PathLike[str], data: bytes, *, sync: bool = False) -> None:
    """Add ``data`` at the end of a file, which is made if need be; with ``sync`` it is on the disk, and all before it.

    Raises `OutsideError` with the path tried; the file is then as long as it was, where that can be done.
    """
    tried = absolute(path)
    length = None
    try:
        with open(tried, "ab") as handle:  # noqa: PTH123 - one door, one way
            length = handle.tell() if handle.seekable() else None
            handle.write(data)
            if sync:
                handle.flush()
                os.fsync(handle.fileno())
        if sync:
            sync_folder(tried.parent)
    except OSError as error:
        if length is not None:
            with contextlib.suppress(OSError):
                os.truncate(tried, length)
        raise OutsideError(f"{tried} cannot be written: {why(error)}.") from error


def why(error: OSError) -> str:
    """Why the system did not write, in its own words; and how to let it, where a limit on the size of a file was met."""
    told = error.strerror or str(error)
    return f"{told} (see ulimit -f, or LimitFSIZE= of a service)" if error.errno == errno.EFBIG else told


def publish(hidden: str | os.PathLike[str], place: str | os.PathLike[str]) -> None:
    """Give a file that is complete its name, at once and for good: also the folder has reached the disk. Raises OSError."""
    os.replace(hidden, place)  # noqa: PTH105
    sync_folder(absolute(place).parent)


def truncate(path: str | os.PathLike[str], size: int) -> None:
    """Cut a file off behind ``size`` bytes, for good. Raises `OutsideError` with the path tried."""
    tried = absolute(path)
    try:
        handle = PlacedFile(tried, "update")
        try:
            handle.truncate(size)
            handle.sync()
        finally:
            handle.close()
    except OSError as error:
        raise OutsideError(f"{tried} cannot be cut: {error.strerror or error}.") from error


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file for good: also its folder has reached the disk. Raises OSError."""
    os.unlink(path)  # noqa: PTH108
    sync_folder(absolute(path).parent)
