"""The key table: every sensor of the run, its lane, and its slot in that lane's state memory.

The only table that is run-wide. Append-only and bounded; a key's lane follows from its bytes alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import Column, object_array

__all__ = ["UNKNOWN", "KeyTable", "KeysStatistics", "lane_of", "place"]

UNKNOWN: Final = -1
"""The code of a key that the table did not take: it is full, or the key's text is no valid Unicode."""
_UNSEEN: Final = -2  # in a recoding: no row had this text yet
_MOST_RECODINGS: Final = 16  # tables of texts that are remembered


def lane_of(key: str, lanes: int) -> int:
    """The lane that owns a key: a stable hash of its bytes, never Python's ``hash``, which differs per process.

    Raises `UnicodeEncodeError` for text that UTF-8 cannot hold.
    """
    return place(key.encode(), lanes)


def place(key: bytes, lanes: int) -> int:
    """The same for a key's bytes."""
    return zlib.crc32(key) % lanes


@dataclass(frozen=True)
class KeysStatistics:
    """How a key table is."""

    keys: int
    """Sensors that were seen."""
    max_keys: int
    """The most that it takes."""
    by_lane: tuple[int, ...]
    """Sensors that each lane owns."""


class KeyTable:
    """Codes of keys in the order of the rows in which they first appear, whatever batches those rows came in.

    >>> table = KeyTable(lanes=2, max_keys=10)
    >>> table.encode(Column.of_texts(["S1", "S2", "S1"])).tolist()
    [0, 1, 0]
    """

    def __init__(self, lanes: int, max_keys: int) -> None:
        self._lanes = lanes
        self._max_keys = max_keys
        self._codes: dict[str, int] = {}
        self._lane = np.zeros(1024, np.int16)
        self._slot = np.zeros(1024, np.int32)
        self._by_lane: list[list[str]] = [[] for _ in range(lanes)]
        self._told = [0] * lanes
        self._names: dict[int, NDArray[np.object_]] = {}
        self._known: dict[int, tuple[NDArray[np.object_], NDArray[np.int32]]] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def statistics(self) -> KeysStatistics:
        """How it is, now."""
        return KeysStatistics(len(self._codes), self._max_keys, tuple(map(len, self._by_lane)))

    def encode(self, column: Column) -> NDArray[np.int32]:
        """The run-wide code of each row's key; `UNKNOWN` where the table did not take it, or the row has no key."""
        texts = column.texts
        assert texts is not None
        recoding = self._recoding(texts)
        codes = recoding.take(column.values, mode="wrap")  # -1 reads the last entry, UNKNOWN
        if len(codes) and np.minimum.reduce(codes) == _UNSEEN:
            for text in dict.fromkeys(column.values[codes == _UNSEEN].tolist()):
                recoding[text] = self.code(texts[text])
            codes = recoding.take(column.values, mode="wrap")
        return codes

    def _recoding(self, texts: NDArray[np.object_]) -> NDArray[np.int32]:
        """From codes into ``texts``, which sources use for many batches, to codes of the run."""
        known = self._known.get(id(texts))
        if known is not None and known[0] is texts:
            return known[1]
        recoding = np.full(len(texts) + 1, _UNSEEN, np.int32)
        recoding[-1] = UNKNOWN
        if len(self._known) >= _MOST_RECODINGS:
            self._known.clear()
        self._known[id(texts)] = (texts, recoding)
        return recoding

    def code(self, key: str) -> int:
        """The key's code, a new one if it is new; `UNKNOWN` when the table cannot take it."""
        code = self._codes.get(key)
        if code is not None:
            return code
        code = len(self._codes)
        if code >= self._max_keys:
            return UNKNOWN
        try:
            lane = lane_of(key, self._lanes)
        except UnicodeEncodeError:
            return UNKNOWN
        self._codes[key] = code
        if code == len(self._lane):
            self._lane = np.append(self._lane, np.zeros_like(self._lane))
            self._slot = np.append(self._slot, np.zeros_like(self._slot))
        self._lane[code] = lane
        self._slot[code] = len(self._by_lane[lane])
        self._by_lane[lane].append(key)
        return code

    def lanes(self, codes: NDArray[np.int32]) -> NDArray[np.int16]:
        """The lane of each code."""
        return self._lane.take(codes, mode="wrap")  # no code is outside, and "raise" takes twice as long to say so

    def slots(self, codes: NDArray[np.int32], out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The slot of each code in its lane's state memory."""
        return self._slot.take(codes, out=out, mode="wrap")

    def names(self, lane: int) -> NDArray[np.object_]:
        """The lane's keys by slot."""
        keys = self._by_lane[lane]
        names = self._names.get(lane)
        if names is None or len(names) < len(keys):
            names = self._names[lane] = object_array(keys)
        return names

    def untold(self, lane: int) -> tuple[int, Sequence[str]]:
        """The keys this lane has not been told of, and the slot of the first; they count as told from here on."""
        first = self._told[lane]
        keys = self._by_lane[lane][first:]
        self._told[lane] = first + len(keys)
        return first, keys

    def forget_telling(self, lane: int) -> None:
        """The lane was replaced: it knows no keys."""
        self._told[lane] = 0
