"""The key table: every sensor of the run, its lane, and its slot in that lane's state memory.

The only table that is run-wide. Append-only and bounded; a key's lane follows from its bytes alone.

Where sensors are placed by their device, the lane follows from the device's bytes. A sensor is then told by its device and
its name: names need not differ between devices, and one that has moved begins anew, since what its lane knew of it may be
out of reach. A device has a slot of its own, as the sensor of its own name, for what its sensors share.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
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
_NO_PAIR: Final = np.iinfo(np.int64).max

Recodings = dict[int, tuple[NDArray[np.object_], NDArray[np.int32]]]


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
        self._codes: dict[str | tuple[str, str], int] = {}
        """By name, or by device and name."""
        self._firsts: dict[str, int] = {}
        """Where sensors have devices, the code of the first one of each name."""
        self._lane = np.zeros(1024, np.int16)
        self._slot = np.zeros(1024, np.int32)
        self._device = np.zeros(1024, np.int32)
        self._by_lane: list[list[str]] = [[] for _ in range(lanes)]
        self._told = [0] * lanes
        self._names: dict[int, NDArray[np.object_]] = {}
        self._known: Recodings = {}
        self._known_devices: Recodings = {}
        # Sensors whose name another device's sensor had first: (code of that one, own device), sorted, and their codes.
        self._namesakes = np.array([_NO_PAIR])
        self._namesake_codes = np.array([UNKNOWN], np.int32)

    def __len__(self) -> int:
        return len(self._codes)

    def statistics(self) -> KeysStatistics:
        """How it is, now."""
        return KeysStatistics(len(self._codes), self._max_keys, tuple(map(len, self._by_lane)))

    def encode(self, column: Column) -> NDArray[np.int32]:
        """The run-wide code of each row's key; `UNKNOWN` where the table did not take it, or the row has no key."""
        assert column.texts is not None
        return _look_up(_recoding(column.texts, self._known), column, self.code)  # -1 reads the last entry, UNKNOWN

    def encode_placed(self, keys: Column, devices: Column) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The code of each row's sensor and that of its device, by which it is placed; both `UNKNOWN` where the table did
        not take one of them, or the row lacks one.

        Codes are given row by row, that of a new device before that of its sensor.

        >>> table = KeyTable(lanes=2, max_keys=10)
        >>> codes, devices = table.encode_placed(Column.of_texts(["temp", "flow", "temp"]), Column.of_texts(["A", "A", "B"]))
        >>> codes.tolist(), devices.tolist()
        ([1, 2, 4], [0, 0, 3])
        """
        assert keys.texts is not None
        assert devices.texts is not None
        firsts, owners = _recoding(keys.texts, self._known), _recoding(devices.texts, self._known_devices)
        codes = _look_up(firsts, keys, lambda name: self._firsts.get(name, _UNSEEN))
        own = _look_up(owners, devices, lambda device: self._codes.get((device, device), _UNSEEN))
        elsewhere = (self._device.take(codes, mode="wrap") != own) & (codes >= 0) & (own >= 0)
        if elsewhere.any():
            codes[elsewhere] = self._namesakes_of(codes[elsewhere], own[elsewhere])
        new = (codes == _UNSEEN) & (own != UNKNOWN) | (own == _UNSEEN) & (codes != UNKNOWN)
        if new.any():
            codes[new], own[new] = self._enter(keys, devices, np.flatnonzero(new))
        lost = (codes < 0) | (own < 0)
        if lost.any():
            codes[lost] = own[lost] = UNKNOWN
        return codes, own

    def _namesakes_of(self, firsts: NDArray[np.int32], devices: NDArray[np.int32]) -> NDArray[np.int32]:
        """The codes of sensors that have the name of these, on these devices; `_UNSEEN` where there is none."""
        pairs = firsts.astype(np.int64) << 32 | devices
        at = np.searchsorted(self._namesakes, pairs)
        return np.where(self._namesakes[at] == pairs, self._namesake_codes[at], np.int32(_UNSEEN))

    def _enter(
        self, keys: Column, devices: Column, rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Codes of the sensors of these rows, which are new, and of their devices."""
        assert keys.texts is not None
        assert devices.texts is not None
        pairs = list(zip(keys.values[rows].tolist(), devices.values[rows].tolist(), strict=True))
        made: dict[tuple[int, int], tuple[int, int]] = {}
        namesakes: dict[int, int] = {}
        for key, device in dict.fromkeys(pairs):
            name, owner = keys.texts[key], devices.texts[device]
            own = self.code(owner, owner)
            code = self.code(name, owner) if own != UNKNOWN else UNKNOWN
            made[key, device] = code, own
            first = self._firsts.setdefault(name, code) if code != UNKNOWN else code
            if first != code:
                namesakes[first << 32 | own] = code
        fresh = np.array(sorted(namesakes), np.int64)
        at = np.searchsorted(self._namesakes, fresh)
        self._namesakes = np.insert(self._namesakes, at, fresh)
        self._namesake_codes = np.insert(self._namesake_codes, at, [namesakes[pair] for pair in fresh.tolist()])
        codes = np.array([made[pair] for pair in pairs], np.int32)
        return codes[:, 0], codes[:, 1]

    def code(self, key: str, device: str | None = None) -> int:
        """The key's code, a new one if it is new; `UNKNOWN` when the table cannot take it.

        With a ``device``, that of its sensor of this name; the device itself is ``code(device, device)``, and comes first.
        """
        name = key if device is None else (device, key)
        code = self._codes.get(name)
        if code is not None:
            return code
        code = len(self._codes)
        if code >= self._max_keys or device == "":
            return UNKNOWN
        try:
            lane = lane_of(key if device is None else device, self._lanes)
            key.encode()
        except UnicodeEncodeError:
            return UNKNOWN
        self._codes[name] = code
        if code == len(self._lane):
            self._lane = np.append(self._lane, np.zeros_like(self._lane))
            self._slot = np.append(self._slot, np.zeros_like(self._slot))
            self._device = np.append(self._device, np.zeros_like(self._device))
        self._lane[code] = lane
        self._slot[code] = len(self._by_lane[lane])
        self._device[code] = code if device is None else self._codes[device, device]
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


def _recoding(texts: NDArray[np.object_], known: Recodings) -> NDArray[np.int32]:
    """From codes into ``texts``, which sources use for many batches, to codes of the run."""
    found = known.get(id(texts))
    if found is not None and found[0] is texts:
        return found[1]
    recoding = np.full(len(texts) + 1, _UNSEEN, np.int32)
    recoding[-1] = UNKNOWN
    if len(known) >= _MOST_RECODINGS:
        known.clear()
    known[id(texts)] = (texts, recoding)
    return recoding


def _look_up(recoding: NDArray[np.int32], column: Column, known: Callable[[str], int]) -> NDArray[np.int32]:
    """The recoded values, after a look at what the run knows of the texts that no row had yet."""
    codes = recoding.take(column.values, mode="wrap")
    if len(codes) and np.minimum.reduce(codes) == _UNSEEN:
        assert column.texts is not None
        for text in dict.fromkeys(column.values[codes == _UNSEEN].tolist()):
            recoding[text] = known(column.texts[text])
        codes = recoding.take(column.values, mode="wrap")
    return codes
