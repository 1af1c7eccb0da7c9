"""Sizes for a person."""

from __future__ import annotations

__all__ = ["in_units"]


def in_units(count: float) -> str:
    """So many bytes, in the unit that keeps them short.

    >>> in_units(512), in_units(2_048), in_units(3_500_000)
    ('512 B', '2.0 kB', '3.5 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
