"""One message → the readings in it: a number, a JSON object, or many of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tidemill.errors import PlanError
from tidemill.formats.json_limits import DIGITS, excess, may_exceed
from tidemill.formats.lines import BYTE_ORDER_MARK, text_of
from tidemill.formats.paths_seen import PathsSeen, leaves, path_of
from tidemill.letters import INFINITE, MALFORMED, MISSING_FIELD

__all__ = ["BadReading", "PayloadReader", "leaves", "path_of", "steps_of"]

_DECODER: Final = msgspec.json.Decoder()
_NUMBER: Final = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LONGEST_NUMBER: Final = 64
_INFINITY: Final = re.compile(rb'(?i)(?<![\w"])inf(?:inity)?(?![\w"])')
_REPEATED: Final = 64 << 10
"""Bytes of a message that its items may repeat together in their dead letters: else a small one would make gigabytes."""
_HIDDEN: Final = "message"
_STEP: Final = re.compile(r"""(?:^|\.)([^.\[\]"]+)|\[(\d{1,6})\]|(\[\*\])|\["([^"]+)"\]""")


class _Each:
    """The step of a path that goes into every item of a list."""


_EACH: Final = _Each()
Step = str | int | _Each
Steps = tuple[Step, ...]
_NOTHING: Final = object()


class BadReading(msgspec.Struct, frozen=True):
    """A reading, or a whole message, that is no record."""

    reason_code: str
    reason: str
    raw: Any


class PayloadReader:
    """Reads payloads; never raises for one.

    Without ``value``: a number becomes ``{"value": 51.3}``, a JSON object is a record, and each number or object of a
    JSON array is one. ``value`` is where in the JSON the value is (``"data.temp"``, ``"list[0].t"``,
    ``'["odd.name"].t'``), or a path for each column: then a record has these columns and no others. With ``[*]`` there
    is a record for each item of that list; paths without it give all of them the same. Fields of ``roles`` that no path takes
    are taken from the top of the message; see `PathsSeen`.

    Raises `PlanError` for what is no path.

    >>> PayloadReader().read(b"51.3"), PayloadReader("data.temp").read(b'{"data": {"temp": 20}}')
    (([{'value': 51.3}], []), ([{'value': 20}], []))
    >>> reader = PayloadReader({"rssi": "rxInfo[*].rssi", "frame": "fCnt"})
    >>> reader.read(b'{"fCnt": 7, "rxInfo": [{"rssi": -90}, {"rssi": -71}]}')[0]
    [{'rssi': -90, 'frame': 7}, {'rssi': -71, 'frame': 7}]
    """

    def __init__(
        self, value: str | Mapping[str, str] | None = None, roles: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        paths = {"value": value} if isinstance(value, str) else dict(value or {})
        steps = {column: _parsed(path) for column, path in paths.items()}
        self.columns = tuple(paths)
        """The columns that paths are given for."""
        self._each: Steps | None = None
        """The way to the list whose items are readings."""
        for column, made in steps.items():
            if _EACH in made:
                before = made[: made.index(_EACH)]
                if self._each not in (None, before) or _EACH in made[len(before) + 1 :]:
                    raise PlanError(
                        f"value={paths[column]!r} of MQTT goes into a second list by [*]; all paths must go into one "
                        "list, once."
                    )
                self._each = before
        self._nothing = f"the message has nothing at {' or '.join(map(repr, paths.values()))}"
        self._roles = tuple(name for name in roles or () if name not in paths)
        self.seen = PathsSeen(paths, roles or {})
        self._opened: tuple[bytes, list[dict[str, Any]]] = b"", []
        """The message that was shown last, and what its readings are shown as."""
        into = 0 if self._each is None else len(self._each) + 1
        self._columns = [
            (column, made[into:], True) if _EACH in made else (column, made, False) for column, made in steps.items()
        ]

    def read(self, payload: bytes) -> tuple[list[dict[str, Any]], list[BadReading]]:
        """The readings of a message, and what in it is none; together at least one."""
        try:
            message = _DECODER.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            if _has_mark(payload):
                return self.read(payload.removeprefix(BYTE_ORDER_MARK))
            number = _number(payload)
            if number is None:
                return [], [BadReading(*_reason(error, payload), text_of(payload))]
            message = number
        why = excess(message, payload) if may_exceed(payload) else ""
        if why:
            return [], [BadReading(MALFORMED, f"the message {why}", text_of(payload))]
        if self._columns:
            return self._by_path(message, payload)
        if type(message) is dict:
            return [message], []
        items = message if type(message) is list else [message]
        rows: list[dict[str, Any]] = []
        bad: list[BadReading] = []
        for item in items:
            if type(item) is dict:
                rows.append(item)
            elif type(item) is float or type(item) is int:
                rows.append({"value": item})
            else:
                reason = "the reading is neither a number nor a JSON object"
                bad.append(BadReading(MALFORMED, reason, text_of(msgspec.json.encode(item))))
        return _at_least_one(rows, bad, payload)

    def _by_path(self, message: Any, payload: bytes) -> tuple[list[dict[str, Any]], list[BadReading]]:
        rows: list[dict[str, Any]] = []
        bad: list[BadReading] = []
        for item in [message] if self._each is None else self._items(message, self._each):
            row = self._row(message, item)
            if row:
                if self._roles and type(message) is dict:
                    row |= {name: message[name] for name in self._roles if name in message}
                rows.append(row)
            else:
                # Of an item the item alone: thousands of them would hold as many copies of a message.
                raw = payload if self._each is None or item is _NOTHING else msgspec.json.encode(item)
                bad.append(BadReading(MISSING_FIELD, self._nothing, text_of(raw)))
        if self.seen.left:
            self.seen.note(message, rows)
        return _at_least_one(rows, bad, payload)

    def _row(self, message: Any, item: Any) -> dict[str, Any]:
        row = {}
        for column, steps, of_item in self._columns:
            found = _found(item if of_item else message, steps)
            if found is not _NOTHING:
                row[column] = found
        return row

    def whole(self, payload: bytes, place: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """All that came with ``row``, which is of the reading ``place`` of a message: the fields of both. A field of the
        message that one of the row hides is in a field ``message``, and of the list whose items are readings there is the
        item alone. What is around that is left out where the items would repeat too much of it.

        >>> PayloadReader("data.temp").whole(b'{"ts": 7, "data": {"temp": "n/a"}}', 0, {"sensor": "S1", "value": "n/a"})
        {'ts': 7, 'data': {'temp': 'n/a'}, 'sensor': 'S1', 'value': 'n/a'}
        """
        if self._opened[0] is not payload:
            self._opened = payload, self._open(_DECODER.decode(payload.removeprefix(BYTE_ORDER_MARK)))
        around = self._opened[1][place]
        made = {**around, **row}
        hidden = {name: item for name, item in around.items() if made[name] != item}
        if hidden:
            name = _HIDDEN
            while name in made:
                name += "_"
            made[name] = hidden
        return made

    def _open(self, message: Any) -> list[dict[str, Any]]:
        """What is shown of each reading of a message."""
        if self._each is None:
            return [_fields_of(message)]
        items = [item for item in self._items(message, self._each) if self._row(message, item)]
        around = _fields_of(_with_list(message, self._each, []))
        if len(items) > 1 and len(msgspec.json.encode(around)) * len(items) > _REPEATED:
            return [_fields_of(item) for item in items]
        return [_fields_of(_with_list(message, self._each, [item])) for item in items]

    def _items(self, message: Any, each: Steps) -> list[Any]:
        items = _found(message, each)
        return items if type(items) is list else [_NOTHING]


def _at_least_one(
    rows: list[dict[str, Any]], bad: list[BadReading], payload: bytes
) -> tuple[list[dict[str, Any]], list[BadReading]]:
    if not rows and not bad:
        bad = [BadReading(MALFORMED, "the message holds an empty list and no reading", text_of(payload))]
    return rows, bad


def _found(item: Any, steps: Steps) -> Any:
    for step in steps:
        inside = step in item if type(item) is dict else type(step) is int and type(item) is list and step < len(item)
        if not inside:
            return _NOTHING
        item = item[step]
    return item


def _fields_of(message: Any) -> dict[str, Any]:
    """What is no object in a field of its own."""
    return message if type(message) is dict else {_HIDDEN: message}


def _with_list(message: Any, steps: Steps, items: list[Any]) -> Any:
    """The message with these in its list; as it is when it has none."""
    if not steps:
        return items if type(message) is list else message
    step, *others = steps
    if _found(message, (step,)) is _NOTHING:
        return message
    made = message.copy()
    made[step] = _with_list(message[step], tuple(others), items)
    return made


def _has_mark(payload: bytes) -> bool:
    """One: what begins with a second is no text that anybody marked."""
    return payload.startswith(BYTE_ORDER_MARK) and not payload.startswith(BYTE_ORDER_MARK, len(BYTE_ORDER_MARK))


def steps_of(path: str) -> tuple[str | int | None, ...]:
    """The other way round; a number is the place in a list. Raises `PlanError` for what is no path.

    >>> steps_of("rxInfo[*].rssi"), steps_of('list[0]["a.b"]')
    (('rxInfo', None, 'rssi'), ('list', 0, 'a.b'))
    """
    return tuple(None if isinstance(step, _Each) else step for step in _parsed(path))


def _number(payload: bytes) -> float | None:
    """Numbers as devices write them, which JSON does not know: ``+5``, ``.5``, ``007``."""
    text = payload.strip()
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _reason(error: Exception, payload: bytes) -> tuple[str, str]:
    if not payload.strip():
        return MALFORMED, "the message is empty"
    if isinstance(error, RecursionError):
        return MALFORMED, "the message is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return MALFORMED, "the message is not UTF-8"
    if "Number out of range" in str(error):
        return INFINITE, "the message holds a number that is too large for a float"
    if "Integer value out of range" in str(error):  # thousands of digits: Python would make no int of them
        return MALFORMED, f"the message holds a number of more than {DIGITS} digits"
    if found := _INFINITY.search(payload):
        return INFINITE, f"the message holds {found[0].decode()}, which is not a number in JSON"
    if b"nan" in payload.lower():
        return MALFORMED, "the message holds NaN, which JSON does not know; send null, or nothing"
    return MALFORMED, "the message is neither a number nor JSON"


def _parsed(path: Any) -> Steps:
    steps: list[Step] = []
    place = 0
    while isinstance(path, str) and not path.startswith(".") and place < len(path):
        found = _STEP.match(path, place)
        if found is None:
            break
        name, index, each, quoted = found.groups()
        steps.append(_EACH if each else int(index) if index else name or quoted)
        place = found.end()
    if not steps or place < len(path):
        raise PlanError(
            f"value={path!r} of MQTT is no path into JSON such as 'data.temp', 'list[0].t' or 'rxInfo[*].rssi'."
        )
    return tuple(steps)
