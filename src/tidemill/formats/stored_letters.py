"""Dead letters ↔ bytes that outlive the process."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from tidemill.formats.values import Unkept, decode_value, encode_value
from tidemill.letters import DeadLetter

__all__ = ["decoded_letters", "encoded_letters"]

_LETTER: Final = tuple(field.name for field in fields(DeadLetter))
"""In this order in files: new ones come at the end, with a default."""


def encoded_letters(letters: tuple[DeadLetter, ...]) -> bytes:
    """The letters as bytes. A ``raw`` that no file can keep becomes the text that the dead-letters file would show."""
    if not letters:
        return b""
    try:
        return encode_value([list(_letter_fields(letter)) for letter in letters])
    except Unkept:
        return encode_value([_shown_letter(letter) for letter in letters])


def _letter_fields(letter: DeadLetter) -> Iterator[Any]:
    return (getattr(letter, name) for name in _LETTER)


def _shown_letter(letter: DeadLetter) -> list[Any]:
    fields = list(_letter_fields(letter))
    try:
        encode_value(letter.raw)
    except Unkept:
        fields[_LETTER.index("raw")] = reprlib.repr(letter.raw)
    return fields


def decoded_letters(data: bytes | memoryview) -> tuple[DeadLetter, ...]:
    """The letters again. Raises ValueError, TypeError or `InputError` for bytes that are none."""
    return tuple(map(_letter, decode_value(data))) if len(data) else ()


def _letter(fields: Any) -> DeadLetter:
    if len(fields) > len(_LETTER):
        raise ValueError("a dead letter has fields that are not known here")
    letter = DeadLetter(**dict(zip(_LETTER, fields, strict=False)))
    whole = (
        all(type(text) is str for text in (letter.reason_code, letter.reason, letter.source, letter.stage))
        and (letter.key is None or type(letter.key) is str)
        and (letter.time_ns is None or type(letter.time_ns) is int)
        and (letter.position is None or type(letter.position) is int)
        and type(letter.arrival) is bool
        and type(letter.header) is tuple
        and all(type(name) is str for name in letter.header)
    )
    if not whole:
        raise ValueError("a dead letter is not one")
    return letter
