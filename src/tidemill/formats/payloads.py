"""One message → the readings in it: a number, a JSON object, or many of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from tidemill.errors import PlanError
from tidemill.formats.field_names import TIMES, words_of
from tidemill.formats.json_limits import DIGITS, excess, may_exceed
from tidemill.formats.lines import BYTE_ORDER_MARK, text_of
from tidemill.formats.rejects import MOST_SHOWN, shown_names
from tidemill.letters import INFINITE, MALFORMED, MISSING_FIELD

__all__ = ["BadReading", "PayloadReader", "leaves", "path_of", "steps_of"]

_DECODER: Final = msgspec.json.Decoder()
_NUMBER: Final = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LONGEST_NUMBER: Final = 64
_INFINITY: Final = re.compile(rb'(?i)(?<![\w"])inf(?:inity)?(?![\w"])')
_LOOKED_AT: Final = 20
"""Times that a path led nowhere, at which those that the message has are remembered."""
_DEEPEST: Final = 8
_LONGEST_NAME: Final = 80
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
    is a record for each item of that list; paths without it give all of them the same.

    Raises `PlanError` for what is no path.

    >>> PayloadReader().read(b"51.3"), PayloadReader("data.temp").read(b'{"data": {"temp": 20}}')
    (([{'value': 51.3}], []), ([{'value': 20}], []))
    >>> reader = PayloadReader({"rssi": "rxInfo[*].rssi", "frame": "fCnt"})
    >>> reader.read(b'{"fCnt": 7, "rxInfo": [{"rssi": -90}, {"rssi": -71}]}')[0]
    [{'rssi': -90, 'frame': 7}, {'rssi': -71, 'frame': 7}]
    """

    def __init__(self, value: str | Mapping[str, str] | None = None) -> None:
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
        self._words = {word for name in (*paths, *paths.values()) for word in words_of(name)[-1:]}
        self._opened: tuple[bytes, list[dict[str, Any]]] = b"", []
        """The message that was shown last, and what its readings are shown as."""
        self._lacking = 0
        self._seen: dict[str, float | None] = {}
        """Paths of messages in which one led nowhere, and the number that the first of them has there."""
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
        for item, row in self._picked(message):
            if row:
                rows.append(row)
            else:
                # Of an item the item alone: thousands of them would hold as many copies of a message.
                raw = payload if self._each is None or item is _NOTHING else msgspec.json.encode(item)
                bad.append(BadReading(MISSING_FIELD, self._nothing, text_of(raw)))
        return _at_least_one(rows, bad, payload)

    def _picked(self, message: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        for item in self._items(message):
            row = {}
            for column, steps, of_item in self._columns:
                found = _found(item if of_item else message, steps)
                if found is not _NOTHING:
                    row[column] = found
                elif self._lacking < _LOOKED_AT:
                    self._note(message)
            yield item, row

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
        items = [item for item, row in self._picked(message) if row]
        if self._each is None:
            return [_fields_of(message)] * len(items)
        around = _fields_of(_with_list(message, self._each, []))
        if len(msgspec.json.encode(around)) * len(items) > _REPEATED:
            return [_fields_of(item) for item in items]
        return [_fields_of(_with_list(message, self._each, [item])) for item in items]

    def _note(self, message: Any) -> None:
        self._lacking += 1
        for steps, item in islice(leaves(message), MOST_SHOWN - len(self._seen)):
            self._seen.setdefault(path_of(steps), item if type(item) in (int, float) else None)

    @property
    def explained(self) -> str:
        """Of messages in which something was missing: the paths that they have, and the ``value=`` to try; empty without any."""
        if not self._seen:
            return ""
        path = _likely(self._seen, self._words)
        value = repr(path) if self.columns == ("value",) else repr({self.columns[0]: path})
        return f"The paths seen are: {shown_names(tuple(self._seen))}; say where the reading is, for example value={value}."

    def _items(self, message: Any) -> Iterator[Any]:
        if self._each is None:
            yield message
            return
        items = _found(message, self._each)
        yield from items if type(items) is list else [_NOTHING]


def _at_least_one(
    rows: list[dict[str, Any]], bad: list[BadReading], payload: bytes
) -> tuple[list[dict[str, Any]], list[BadReading]]:
    if not rows and not bad:
        bad = [BadReading(MALFORMED, "the message holds an empty list and no reading", text_of(payload))]
    return rows, bad


def _found(item: Any, steps: Steps) -> Any:
    for step in steps:
        of_object = type(step) is str and type(item) is dict and step in item
        if not of_object and not (type(step) is int and type(item) is list and step < len(item)):
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


def path_of(steps: Sequence[str | None]) -> str:
    """The path that these names make; None goes into every item of a list.

    >>> path_of(["data", "temp"]), path_of(["data", "a.b"]), path_of(["rxInfo", None, "rssi"])
    ('data.temp', 'data["a.b"]', 'rxInfo[*].rssi')
    """
    made = ["[*]" if name is None else f'["{name}"]' if set('.[]"') & set(name) else f".{name}" for name in steps]
    return "".join(made).removeprefix(".")


def steps_of(path: str) -> tuple[str | int | None, ...]:
    """The other way round; a number is the place in a list. Raises `PlanError` for what is no path.

    >>> steps_of("rxInfo[*].rssi"), steps_of('list[0]["a.b"]')
    (('rxInfo', None, 'rssi'), ('list', 0, 'a.b'))
    """
    return tuple(None if isinstance(step, _Each) else step for step in _parsed(path))


def leaves(item: Any, steps: tuple[str | None, ...] = ()) -> Iterator[tuple[tuple[str | None, ...], Any]]:
    """What in a message a path can lead to, but for what is too deep or has a name that nobody would type."""
    if len(steps) > _DEEPEST:
        return
    if type(item) is dict:
        for name, inner in item.items():
            if name and '"' not in name and len(name) <= _LONGEST_NAME:
                yield from leaves(inner, (*steps, name))
    elif type(item) is list and item and type(item[0]) is dict and None not in steps:
        yield from leaves(item[0], (*steps, None))
    elif steps:
        yield steps, item


def _likely(seen: Mapping[str, Any], wanted: set[str]) -> str:
    """The path that is most like a reading's: it ends as a column or path that is wanted, or is a number and no time."""
    words = {path: words_of(path)[-1:] for path in seen}
    named = [path for path in seen if wanted.intersection(words[path])]
    numbers = [path for path, item in seen.items() if type(item) in (int, float) and not set(words[path]) & set(TIMES)]
    return next(iter([*named, *numbers, *seen]))


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
