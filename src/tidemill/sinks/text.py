"""Texts and nested values as files and databases can hold them."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import numpy as np

__all__ = ["bare", "cell_text", "clean_text", "json_text"]


def clean_text(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair becomes ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def json_text(item: Any) -> str:
    """Any value of an OBJECT column as JSON; what JSON has no word for (a set, a complex number) as its ``str``.

    >>> json_text({"codes": [1, 2.5, None]})
    '{"codes":[1,2.5,null]}'
    """
    try:
        return _ENCODER.encode(item).decode()
    except (TypeError, ValueError, RecursionError):  # a dict key or an int that msgspec does not take, a cycle
        pass
    try:
        return clean_text(json.dumps(item, default=_plain, skipkeys=True, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return json.dumps(f"{type(item).__name__} that JSON cannot hold")


def cell_text(item: Any) -> str:
    """The same for a column of text: a text, and what JSON has as one (a time, a UUID, a Decimal, bytes as base64), is bare.

    >>> from datetime import date
    >>> cell_text(date(2024, 5, 1)), cell_text(["a"])
    ('2024-05-01', '["a"]')
    """
    return bare(json_text(item))


def bare(text: str) -> str:
    """The text that this JSON is; the JSON itself where it is no text."""
    return clean_text(json.loads(text)) if text.startswith('"') else text


def _plain(item: Any) -> Any:
    if isinstance(item, np.generic):
        return item.item()
    return item.tolist() if isinstance(item, np.ndarray) else str(item)


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_plain)
