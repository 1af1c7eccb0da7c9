"""What a sink notes in the state folder: a small file that is replaced at once, and checked when it is read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from tidemill import files
from tidemill.errors import InputError

__all__ = ["read_note", "write_note"]

VERSION: Final = 1
"""Of the notes; one that is greater was written by a newer tidemill."""

T = TypeVar("T", bound=msgspec.Struct)


def write_note(place: Path, note: msgspec.Struct) -> None:
    """Replace what was noted; it has reached the disk when this returns. Raises `OutsideError`."""
    text = json.dumps({"version": VERSION, "note": msgspec.to_builtins(note)})
    files.write_atomic(place, f"{text}\n{zlib.crc32(text.encode()):08x}\n".encode())


def read_note(place: Path, kind: type[T]) -> T | None:
    """What was noted last; None when nothing ever was. Raises `InputError` when the file is not as it was written."""
    if files.stamp(place) is None:
        return None
    text, _, rest = (files.read_bytes(place) or b"").partition(b"\n")
    if rest != f"{zlib.crc32(text):08x}\n".encode():
        raise _damaged(place)
    noted: Any = json.loads(text)
    if noted["version"] > VERSION:
        raise InputError(
            f"{place} was written by a newer version of tidemill; go on with that one, or start over with --fresh."
        )
    try:
        return msgspec.convert(noted["note"], kind)
    except msgspec.ValidationError:
        raise _damaged(place) from None


def _damaged(place: Path) -> InputError:
    return InputError(
        f"{place} is damaged or cannot be read, so nobody knows what is committed; put it back from a copy, or start "
        f"over with --fresh."
    )
