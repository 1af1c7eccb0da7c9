"""Reading files, packed ones too."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from tidemill.errors import InputError, OutsideError
from tidemill.files.names import COMPRESSED, absolute
from tidemill.files.resting import RestingFile

__all__ = ["ends_in_newline", "head", "open_read", "open_resting", "read_blocks", "read_bytes", "read_there", "skip"]

_UNPACKED_BY: Final = {
    b"\x1f\x8b": "zcat",
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"\xfd7zXZ\0": "xzcat",
    b"BZh91AY&SY": "bzcat",
}
"""How packed files begin, as no text does that is read here, and what unpacks them."""


def open_read(path: str | os.PathLike[str], *, packed: bool = False) -> BinaryIO:
    """The file opened for reading bytes, unpacked when its name ends in ``.gz`` unless it is wanted ``packed``.

    Raises `InputError` with the path tried, also for one that is packed in another way.
    """
    tried = absolute(path)
    with _told(tried):
        if not packed and tried.name.lower().endswith(COMPRESSED):
            return cast(BinaryIO, gzip.open(tried, "rb"))
        handle = open(tried, "rb")  # noqa: PTH123, SIM115 - the caller closes it
        return handle if packed else _unpacked(tried, handle)


def open_resting(path: str | os.PathLike[str]) -> tuple[BinaryIO, RestingFile]:
    """The same, and what lets the file rest between two reads; the caller closes both."""
    tried = absolute(path)
    with _told(tried):
        file = RestingFile(tried)
        handle = io.BufferedReader(file)
        if tried.name.lower().endswith(COMPRESSED):
            return cast(BinaryIO, gzip.GzipFile(fileobj=handle, mode="rb")), file
        return _unpacked(tried, handle), file


def _unpacked(path: Path, handle: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """The file, unless it is packed, which is refused. A pipe is not asked: it would have us wait."""
    begins = handle.peek(1) if handle.seekable() else b""
    program = next((program for magic, program in _UNPACKED_BY.items() if begins.startswith(magic)), "")
    if program:
        handle.close()
        raise InputError(
            f"{path} is packed, and only what has a name that ends in .gz is unpacked here; unpack it first: "
            f"{program} {path} > FILE"
        )
    return handle


@contextlib.contextmanager
def _told(tried: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f"there is no file {tried}; check the name, or the folder that the run was started in."
        ) from None
    except OSError as error:
        raise InputError(f"{tried} cannot be read: {error.strerror or error}.") from error


def read_blocks(path: str | os.PathLike[str], handle: BinaryIO, size: int) -> Iterator[bytes]:
    """Blocks of at most ``size`` bytes until the end of ``handle``.

    Raises `InputError` naming ``path`` when the file is cut short or is not the gzip file its name promises, and
    `OutsideError` when the disk fails.
    """
    while True:
        try:
            block = handle.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{absolute(path)} is not a whole gzip file: {error}.") from error
        except OSError as error:
            raise OutsideError(f"reading {absolute(path)} failed: {error.strerror or error}.") from error
        if not block:
            return
        yield block


def skip(path: str | os.PathLike[str], handle: BinaryIO, count: int) -> None:
    """Go on ``count`` bytes behind the start of ``handle``, which nothing has been read from: by unpacking them when
    the file is packed, else at once. Raises what `read_blocks` raises."""
    if absolute(path).name.lower().endswith(COMPRESSED):
        while count and (block := next(read_blocks(path, handle, min(count, 1 << 20)), b"")):
            count -= len(block)
    else:
        handle.seek(count)


def head(path: str | os.PathLike[str], count: int) -> bytes:
    """The first ``count`` bytes of a file as it lies on the disk, or as many as there are. Raises `InputError`."""
    tried = absolute(path)
    try:
        with open(tried, "rb") as handle:  # noqa: PTH123 - as the other doors here
            return handle.read(count)
    except OSError as error:
        raise InputError(f"{tried} cannot be read: {error.strerror or error}.") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes | None:
    """The whole file; None when it is not there or cannot be read."""
    try:
        return read_there(path)
    except OSError:
        return None


def read_there(path: str | os.PathLike[str]) -> bytes | None:
    """The whole file; None when it is not there. Raises OSError when it is, and cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def ends_in_newline(handle: BinaryIO | io.FileIO) -> bool:
    """Whether the last line of an open file is whole; it is when there is none."""
    end = handle.seek(0, io.SEEK_END)
    if not end:
        return True
    handle.seek(end - 1)
    return handle.read(1) == b"\n"
