"""The messages between the engine and its processes; `tidemill.lanes.framing` puts them on a socket.

Both ends are our own processes of one version.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Annotated, Final

import msgspec

from tidemill.formats.packed import Packed

__all__ = [
    "DEAD_ROWS_ORDER",
    "Admit",
    "Call",
    "Commit",
    "Committed",
    "Copied",
    "CopyState",
    "Failed",
    "Forget",
    "FromLane",
    "Function",
    "Kept",
    "KindsFixed",
    "LoadPlan",
    "Logged",
    "Made",
    "Message",
    "Objects",
    "OpenSink",
    "OpenStage",
    "Output",
    "Partly",
    "Quarantined",
    "Ready",
    "Restore",
    "Result",
    "Returned",
    "Revoke",
    "SinkClosed",
    "Slot",
    "StageChanged",
    "Stop",
    "ToLane",
    "Tried",
    "Work",
    "Write",
    "Written",
]


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


class StageChanged(Message, frozen=True):
    """From here on, the stage that is pickled in the payload in the place of number ``stage``: a new table, a new model."""

    stage: int


class OpenStage(Message, frozen=True):
    """Open the stage that is pickled in the payload, answer `Ready`, and let it go: whether a lane could work with it."""


class CopyState(Message, frozen=True):
    """Behind the slabs before: copy the state of the first ``slots`` sensors, for checkpoint ``number``."""

    number: int
    slots: int


class Copied(Message, frozen=True):
    """The copy is whole, and says so itself in its first 8 bytes."""

    number: int


class Objects(msgspec.Struct, array_like=True, frozen=True):
    """States of the objects that a stage holds, one behind the other."""

    stage: int
    slots: bytes
    """Key slots, int32."""
    sizes: bytes
    """Bytes of each state, int32; -1 for an object that is no more."""
    data: bytes


class Restore(Message, frozen=True):
    """Objects of the process before; later ones take the place of earlier ones."""

    objects: Objects


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
    marks_at: int = -1
    """The watermark before the slab's first record and after each (after none, when there is none), int64; -1 when no
    stage follows it."""
    devices_at: int = -1
    """Key slots, int32, of every row's device; -1 where sensors are not placed by it."""


class Stop(Message, frozen=True):
    """Finish what was sent before, then exit."""


# -- from a lane -----------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The plan is loaded, or the stage was opened."""


class Output(msgspec.Struct, array_like=True, frozen=True):
    """A column of the result: ``how`` is "carried" (from the input column ``source``), "slab" or "frame"."""

    name: str
    how: str
    source: str = ""


class Made(msgspec.Struct, array_like=True, frozen=True):
    """Where some of a lane's rows lie, of which stages made some; they come in the order in which they are to leave.

    What lies where is counted from ``at``, in the payload of a `Result`.
    """

    at: int
    packed: Packed
    """All their columns."""
    places_at: int
    """The place in the slab of each, int32; these need not differ."""
    ends_at: int
    """What orders rows of one place, int64; `BEGIN` for a record's own row."""
    slots_at: int
    """Its key slot, int32."""


DEAD_ROWS_ORDER: Final = itemgetter(0, 1, 2, 3)
"""What orders dead rows that stages had made, whatever lanes they come from: as rows that come out, then by stage."""


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
    gone: dict[str, int] = {}
    """How many of the rows that neither survived nor are dead count as what; the rest was filtered."""
    made: list[Made] | None = None
    """Set when there are rows without a record among them: all rows, some thousands in each, and neither a frame nor
    `kept_at`."""
    dead_rows: list[tuple[int, int, str, int, str, str, bytes]] = []
    """(place in the slab, what orders rows of one place, sensor, stage, reason code, reason, the row as JSON) of rows that a stage
    had made, in the order of `DEAD_ROWS_ORDER`"""
    stage_ns: list[int] = []
    """Nanoseconds spent in each stage."""
    objects: list[Objects] = []
    """The objects that the slab has changed."""
    made_came: dict[int, int] = {}
    """Of each stage, how many rows that stages had made came to it."""


class Committed(Message, frozen=True):
    """The slab's effects on the state are in; its `Result` holds."""

    slab: int


class Failed(Message, frozen=True):
    """The process cannot go on: the run ends with this error."""

    error: str
    """A class of `tidemill.errors`."""
    message: str
    after_s: float = 0.0
    """Of an `OutsideError`."""


# -- to and from a sink's process ------------------------------------------------------------------------


class OpenSink(Message, frozen=True):
    """The pickled sink, its schema, and how long rows may wait for a flush.

    With ``keeping``, what it is told by a run that keeps state: it commits when it is told, and answers `Kept`.
    """

    sink: bytes
    schema: bytes
    flush_s: float
    keeping: bytes = b""


class Write(Message, frozen=True):
    """A batch in one of the regions."""

    number: int
    region: int
    packed: Packed
    first: int = -1
    """The number of its first row since the pipeline's first start, where the sink wants it."""


class Written(Message, frozen=True):
    """Batch ``number`` was written; ``flushed`` is the last one visible to readers."""

    number: int
    flushed: int
    rows: int
    bytes: int
    left_out: dict[str, int] = {}
    deleted: int = 0


class Logged(Message, frozen=True):
    """A line for the log of the run, and its level."""

    level: int
    said: str


class Tried(Message, frozen=True):
    """A try of the sink has failed, and why, or none any more (``""``): it tries again by itself."""

    said: str


class Commit(Message, frozen=True):
    """What was written so far reaches up to this position: commit both."""

    position: int


class Kept(Message, frozen=True):
    """Rows up to this position are committed."""

    position: int


class SinkClosed(Message, frozen=True):
    """Flushed and closed."""

    rows: int
    bytes: int
    left_out: dict[str, int] = {}
    deleted: int = 0


# -- to and from a lane that takes calls (`tidemill.engine.lanes`) ---------------------------------------


class Function(Message, frozen=True):
    """A function, pickled in the payload: sent once, then called by its number."""

    function: int


class Forget(Message, frozen=True):
    """No further call names this function."""

    function: int


class Call(Message, frozen=True):
    """One call; its arguments are parcels in the payload, of ``sizes`` bytes each.

    A plain call has one, of ``(args, kwargs)``, or of ``(function, args, kwargs)`` when ``function`` is 0; of several such
    parcels the function is called with each, one after the other: a bundle. A ``listed`` call has a parcel for each
    record; the function is called with the list of them.
    """

    call: int
    turn: int
    """Counts the calls sent to this process: they are started in this order."""
    function: int
    listed: bool
    sizes: list[int]
    at: int = -1
    """Where the large buffers of a plain call lie in the arena, in ``room`` bytes; -1 for none."""
    room: int = 0


class Revoke(Message, frozen=True):
    """Do not start the call of this turn; 0 names none and only ends a wait (see `tidemill.lanes.cursor`)."""

    turn: int


_Sizes = Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)]
"""Bytes of each part of a payload, of which there is one at least."""


class Partly(Message, frozen=True):
    """What became of the next calls of a bundle, of which there is no room to keep more until all is done."""

    call: int
    raised: list[bool]
    sizes: _Sizes


class Returned(Message, frozen=True):
    """What became of a call: for each of its parcels a value or, where ``raised`` says so, an error; of a bundle, for the
    first of those that `Partly` has not told of. The others were not begun."""

    call: int
    busy_ns: int
    raised: list[bool]
    sizes: _Sizes
    at: int = -1
    """Position on the way back of the arena of a plain call's large buffers, in ``room`` bytes; -1 for none."""
    room: int = 0
    freed: list[int] = msgspec.field(default_factory=list)
    """Turns of calls whose arguments in the arena nobody looks at any more."""
    oversized: str = ""
    """The type of a result that no arena of this size has room for."""


ToLane = (
    LoadPlan
    | Admit
    | KindsFixed
    | Restore
    | StageChanged
    | OpenStage
    | Work
    | Stop
    | CopyState
    | OpenSink
    | Write
    | Commit
    | Function
    | Forget
    | Call
    | Revoke
)
FromLane = (
    Ready | Result | Committed | Copied | Failed | Written | Logged | Tried | Kept | SinkClosed | Partly | Returned
)
