"""Text from outside, for a terminal: names of sensors and fields are whatever somebody sent."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text with everything escaped that moves, colours or reorders what a terminal shows, and line ends with it.

    >>> printable("pump \\x1b[2J\\u202e \\u00e4") == r"pump \\x1b[2J\\u202e " + "\\u00e4"
    True
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
