"""Text from outside, for people: in logs, errors, a terminal, a page. Names of sensors and fields are whatever somebody sent."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["NAME", "counted", "in_one_line", "lines_printable", "printable", "quoted", "shown"]

NAME: Final = 80
"""Characters by which a person knows a name."""


def printable(text: str, *, longest: int | None = None) -> str:
    """The text with everything escaped that moves, colours or reorders what a terminal shows, and line ends with it; of one
    with more than ``longest`` characters, these.

    >>> printable("pump \\x1b[2J\\u202e \\u00e4") == r"pump \\x1b[2J\\u202e " + "\\u00e4"
    True
    >>> printable("pump 7", longest=4)
    'pump…'
    """
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}…"
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def lines_printable(text: str) -> str:
    """The same of a text of several lines, which stay lines: whoever wrote it has kept what is from outside within them.

    >>> lines_printable("one\\n\\ttwo\\x1b[2J\\n") == "one\\n\\ttwo" + r"\\x1b[2J" + "\\n"
    True
    """
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def in_one_line(text: str, *, longest: int) -> str:
    """What somebody has said in any number of lines, as one.

    >>> in_one_line("refused by\\n  the host", longest=100)
    'refused by the host'
    """
    return printable(" ".join(text[: 4 * longest].split()), longest=longest)


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things, in words.

    >>> counted(1, "record"), counted(0, "record"), counted(1_234, "batch", "batches")
    ('1 record', '0 records', '1,234 batches')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def quoted(name: str) -> str:
    """A name within a sentence, with its beginning and end to be seen; of a long one, what a person knows it by.

    >>> print(quoted("pump\\n\\x1b[2J"), quoted("it's"), len(quoted("x" * 10_000)))
    'pump\\n\\x1b[2J' "it's" 83
    """
    return repr(name if len(name) <= NAME else f"{name[:NAME]}…")


def shown(item: Any) -> str:
    """A value as Python writes it, or of which class it is, where that raises.

    >>> shown({"value": 20})
    "{'value': 20}"
    """
    try:
        return repr(item)
    except Exception:  # noqa: BLE001 - any class may, and anything
        return f"a {type(item).__name__} that cannot be shown"
