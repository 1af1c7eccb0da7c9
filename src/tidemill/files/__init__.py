"""The only door to disk: opening, listing, writing whole files at once, and files that are synced by hand.

Every error names the absolute path that was tried, so that a run started in the wrong folder says so.
"""

from __future__ import annotations

from tidemill.files.folders import cache_folder, free_space, is_private, make_folder, names_in, sync_folder
from tidemill.files.locks import Lock, lock
from tidemill.files.names import STANDARD_INPUT, STANDARD_OUTPUT, absolute, expand, stem, suffix
from tidemill.files.placed import PlacedFile
from tidemill.files.reading import (
    ends_in_newline,
    head,
    open_read,
    open_resting,
    read_blocks,
    read_bytes,
    read_there,
    skip,
)
from tidemill.files.resting import RestingFile, may_be_open
from tidemill.files.status import endless, identity, is_readable_by_all, stamp
from tidemill.files.tables import read_table
from tidemill.files.whole import leftovers, why_not_whole, write_atomic, write_whole
from tidemill.files.writing import append, open_write, publish, remove, sync, truncate, why

__all__ = [
    "STANDARD_INPUT",
    "STANDARD_OUTPUT",
    "Lock",
    "PlacedFile",
    "RestingFile",
    "absolute",
    "append",
    "cache_folder",
    "endless",
    "ends_in_newline",
    "expand",
    "free_space",
    "head",
    "identity",
    "is_private",
    "is_readable_by_all",
    "leftovers",
    "lock",
    "make_folder",
    "may_be_open",
    "names_in",
    "open_read",
    "open_resting",
    "open_write",
    "publish",
    "read_blocks",
    "read_bytes",
    "read_table",
    "read_there",
    "remove",
    "skip",
    "stamp",
    "stem",
    "suffix",
    "sync",
    "sync_folder",
    "truncate",
    "why",
    "why_not_whole",
    "write_atomic",
    "write_whole",
]
