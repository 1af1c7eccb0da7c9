"""Texts and nested values as files and databases can hold them."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ["clean_text", "json_text"]


def clean_text(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair becomes ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def json_text(item: Any) -> str:
    """Any value of an OBJECT column as JSON; what JSON has no word for (a set, a complex number) as its ``str``.

    >>> json_text({"codes": [1, 2.5, None]})
    '{"codes":[1,2.5,null]}'
    """
    try:
        return msgspec.json.encode(item, enc_hook=str).decode()
    except (TypeError, ValueError):  # a dict key or an int that msgspec does not take, half a surrogate pair
        return clean_text(json.dumps(item, default=str, skipkeys=True, ensure_ascii=False))
