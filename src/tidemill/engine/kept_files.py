"""Tables and models as they were when they took effect: a run that goes on must not read what has changed meanwhile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from tidemill import files
from tidemill.engine.plan import FROM_DISK
from tidemill.errors import InputError, OutsideError
from tidemill.stages.base import Load, Stage, Table

__all__ = ["InEffect", "KeptFiles", "KeptLoad", "occurrence"]

InEffect = dict[str, list[str]]
"""By path, as the plan has it: the name under which it is kept for the first stage with that path, for the second, ..."""
_SUFFIXES: Final = 2
_DIGITS: Final = 64
_NAME: Final = re.compile(r"[0-9a-f]{64}(\.[^/\x00]*)?")
"""What `KeptFiles.keep` gives: nothing that leads elsewhere."""


class KeptFiles:
    """Copies by content, under names that say it: the same content is kept once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, path: str) -> str:
        """Keep a copy of the file as it is; its name. Blocks. Raises `InputError` when the file cannot be read."""
        with files.open_read(path, packed=True) as handle:
            data = b"".join(files.read_blocks(path, handle, 1 << 20))
        suffixes = "".join(files.absolute(path).suffixes[-_SUFFIXES:])
        name = hashlib.sha256(data).hexdigest() + suffixes.lower()
        place = self._folder / name
        if place.exists() and place.stat().st_size == len(data):
            place.touch()  # it is wanted again, and not to be removed as old
        else:
            files.write_atomic(place, data)
        return name

    def prune(self, needed: Collection[str], unused_since_ns: int) -> None:
        """Remove copies that are not among the ``needed`` and were last wanted before this time of the wall clock. Blocks."""
        for name in files.names_in(self._folder):
            place = self._folder / name
            if _NAME.fullmatch(name) and name not in needed and place.stat().st_mtime_ns < unused_since_ns:
                files.remove(place)

    def loader(self, known: Mapping[str, Sequence[str]]) -> KeptLoad:
        """Gives stages what is kept for them, and keeps what is not yet."""
        return KeptLoad(self, known)

    def place(self, name: str) -> Path:
        """Where a copy is. Blocks. Raises `OutsideError` when it is gone, or not what its name says."""
        if _NAME.fullmatch(name) is None:
            raise OutsideError(
                f"the state names {name[:80]!a} as a file that it keeps; restore it, or start over with --fresh."
            )
        place = self._folder / name
        try:
            with place.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            told = "lacks" if isinstance(error, FileNotFoundError) else "cannot read"
            raise OutsideError(f"the state {told} the file {place}; restore it, or start over with --fresh.") from error
        if content != name[:_DIGITS]:
            raise OutsideError(f"the file {place} is damaged; restore it, or start over with --fresh.")
        return place


class KeptLoad(Load):
    """See `KeptFiles.loader`; ``in_effect`` says what was given."""

    def __init__(self, kept: KeptFiles, known: Mapping[str, Sequence[str]]) -> None:
        self._kept = kept
        self._known = {path: list(names) for path, names in known.items()}
        self.in_effect: InEffect = {}

    def table(self, path: str) -> tuple[str, Table]:
        tried, place = str(files.absolute(path)), self._place(path)
        try:
            return tried, files.read_table(place)
        except InputError as error:
            raise InputError(str(error).replace(str(place), tried)) from error

    def file(self, path: str) -> tuple[str, bytes]:
        tried, known = files.absolute(path), bool(self._known.get(path))
        place = self._place(path)
        source = f"{tried}, as it was when it took effect and is kept in {place}" if known else str(tried)
        return source, FROM_DISK.file(str(place))[1]

    def _place(self, path: str) -> Path:
        names = self._known.get(path)
        name = names.pop(0) if names else self._kept.keep(path)
        self.in_effect.setdefault(path, []).append(name)
        return self._kept.place(name)


def occurrence(stages: Sequence[Stage], number: int) -> int:
    """Which of the stages with its path this one is."""
    return sum(stage.path == stages[number].path for stage in stages[:number])
