"""Files that are read and written at given places."""

from __future__ import annotations

import errno
import os
from typing import Literal

from tidemill.files.names import absolute

__all__ = ["PlacedFile"]


class PlacedFile:
    """A file that is read and written at given places, and synced by hand: what logs and stores are made of.

    ``"create"`` makes a new file with mode 0600, ``"update"`` opens one for both, ``"read"`` for reading alone. Nothing is
    buffered here. Every method raises OSError; after an error of `sync` nobody knows what is on disk, and a second call
    would report success, so that the file must be opened anew and looked through.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Literal["create", "update", "read"]) -> None:
        flags = {"create": os.O_RDWR | os.O_CREAT | os.O_EXCL, "update": os.O_RDWR, "read": os.O_RDONLY}[mode]
        self.path = absolute(path)
        self._handle: int | None = os.open(self.path, flags, 0o600)

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise OSError(errno.EBADF, "the file was closed", str(self.path))
        return self._handle

    def size(self) -> int:
        """Bytes from its beginning to its end, those that were only allocated included."""
        return os.fstat(self._open).st_size

    def read(self, place: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``place`` on; fewer only at the end of the file."""
        data = os.pread(self._open, length, place)
        while data and len(data) < length:
            more = os.pread(self._open, length - len(data), place + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, place: int, data: bytes | memoryview) -> None:
        """Put all of ``data`` at ``place``."""
        done = os.pwrite(self._open, data, place)
        while done < len(data):
            done += os.pwrite(self._open, memoryview(data)[done:], place + done)

    def allocate(self, place: int, length: int) -> None:
        """Reserve the room from ``place`` on, so that writing there does not find the disk full; it reads as zeros.

        Where the platform cannot reserve, the file only grows.
        """
        try:
            os.posix_fallocate(self._open, place, length)
        except AttributeError:
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        if self.size() < place + length:
            self.truncate(place + length)

    def truncate(self, size: int) -> None:
        """Make it ``size`` bytes long."""
        os.ftruncate(self._open, size)

    def sync(self) -> None:
        """Return when what was written is on disk, and its length; its name may not be, see `sync_folder`."""
        getattr(os, "fdatasync", os.fsync)(self._open)

    def close(self) -> None:
        """Close it, synced or not; again is nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
