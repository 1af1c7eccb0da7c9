"""Lines that a sink sends, in parts that end where one does, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["REFUSED", "TOO_LARGE", "Sent", "line_end", "parts_of"]

REFUSED: Final = "(refused)"
"""Rows that the other side does not take, in ``left_out``."""
TOO_LARGE: Final = "(too large)"
"""Rows whose line is too large for it."""


@dataclass
class Sent:
    """What came of the lines so far."""

    rows: int = 0
    size: int = 0
    """Bytes of these."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that were not sent, or not taken, by what the sink calls the reason; read from another thread, never changed."""

    def went(self, lines: bytes) -> None:
        self.rows += lines.count(b"\n")
        self.size += len(lines)

    def leave_out(self, reason: str, rows: int = 1) -> None:
        self.left_out = {**self.left_out, reason: self.left_out.get(reason, 0) + rows}


def parts_of(lines: bytes, size: int) -> Iterator[bytes]:
    """Whole lines, as many together as ``size`` bytes hold; one that is longer is a part by itself.

    >>> list(parts_of(b"a\\nbb\\ncccccc\\nd\\n", 5))
    [b'a\\nbb\\n', b'cccccc\\n', b'd\\n']
    """
    start = 0
    while start < len(lines):
        end = line_end(lines, start, start + size)
        yield lines[start:end]
        start = end


def line_end(lines: bytes, start: int, before: int) -> int:
    """The end of the last line that has ended there, or else of the first."""
    return lines.rfind(b"\n", start, before) + 1 or lines.find(b"\n", start) + 1
