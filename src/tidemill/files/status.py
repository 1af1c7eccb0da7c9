"""What is known of a file without opening it."""

from __future__ import annotations

import os
import stat

from tidemill.files.names import absolute

__all__ = ["endless", "identity", "is_readable_by_all", "stamp"]


def stamp(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """What changes when the file's content does: (inode, size, time of change in ns); None when it is not there."""
    try:
        status = os.stat(absolute(path))  # noqa: PTH116 - as the other doors here
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def identity(path: str | os.PathLike[str]) -> object | None:
    """What is the same for all names of one file or folder, links among them; None for a device or a pipe, which is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as the other doors here
    except OSError:
        return os.path.realpath(path)
    one = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if one else None


def endless(path: str | os.PathLike[str]) -> str:
    """What stands there if nobody knows whether reading it ends: "a FIFO", "a device", "a socket"; empty for files, folders, and
    where nothing is.

    >>> endless(os.devnull), endless(os.curdir)
    ('a device', '')
    """
    try:
        mode = os.stat(absolute(path)).st_mode  # noqa: PTH116 - as the other doors here
    except OSError:
        return ""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def is_readable_by_all(path: str | os.PathLike[str]) -> bool:
    """Whether every user may read the file, as far as its own mode says."""
    try:
        return bool(os.stat(absolute(path)).st_mode & stat.S_IROTH)  # noqa: PTH116 - as the other doors here
    except OSError:
        return False
