"""Whether the files that an offset tells of are still what they were."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tidemill import files
from tidemill.errors import InputError

__all__ = ["OR_FRESH", "Known", "head_of", "identified", "is_packed", "still_there"]

Known = dict[str, Any]
"""What is remembered of a file: its path, its size and inode when the run began, and the sum of its head once it is read."""

OR_FRESH: Final = "put back what was there, or start over with --fresh"
_PACKED: Final = ".gz"
_HEAD: Final = 4_096  # bytes


def identified(path: Path) -> Known:
    """The file as it is now. Raises `InputError` when it is gone."""
    inode, size = _stamp(path, "")
    return {"path": str(path), "size": size, "inode": inode, "head": None}


def head_of(known: Known) -> int:
    """A sum of the first bytes that the file had when the run began."""
    return zlib.crc32(files.head(known["path"], min(_HEAD, known["size"])))


def still_there(then: Sequence[Known], at: Sequence[Mapping[str, Any] | None]) -> list[Known]:
    """The files as they are now, after a look at each that is still to be read: what was there must be there.

    A file of lines may have grown; one that is packed only when it has been read to its end. Raises `InputError` that says which file is not what it was.
    """
    made = []
    for known, entry in zip(then, at, strict=True):
        ended = entry is not None and "end" in entry
        gone = files.stamp(known["path"]) is None
        made.append(known if ended and gone else _still(known, ended))
    return made


def _still(then: Known, ended: bool) -> Known:
    path = Path(then["path"])
    inode, size = _stamp(path, f"; the state tells of it: {OR_FRESH}")
    if size < then["size"]:
        raise InputError(f"{path} is shorter than it was ({size} bytes of {then['size']}); {OR_FRESH}.")
    if size > then["size"] and (inode != then["inode"] or not _grows(path, ended)):
        raise InputError(f"{path} is another file than it was ({size} bytes, not {then['size']}); {OR_FRESH}.")
    if then["head"] is not None and head_of(then) != then["head"]:
        raise InputError(f"{path} is another file than it was: it begins differently; {OR_FRESH}.")
    return {**then, "size": size, "inode": inode}


def _grows(path: Path, ended: bool) -> bool:
    """Whether what is added to the file changes nothing of what is read of it."""
    return files.suffix(path) != ".parquet" and (ended or not is_packed(path))


def is_packed(path: Path) -> bool:
    """Whether its size on the disk does not say where its lines end."""
    return path.name.lower().endswith(_PACKED)


def _stamp(path: Path, hint: str) -> tuple[int, int]:
    stamp = files.stamp(path)
    if stamp is None:
        raise InputError(f"there is no file {path}{hint}.")
    return stamp[0], stamp[1]
