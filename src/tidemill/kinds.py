"""A column has one kind for the whole run: Python values as columns of their kinds, exact in types and values."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import (
    ABSENT,
    ABSENT_TAG,
    INTEGER_TAG,
    NAT,
    NULL_TAG,
    Column,
    object_array,
)
from tidemill.letters import WRONG_TYPE, Reject
from tidemill.schema import Asked, Kind

__all__ = ["Kinds", "Learned", "conform"]

_KIND_OF_TYPE: dict[type, Kind] = {
    float: Kind.FLOAT,
    int: Kind.FLOAT,
    str: Kind.TEXT,
    bool: Kind.BOOL,
}
_NUMPY_SCALARS: Final = (np.number, np.bool_, np.str_)
"""What a function that works with NumPy leaves in a dict; read as the Python value it equals, also in an array without dimensions."""
_NONE = type(None)
_ABSENT_TYPE = type(ABSENT)


Learned = list[list[str]]
"""Pairs of a field and its kind."""
Times = Callable[[Column], tuple[NDArray[np.int64], NDArray[np.bool_]]]
"""Reads a column as times: nanoseconds, and which rows are no times."""


class Kinds:
    """The kind of each field, declared or learned from its first value, and then fixed for the run.

    A numeric kind accepts int and float; anything else that does not fit is a reject naming both types. ``times`` reads the
    values of TIME fields; without it, and of a field that is in nanoseconds, they are nanoseconds.
    """

    def __init__(self, declared: Mapping[str, Kind] | None = None, times: Times | None = None) -> None:
        self._kinds = dict(declared or {})
        self._times = times
        self._nanoseconds: set[str] = set()
        self._declared = len(self._kinds)
        self._texts: dict[str, _Texts] = {}
        self._learned: Learned = []
        self._asked: Mapping[str, Asked] = {}
        self._needed: Collection[str] | None = None

    def ask(self, asked: Mapping[str, Asked], needed: Collection[str] | None = None) -> None:
        """From now on, a field that has no kind yet is of the one that is asked of it, or learns one of several, and records with
        another value are rejects. ``needed`` are the fields that stages compute with; None where nobody can declare kinds."""
        self._asked = asked
        self._needed = needed

    def remedy(self, name: str) -> str:
        """The end of a reason: what to declare, so that a value of any kind is taken; empty where that would help nobody."""
        asked = self._asked.get(name)
        if self._needed is None or name in self._needed or (asked is not None and asked.kinds != (Kind.TEXT,)):
            return ""
        return f"; columns={{{name!r}: object}} of the source takes both"

    def get(self, name: str) -> Kind | None:
        return self._kinds.get(name)

    def may_be(self, name: str, kind: Kind) -> bool:
        """Whether a field that has no kind yet may be of this one."""
        return name not in self._asked or kind in self._asked[name].kinds

    def chooses(self, name: str) -> bool:
        """Whether its first value decides of which of several kinds it is."""
        return len(self._asked[name].kinds) > 1

    def fitting(self, name: str, kind: Kind) -> Kind:
        """This kind, if a field that has none yet may be of it; else one that it may be of."""
        return kind if self.may_be(name, kind) else self._asked[name].kinds[0]

    def unknown(self, names: Iterable[str]) -> set[str]:
        """Those of the names that have no kind yet."""
        return set(names).difference(self._kinds)

    def learn(self, name: str, kind: Kind) -> Kind:
        """The field's kind; ``kind`` if it had none yet."""
        return self._kinds.setdefault(name, kind)

    def learn_nanoseconds(self, name: str) -> None:
        """A field of times, unless it is declared otherwise, whose values are whole nanoseconds, however small they are."""
        self.learn(name, Kind.TIME)
        self._nanoseconds.add(name)

    def reads_times(self, name: str) -> bool:
        """Whether the field's values are not carried as they are, but read as times."""
        return self._kinds.get(name) is Kind.TIME and self._times is not None and name not in self._nanoseconds

    @property
    def learned(self) -> Learned:
        """The fields that were not declared and their kinds, in the order in which they were learned: JSON-like.

        Fields are only ever added, so that the first n say what was known at any time before. Not to be written to.
        """
        if self.count != len(self._learned):
            pairs = islice(self._kinds.items(), self._declared + len(self._learned), None)
            self._learned = [*self._learned, *([name, kind.value] for name, kind in pairs)]
        return self._learned

    @property
    def count(self) -> int:
        """How many fields have been `learned`."""
        return len(self._kinds) - self._declared

    def relearn(self, learned: Sequence[Sequence[str]]) -> None:
        """Know of the fields that were not declared these, and no others."""
        self._kinds = dict(islice(self._kinds.items(), self._declared))
        for name, kind in learned:
            self._kinds.setdefault(name, Kind(kind))
        self._learned = []

    def column(self, name: str, items: Sequence[Any] | Column) -> tuple[Column, list[Reject]]:
        """``items`` (Python values, None, `ABSENT`, or what is a column already) as a column of the field's kind; rows that do not
        fit are rejected and read as null."""
        if isinstance(items, Column):
            return conform(name, items, self)
        known = self._kinds.get(name)
        if known is None and (asked := self._asked.get(name)) is not None:
            return self._column_asked(name, items, asked)
        if known in (None, Kind.FLOAT) and (floats := _floats(items)) is not None:
            self.learn(name, Kind.FLOAT)
            return Column(Kind.FLOAT, floats), []
        if known is Kind.FLOAT and (whole := _small_integers(items)) is not None:
            return Column(Kind.FLOAT, whole, tags=np.full(len(items), INTEGER_TAG, np.uint8)), []
        types = set(map(type, items))
        if types == {str} and known in (None, Kind.TEXT):
            self.learn(name, Kind.TEXT)
            return self._texts.setdefault(name, _Texts()).column(items), []
        if any(issubclass(one, (*_NUMPY_SCALARS, np.ndarray)) for one in types - _PLAIN):
            items = list(map(_as_python, items))
            types = set(map(type, items))
        kind = self._kinds.get(name) or self._learn_from(name, items)
        if kind is None:
            return _all_missing(items), []
        if self._times is not None and self.reads_times(name):
            return _read_times(name, items, types, self._times)
        fitting = _FITTING[kind]
        if fitting is not None and not types <= fitting:
            items, rejects = _set_aside(name, items, kind, fitting, self.remedy(name))
            types = set(map(type, items))
        else:
            rejects = []
        return _MAKERS[kind](items, types), rejects

    def _column_asked(self, name: str, items: Sequence[Any], asked: Asked) -> tuple[Column, list[Reject]]:
        """Of a field without a kind: the first value that is what was asked for says what it is."""
        if len(asked.kinds) == 1:
            self.learn(name, asked.kinds[0])
            return self.column(name, items)
        plain = list(map(_as_python, items))
        for item in plain:
            if (kind := _KIND_OF_TYPE.get(type(item), Kind.OBJECT)) in asked.kinds:
                self.learn(name, kind)
                return self.column(name, plain)
        return self.refused(
            name, [None if type(item) in _MISSING_TYPES else type(item).__name__ for item in plain], items
        )

    def refused(self, name: str, has: Sequence[str | None], items: Sequence[Any]) -> tuple[Column, list[Reject]]:
        """Of a field without a kind nothing but values that it may not have; ``has`` says what those are, None where there is none."""
        reasons = {
            what: f"field {name!r} has to be {self._asked[name]}, and this record has {what}" for what in set(has)
        }
        rejects = [Reject(row, WRONG_TYPE, reasons[what]) for row, what in enumerate(has) if what is not None]
        return _all_missing([item if what is None else None for item, what in zip(items, has, strict=True)]), rejects

    def _learn_from(self, name: str, items: Iterable[Any]) -> Kind | None:
        for item in items:
            if item is not None and item is not ABSENT:
                return self.learn(name, _KIND_OF_TYPE.get(type(item), Kind.OBJECT))
        return None


def _as_python(item: Any) -> Any:
    if type(item) is np.ndarray and item.ndim == 0:
        item = item[()]
    return item.item() if isinstance(item, _NUMPY_SCALARS) else item


_FLOAT_CELL: Final = np.dtype([("type", "u1"), ("value", "<f8")])
_FLOATS_AT: Final = 5  # bytes: that it is a list or tuple, and how long


def _floats(items: Sequence[Any]) -> NDArray[np.float64] | None:
    """The items as an array if every one of them is a float, no subclass; None if not.

    Marshal writes a float as "g" and its eight bytes, and begins no other type with "g": bytes of this length that have
    a "g" in every place hold nothing but floats. That takes a third of the time of asking each for its type.
    """
    if not items or type(items[0]) is not float:
        return None
    try:
        data: bytes = marshal.dumps(items, 2)  # type: ignore[arg-type] # what it cannot write it refuses
    except ValueError:  # there is something in it that marshal does not know
        return None
    if len(data) != _FLOATS_AT + len(items) * _FLOAT_CELL.itemsize:
        return None
    cells = np.frombuffer(data, _FLOAT_CELL, len(items), _FLOATS_AT)
    return cells["value"].astype(np.float64) if bool((cells["type"] == ord("g")).all()) else None


_INTEGER_CELL: Final = np.dtype([("type", "u1"), ("value", "<i4")])


def _small_integers(items: Sequence[Any]) -> NDArray[np.float64] | None:
    """The same for ints of 32 bits: marshal writes such an int, no bool and no subclass, as "i" and its four bytes."""
    if not items or type(items[0]) is not int:
        return None
    try:
        data: bytes = marshal.dumps(items, 2)  # type: ignore[arg-type] # what it cannot write it refuses
    except ValueError:
        return None
    if len(data) != _FLOATS_AT + len(items) * _INTEGER_CELL.itemsize:
        return None
    cells = np.frombuffer(data, _INTEGER_CELL, len(items), _FLOATS_AT)
    return cells["value"].astype(np.float64) if bool((cells["type"] == ord("i")).all()) else None


class _Texts:
    """The texts of one field, coded alike from batch to batch: who sees the same table again need not look at its texts again.

    Texts that come again, as those of sensors do, in whatever order they report, are all in it after a while. Of texts that
    do not, each batch has a table of its own, and from time to time it is tried anew.
    """

    _MOST: Final = 16_384
    _MOST_LETTERS: Final = 262_144
    _APART: Final = 256
    """Batches of texts that did not come again, until it is tried anew."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._table: NDArray[np.object_] = np.empty(0, object)
        self._letters = 0
        self._items = 0
        """Coded with this table."""
        self._apart = 0

    def column(self, items: Sequence[str]) -> Column:
        """A TEXT column; every item is a str, no subclass."""
        try:
            values = np.fromiter(map(self._codes.__getitem__, items), np.int32, len(items))
        except KeyError:
            self._take_in(items)
            values = np.fromiter(map(self._codes.__getitem__, items), np.int32, len(items))
        self._items += len(items)
        return Column(Kind.TEXT, values, texts=self._table)

    def _take_in(self, items: Sequence[str]) -> None:
        """Add the new texts, or begin anew with the items' own."""
        new = [text for text in dict.fromkeys(items) if text not in self._codes]
        full = len(self._codes) + len(new) > self._MOST or self._letters > self._MOST_LETTERS
        if full and self._items < 2 * len(self._codes):
            self._apart = self._APART
        if full or (self._apart and 4 * len(new) > len(items)):
            self._codes, self._letters, self._items = {}, 0, 0
            self._apart = max(self._apart - 1, 0)
            new = list(dict.fromkeys(items))
        self._codes.update(zip(new, range(len(self._codes), len(self._codes) + len(new)), strict=True))
        self._letters += sum(map(len, new))
        self._table = object_array(list(self._codes))


def conform(name: str, column: Column, kinds: Kinds) -> tuple[Column, list[Reject]]:
    """The column as the kind its name has in this run; rows that cannot be are rejected and read as null."""
    if column.tags is not None and column.missing_rows().all():
        kind = kinds.get(name)
        if kind is None or kind is column.kind:
            return column, []
        made = Column.missing(kind, len(column))
        made.tags = column.tags
        return made, []
    if kinds.get(name) is None and not kinds.may_be(name, column.kind):
        items = column.to_list()
        if column.kind is Kind.OBJECT or not kinds.chooses(name):
            return kinds.column(name, items)
        return kinds.refused(
            name, [None if missing else column.kind.value for missing in column.missing_rows().tolist()], items
        )
    kind = kinds.learn(name, column.kind)
    if kind is column.kind:
        return column, []
    return kinds.column(name, column.to_list())


# -- one maker per kind ------------------------------------------------------------------------------

_MISSING_TYPES = {_NONE, _ABSENT_TYPE}
_FITTING: dict[Kind, set[type] | None] = {
    Kind.FLOAT: {float, int, *_MISSING_TYPES},
    Kind.INT: {int, *_MISSING_TYPES},
    Kind.BOOL: {bool, *_MISSING_TYPES},
    Kind.TEXT: {str, *_MISSING_TYPES},
    Kind.TIME: {int, *_MISSING_TYPES},
    Kind.OBJECT: None,
}
_PLAIN: Final = {float, int, bool, str, *_MISSING_TYPES}


def _set_aside(
    name: str, items: Sequence[Any], kind: Kind, fitting: set[type], remedy: str
) -> tuple[list[Any], list[Reject]]:
    kept = list(items)
    rejects = []
    reasons: dict[type, str] = {}  # a device that sends what does not fit does it thousands of times
    for row, item in enumerate(items):
        of = type(item)
        if of not in fitting:
            kept[row] = None
            reason = reasons.get(of)
            if reason is None:
                reason = reasons[of] = f"field {name!r} is {kind.value} and this record has {of.__name__}{remedy}"
            rejects.append(Reject(row, WRONG_TYPE, reason))
    return kept, rejects


def _read_times(name: str, items: Sequence[Any], types: set[type], times: Times) -> tuple[Column, list[Reject]]:
    for kind in (Kind.TEXT, Kind.FLOAT, Kind.OBJECT):
        if (fitting := _FITTING[kind]) is None or types <= fitting:
            break
    ns, bad = times(_MAKERS[kind](items, types))
    tags = _tags(items, types)
    rejects = []
    for row in np.flatnonzero(bad).tolist():
        if tags is None or not tags[row]:
            reason = f"field {name!r} is time and the {type(items[row]).__name__} in this record is none"
            rejects.append(Reject(row, WRONG_TYPE, reason))
    return Column(Kind.TIME, ns, tags=tags), rejects


def _tags(items: Sequence[Any], types: set[type]) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    if not types & _MISSING_TYPES:
        return None
    return np.fromiter(
        (NULL_TAG if item is None else ABSENT_TAG if item is ABSENT else 0 for item in items), np.uint8, len(items)
    )


def _all_missing(items: Sequence[Any]) -> Column:
    column = Column.missing(Kind.OBJECT, len(items))
    column.tags = _tags(items, _MISSING_TYPES)
    return column


def _plain(items: Sequence[Any], types: set[type], fill: Any) -> Sequence[Any]:
    if not types & _MISSING_TYPES:
        return items
    return [fill if item is None or item is ABSENT else item for item in items]


def _make_float(items: Sequence[Any], types: set[type]) -> Column:
    tags = _tags(items, types)
    plain = _plain(items, types, np.nan)
    if int not in types:
        return Column(Kind.FLOAT, np.array(plain, np.float64), tags=tags)
    if types == {int}:
        tags = np.full(len(items), INTEGER_TAG, np.uint8)
    else:
        integers = np.fromiter((type(item) is int for item in items), np.bool_, len(items))
        if tags is None:
            tags = np.zeros(len(items), np.uint8)
        tags[integers] = INTEGER_TAG
    try:
        values = np.array(plain, np.float64)
    except OverflowError:  # an integer beyond any float
        values = np.array([_float_of(item) for item in plain])
    exact = {}
    if not bool((np.abs(values) < _INEXACT).all()):
        exact = {row: item for row, item in enumerate(items) if type(item) is int and not -(2**53) <= item <= 2**53}
        values[list(exact)] = [_float_of(item) for item in exact.values()]
    return Column(Kind.FLOAT, values, tags=tags, exact=exact or None)


_INEXACT: Final = 2.0**53
"""From here on a float holds not every integer; NaN is not below it either."""


def _float_of(item: Any) -> float:
    return float(item) if type(item) is not int or abs(item) < 2**1000 else np.nan


def _make_int(items: Sequence[Any], types: set[type]) -> Column:
    plain = _plain(items, types, 0)
    exact = {row: item for row, item in enumerate(plain) if not -(2**63) <= item < 2**63}
    if exact:
        plain = [0 if row in exact else item for row, item in enumerate(plain)]
    return Column(Kind.INT, np.array(plain, np.int64), tags=_tags(items, types), exact=exact or None)


def _make_bool(items: Sequence[Any], types: set[type]) -> Column:
    return Column(Kind.BOOL, np.array(_plain(items, types, False), np.bool_), tags=_tags(items, types))


def _make_text(items: Sequence[Any], types: set[type]) -> Column:
    tags = _tags(items, types)
    if tags is None:
        return Column.of_texts(items)
    codes: dict[str, int] = {}
    values = np.fromiter(
        (codes.setdefault(item, len(codes)) if type(item) is str else -1 for item in items), np.int32, len(items)
    )
    return Column(Kind.TEXT, values, tags=tags, texts=object_array(list(codes)))


def _make_time(items: Sequence[Any], types: set[type]) -> Column:
    return Column(Kind.TIME, np.array(_plain(items, types, NAT), np.int64), tags=_tags(items, types))


def _make_object(items: Sequence[Any], types: set[type]) -> Column:
    plain = _plain(items, types, None)
    return Column(Kind.OBJECT, object_array(list(plain)), tags=_tags(items, types))


_MAKERS = {
    Kind.FLOAT: _make_float,
    Kind.INT: _make_int,
    Kind.BOOL: _make_bool,
    Kind.TEXT: _make_text,
    Kind.TIME: _make_time,
    Kind.OBJECT: _make_object,
}
