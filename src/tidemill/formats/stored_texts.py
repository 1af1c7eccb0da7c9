"""Tables of texts ↔ bytes that outlive the process; those that come again and again are remembered."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.formats.values import decode_value, encode_value

__all__ = ["TextsBothWays", "encoded_texts"]

_MOST: Final = 16
_MOST_BYTES: Final = 128 << 10
"""So many tables are remembered, none larger than this; then all are forgotten."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[str]).decode


class TextsBothWays:
    """The tables of texts that come again with every batch of a source, both ways.

    Any thread may ask at any time: what is remembered is never changed, only replaced.
    """

    def __init__(self) -> None:
        self._written: dict[int, tuple[NDArray[np.object_], bytes]] = {}
        self._read: dict[bytes, NDArray[np.object_]] = {}

    def encoded(self, texts: NDArray[np.object_]) -> bytes:
        """The table as bytes."""
        known = self._written.get(id(texts))
        if known is not None:  # it holds the table, so that no other has its id
            return known[1]
        data = encoded_texts(texts.tolist())
        if len(data) <= _MOST_BYTES:
            kept = self._written if len(self._written) < _MOST else {}
            self._written = {**kept, id(texts): (texts, data)}
        return data

    def decoded(self, data: bytes) -> NDArray[np.object_]:
        """The table again: for the same bytes, mostly the same table. Raises ValueError for what is none."""
        known = self._read.get(data)
        if known is None:
            texts = _decoded_texts(data)
            known = np.fromiter(texts, object, len(texts))
            if len(data) <= _MOST_BYTES:
                kept = self._read if len(self._read) < _MOST else {}
                self._read = {**kept, data: known}
        return known


def encoded_texts(texts: list[str]) -> bytes:
    try:
        return _encode(texts)
    except UnicodeEncodeError:  # half of a surrogate pair, which Python's text may hold and UTF-8 may not
        return encode_value(texts)


def _decoded_texts(data: bytes) -> list[str]:
    try:
        return _decode(data)
    except msgspec.ValidationError:
        texts = decode_value(data)
    if type(texts) is not list or set(map(type, texts)) - {str}:
        raise ValueError("a table of texts holds something else")
    return texts
