"""The inner loop over lines of JSON that differ from their first in their values alone.

`tidemill.stages.statistics.compiled` makes it machine code, which checks no bounds, and what it reads comes from anybody. So the
last byte of ``data`` is a line's end, and of the literals only the last one has such a byte, at its end. Reading a value never
passes one, comparing a literal looks before how far it may go. Rows are as many as line's ends, and the table of texts is left
before it is full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tidemill.column import INTEGER_TAG, NULL_TAG, VALUE_TAG

__all__ = [
    "BOOL",
    "FULL",
    "HELPERS",
    "KERNELS",
    "LETTERS",
    "NEW",
    "NOTHING",
    "NUMBER",
    "PLACES",
    "TEXT",
    "TEXTS",
    "TEXT_APART",
    "UNLIKE",
    "compiled",
    "use",
]

NOTHING, TEXT, TEXT_APART, NUMBER, BOOL = 0, 1, 2, 3, 4
"""What the values of a field are: null so far, texts that come again, any other texts, numbers, true or false."""
UNLIKE, FULL, NEW = -1, -2, -3
"""What comes in place of the number of lines: one is not like the first; there is no room for another text; the first value of a
field that was null so far."""
TEXTS: Final = 1 << 14
"""Different texts of a field that are kept."""
LETTERS: Final = 1 << 18
"""Their bytes."""
PLACES: Final = 1 << 15
"""Of a field's hash table, more than there may be texts."""
_MOST_LOOKS: Final = 64
"""For a place that is free, where most are: texts that all belong to one place make it no slower than that."""
_SURE_DIGITS: Final = 15
"""A number of so many digits is a float, exactly."""
_HELD_DIGITS: Final = 18
"""Of a number, which 64 bits hold."""
_MOST_DIGITS: Final = 60
"""Of a number that is read here; `json_limits` has more to say of others."""
_MOST_HELD: Final = 1 << 53
_LARGEST_POWER: Final = 22
"""Of ten, among those that a float holds exactly: a division of two exact floats is rounded once, as it should be."""


def read_digits(data: Any, at: int, held: int, digits: int) -> tuple[int, int, int]:
    """What stands behind the digits at ``at``, the number that the first of them make, and how many they are, together with those
    before them."""
    byte = data[at]
    while 48 <= byte <= 57:
        if digits < _HELD_DIGITS:
            held = held * 10 + (byte - 48)
        digits += 1
        at += 1
        byte = data[at]
    return at, held, digits


def read_alike(
    n: int,
    data: Any,
    fields: int,
    kinds: Any,
    literals: Any,
    literal_ends: Any,
    powers: Any,
    rows: int,
    numbers: Any,
    codes: Any,
    spans: Any,
    tags: Any,
    seed: int,
    places: Any,
    hashes: Any,
    text_ends: Any,
    letters: Any,
    counts: Any,
    left: Any,
    left_texts: Any,
    told: Any,
) -> None:
    """The values of the ``n`` bytes of ``rows`` lines, by field: of numbers in ``numbers``, of texts and of true and false in
    ``codes``, of texts apart in ``spans``; ``told`` is the number of lines, or why there is none.

    Numbers that take more than a division are for who can read them: their places in ``numbers`` are in ``left``, their texts, each
    with a comma behind, in ``left_texts``. ``told`` goes on with how many they are and how long their texts, or with where a new
    value begins, and the field that is to blame.
    """
    at = 0
    row = 0
    waiting = 0
    written = 0
    told[0] = UNLIKE
    while at < n:
        begin = 0
        for field in range(fields + 1):
            end = literal_ends[field]
            if at + end - begin > n:
                return
            while begin < end:
                if data[at] != literals[begin]:
                    return
                at += 1
                begin += 1
            if field == fields:
                break
            cell = field * rows + row
            tags[cell] = VALUE_TAG
            kind = kinds[field]
            byte = data[at]
            if byte == 110:  # null
                if data[at + 1] != 117 or data[at + 2] != 108 or data[at + 3] != 108:
                    return
                at += 4
                tags[cell] = NULL_TAG
                codes[cell] = 0 if kind == BOOL else -1
            elif kind == NUMBER:
                start = at
                negative = byte == 45
                if negative:
                    at += 1
                    byte = data[at]
                first = byte
                at, held, whole = read_digits(data, at, 0, 0)
                byte = data[at]
                digits = whole
                if whole == 0 or (first == 48 and whole > 1):
                    return
                is_float = 0
                if byte == 46:
                    is_float = 1
                    at += 1
                    at, held, digits = read_digits(data, at, held, whole)
                    byte = data[at]
                    if digits == whole:
                        return
                fraction = digits - whole
                if digits > _MOST_DIGITS:
                    return
                if byte | 32 == 101:  # e, E
                    is_float = 2
                    at += 1
                    byte = data[at]
                    if byte in (43, 45):  # +, -
                        at += 1
                        byte = data[at]
                    at, _, exponent = read_digits(data, at, 0, 0)
                    if exponent == 0 or exponent > _MOST_DIGITS:
                        return
                if is_float == 0 and digits <= _SURE_DIGITS:
                    numbers[cell] = float(-held if negative else held)
                    tags[cell] = INTEGER_TAG
                elif is_float == 1 and digits <= _HELD_DIGITS and held <= _MOST_HELD and fraction <= _LARGEST_POWER:
                    value = float(held) / powers[fraction]
                    numbers[cell] = -value if negative else value
                else:
                    left[waiting] = cell
                    waiting += 1
                    for step in range(start, at):
                        left_texts[written] = data[step]
                        written += 1
                    left_texts[written] = 44  # a comma, for which a literal's byte has room
                    written += 1
                    if is_float == 0:
                        tags[cell] = INTEGER_TAG
            elif kind == NOTHING:
                told[0] = NEW
                told[1] = at
                told[2] = field
                return
            elif kind == BOOL:
                if byte == 116:  # true
                    if data[at + 1] != 114 or data[at + 2] != 117 or data[at + 3] != 101:
                        return
                    at += 4
                    codes[cell] = 1
                else:  # false
                    if byte != 102 or data[at + 1] != 97 or data[at + 2] != 108 or data[at + 3] != 115:
                        return
                    if data[at + 4] != 101:
                        return
                    at += 5
                    codes[cell] = 0
            else:
                if byte != 34:
                    return
                at += 1
                start = at
                hashed = seed  # FNV-1a of 32 bits, but for where it begins, which nobody outside knows
                byte = data[at]
                while byte != 34:
                    if byte < 32 or byte == 92:  # no text may hold it as it is; an escape
                        return
                    hashed = ((hashed ^ byte) * 16_777_619) & 0xFFFF_FFFF
                    at += 1
                    byte = data[at]
                length = at - start
                at += 1
                if kind == TEXT_APART:
                    spans[2 * cell] = start
                    spans[2 * cell + 1] = start + length
                    continue
                place = (hashed ^ (hashed >> 15)) & (PLACES - 1)
                looks = 0
                while True:
                    code = places[field * PLACES + place] - 1
                    ends = field * (TEXTS + 1)
                    if code < 0:
                        code = counts[field]
                        kept = text_ends[ends + code]
                        if code == TEXTS or kept + length > LETTERS or looks > _MOST_LOOKS:
                            told[0] = FULL
                            told[2] = field
                            return
                        for step in range(length):
                            letters[field * LETTERS + kept + step] = data[start + step]
                        text_ends[ends + code + 1] = kept + length
                        hashes[field * TEXTS + code] = hashed
                        counts[field] = code + 1
                        places[field * PLACES + place] = code + 1
                        break
                    kept = text_ends[ends + code]
                    if hashes[field * TEXTS + code] == hashed and text_ends[ends + code + 1] - kept == length:
                        kept += field * LETTERS
                        step = 0
                        while step < length and letters[kept + step] == data[start + step]:
                            step += 1
                        if step == length:
                            break
                    place = (place + 1) & (PLACES - 1)
                    looks += 1
                codes[cell] = code
        row += 1
    told[0] = row
    told[1] = waiting
    told[2] = written


_in_use: list[Callable[..., Any]] = []


def use(call: Callable[..., Any]) -> None:
    """Have this process read by ``call``, which is `read_alike` as machine code."""
    _in_use[:] = [call]


def compiled() -> Callable[..., Any] | None:
    """`read_alike` as machine code, once this process has loaded it."""
    return _in_use[0] if _in_use else None


HELPERS: Final[tuple[Callable[..., Any], ...]] = (read_digits,)
KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "read_alike": (read_alike, "nbnibqdndiqbniqqbqqbq"),
}
