"""The messages between the engine and its processes, and how they are framed on a socket.

A frame is ``<header length, payload length>`` (two little-endian uint32), the header (msgpack of one message below) and
the payload (raw column bytes, described by the header). Both ends are our own processes of one version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from tidemill.errors import EngineError
from tidemill.formats.packed import Packed

__all__ = [
    "Admit",
    "Call",
    "Committed",
    "Failed",
    "Forget",
    "FrameReader",
    "FromLane",
    "Function",
    "KindsFixed",
    "LoadPlan",
    "OpenSink",
    "Output",
    "Quarantined",
    "Ready",
    "Result",
    "Returned",
    "Revoke",
    "SinkClosed",
    "Slot",
    "Stop",
    "ToLane",
    "Work",
    "Write",
    "Written",
    "frame",
]

_HEAD: Final = struct.Struct("<II")
MAX_FRAME: Final = 1 << 31
"""A length beyond this is a broken stream, refused before anything is allocated."""


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """One message; its class name travels with it."""


# -- to a lane -------------------------------------------------------------------------------------------


class LoadPlan(Message, frozen=True):
    """The stages and the layout of their state, sent once; functions travel inside, by value where needed."""

    stages: bytes
    kinds: dict[int, dict[str, str]]


class Admit(Message, frozen=True):
    """New keys: ``keys[i]`` has slot ``first_slot + i``."""

    first_slot: int
    keys: list[str]


class KindsFixed(Message, frozen=True):
    """The kinds of the columns that functions add, per stage; from now on others are rejected."""

    kinds: dict[int, dict[str, str]]


class Slot(msgspec.Struct, array_like=True, frozen=True):
    """Room in the slab for one result column, one 8-byte (or 1-byte) cell per row."""

    name: str
    kind: str
    at: int


class Quarantined(msgspec.Struct, array_like=True, frozen=True):
    """A row of the lane's share that must not reach a stage again."""

    stage: int
    row: int
    reason_code: str
    reason: str


class Work(Message, frozen=True):
    """A slab: where it lies, and which of its rows are this lane's."""

    slab: int
    memory: int
    packed: Packed
    rows_at: int
    rows: int
    """Number of the lane's rows; their positions are int32 at ``rows_at``."""
    slots_at: int
    """Key slots, int32, of every row of the slab."""
    results: list[Slot]
    isolate: list[int]
    quarantine: list[Quarantined]


class Stop(Message, frozen=True):
    """Finish what was sent before, then exit."""


# -- from a lane -----------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The plan is loaded."""


class Output(msgspec.Struct, array_like=True, frozen=True):
    """A column of the result: ``how`` is "carried" (from the input column ``source``), "slab" or "frame"."""

    name: str
    how: str
    source: str = ""


class Result(Message, frozen=True):
    """What a lane made of its rows of a slab; holds only once `Committed` has come too."""

    slab: int
    busy_ns: int
    outputs: list[Output]
    framed: Packed | None
    """Columns in the payload, one row per surviving row of this lane."""
    kept_at: int
    """Positions in the slab of the surviving rows, int32 in the payload; -1 when all survived."""
    kept: int
    dead: list[tuple[int, int, str, str]]
    """(row of the slab, stage, reason code, reason)"""
    counts: dict[str, int]
    kinds: dict[int, dict[str, str]] | None
    """Kinds per stage, when the lane has learned some since its last result."""


class Committed(Message, frozen=True):
    """The slab's effects on the state are in; its `Result` holds."""

    slab: int


class Failed(Message, frozen=True):
    """The process cannot go on: the run ends with this error."""

    error: str
    """A class of `tidemill.errors`."""
    message: str


# -- to and from a sink's process ------------------------------------------------------------------------


class OpenSink(Message, frozen=True):
    """The pickled sink, its schema, and how long rows may wait for a flush."""

    sink: bytes
    schema: bytes
    flush_s: float


class Write(Message, frozen=True):
    """A batch in one of the regions."""

    number: int
    region: int
    packed: Packed


class Written(Message, frozen=True):
    """Batch ``number`` was written; ``flushed`` is the last one visible to readers."""

    number: int
    flushed: int
    rows: int
    bytes: int
    left_out: dict[str, int] = {}


class SinkClosed(Message, frozen=True):
    """Flushed and closed."""

    rows: int
    bytes: int
    left_out: dict[str, int] = {}


# -- to and from a lane that takes calls (`tidemill.engine.lanes`) ---------------------------------------


class Function(Message, frozen=True):
    """A function, pickled in the payload: sent once, then called by its number."""

    function: int


class Forget(Message, frozen=True):
    """No further call names this function."""

    function: int


class Call(Message, frozen=True):
    """One call; its arguments are pickles in the payload, of ``sizes`` bytes each.

    A plain call has one, of ``(args, kwargs)``, or of ``(function, args, kwargs)`` when ``function`` is 0. A ``listed``
    call has one for each record; the function is called with the list of them.
    """

    call: int
    turn: int
    """Counts the calls sent to this process: they are started in this order."""
    function: int
    listed: bool
    sizes: list[int]


class Revoke(Message, frozen=True):
    """Do not start the call of this turn; 0 names none and only ends a wait (see `tidemill.lanes.cursor`)."""

    turn: int


class Returned(Message, frozen=True):
    """What became of a call: for each of its pickles a value or, where ``raised`` says so, an error."""

    call: int
    busy_ns: int
    raised: list[bool]
    sizes: list[int]


ToLane = LoadPlan | Admit | KindsFixed | Work | Stop | OpenSink | Write | Function | Forget | Call | Revoke
FromLane = Ready | Result | Committed | Failed | Written | SinkClosed | Returned

_encoder = msgspec.msgpack.Encoder()
_to_lane = msgspec.msgpack.Decoder(ToLane)
_from_lane = msgspec.msgpack.Decoder(FromLane)


def frame(message: Message, payload: bytes | bytearray | memoryview = b"") -> list[bytes | bytearray | memoryview]:
    """The parts to send, for ``sendmsg``."""
    header = _encoder.encode(message)
    if len(header) + len(payload) > MAX_FRAME:
        raise EngineError(f"a message of {len(header) + len(payload)} bytes cannot be sent to another process")
    parts: list[bytes | bytearray | memoryview] = [_HEAD.pack(len(header), len(payload)) + header]
    if len(payload):
        parts.append(payload)
    return parts


class FrameReader:
    """Bytes in, messages out; a frame may arrive in any number of pieces.

    >>> reader = FrameReader(to_lane=True)
    >>> data = b"".join(frame(Stop()))
    >>> reader.feed(data[:3]); list(reader.messages())
    []
    >>> reader.feed(data[3:]); list(reader.messages())
    [(Stop(), b'')]
    """

    def __init__(self, *, to_lane: bool) -> None:
        self._decoder: msgspec.msgpack.Decoder[ToLane | FromLane] = _to_lane if to_lane else _from_lane
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """Take what a read returned."""
        self._data += data

    @property
    def pending(self) -> bool:
        """Whether there are bytes of messages that were not yet given."""
        return bool(self._data)

    def messages(self) -> Iterator[tuple[ToLane | FromLane, bytes]]:
        """The complete messages so far, in order, each with its payload.

        Raises `ValueError` (`msgspec.DecodeError` is one) for bytes that `frame` cannot have made.
        """
        while len(self._data) >= _HEAD.size:
            header, payload = _HEAD.unpack_from(self._data)
            if header + payload > MAX_FRAME:
                raise ValueError(f"a frame announces {header + payload} bytes")
            end = _HEAD.size + header + payload
            if len(self._data) < end:
                return
            with memoryview(self._data) as view:
                message = self._decoder.decode(view[_HEAD.size : _HEAD.size + header])
                body = bytes(view[_HEAD.size + header : end])
            del self._data[:end]
            yield message, body
