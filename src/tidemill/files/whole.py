"""Writing whole files at once: a reader sees the old content or the new."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TextIO

from tidemill.errors import OutsideError
from tidemill.files.folders import names_in, sync_folder
from tidemill.files.names import absolute
from tidemill.files.writing import why

__all__ = ["leftovers", "why_not_whole", "write_atomic", "write_whole"]


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file by ``data`` at once: a reader sees the old content or the new, never a part of it.

    The data and the name have reached the disk when this returns, for this user alone (mode 0600). Raises `OutsideError`
    with the absolute path.
    """
    target = absolute(path)
    try:
        _replace(target, data, 0o600)
    except OSError as error:
        raise OutsideError(f"{target} cannot be written: {why(error)}.") from error


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """The same for a file that a person has named: what a link points to is replaced, and not the link; the mode is that of the
    file that was there, else what the umask leaves; and what is no file, such as a pipe or a device, is written into, as is one
    that a standard stream goes to."""
    target = absolute(path)
    try:
        there = _status(target)
        if there is not None and (stream := _standard_stream(there)) is not None:
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        elif there is None or stat.S_ISREG(there.st_mode):
            _replace(target.resolve(), data, None if there is None else stat.S_IMODE(there.st_mode))
        else:
            with open(target, "wb") as file:  # noqa: PTH123 - one door, one way
                file.write(data)
    except OSError as error:
        raise OutsideError(f"{target} cannot be written: {why(error)}.") from error


def why_not_whole(path: str | os.PathLike[str]) -> str:
    """Why `write_whole` could not write there now; empty when it could. Leaves nothing behind."""
    target = absolute(path)
    try:
        there = _status(target)
        if there is not None and _standard_stream(there) is not None:
            return ""
        if there is None or stat.S_ISREG(there.st_mode):
            handle, temporary = _beside(target.resolve())
            os.close(handle)
            os.unlink(temporary)  # noqa: PTH108
        elif stat.S_ISDIR(there.st_mode):
            return "it is a folder"
        elif not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            return "this user may not write there"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def leftovers(path: str | os.PathLike[str]) -> list[Path]:
    """What calls of `write_atomic` and `write_whole` left beside the file that were killed on the way. Raises OSError."""
    target = absolute(path)
    return [target.with_name(name) for name in names_in(target.parent) if name.startswith(f".{target.name}.")]


def _standard_stream(there: os.stat_result) -> TextIO | None:
    """The stream of this process that goes to this file, such as /dev/stdout behind a redirection."""
    if not stat.S_ISREG(there.st_mode):
        return None
    for stream in (sys.stdout, sys.stderr):
        try:
            if os.path.samestat(os.fstat(stream.fileno()), there):
                return stream
        except (OSError, ValueError, AttributeError):  # closed, or none of the system's
            continue
    return None


def _status(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _beside(target: Path, mode: int = 0o666) -> tuple[int, Path]:
    """A new file in the folder of ``target``, and its name, as `leftovers` finds it; with what the umask leaves of the mode."""
    place = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), place


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    handle, temporary = _beside(target) if mode is None else _beside(target, 0o600)  # private before it has a byte
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # noqa: PTH105
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108
        raise
    sync_folder(target.parent)
