"""Folders: what is in them, whose they are, and making them and their names for good."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tidemill.files.names import absolute

__all__ = ["cache_folder", "free_space", "is_private", "make_folder", "names_in", "sync_folder"]


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of what is directly in ``folder``, sorted. Raises OSError."""
    return sorted(os.listdir(folder))  # noqa: PTH208


def free_space(folder: str | os.PathLike[str]) -> int:
    """Bytes that this user may still write to the disk of ``folder``. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def is_private(folder: str | os.PathLike[str]) -> bool:
    """Whether only this user can write there: a folder of theirs, not open to group or world, and not a link."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    open_to_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not open_to_others


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Return when the names in ``folder`` are on disk: files made, renamed and removed there. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """A folder for this user alone (mode 0700), with those above it; there for good when this returns. Raises OSError."""
    made = absolute(folder)
    if made.is_dir():
        return
    if not made.parent.is_dir():
        make_folder(made.parent)
    try:
        os.mkdir(made, 0o700)  # noqa: PTH102 - as the other doors here
    except FileExistsError:
        if not made.is_dir():
            raise
    sync_folder(made.parent)


def cache_folder() -> Path | None:
    """This user's folder for what can be made again (``$XDG_CACHE_HOME/tidemill``), created with mode 0700.

    None when there is no home to put it in, when it cannot be made, or when others can write to it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (root if root.is_absolute() else Path.home() / ".cache") / "tidemill"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only home, or none at all
        return None
    return folder if is_private(folder) else None
