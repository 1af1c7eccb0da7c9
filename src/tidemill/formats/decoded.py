"""What the decoders of lines give: records as dicts, and lines that are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BadLine", "Decoded"]


@dataclass(frozen=True)
class BadLine:
    """A line that is no record."""

    reason_code: str
    reason: str
    raw: Any
    """Its text, or what was read of it when it held several records and this one is bad."""
    sound: bool = False
    """What it says is well said, and only no record here: no reason to ask its sender for another."""


@dataclass(frozen=True)
class Decoded:
    """A block of lines, decoded."""

    rows: Sequence[dict[str, Any]] = ()
    bad: list[BadLine] = field(default_factory=list)
    known: list[Mapping[str, str]] | None = None
    """What is known of each record besides its fields, which its key may be made of."""
