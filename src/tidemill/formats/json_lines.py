"""NDJSON: one record as a JSON object on each line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np

from tidemill.batch import Batch
from tidemill.column import ABSENT, ABSENT_TAG, INTEGER_TAG, NULL_TAG, Column
from tidemill.formats.decoded import BadLine
from tidemill.formats.json_limits import DIGITS, excess, may_exceed, some_may_exceed
from tidemill.formats.lines import text_of
from tidemill.letters import INFINITE, MALFORMED
from tidemill.rows import rows_of_batch
from tidemill.schema import Kind

__all__ = ["decode_json_lines", "encode_json_lines", "is_json_object", "json_parts", "time_texts"]

_DECODER: Final = msgspec.json.Decoder()
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PART: Final = 2_048
"""Lines that are read one by one before the loop goes on; of those that are no records .."""
_BAD: Final = 8
""".. each takes as long as so many others."""


def decode_json_lines(block: bytes) -> tuple[list[dict[str, Any]], list[BadLine]]:
    """The records of a block of whole lines, in order, and the lines that are none; never raises.

    Empty lines are passed over. A bad line touches no other line; one that exceeds a limit of `json_limits`, or the range of
    numbers, is bad, and sound if it is an object. As in most readers of JSON, the last of two fields with one name wins.

    >>> decode_json_lines(b'{"value": 1}\\n{"value": NaN}\\n')[0]
    [{'value': 1}]
    """
    rows: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    for some, worse in json_parts(block):
        rows = rows + some if rows else some
        bad += worse
    return rows, bad


def json_parts(block: bytes) -> Iterator[tuple[list[dict[str, Any]], list[BadLine]]]:
    """The same in parts, of which each is read in a few milliseconds whatever the lines hold; at least one."""
    if some_may_exceed(block):
        yield from _one_by_one(block.replace(b"\r\n", b"\n").split(b"\n"))
        return
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    ended = block.endswith(b"\n")
    lines = block.count(b"\n") + (not ended)
    # With every line starting with { and ending with } no JSON value can reach over a line's end, so that as many
    # records as lines means one record a line.
    whole = block.startswith(b"{") and block.endswith(b"}\n" if ended else b"}")
    if whole and block.count(b"}\n{") == lines - 1:
        try:
            rows = _DECODER.decode_lines(block)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            if len(rows) == lines:
                yield rows, []
                return
    yield from _one_by_one(block.split(b"\n"))


def _one_by_one(lines: Iterable[bytes]) -> Iterator[tuple[list[dict[str, Any]], list[BadLine]]]:
    rows: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    for line in lines:
        if len(rows) + _BAD * len(bad) >= _PART:
            yield rows, bad
            rows, bad = [], []
        if not line or line.isspace():
            continue
        try:
            row = _DECODER.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            bad.append(BadLine(*_reason(error, line), text_of(line), sound=_out_of_range(error, line)))
            continue
        why = excess(row, line) if may_exceed(line) else ""
        if why:
            bad.append(BadLine(MALFORMED, f"the line {why}", text_of(line), sound=type(row) is dict))
        elif type(row) is dict:
            rows.append(row)
        else:
            bad.append(BadLine(MALFORMED, f"the line holds a JSON {_json_type(row)}, not an object", text_of(line)))
    yield rows, bad


def _reason(error: Exception, line: bytes) -> tuple[str, str]:
    if isinstance(error, RecursionError):
        return MALFORMED, "the line is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return MALFORMED, "the line is not UTF-8"
    if "Number out of range" in str(error):
        return INFINITE, "the line holds a number that is too large for a float"
    if "Integer value out of range" in str(error):  # thousands of digits
        return MALFORMED, f"the line holds a number of more than {DIGITS} digits"
    if b"Infinity" in line:
        return INFINITE, "the line holds Infinity, which is not a number in JSON"
    if b"NaN" in line:
        return MALFORMED, "the line holds NaN, which JSON does not know; write null"
    return MALFORMED, f"the line is not JSON: {error}"


def _out_of_range(error: Exception, line: bytes) -> bool:
    """Whether it is an object of JSON, and only a number in it is larger than numbers are here."""
    return isinstance(error, msgspec.ValidationError) and is_json_object(line)


def is_json_object(line: bytes) -> bool:
    """Whether it is one, however large its numbers are."""
    try:
        _OBJECT.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def _json_type(item: Any) -> str:
    match item:
        case list():
            return "array"
        case str():
            return "string"
        case bool():
            return "true or false"
        case None:
            return "null"
        case _:
            return "number"


# -- encoding --------------------------------------------------------------------------------------


def encode_json_lines(batch: Batch) -> bytes:
    """One JSON object per record and line, in order.

    The user's own fields come back with their names, order, types and values: ints as ints, floats in their shortest
    form, null as null, absent fields left out. Computed NaN and infinities are null; times are ISO 8601 in UTC.
    """
    if not len(batch):
        return b""
    lists = [_json_items(column) for column in batch.columns.values()]
    struct = _struct(batch.names) if batch.orders is None else None
    rows: list[Any] = list(map(struct, *lists)) if struct is not None and lists else _dicts(batch, lists)
    try:
        return _ENCODER.encode_lines(rows)
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        return b"".join(map(_encode_one, rows))


def time_texts(column: Column) -> list[str | None]:
    """A TIME column as ISO 8601 texts in UTC with as many fraction digits as each needs; None where missing."""
    texts: list[str] = np.datetime_as_string(column.values.view("datetime64[ns]")).tolist()
    return [None if text == "NaT" else f"{text.rstrip('0').rstrip('.') if '.' in text else text}Z" for text in texts]


@lru_cache(maxsize=64)
def _struct(names: tuple[str, ...]) -> type[msgspec.Struct] | None:
    """A Struct is filled and encoded about twice as fast as a dict; some names it cannot carry."""
    places = [f"f{place}" for place in range(len(names))]
    try:
        return msgspec.defstruct(
            "Row", [(place, object) for place in places], rename=dict(zip(places, names, strict=True)), gc=False
        )
    except (ValueError, TypeError):
        return None


def _json_items(column: Column) -> list[Any]:
    """Values as JSON shows them; `msgspec.UNSET` where the record lacks the field."""
    if column.kind is Kind.TIME:
        items: list[Any] = time_texts(column)
    elif column.kind is Kind.TEXT or column.kind is Kind.OBJECT:
        items = column.array.tolist()
    else:
        items = column.values.tolist()
    tags = column.tags
    if tags is None:
        return items
    boxed = np.fromiter(items, object, len(items))
    integers = tags == INTEGER_TAG
    if integers.any():
        whole = column.values[integers]
        whole = np.where(np.abs(whole) < 2.0**63, whole, 0.0)  # those are in exact
        boxed[integers] = whole.astype(np.int64).astype(object)
    boxed[tags == NULL_TAG] = None
    boxed[tags == ABSENT_TAG] = msgspec.UNSET
    for row, item in (column.exact or {}).items():
        boxed[row] = item
    restored: list[Any] = boxed.tolist()
    return restored


def _dicts(batch: Batch, lists: list[list[Any]]) -> list[dict[str, Any]]:
    """The slow shape: records whose fields come in several orders, or whose names a Struct cannot carry."""
    columns = {
        name: Column(Kind.OBJECT, np.fromiter((ABSENT if i is msgspec.UNSET else i for i in items), object, len(items)))
        for name, items in zip(batch.names, lists, strict=True)
    }
    if not columns:
        return [{} for _ in range(len(batch))]
    plain = Batch(columns)
    plain.orders = batch.orders
    rows = rows_of_batch(plain)
    return [{name: item for name, item in row.items() if item is not ABSENT} for row in rows]


def _encode_hook(item: Any) -> Any:
    if isinstance(item, np.generic):
        return item.item()
    if isinstance(item, np.ndarray):
        return item.tolist()
    return str(item)


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_encode_hook)


def _encode_one(row: Any) -> bytes:
    try:
        return _ENCODER.encode(row) + b"\n"
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        pass
    if isinstance(row, msgspec.Struct):
        names = type(row).__struct_encode_fields__
        row = {name: item for name, item in zip(names, _fields(row), strict=True) if item is not msgspec.UNSET}
    return json.dumps(_simple(row, 0), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _fields(row: msgspec.Struct) -> list[Any]:
    return [getattr(row, name) for name in type(row).__struct_fields__]


def _simple(item: Any, depth: int) -> Any:
    """What msgspec refused (lone surrogates, odd keys, cycles) as something that `json` takes."""
    if depth > 100:
        return str(type(item))
    match item:
        case Mapping():
            return {str(name): _simple(part, depth + 1) for name, part in item.items()}
        case list() | tuple() | set() | frozenset():
            return [_simple(part, depth + 1) for part in item]
        case float():
            return item if math.isfinite(item) else None
        case str() | int() | bool() | None:
            return item
        case _:
            return str(item)
