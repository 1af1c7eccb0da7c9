"""How the objects of `Keyed` are called: record by record, or with all records of one sensor; and what they returned.

Either way goes over the records of a step twice at most. The first pass calls, and looks at the results together. Where a
result does not fit, everything is taken back, and the second pass looks at each result before the next call: so only
the record at fault is lost, and its object has not seen it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, Column
from tidemill.errors import BadResult, StageError
from tidemill.formats.unfit import check_sendable
from tidemill.kinds import Kinds, conform
from tidemill.letters import WRONG_TYPE, Reject
from tidemill.orders import Orders, follows
from tidemill.rows import lists_of_rows, rows_of_lists
from tidemill.schema import Kind
from tidemill.stages.base import Stage
from tidemill.stages.functions import made_column, shown_type
from tidemill.stages.narrowing import encodable, rejected
from tidemill.stages.objects import Full, Held, Objects
from tidemill.stages.own_values import FIXED, fields_as_now, lent, own_items, taken

__all__ = ["BatchCalls", "Calls", "RecordCalls"]

Made = tuple[dict[str, Column], Orders | None]
"""New columns, one value per record that went on, and the order in which each record's were returned, if it differs."""


class Calls(abc.ABC):
    """One step of a `Keyed`: its records, and what has become of them."""

    def __init__(
        self,
        stage: Stage,
        objects: Objects,
        batch: Batch,
        seen: Batch,
        slots: NDArray[np.int32],
        *,
        kinds: Mapping[str, Kind],
        adds: Mapping[str, Kind],
        timed: bool,
        calling: Callable[[], None] | None,
    ) -> None:
        self._stage = stage
        self._objects = objects
        self._batch = batch
        self._seen = seen
        self._slots: list[int] = slots.tolist()
        self._known = {**adds, **kinds}
        self._kinds = Kinds(self._known)
        self._adds = adds
        self._times: Sequence[int] = batch.time.tolist() if timed else [0] * len(batch)
        self._timed = timed
        self._calling = calling
        self._checking = False
        self._names: set[str] = set()
        self.rejects: dict[int, Reject] = {}
        """Records that failed, by their place in the batch."""

    def made(self) -> tuple[Batch, NDArray[np.intp] | None]:
        """The records that go on, with what their objects returned, and which they are; None for all of them."""
        touched = set(self._slots)
        self._run()
        made = self._columns(self._kept)
        if made is None:
            self._objects.undo(touched)
            self.rejects.clear()
            self._kinds = Kinds(self._known)
            self._checking = True
            self._run()
            made = self._columns(self._kept)
            assert made is not None
        self._objects.keep(touched)
        kept = self._kept if self.rejects else None
        base = self._batch if kept is None else self._batch.take(kept)
        return _with_orders(base, base.with_columns(made[0]), made[1]), kept

    @property
    def _kept(self) -> NDArray[np.intp]:
        return np.setdiff1d(np.arange(len(self._batch)), np.fromiter(self.rejects, np.intp, len(self.rejects)))

    @abc.abstractmethod
    def _run(self) -> None:
        """Call the objects with every record."""

    @abc.abstractmethod
    def _columns(self, kept: NDArray[np.intp]) -> Made | None:
        """What was returned; None when some of it does not fit."""

    def _reject(self, at: int, error: BaseException) -> None:
        """A record failed; raises `StageError` where that ends the run."""
        if isinstance(error, StageError):  # about the stage as a whole
            raise error
        if isinstance(error, Full):
            error = BadResult(error.reason_code, str(error))
        self.rejects[at] = rejected(self._stage, error, at)

    def _unfit(self, what: str) -> BadResult:
        return BadResult(WRONG_TYPE, f"{self._stage.name}: {what}")

    def _check_name(self, name: Any) -> None:
        if name in self._names:
            return
        if type(name) is not str:
            raise self._unfit(f"the field {name!r} was returned; names must be text")
        if encodable(name) != name:
            raise self._unfit(f"the field {name!r} was returned, whose name has half of a surrogate pair")
        self._names.add(name)

    def _check_sendable(self, name: str, items: Any) -> None:
        try:
            check_sendable(items)
        except Exception as error:
            told = encodable(str(error))
            raise self._unfit(
                f"a value of {name!r} was returned that cannot be sent to another process: {told}"
            ) from error


class RecordCalls(Calls):
    """``update(record)``, one after the other, in input order.

    What a call returned is taken before the next one: an object may return the very dict or list that it goes on with.
    """

    def _run(self) -> None:
        objects, times, timed, calling = self._objects, self._times, self._timed, self._calling
        get = objects.held.get
        self._lists = {name: own_items(column) for name, column in self._seen.columns.items()}
        self._rows: list[Any] = []
        took = self._rows.append
        for at, (slot, record) in enumerate(zip(self._slots, rows_of_lists(self._seen, self._lists), strict=True)):
            if calling is not None:
                calling()
            held = get(slot)
            try:
                if timed or held is None or held.call is None:
                    held = objects.ready(slot, at, times[at])
                returned = held.call(record)  # type: ignore[misc] # it is ready
                if self._checking:
                    self._check(returned)
                if type(returned) is dict:
                    returned = returned.copy()
                    for item in returned.values():
                        if type(item) not in FIXED:
                            returned = fields_as_now(returned)
                            break
                elif isinstance(returned, dict):
                    returned = fields_as_now(returned)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it raises costs this record
                self._reject(at, error)
                objects.put_back(slot, at, partial(self._again, slot, at))
                returned = {}
            else:
                if timed:
                    held.newest = max(held.newest, times[at])
            took(returned)

    def _again(self, slot: int, stop: int, start: int) -> Iterable[dict[str, Any]]:
        """What the object has taken, as it was then: a function may have changed its dict."""
        taken = [at for at in range(start, stop) if self._slots[at] == slot and at not in self.rejects]
        seen = self._seen.take(np.array(taken, np.intp))
        return rows_of_lists(seen, {name: own_items(column) for name, column in seen.columns.items()})

    def _check(self, returned: Any) -> None:
        if not isinstance(returned, dict):
            raise self._unfit(f"{shown_type(returned)} was returned in place of a dict")
        learned = Kinds()
        for name, item in returned.items():
            self._check_name(name)
            kind = self._kinds.get(name) or self._own_kind(name)
            column, wrong = Kinds({} if kind is None else {name: kind}).column(name, [item])
            if wrong:
                raise self._unfit(wrong[0].reason)
            if column.kind is Kind.OBJECT:
                self._check_sendable(name, item)
            if not column.is_missing:
                learned.learn(name, column.kind)
        for name in returned:
            if (kind := learned.get(name)) is not None:
                self._kinds.learn(name, kind)

    def _own_kind(self, name: str) -> Kind | None:
        """A field that the record has keeps its kind."""
        own = self._batch.columns.get(name)
        return own.kind if own is not None and not own.is_missing else None

    def _columns(self, kept: NDArray[np.intp]) -> Made | None:
        rows = self._rows if not self.rejects else [self._rows[at] for at in kept.tolist()]
        if not set(map(type, rows)) <= {dict}:
            return None
        names, fields, orders = lists_of_rows(rows)
        columns = {}
        try:
            for name, items in zip(names, fields, strict=True):
                self._check_name(name)
                column = self._column(name, items, kept)
                if column is not None:
                    columns[name] = column
        except BadResult:
            if self._checking:
                raise
            return None
        return columns, orders

    def _column(self, name: str, items: Sequence[Any], kept: NDArray[np.intp]) -> Column | None:
        """None for a field that every record was given back as it was."""
        own = self._batch.columns.get(name)
        if own is not None:
            given = own.to_list() if own.kind is Kind.OBJECT else self._lists.get(name) or own.to_list()
            given = [given[at] for at in kept.tolist()] if self.rejects else given
            items = [was if item is ABSENT else item for item, was in zip(items, given, strict=True)]
            if all(map(is_, items, given)):
                return None
            if not own.is_missing:
                self._kinds.learn(name, own.kind)
        column, wrong = self._kinds.column(name, items)
        if wrong:
            raise self._unfit(wrong[0].reason)
        if column.kind is Kind.OBJECT and not column.is_missing:
            self._check_sendable(name, column.values.tolist())
        return column


class _Piece:
    """Records of one sensor that its object was called with at once, and what it returned."""

    def __init__(self, places: NDArray[np.intp], given: Batch, columns: dict[str, Column]) -> None:
        self.places, self.given, self.columns = places, given, columns


class BatchCalls(Calls):
    """``update_many(batch)``, once for each sensor's records of the step, in the order of their first ones."""

    def _run(self) -> None:
        self._pieces: dict[int, list[_Piece]] = {}
        start, rows = 0, len(self._batch)
        while start < rows:
            stop = start + 1 if self._checking else self._room_until(start)
            for slot, places, given in self._groups(start, max(stop, start + 1)):
                self._called(slot, places, given)
            start = max(stop, start + 1)

    def _room_until(self, start: int) -> int:
        """The first record from here on whose sensor has no object and may find no room for one."""
        room, new = self._objects.rooms(), set[int]()
        if room is None:
            return len(self._slots)
        for at in range(start, len(self._slots)):
            slot = self._slots[at]
            if slot not in self._objects.held and slot not in new:
                if len(new) == room:
                    return at
                new.add(slot)
        return len(self._slots)

    def _groups(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.intp], Batch]]:
        """Each sensor's records from ``start`` to ``stop``, as places and as a batch."""
        slots = np.array(self._slots[start:stop])
        places = np.argsort(slots, kind="stable")
        starts = np.flatnonzero(np.diff(slots[places], prepend=-1))
        stops = np.append(starts[1:], len(slots))
        given = self._seen.take(places + start)
        for group in np.argsort(places[starts]).tolist():
            first, last = int(starts[group]), int(stops[group])
            yield int(slots[places[first]]), places[first:last] + start, given.slice(first, last)

    def _called(self, slot: int, places: NDArray[np.intp], given: Batch) -> None:
        """Call the sensor's object; where it fails, with halves of the records, until the failing ones are alone."""
        start = 0
        while start < len(places):
            stop = start + self._together(slot, places[start:])
            own, part, at = places[start:stop], given.slice(start, stop), int(places[start])
            start = stop
            try:
                held = self._objects.ready(slot, at, self._times[at])
                piece = self._piece(held, own, part)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it raises costs its records
                if len(own) == 1 or isinstance(error, StageError):
                    self._reject(at, error)
                self._objects.put_back(slot, at, partial(self._again, slot))
                if len(own) > 1:
                    middle = len(own) // 2
                    self._called(slot, own[:middle], part.slice(0, middle))
                    self._called(slot, own[middle:], part.slice(middle, len(own)))
                continue
            if self._timed:
                held.newest = max(held.newest, *(self._times[place] for place in own.tolist()))
            self._pieces.setdefault(slot, []).append(piece)

    def _together(self, slot: int, places: NDArray[np.intp]) -> int:
        """How many of the records, from the first on, go to one object: up to a silence longer than the ttl."""
        ttl, held = self._objects.ttl_ns, self._objects.held.get(slot)
        if ttl is None:
            return len(places)
        newest = self._times[places[0]] if held is None else max(held.newest, self._times[places[0]])
        for count, place in enumerate(places.tolist()):
            if count and self._times[place] - newest > ttl:
                return count
            newest = max(newest, self._times[place])
        return len(places)

    def _piece(self, held: Held, places: NDArray[np.intp], given: Batch) -> _Piece:
        if self._calling is not None:
            self._calling()
        shown = lent(given)
        returned = held.call(shown)  # type: ignore[misc] # it is ready
        if not isinstance(returned, Mapping):
            raise self._unfit(f"{shown_type(returned)} was returned in place of a dict of columns")
        columns = {}
        for name, items in returned.items():
            self._check_name(name)
            columns[name] = made_column(self._stage.name, name, items, shown, self._adds.get(name))
        columns = taken(columns)
        if self._checking:
            self._check(given, columns)
        return _Piece(places, given, columns)

    def _check(self, given: Batch, columns: dict[str, Column]) -> None:
        """Of one record."""
        made = {}
        for name, column in columns.items():
            own = given.columns.get(name)
            kind = self._kinds.get(name) or (own.kind if own is not None and own.has_values else None)
            kinds = Kinds({} if kind is None else {name: kind})
            made[name], wrong = conform(name, column, kinds)
            if wrong:
                raise self._unfit(wrong[0].reason)
            if made[name].kind is Kind.OBJECT:
                self._check_sendable(name, made[name].values.tolist())
        for name, column in made.items():
            if column.has_values:
                self._kinds.learn(name, column.kind)
        columns.update(made)

    def _again(self, slot: int, start: int) -> Iterable[Batch]:
        return [lent(self._seen.take(piece.places)) for piece in self._pieces.get(slot, ()) if piece.places[0] >= start]

    def _columns(self, kept: NDArray[np.intp]) -> Made | None:
        pieces = sorted(
            (piece for own in self._pieces.values() for piece in own), key=lambda piece: int(piece.places[0])
        )
        if not pieces:
            return {}, None
        names = dict.fromkeys(name for piece in pieces for name in piece.columns)
        for name in names.keys() & self._batch.columns.keys():
            own = self._batch.columns[name]
            if all(piece.columns.get(name) in (None, piece.given.columns.get(name)) for piece in pieces):
                if own.kind is Kind.OBJECT and own.has_values:
                    self._kinds.learn(name, own.kind)  # what other batches return for it has to be so, too
                for piece in pieces:
                    piece.columns.pop(name, None)
                continue
            if own.has_values:
                self._kinds.learn(name, own.kind)
            for piece in pieces:
                piece.columns.setdefault(name, own.take(piece.places))
        if not self._alike(pieces):
            return None
        whole = Batch.concat([Batch(piece.columns, rows=len(piece.places)) for piece in pieces])
        whole = whole.take(np.argsort(np.concatenate([piece.places for piece in pieces])))
        return whole.columns, whole.orders

    def _alike(self, pieces: Iterable[_Piece]) -> bool:
        """Whether each column is of one kind in all pieces, the one it has in this run."""
        for piece in pieces:
            for name, column in piece.columns.items():
                known = self._kinds.get(name)
                if known is Kind.OBJECT and column.kind is not known:
                    piece.columns[name] = conform(name, column, self._kinds)[0]
                elif column.has_values and self._kinds.learn(name, column.kind) is not column.kind:
                    return False
                elif column.kind is Kind.OBJECT and not self._checking:
                    if known is None and len(column) > 1 and column.has_values:
                        return False  # what each record alone would have made it is not known
                    try:
                        self._check_sendable(name, column.values.tolist())
                    except BadResult:
                        return False
        return True


def _with_orders(before: Batch, made: Batch, returned: Orders | None) -> Batch:
    """What was added comes after a record's own fields, in the order in which it was returned for this record."""
    if returned is None and before.orders is None:
        return made
    ids, table = returned or (np.zeros(len(made), np.int32), ((),))
    own_ids, own_table = before.orders or (np.zeros(len(made), np.int32), ((),))
    pairs, places = np.unique(own_ids.astype(np.int64) * len(table) + ids, return_inverse=True)
    orders, kept = [], True
    for pair in pairs.tolist():
        own = own_table[pair // len(table)]
        own = (*own, *(name for name in before.names if name not in own))
        order = (*own, *(name for name in table[pair % len(table)] if name not in own))
        kept = kept and follows(order, (*own, *(name for name in made.names if name not in own)))
        orders.append(order)
    if not kept:
        made.orders = places.astype(np.int32), tuple(orders)
        made.origin, made.origin_names = None, frozenset()  # dicts of the user's have an order of their own
    return made
