"""What came of the lines that a sink has sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["REFUSED", "TOO_LARGE", "Sent"]

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
