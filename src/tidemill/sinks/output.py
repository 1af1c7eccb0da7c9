"""A file, gzip file or standard output that takes whole lines."""

from __future__ import annotations

import contextlib
import errno
import io
import select
import zlib
from pathlib import Path
from typing import Final

from tidemill import files
from tidemill.errors import OutsideError
from tidemill.sinks.in_place import InPlace

__all__ = ["KeptOutput", "Output"]

BUFFER_BYTES: Final = 1 << 20
"""Lines are kept until there are so many bytes of them, or until a flush."""
GZIP_LEVEL: Final = 3
STDOUT: Final = 1


class Output:
    """Takes bytes that end in a newline; after a write that fails, an uncompressed file still ends in a whole line.

    ``path`` None is standard output, by its descriptor: a print() in user code goes its own way.
    """

    def __init__(self, path: Path | None, *, gz: bool, append: bool) -> None:
        self.place = str(path) if path is not None else "standard output"
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.size = 0
        """Bytes handed to the system so far."""
        self._gz = _member() if gz else None
        self._file = (
            files.open_write(path, append=append) if path is not None else io.FileIO(STDOUT, "w", closefd=False)
        )
        self._regular = path is not None and self._file.seekable()
        self._broken = False
        if append and not gz and self._regular and not files.ends_in_newline(self._file):
            self.write(b"\n")  # the line before us was cut short: keep ours apart from it

    def write(self, lines: bytes) -> None:
        data = self._gz.compress(lines) if self._gz is not None else lines  # may be b"": zlib keeps some back
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= BUFFER_BYTES:
            self._send()
            self._waiting.append(b"")  # of a gzip file, the compressor may still hold a part

    def flush(self) -> None:
        """Everything so far can be read; gzip readers can unpack up to here, then say that the end is missing."""
        if not self._waiting:  # an idle run flushes all the time
            return
        if self._gz is not None:
            self._waiting.append(self._gz.flush(zlib.Z_SYNC_FLUSH))
        self._send()

    def close(self) -> None:
        try:
            if not self._broken:
                if self._gz is not None:
                    self._waiting.append(self._gz.flush(zlib.Z_FINISH))
                self._send()
        finally:
            self._file.close()

    def _send(self) -> None:
        data, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        whole = self._file.tell() if self._regular else 0
        try:
            self._send_all(data)
        except OSError as error:
            self._broken = True
            if self._regular and self._gz is None:
                with contextlib.suppress(OSError):
                    self._file.truncate(whole)
            raise self._named(error) from error
        self.size += len(data)

    def _send_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sent = self._file.write(rest)
            if sent is None:  # somebody made standard output non-blocking
                select.select([], [self._file], [])
            else:
                rest = rest[sent:]

    def _named(self, error: OSError) -> OutsideError:
        if error.errno == errno.EPIPE:
            return OutsideError(f"The program that read {self.place} has gone away; the rows it did not read are lost.")
        if error.errno == errno.ENOSPC:
            return OutsideError(f"The disk is full: rows could not be written to {self.place}.")
        return OutsideError(f"Rows could not be written to {self.place}: {files.why(error)}.")


class KeptOutput(Output):
    """A file of which ``length`` bytes are committed; what is beyond is cut off. A ``.gz`` has one member a commit, so
    that it can be cut between two of them.

    After any error nothing more is written: what the disk holds beyond the committed length is not known then.
    """

    def __init__(self, path: Path, *, gz: bool, length: int) -> None:
        self.length = length
        """Bytes that are committed."""
        with files.open_write(path, append=True) as file:
            file.truncate(length)
            files.sync(file)
        super().__init__(path, gz=gz, append=True)
        self._in_place = InPlace(path)

    @property
    def changed(self) -> bool:
        """Whether anything was written since the last commit."""
        return bool(self._waiting) or self._file.tell() != self.length

    def write(self, lines: bytes) -> None:
        self._require_unbroken()
        super().write(lines)

    def commit(self) -> int:
        """Return when everything so far has reached the disk: the length of the file."""
        self._require_unbroken()
        if not self.changed:
            return self.length
        self._in_place.require(kept=True)
        if self._gz is not None:
            self._waiting.append(self._gz.flush(zlib.Z_FINISH))
            self._gz = _member()
        self._send()
        try:
            files.sync(self._file)
        except OSError as error:
            self.drop()  # a second fsync may succeed although the rows are gone
            raise self._named(error) from error
        self.length = self._file.tell()
        return self.length

    def _require_unbroken(self) -> None:
        if self._broken:
            raise OutsideError(f"Rows for {self.place} met an error before; start again to go on from the last commit.")

    def drop(self) -> None:
        """Let go as it is, without writing anything."""
        self._broken = True
        self._waiting.clear()
        self._file.close()

    def leave(self, end: bytes) -> None:
        """Cut off what is not committed, and let go. ``end`` is for a file in which nothing is: it stays uncommitted."""
        changed = not self._broken and self.changed
        self._waiting.clear()
        try:
            if self._broken:
                return
            if changed:
                self._file.truncate(self.length)
            elif not self.length:
                self._send_all(self._gz.compress(end) + self._gz.flush() if self._gz is not None else end)
            files.sync(self._file)
        except OSError as error:
            raise self._named(error) from error
        finally:
            self.drop()


def _member() -> zlib._Compress:
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)  # 31: with a gzip header


def require_whole_gzip(path: Path) -> None:
    """Raise `InputError` when nothing can be added to a gzip file, since its last writer was stopped in the middle."""
    with contextlib.closing(files.open_read(path)) as handle:
        for _ in files.read_blocks(path, handle, BUFFER_BYTES):
            pass
