"""The key table: every sensor of the run, its lane, and its slot in that lane's state memory.

The only table that is run-wide. Append-only and bounded. Lanes get the keys by turns, in the order in which they first came
(decision 55), so that no lane owns more than one more than another.

Where sensors are placed by their device, lanes get the devices by turns. A sensor is then told by its device and its name:
names need not differ between devices, and one that has moved begins anew, since what its lane knew of it may be out of reach.
A device has a slot of its own, as the sensor of its own name, for what its sensors share.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tidemill.column import Column, object_array
from tidemill.core.pairs import MISSING, PairCodes
from tidemill.errors import InputError, PlanError

__all__ = [
    "HEARD_NS",
    "UNKNOWN",
    "Entries",
    "KeyTable",
    "KeysStatistics",
    "in_turn",
    "lanes_by_bytes",
    "lanes_of",
    "place",
]

UNKNOWN: Final = -1
"""The code of a key that the table did not take: it is full, or the key's text is no valid Unicode."""
_UNSEEN: Final = -2  # in a recoding: no row had this text yet
HEARD_NS: Final = 300_000_000_000
"""A key without a record for so long, or up to a tenth less, is silent."""
_TICKS: Final = 10  # in that time
_UNHEARD: Final = 1 << 30
"""In the slot of a key that has had no record since the last tick: looking up slots shows it, at no cost while there is none."""
_ROOM: Final = 1_024  # keys, to begin with
_NEW_AT_ONCE: Final = 1_024  # sensors
_MOST_RECODINGS: Final = 16  # tables of texts that are remembered

_GOLDEN: Final = 0x9E3779B1
"""2**32 by the golden ratio, which has no pattern of its own; numbers multiplied by it twice and folded have none left."""
_32_BITS: Final = 0xFFFF_FFFF

Entries = Sequence[str] | Sequence[tuple[str, str]]
"""Keys in the order of their codes: names, or pairs of device and name where sensors are placed by their device."""
Number = TypeVar("Number", int, NDArray[np.int64])
Recodings = dict[int, tuple[NDArray[np.object_], NDArray[np.int32]]]


def in_turn(number: Number, lanes: int) -> Number:
    """The lane of the so manieth key, from 0: each lane has one of every so many as there are lanes, in an order that differs,
    so that of sensors that come in a pattern, light ones and heavy ones, no lane gets all of a kind.

    >>> [in_turn(number, 3) for number in range(9)]
    [0, 1, 2, 2, 0, 1, 2, 0, 1]
    """
    mixed = number // lanes * _GOLDEN & _32_BITS
    mixed = (mixed ^ mixed >> 15) * _GOLDEN & _32_BITS
    mixed = mixed ^ mixed >> 13
    return (number + (mixed * lanes >> 32)) % lanes


def lanes_of(entries: Entries, lanes: int) -> NDArray[np.int16]:
    """The lane of each key of a table, as `KeyTable.entries` gives them; raises `InputError` for what is none."""
    try:
        if not entries or isinstance(entries[0], str):
            "".join(cast("Sequence[str]", entries)).encode()
            turns = np.arange(len(entries))
        else:
            turns = _turns_of_devices(cast("Sequence[tuple[str, str]]", entries))
    except UnicodeEncodeError as error:
        raise InputError(f"the saved key table has a key that is no text: {error}.") from error
    return in_turn(turns, lanes).astype(np.int16)


def _turns_of_devices(entries: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    turns: dict[str, int] = {}
    for device, name in entries:
        (device + name).encode()
        if not device:
            raise InputError("the saved key table has a device without a name.")
        turns.setdefault(device, len(turns))
    return np.fromiter((turns[device] for device, _ in entries), np.int64, len(entries))


def lanes_by_bytes(entries: Entries, lanes: int) -> NDArray[np.int16]:
    """The same of a table that an older tidemill saved, of one that placed each key, or device, by a hash of its bytes."""
    owners = (entry if isinstance(entry, str) else entry[0] for entry in entries)
    return np.fromiter((place(owner.encode(), lanes) for owner in owners), np.int16, len(entries))


def place(key: bytes, lanes: int) -> int:
    """A lane for a key that nobody remembers: a stable hash of its bytes, never Python's ``hash``, which differs per process."""
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
        self._lane = np.zeros(_ROOM, np.int16)
        self._slot = np.zeros(_ROOM, np.int32)
        self._heard = np.zeros(_ROOM, np.int32)
        """The tick at which a key last had a record."""
        self._tick = 0
        self._ticked_ns: int | None = None
        self._placed = 0
        """Keys, or devices, to which a lane was given."""
        self._by_lane: list[list[str]] = [[] for _ in range(lanes)]
        self._told = [0] * lanes
        self._names: dict[int, NDArray[np.object_]] = {}
        self._known: Recodings = {}
        self._known_devices: Recodings = {}
        # Where sensors have devices: numbers of their names, and codes by (number, code of the device).
        self._numbers: dict[str, int] = {}
        self._pairs = PairCodes()

    def __len__(self) -> int:
        return len(self._codes)

    def statistics(self) -> KeysStatistics:
        """How it is, now."""
        return KeysStatistics(len(self._codes), self._max_keys, tuple(map(len, self._by_lane)))

    def encode(self, column: Column) -> NDArray[np.int32]:
        """The run-wide code of each row's key; `UNKNOWN` where the table did not take it, or the row has no key."""
        assert column.texts is not None
        return _look_up(_recoding(column.texts, self._known), column, self.code)  # -1 reads the last entry, UNKNOWN

    def starts(self, column: Column) -> list[int]:
        """Where parts of these rows begin, the first at 0, of which none has more than a thousand keys that are new: a hundred
        thousand of them take a tenth of a second. None of them has been taken yet: it is as if the rows had come in parts."""
        assert column.texts is not None
        recoding = _recoding(column.texts, self._known)
        if len(recoding) <= len(column) and np.minimum.reduce(recoding) > _UNSEEN:
            return [0]  # all texts were seen, so that all rows are known without a look at each
        new = np.flatnonzero(recoding.take(column.values, mode="wrap") == _UNSEEN)
        if len(new) <= _NEW_AT_ONCE:
            return [0]
        _, firsts = np.unique(column.values[new], return_index=True)
        return [0, *new[np.sort(firsts)][_NEW_AT_ONCE::_NEW_AT_ONCE].tolist()]

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
        numbers, owners = _recoding(keys.texts, self._known), _recoding(devices.texts, self._known_devices)
        names = _look_up(numbers, keys, lambda name: self._numbers.get(name, _UNSEEN))
        own = _look_up(owners, devices, lambda device: self._codes.get((device, device), _UNSEEN))
        codes = self._pairs.find(names, own)
        if len(codes) and np.minimum.reduce(codes) == MISSING:
            codes[(names == UNKNOWN) | (own == UNKNOWN)] = UNKNOWN
            new = np.flatnonzero(codes == MISSING)
            while len(new):
                some, new = new[:_NEW_AT_ONCE], new[_NEW_AT_ONCE:]  # those behind may be the same ones
                codes[some], own[some] = self._enter(keys.take(some), devices.take(some), numbers, owners)
                own[new] = owners.take(devices.values[new])
                codes[new] = self._pairs.find(numbers.take(keys.values[new]), own[new])
                new = new[codes[new] == MISSING]
            own[codes == UNKNOWN] = UNKNOWN
        return codes, own

    def _enter(
        self, keys: Column, devices: Column, numbers: NDArray[np.int32], owners: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Codes of sensors that are new, and of their devices; notes in the recodings what the run knows of both."""
        assert keys.texts is not None
        assert devices.texts is not None
        pairs = list(zip(keys.values.tolist(), devices.values.tolist(), strict=True))
        made: dict[tuple[int, int], tuple[int, int]] = {}
        fresh: dict[tuple[int, int], int] = {}
        for key, device in dict.fromkeys(pairs):
            name, owner = keys.texts[key], devices.texts[device]
            own = owners[device] = self.code(owner, owner)
            code = self.code(name, owner) if own != UNKNOWN else UNKNOWN
            made[key, device] = code, own
            if code != UNKNOWN:
                numbers[key] = number = self._numbers.setdefault(name, len(self._numbers))
                fresh[number, own] = code
        if fresh:
            known = np.array([(*pair, code) for pair, code in fresh.items()], np.int32)
            self._pairs.add(known[:, 0], known[:, 1], known[:, 2])
        both = np.array([made[pair] for pair in pairs], np.int32)
        return both[:, 0], both[:, 1]

    def code(self, key: str, device: str | None = None) -> int:
        """The key's code, a new one if it is new; `UNKNOWN` when the table cannot take it.

        With a ``device``, that of its sensor of this name; the device itself is ``code(device, device)``, and must come first.
        """
        name = key if device is None else (device, key)
        code = self._codes.get(name)
        if code is not None:
            return code
        code = len(self._codes)
        if code >= self._max_keys or device == "":
            return UNKNOWN
        try:
            key.encode()
        except UnicodeEncodeError:
            return UNKNOWN
        if device is None or device == key:
            lane = in_turn(self._placed, self._lanes)
            self._placed += 1
        else:
            lane = int(self._lane[self._codes[device, device]])
        self._codes[name] = code
        if code == len(self._lane):
            self._lane = np.append(self._lane, np.zeros_like(self._lane))
            self._slot = np.append(self._slot, np.zeros_like(self._slot))
            self._heard = np.append(self._heard, np.zeros_like(self._heard))
        self._lane[code] = lane
        self._slot[code] = len(self._by_lane[lane])
        self._heard[code] = self._tick
        self._by_lane[lane].append(key)
        return code

    def entries(self) -> Entries:
        """Every key in the order of codes.

        >>> table = KeyTable(lanes=2, max_keys=10)
        >>> table.enter([("A", "A"), ("A", "temp")])
        >>> table.entries(), table.code("temp", "A")
        ([('A', 'A'), ('A', 'temp')], 1)
        """
        return cast(Entries, list(self._codes))

    def enter(self, entries: Entries) -> None:
        """Take the keys of another table, in the order of its codes; to be called before any other.

        They have the same codes then and, among as many lanes, the same lanes and slots. No lane counts as told of them.
        Raises `PlanError` when there are more than ``max_keys``, and `InputError` for keys that are no table's.
        """
        if len(entries) > self._max_keys:
            raise PlanError(
                f"the state that this run goes on with has {len(entries):,} sensors, and max_keys={self._max_keys:,}; let "
                "max_keys be as large as it was."
            )
        lanes = lanes_of(entries, self._lanes)
        self._codes = dict(zip(entries, range(len(entries)), strict=True))
        self._placed = sum(isinstance(entry, str) or entry[0] == entry[1] for entry in entries)
        names = [entry if isinstance(entry, str) else entry[1] for entry in entries]
        if len(self._codes) < len(names):
            raise InputError("a key is in the saved key table twice.")
        order = np.argsort(lanes, kind="stable")
        firsts = np.searchsorted(lanes[order], np.arange(self._lanes + 1))
        room = max(len(names), _ROOM)
        self._lane, self._slot = np.zeros(room, np.int16), np.zeros(room, np.int32)
        self._lane[: len(names)] = lanes
        self._heard = np.full(room, self._tick, np.int32)
        self._slot[order] = np.arange(len(names)) - firsts[lanes[order]]
        for lane, (first, stop) in enumerate(pairwise(firsts.tolist())):
            self._by_lane[lane] = [names[code] for code in order[first:stop].tolist()]

    def lanes(self, codes: NDArray[np.int32]) -> NDArray[np.int16]:
        """The lane of each code."""
        return self._lane.take(codes, mode="wrap")  # no code is outside, and "raise" takes twice as long to say so

    def slots(self, codes: NDArray[np.int32], out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The slot of each code in its lane's state memory; its key is heard."""
        slots = self._slot.take(codes, out=out, mode="wrap")
        if len(slots) and np.maximum.reduce(slots) >= _UNHEARD:
            heard = codes[slots >= _UNHEARD]
            self._heard[heard] = self._tick
            self._slot[heard] &= _UNHEARD - 1
            np.bitwise_and(slots, _UNHEARD - 1, out=slots)
        return slots

    def look(self, now_ns: int) -> None:
        """Let time pass for what is `live`; to be called more often than each thirty seconds."""
        ticks = 1 if self._ticked_ns is None else (now_ns - self._ticked_ns) * _TICKS // HEARD_NS
        if ticks > 0:
            self._tick += ticks
            self._ticked_ns = now_ns
            self._slot[: len(self._codes)] |= _UNHEARD

    @property
    def live(self) -> int:
        """How many keys had a record lately, or were entered lately.

        >>> table = KeyTable(lanes=1, max_keys=10)
        >>> codes = table.encode(Column.of_texts(["S1", "S2"]))
        >>> for second in range(0, 600, 10):
        ...     table.look(second * 1_000_000_000)
        ...     slots = table.slots(codes[:1])
        >>> table.live, len(table)
        (1, 2)
        """
        return int(np.count_nonzero(self._heard[: len(self._codes)] > self._tick - _TICKS))

    def count(self, lane: int) -> int:
        """How many keys the lane has."""
        return len(self._by_lane[lane])

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
