"""One COPY that stays open while rows of one shape come."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tidemill.sinks.postgres_rows import HEADER, TRAILER
from tidemill.sinks.postgres_table import Target

if TYPE_CHECKING:
    from tidemill.sinks.postgres_connection import Connection

__all__ = ["OpenCopy"]


class OpenCopy:
    """Takes rows; the server puts them into the table while the next ones are made ready.

    Until it has ended the connection can do nothing else, and a row that the server refuses may be told only then.
    """

    def __init__(self, connection: Connection, target: Target) -> None:
        self.target = target
        self._open = contextlib.ExitStack()
        cursor = self._open.enter_context(connection.cursor())
        self._copy = self._open.enter_context(cursor.copy(target.copy.encode()))
        self._copy.write(HEADER)

    def write(self, rows: bytes) -> None:
        self._copy.write(rows)

    def end(self) -> None:
        """The server has all rows, or raises."""
        self._copy.write(TRAILER)
        self._open.close()

    def abandon(self) -> None:
        """Let go of a COPY whose connection is gone."""
        with contextlib.suppress(Exception), self._open:
            raise RuntimeError("the rows of this COPY are not wanted any more")
