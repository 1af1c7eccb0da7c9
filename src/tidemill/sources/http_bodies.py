"""What was posted, and what is in it."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from tidemill.formats.decoded import BadLine, Decoded
from tidemill.formats.json_limits import excess, may_exceed
from tidemill.formats.json_lines import is_json_object
from tidemill.formats.line_formats import LINE_FORMATS, LineFormat
from tidemill.formats.lines import BYTE_ORDER_MARK, MESSAGE_LIMIT, text_of
from tidemill.formats.rejects import format_hint
from tidemill.formats.telegraf_json import TelegrafJson, metrics_of
from tidemill.letters import MALFORMED, OVERSIZE

__all__ = ["Gzip", "Posted", "Refused", "Settled", "records_of", "sliced"]

_PACKED: Final = 1 << 14
"""Bytes that are unpacked at a time: what is behind the end of a member is copied, and there may be thousands of members."""
_LOOKED_AT: Final = 4_097
"""Bytes of a body that is not JSON by which its format is told: one more than there may be of a line for that."""
_TURN: Final = 1_000
"""Records that are looked at by themselves in one turn of the loop."""
_log = logging.getLogger("tidemill")


class Refused(Exception):
    """What is answered to a request that is not taken."""

    def __init__(self, status: int, error: str, *, again_s: int = 1, **more: Any) -> None:
        super().__init__(error)
        self.status = status
        self.headers = {"Connection": "close"}  # the rest of its body is read no more
        if status in (429, 503):
            self.headers["Retry-After"] = str(again_s)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        self.content = {"error": error, **more}


Settled = Callable[[int | Refused], object]
"""Is told how many records of a body are on the disk; or that it is refused, or nobody will know."""


class Gzip:
    """One or more members of gzip, one behind the other, unpacked up to a limit."""

    def __init__(self, limit: int) -> None:
        self.unpacked = bytearray()
        self._limit = limit
        self._member = zlib.decompressobj(wbits=31)

    @property
    def whole(self) -> bool:
        """Whether it ends with the end of a member."""
        return self._member.eof

    def feed(self, data: bytes) -> bool:
        """Whether what is unpacked is within the limit; no more than a byte of it is beyond. Raises `zlib.error`."""
        for start in range(0, len(data), _PACKED):
            rest = data[start : start + _PACKED]
            while rest:
                if self._member.eof:
                    rest = rest.lstrip(b"\0")  # with which some fill up the end
                    if not rest:
                        break
                    self._member = zlib.decompressobj(wbits=31)
                self.unpacked += self._member.decompress(rest, self._limit + 1 - len(self.unpacked))
                if len(self.unpacked) > self._limit:
                    return False
                rest = self._member.unused_data
        return True


class Posted:
    """One body, until it is answered: ``settled`` is told once what became of it."""

    def __init__(
        self,
        data: bytes,
        settled: Settled,
        *,
        document: bool,
        known: Mapping[str, str],
        arrived_ns: int,
        wall_ns: int,
    ) -> None:
        data = data.removeprefix(BYTE_ORDER_MARK)
        self.lines = data if document or data.endswith(b"\n") or not data else data + b"\n"
        self.document = document
        """Whether it says that it is JSON as a whole, not lines."""
        self.known = known
        self.arrived_ns = arrived_ns
        self.wall_ns = wall_ns
        self.records = 0
        """How many were in it, once that is known."""
        self._settled: Settled | None = settled

    def settle(self, refused: Refused | None = None) -> None:
        """Its records are on the disk; or it is refused, or nobody will know. The first word counts."""
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(self.records if refused is None else refused)


async def records_of(posted: Posted, form: LineFormat, turn: int) -> list[Decoded]:
    """The records in parts, about ``turn`` bytes in each turn of the loop. Raises `Refused` when there is a part that the sender
    is to mend: then nothing of it is taken."""
    try:
        return await _records_of(posted, form, turn)
    except Refused:
        raise
    except Exception as error:  # one sender's bytes must not end what all others send
        _log.exception("a posted body could not be read, and is refused; this is a fault of tidemill")
        raise Refused(500, f"this body cannot be read here: {type(error).__name__}") from error


async def _records_of(posted: Posted, form: LineFormat, turn: int) -> list[Decoded]:
    if posted.document and (items := _items(posted.lines, form)) is not None:
        made = await _sound(form.items(items))
        if made is None:
            number, reason = _first_bad(form, form.items, ([item] for item in items))
            raise Refused(400, f"item {number}: {reason}", item=number)
        if may_exceed(posted.lines) and excess(items, posted.lines):
            return await _within_limits(_apart(posted.lines, form), form)
        return made if _all_short(posted.lines, len(items)) else await _short(posted.lines, form, made)
    parts: list[Decoded] = []
    before = 0
    for block in _blocks(posted.lines, turn):
        made = await _sound(form.parts(block))
        if made is None:
            number, reason = _first_bad(form, form.parts, block.split(b"\n"))
            told = _document_hint(posted, form) if before + number == 1 else ""
            raise Refused(400, f"line {before + number}: {reason}{told}", line=before + number)
        parts += made if len(block) <= MESSAGE_LIMIT else await _short(block, form, made)
        before += block.count(b"\n")
    return parts


async def _sound(parts: Iterable[Decoded] | None) -> list[Decoded] | None:
    """Each made in a turn of its own; None when there is something to be mended."""
    made = []
    for part in parts or ():
        if not all(bad.sound for bad in part.bad):
            return None
        made.append(part)
        await asyncio.sleep(0)
    return made


def _items(data: bytes, form: LineFormat) -> list[Any] | None:
    """What a document has; None when it is lines, whatever the body calls itself: the format is none of JSON, or the body none
    as a whole, and its first line an object."""
    if form.items([]) is None:
        return None
    try:
        document = msgspec.json.decode(data)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        if is_json_object(data.lstrip().partition(b"\n")[0]):
            return None
        where = f" (byte {len(data)}, its end)" if "truncated" in str(error) else ""  # of all else msgspec says where
        raise Refused(400, f"the body is not JSON: {error}{where}{_hint(text_of(data[:_LOOKED_AT]), form)}") from None
    return document if isinstance(document, list) else [document]


def _all_short(data: bytes, items: int) -> bool:
    """Whether each item of an array is seen to be no longer than a message may be, without reading it: when there are no more
    braces than items, each opens one, and one that is too long has none in half of the limit."""
    half = MESSAGE_LIMIT // 2
    return len(data) <= MESSAGE_LIMIT or (
        data.count(b"{") == items
        and all(data.find(b"{", place, place + half) >= 0 for place in range(0, len(data) - half + 1, half))
    )


async def _short(data: bytes, form: LineFormat, made: list[Decoded]) -> list[Decoded]:
    """What was ``made`` of a document or a line that is longer than a message may be, without those of its records that are."""
    records = _apart(data, form)
    return made if all(len(record) <= MESSAGE_LIMIT for record in records) else await _within_limits(records, form)


async def _within_limits(records: Sequence[bytes | msgspec.Raw], form: LineFormat) -> list[Decoded]:
    """What is made of those that are neither longer than a message may be nor beyond a limit of JSON; the others are dead letters."""
    kept: list[Any] = []
    bad: list[BadLine] = []
    for number, record in enumerate(map(bytes, records), start=1):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        if len(record) > MESSAGE_LIMIT:
            bad.append(
                BadLine(OVERSIZE, f"the record is longer than {MESSAGE_LIMIT} bytes", text_of(record), sound=True)
            )
            continue
        value = msgspec.json.decode(record)
        why = excess(value, record) if may_exceed(record) else ""
        if why:
            bad.append(BadLine(MALFORMED, f"the record {why}", text_of(record), sound=True))
        else:
            kept.append(value)
    return [*(await _sound(form.items(kept)) or ()), Decoded(bad=bad)]


def _apart(data: bytes, form: LineFormat) -> Sequence[bytes | msgspec.Raw]:
    """The records of an array or of batches; else what it is as a whole."""
    try:
        items: Sequence[bytes | msgspec.Raw] = msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.MsgspecError:
        items = [data.rstrip(b"\r\n")]
    return [metric for item in items for metric in metrics_of(item)] if isinstance(form, TelegrafJson) else items


def sliced(parts: Iterable[Decoded], most: int) -> Iterator[Decoded]:
    """The same records in parts of so many at most; what is no record goes with the first of its part."""
    for part in parts:
        for start in range(0, max(len(part.rows), 1), most):
            stop = start + most
            known = None if part.known is None else part.known[start:stop]
            yield Decoded(part.rows[start:stop], part.bad if not start else [], known)


def _blocks(data: bytes, size: int) -> Iterator[bytes]:
    """Whole lines, of about so many bytes together."""
    start = 0
    while start < len(data):
        end = data.rfind(b"\n", start, start + size) + 1 or data.find(b"\n", start + size) + 1 or len(data)
        yield data[start:end]
        start = end


def _hint(raw: Any, form: LineFormat) -> str:
    """What the first line is that the source could read, if it were told to."""
    hint = format_hint(raw.partition("\n")[0], LINE_FORMATS, form.name) if type(raw) is str else ""
    return f"; this {hint}" if hint else ""


def _document_hint(posted: Posted, form: LineFormat) -> str:
    """What to type for a body whose first line is none, since it begins as JSON that is an array, or spread over lines."""
    first = posted.lines.partition(b"\n")[0].strip()
    begins = not posted.document and form.items([]) is not None and (first[:1] == b"[" or first == b"{")
    return "; for JSON as a whole say Content-Type: application/json" if begins else ""


def _first_bad(
    form: LineFormat, decode: Callable[[Any], Iterator[Decoded] | None], pieces: Iterable[Any]
) -> tuple[int, str]:
    """The number of the first piece that is to be refused, from 1, and why."""
    for number, piece in enumerate(pieces, start=1):
        for part in decode(piece) or ():
            for bad in part.bad:
                if not bad.sound:
                    return number, f"{bad.reason}{_hint(bad.raw, form)}"
    return 1, "something in what follows is no record"  # as a whole, though each piece alone is one
