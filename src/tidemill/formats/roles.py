"""Which sensor a record is of, and what time it has: the roles that its fields play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, FARTHEST, NAT, Column
from tidemill.formats.key_template import KeyTemplate, names_nothing, why_unnamed
from tidemill.formats.times import TimeReader
from tidemill.formats.unfit import is_unicode
from tidemill.kinds import Kinds
from tidemill.letters import BAD_TIME, NO_KEY, Reject
from tidemill.printable import shown
from tidemill.schema import Kind

__all__ = ["DEFAULT_KEY", "DEFAULT_TIME", "Known", "Roles"]

DEFAULT_KEY: Final = "sensor"
DEFAULT_TIME: Final = "time"
_READ_TOGETHER: Final = {float, str}
"""Types of times of which each is read as if it were alone."""

Known = Mapping[str, str] | Sequence[Mapping[str, str]]
"""What the source knows besides the record (a file's stem, a connection's peer): for all records, or for each."""


class Roles:
    """Reads the key and the time of records; see `Edge` for the options."""

    def __init__(self, key: str, time: str, times: TimeReader, *, arrival: bool, fallback: str | None) -> None:
        self.key, self.time, self.times = key, time, times
        self.arrival, self.fallback = arrival, fallback
        self._template = KeyTemplate(key)
        self._looked_at: tuple[NDArray[np.object_], dict[int, str]] | None = None
        """The texts of the last key column, which slices share, and why some of them, by their codes, are no keys."""

    def falling_back_on(self, fallback: str) -> Roles:
        """The same, but for records without the key's field."""
        return Roles(self.key, self.time, self.times, arrival=self.arrival, fallback=fallback)

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The names that make the key: fields of the record, or things that the source knows."""
        return self._template.names

    # -- of a batch --------------------------------------------------------------------------------

    def time_of(self, batch: Batch, rejects: dict[int, Reject], wall_ns: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Nanoseconds; ``rejects`` gets the rows that tell none, or one that no clock has."""
        column = batch.columns.get(self.time)
        if column is None:
            if self.arrival:
                return np.full(len(batch), wall_ns, np.int64)
            for row in range(len(batch)):
                rejects.setdefault(
                    row, Reject(row, BAD_TIME, f"the record has no field {self.time!r}, which holds its time")
                )
            return np.zeros(len(batch), np.int64)
        ns, bad = self.times.column(column)
        if len(ns) and np.minimum.reduce(ns) >= -FARTHEST and np.maximum.reduce(ns) <= FARTHEST:
            return ns  # NaT is none of these
        bad |= (ns > FARTHEST) | (ns < -FARTHEST)
        missing = None if column.tags is None else column.missing_rows()
        if self.arrival and missing is not None:
            ns = np.where(missing, wall_ns, ns)
            bad &= ~missing
        told: dict[str, str] = {}  # a fault of a device comes thousands of times
        rows = [row for row in np.flatnonzero(bad).tolist() if row not in rejects]
        for row, item in zip(rows, column.take(np.array(rows, np.intp)).to_list(), strict=True):
            reason = told.get(item) if type(item) is str else None
            if reason is None:
                reason = self._bad_time(item)
                if type(item) is str:
                    told[item] = reason
            rejects[row] = Reject(row, BAD_TIME, reason)
        return ns

    def _bad_time(self, item: Any) -> str:
        if item is ABSENT or (names_nothing(item) and not isinstance(item, float)):
            return f"the record has nothing in field {self.time!r}, which holds its time"
        if self.times.is_time(item):
            return f"the time {_short(item)} in field {self.time!r} is beyond the years 1823 to 2116 that this program works in"
        wanted = f"the format {self.times.time_format!r}" if self.times.time_format else "ISO 8601 or an epoch number"
        return f"the time {_short(item)} in field {self.time!r} is not {wanted}"

    def key_of(self, batch: Batch, rejects: dict[int, Reject], known: Known | None) -> Column:
        """Names as a TEXT column; ``rejects`` gets the rows that have none."""
        if self._template.field is not None:
            column = batch.columns.get(self._template.field)
            if column is not None and column.kind is Kind.TEXT and column.tags is None:
                return self._sound(Column(Kind.TEXT, column.values, texts=column.texts), rejects)
        parts = [self._part(batch, name, rejects, known) for name in self.key_fields]
        if all(isinstance(part, str) for part in parts):
            key = self._template.join([part for part in parts if isinstance(part, str)])
            return Column(Kind.TEXT, np.zeros(len(batch), np.int32), texts=np.array([key], object))
        lists = [[part] * len(batch) if isinstance(part, str) else part for part in parts]
        if self._template.field is not None:
            return self._sound(Column.of_texts(lists[0]), rejects)
        return self._sound(Column.of_texts([self._template.join(row) for row in zip(*lists, strict=True)]), rejects)

    def _part(self, batch: Batch, name: str, rejects: dict[int, Reject], known: Known | None) -> str | list[str]:
        """One name of the key's template in every record."""
        column = batch.columns.get(name)
        if column is None:
            return self._known_part(name, len(batch), rejects, known)
        items = column.to_list()
        types = set(map(type, items))
        if types == {str}:
            return items
        if types <= {str, int, bool}:
            return list(map(str, items))
        texts = []
        for row, item in enumerate(items):
            text, why = _text_of(item)
            if why and self.fallback is not None and (item is ABSENT or names_nothing(item)):
                text, why = _known_at(known, row, self.fallback) or "", ""
            if why:
                rejects.setdefault(row, Reject(row, NO_KEY, f"field {name!r}, which names the sensor, {why}"))
            texts.append(text)
        return texts

    def _known_part(self, name: str, rows: int, rejects: dict[int, Reject], known: Known | None) -> str | list[str]:
        name = self.fallback if self.fallback is not None and name == self.key else name
        if isinstance(known, Mapping) and name in known:
            return known[name]
        if known is not None and not isinstance(known, Mapping):
            found = [one.get(name) for one in known]
            if None not in found:
                return [text or "" for text in found]
        texts = []
        for row in range(rows):
            text = _known_at(known, row, name)
            if text is None:
                rejects.setdefault(
                    row, Reject(row, NO_KEY, f"the record has no field {name!r}, which names the sensor")
                )
            texts.append(text or "")
        return texts

    def _sound(self, key: Column, rejects: dict[int, Reject]) -> Column:
        """Rejects keys that are empty or not valid Unicode."""
        assert key.texts is not None
        looked_at = self._looked_at
        if looked_at is None or looked_at[0] is not key.texts:
            looked_at = self._looked_at = key.texts, self._unsound(key.texts.tolist())
        if unsound := looked_at[1]:
            for row in np.flatnonzero(np.isin(key.values, list(unsound))).tolist():
                rejects.setdefault(row, Reject(row, NO_KEY, unsound[int(key.values[row])]))
        return key

    def _unsound(self, texts: list[str]) -> dict[int, str]:
        all_unicode = is_unicode("".join(texts))
        if all_unicode and all(texts):
            return {}
        return {
            code: "the key is not valid Unicode text" if text else f"the key, from {self.key!r}, is empty"
            for code, text in enumerate(texts)
            if not text or not (all_unicode or is_unicode(text))
        }

    # -- of a record that is shown ----------------------------------------------------------------

    def key_told(self, record: Mapping[Any, Any], known: Mapping[str, str]) -> str | None:
        """The name that a refused record tells, as far as it does."""
        if self.fallback is not None and self.fallback in known and self.key not in known:
            known = {**known, self.key: known[self.fallback]}
        return self._template.told(record, known)

    def times_told(self, raws: Sequence[Any], walls_ns: Sequence[int]) -> list[int | None]:
        """The times that refused records tell, or those of their arrival; of what is no record, none."""
        items = [_field_of(raw, self.time) for raw in raws]
        told: list[int | None] = [None] * len(items)
        alike: dict[type, list[int]] = {}
        for place, item in enumerate(items):
            if item is None and self.arrival:
                told[place] = walls_ns[place]
            elif type(item) in _READ_TOGETHER or (type(item) is int and abs(item) < 2**53):
                alike.setdefault(type(item), []).append(place)
            elif item is not ABSENT:
                told[place] = self._times_told([item])[0]
        for places in alike.values():
            for place, time_ns in zip(places, self._times_told([items[place] for place in places]), strict=True):
                told[place] = time_ns
        return told

    def _times_told(self, items: list[Any]) -> list[int | None]:
        times, _ = self.times.column(Kinds().column("", items)[0])
        return [None if ns == NAT else ns for ns in times.tolist()]


def _known_at(known: Known | None, row: int, name: str) -> str | None:
    if known is None:
        return None
    return (known if isinstance(known, Mapping) else known[row]).get(name)


def _text_of(item: Any) -> tuple[str, str]:
    """The text of a field that names the sensor, and what it is in place of a name."""
    if item is ABSENT:
        return "", "is missing or null"
    if why := why_unnamed(item):
        return "", why
    try:
        return str(item), ""
    except Exception as error:  # noqa: BLE001 - a class of the user's may raise anything
        return "", f"is a {type(item).__name__} whose text cannot be had: {type(error).__name__}"


def _field_of(raw: Any, name: str) -> Any:
    try:
        return raw.get(name) if isinstance(raw, Mapping) else ABSENT
    except Exception:  # noqa: BLE001 - so may one that is a mapping
        return ABSENT


def _short(item: Any) -> str:
    text = shown(item)
    return text if len(text) <= 60 else f"{text[:57]}..."
