"""What JSON from outside may be at most: `DEPTH` levels, `KEYS` names, numbers of `DIGITS` digits.

Almost nothing that comes is near a limit, and that is seen without reading it: by its length, and by how often some bytes are
in it. Only what may exceed one is looked at closely, once it is decoded.
"""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["DEPTH", "DIGITS", "KEYS", "excess", "may_exceed", "may_have_long_number", "some_may_exceed"]

DEPTH: Final = 32
"""Objects and arrays within each other."""
KEYS: Final = 1_024
"""Names of fields in one object: a batch may have many objects."""
DIGITS: Final = 64
"""Of one number, its point included."""

_SHORTEST: Final = DIGITS
"""Bytes that can exceed nothing."""
_MANY: Final = KEYS * len(b'"":0,')
"""Bytes that can have too many names, at least; so a window of half as many that begins at a multiple of that lies whole in
a line that has them."""
_OPENING: Final = bytes(ord("[") if byte == ord("{") else byte for byte in range(256))
_OTHERS: Final = bytes(set(range(256)) - set(b"{[\n"))
_DEEP: Final = b"[" * (DEPTH + 1)
"""What is left of something nested too deeply when only what opens is looked at."""
_STRIDE: Final = 4
_RUN: Final = b"0" * ((DIGITS + 1) // _STRIDE)
"""What is seen of a number that is too long when only every fourth byte is looked at."""
_AS_DIGITS: Final = bytes(ord("0") if byte in b"0123456789." else 0 for byte in range(256))
_TEXT: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_LONG: Final = re.compile(rb"[0-9.]{%d}" % (DIGITS + 1))


def may_exceed(data: bytes) -> bool:
    """Whether one message, or line, must be looked at by `excess`. Never False for one that exceeds a limit.

    >>> may_exceed(b'{"data": {"temp": 20.5}}'), may_exceed(b"[" * 40 + b"]" * 40)
    (False, True)
    """
    return len(data) > _SHORTEST and (
        data.count(b"{") + data.count(b"[") > DEPTH
        or may_have_long_number(data)
        or (len(data) > _MANY and data.count(b":") > KEYS)
    )


def some_may_exceed(block: bytes) -> bool:
    """The same of any line of a block."""
    if len(block) <= _SHORTEST:
        return False
    if _may_be_deep(block) or may_have_long_number(block):
        return True
    half = _MANY // 2
    if all(block.find(b"\n", place, place + half) >= 0 for place in range(0, len(block) - half + 1, half)):
        return False
    return any(line.count(b":") > KEYS for line in block.split(b"\n"))


def _may_be_deep(data: bytes) -> bool:
    return _DEEP in data.translate(_OPENING, _OTHERS)


def may_have_long_number(data: bytes) -> bool:
    return _RUN in data[::_STRIDE].translate(_AS_DIGITS)


def excess(value: Any, data: bytes) -> str:
    """Which limit the decoded ``data`` exceeds, for a sentence that begins with what it is; empty for none.

    >>> excess([[1]], b"[[1]]"), excess(0.0, b"0." + 64 * b"0")
    ('', 'holds a number of more than 64 digits')
    """
    if may_have_long_number(data) and _LONG.search(_TEXT.sub(b'""', data)):
        return f"holds a number of more than {DIGITS} digits"
    level = [value]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for each in level:
            if type(each) is dict:
                if len(each) > KEYS:
                    return f"has more than {KEYS:,} fields"
                inner += each.values()
            elif type(each) is list:
                inner += each
        level = [each for each in inner if type(each) is dict or type(each) is list]
        if not level:
            return ""
    return "is nested too deeply"
