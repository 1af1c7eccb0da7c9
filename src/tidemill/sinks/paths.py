"""Which sink a path means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from tidemill import files
from tidemill.errors import PlanError
from tidemill.sinks.base import ProcessSink

__all__ = ["for_path"]

_DATABASES: Final = (".db", ".sqlite", ".sqlite3")
_SERVERS: Final = ("postgresql://", "postgres://")
_LINES: Final = (".ndjson", ".jsonl", ".csv")


def for_path(path: str | Path, **options: Any) -> ProcessSink:
    """The sink that a path's suffix means; ``options`` are the sink's own (``if_exists=``, ``columns=``, ``where=``).

    ``.db`` or ``.sqlite`` → `SQLite`; ``.parquet``, or a folder (it ends with ``/``, or is there) → `Parquet`;
    ``.ndjson``, ``.jsonl``, ``.csv``, each also with ``.gz``, and ``-`` for standard output → `Lines`;
    ``postgresql://...`` → `PostgreSQL`.

    Raises `PlanError` naming the suffixes known.

    >>> type(for_path("features.db")).__name__, type(for_path("features/")).__name__, type(for_path("-")).__name__
    ('SQLite', 'Parquet', 'Lines')
    """
    text = os.fspath(path)
    if text.startswith(_SERVERS):
        from tidemill.sinks.postgres import PostgreSQL

        return PostgreSQL(text, **options)
    if "://" in text:  # not to be shown whole: it may hold a password
        raise PlanError(
            f"{text.partition('://')[0]}:// is not the beginning of a sink's URL; the one known is postgresql://."
        )
    suffix = files.suffix(text)
    packed = text.lower().endswith(".gz")
    if text == "-" or suffix in _LINES:
        from tidemill.sinks.lines import Lines

        return Lines(path, **options)
    if suffix in _DATABASES and not packed:
        from tidemill.sinks.sqlite import SQLite

        return SQLite(path, **options)
    if (suffix == ".parquet" and not packed) or text.endswith("/") or files.absolute(text).is_dir():
        from tidemill.sinks.parquet import Parquet

        return Parquet(path, **options)
    raise PlanError(
        f"{text!r} does not say which sink it is; the suffixes are {', '.join(_DATABASES)} (SQLite), .parquet or a "
        f"folder that ends with / (Parquet), {', '.join(_LINES)} with or without .gz, - for standard output, and "
        f"postgresql://... for a server."
    )
