"""Lock files, each held by one process at a time."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Lock", "lock"]


class Lock:
    """A lock file that this process holds; see `lock`."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def release(self) -> None:
        """Let others have it; the file stays. Again is nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def lock(path: str | os.PathLike[str]) -> Lock | None:
    """Hold the lock file ``path``, which is made if need be; None when another process holds it. Raises OSError.

    The kernel lets go of it when the process ends, however it ends. A child forked without exec holds it too.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locked(handle):
                os.close(handle)
                return None
            if _is_there(handle, path):
                return Lock(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # moved away meanwhile: to hold it keeps nobody out


def _locked(handle: int) -> bool:
    import fcntl  # not on Windows, where this module is imported all the same

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(handle: int, path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), Path(path).stat())
    except FileNotFoundError:
        return False
