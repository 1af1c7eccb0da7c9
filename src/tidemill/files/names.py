"""What files are called, and which of them a name means."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Final

from tidemill.errors import InputError

__all__ = ["COMPRESSED", "STANDARD_INPUT", "STANDARD_OUTPUT", "absolute", "expand", "stem", "suffix"]

STANDARD_INPUT: Final = Path("/dev/stdin")
STANDARD_OUTPUT: Final = Path("/dev/stdout")
"""Their names on the disk, by which a file is found that a shell has put there."""
RECORDINGS: Final = (".csv", ".ndjson", ".jsonl", ".parquet")
"""Suffixes that a folder is searched for; each also with ``.gz``."""
COMPRESSED: Final = ".gz"
_MAGIC: Final = frozenset("*?[")


def absolute(path: str | os.PathLike[str]) -> Path:
    """``path`` as it will be tried: ``~`` expanded, from the current folder."""
    return Path(os.path.abspath(os.path.expanduser(os.fspath(path))))  # noqa: PTH100, PTH111 - keeps symlinks


def suffix(path: str | os.PathLike[str]) -> str:
    """The suffix that says the format, in lower case, without ``.gz``.

    >>> suffix("march/plant.CSV.gz"), suffix("plant")
    ('.csv', '')
    """
    name = os.fspath(path).lower().removesuffix(COMPRESSED)
    return os.path.splitext(name)[1]  # noqa: PTH122


def stem(path: str | os.PathLike[str]) -> str:
    """The name of the file without its folder and its suffixes for format and compression.

    >>> stem("plant/line1.pump.csv.gz")
    'line1.pump'
    """
    name = os.path.basename(os.fspath(path))  # noqa: PTH119
    if name.lower().endswith(COMPRESSED):
        name = name[: -len(COMPRESSED)]
    return os.path.splitext(name)[0]  # noqa: PTH122


def expand(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a file, glob pattern or folder means, sorted by path.

    A folder means the recordings directly in it, as a pattern would without those whose names begin with a dot: these are
    hidden, such as the ``._name.csv`` that a copy from another system leaves. Raises `InputError` when there is none.
    """
    tried = absolute(path)
    if tried.is_file() or (tried.exists() and not tried.is_dir()):
        return [tried]
    if tried.is_dir():
        shown = (entry for entry in tried.iterdir() if not entry.name.startswith("."))
        found = sorted(entry for entry in shown if suffix(entry) in RECORDINGS and entry.is_file())
        if not found:
            raise InputError(f"the folder {tried} holds no recording: no file that ends in {', '.join(RECORDINGS)}.")
        return found
    if _MAGIC & set(str(tried)):
        found = sorted(Path(name) for name in glob.glob(str(tried), recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
        if not found:
            raise InputError(f"no file matches {tried}; check the pattern and the folder it starts from.")
        return found
    raise InputError(f"there is no file {tried}; check the name, or the folder that the run was started in.")
