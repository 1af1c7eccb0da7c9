"""Reading more files than may be open at a time."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

__all__ = ["RestingFile", "may_be_open"]


def may_be_open() -> int | None:
    """Files that this process may have open; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most


class RestingFile(io.RawIOBase):
    """A file that is read, of as many as there are: one that rests takes no descriptor, and goes on where it stood."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = io.FileIO(path)
        self._inode = os.fstat(self._file.fileno()).st_ino
        self._at = 0

    def rest(self) -> None:
        """Close it until it is read again; what is no regular file, such as a pipe, stays open."""
        if self._file is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._at = self._file.tell()
            self._file.close()
            self._file = None

    def _awake(self) -> io.FileIO:
        if self._file is None:
            if self.closed:
                raise ValueError("the file is closed")
            self._file = io.FileIO(self._path)
            if os.fstat(self._file.fileno()).st_ino != self._inode:
                raise OSError(errno.ESTALE, "it is another file than it was when it was opened")
            self._file.seek(self._at)
        return self._file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._awake().seekable()

    def readinto(self, buffer: Buffer) -> int | None:
        return self._awake().readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._awake().seek(offset, whence)

    def tell(self) -> int:
        return self._awake().tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()
