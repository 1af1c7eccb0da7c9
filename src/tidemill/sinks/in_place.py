"""Whether a file is still where it was when it was opened: rows go on into one that was deleted, and nobody finds them."""

from __future__ import annotations

from pathlib import Path

from tidemill import files
from tidemill.errors import InputError

__all__ = ["InPlace"]


class InPlace:
    """The file at ``path``, which is there and open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = files.identity(path)

    def require(self, *, kept: bool) -> None:
        """Raises `InputError` where another file, or none, is at that place now. ``kept``: the run knows how far its rows reach."""
        if files.identity(self._path) != self._identity:
            then = "put it back as it was, or start over with --fresh" if kept else "its rows are wherever it is now"
            raise InputError(f"{self._path} was deleted, moved or replaced while rows were written to it; {then}.")
