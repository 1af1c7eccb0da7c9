"""What a lane does with each message. The transport around it is a socket (`lane_main`) or nothing (`inline.py`)."""

from __future__ import annotations

import pickle
import struct
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.blame import Orders
from tidemill.core.chain import Chain
from tidemill.core.order import input_order
from tidemill.core.outcome import Outcome
from tidemill.errors import EngineError, PlanError, TidemillError
from tidemill.formats.packed import Packed, Packer, TextTables, Unpacker, packed_bytes
from tidemill.lanes.framing import Payload
from tidemill.lanes.object_states import received_states, sent_states
from tidemill.lanes.platform import ProcessorQueue
from tidemill.lanes.wire import (
    DEAD_ROWS_ORDER,
    Admit,
    Committed,
    Copied,
    CopyState,
    Failed,
    KindsFixed,
    LoadPlan,
    Made,
    Message,
    Objects,
    OpenStage,
    Output,
    Ready,
    Restore,
    Result,
    Slot,
    StageChanged,
    Stop,
    ToLane,
    Work,
)
from tidemill.letters import WRONG_TYPE
from tidemill.orders import Orders as FieldOrders
from tidemill.schema import KINDS, Kind
from tidemill.stages.state import StateMemory
from tidemill.stages.state_copy import used_parts
from tidemill.stages.statistics.compiled import Kernels, address_of, load_kernels

__all__ = ["MADE_AT_ONCE", "Worker", "pack_frame", "pack_made", "pack_rows", "row_as_json"]

_WORD: Final = 8  # bytes
_NOTHING: Final = bytearray()
MADE_AT_ONCE: Final = 4_096
"""Rows that are packed together, where stages made some: what the parent unpacks in one turn of its loop."""
Copy = Callable[[int, memoryview], None]
_NUMBER: Final = struct.Struct("=q")
Send = Callable[[Message, bytes | bytearray | memoryview], None]


class Worker:
    """One lane's stages over its state memory and the slabs.

    ``copy`` puts bytes at a place of a memory as large as ``state``; ``slabs`` are the buffers that `Work.memory` numbers; ``send`` hands a message with its payload to the parent and
    returns when it is out of this process's hands. Only one that is ``replaceable`` says what another would go on with.
    """

    def __init__(self, state: Any, copy: Copy, slabs: list[Any], send: Send, *, replaceable: bool = True) -> None:
        self._replaceable = replaceable
        self._state = state
        self._copy = copy
        self._slabs = slabs
        self._send = send
        self._kernels: Kernels | None = None  # where they are loaded anyway, and compiled
        self._unpacker = Unpacker()
        self._kinds_told = 0
        self._memory: StateMemory | None = None
        self._chain: Chain | None = None
        self._queue = ProcessorQueue()

    def handle(self, message: ToLane, payload: Payload = _NOTHING) -> bool:
        """Act on a message; False when it was the last."""
        try:
            match message:
                case Work():
                    self._work(message)
                case Admit():
                    self._admit(message)
                case KindsFixed():
                    self._fix(message.kinds)
                case Restore():
                    self._restore(message.objects)
                case StageChanged():
                    self._change(message, payload)
                case OpenStage():
                    self._open(payload)
                case CopyState():
                    self._copy_state(message)
                case LoadPlan():
                    self._load(message)
                case Stop():
                    return False
        except TidemillError as error:
            self._send(Failed(type(error).__name__, str(error)), b"")
            return False
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - ours, since the chain catches what the user's functions raise
            told = f"a lane failed: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            self._send(Failed(EngineError.__name__, told), b"")
            return False
        return True

    def _load(self, message: LoadPlan) -> None:
        try:
            stages, layout = pickle.loads(message.stages)  # noqa: S301 - our own parent's bytes
            self._memory = StateMemory(layout, self._state)
            self._memory.roll_back()
            self._chain = Chain(stages, self._memory, time.monotonic_ns)
            if any(stage.uses_kernels for stage in stages):
                self._use(load_kernels())
        except (TidemillError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PlanError(f"a lane could not load the plan: {error}\n{traceback.format_exc()}") from error
        self._fix(message.kinds)
        self._send(Ready(), b"")

    def _use(self, kernels: Kernels) -> None:
        """Move values between a slab and this lane's rows by compiled code."""
        if kernels.kind == "compiled":
            self._kernels = kernels
            self._unpacker = Unpacker(kernels.pick)

    def _admit(self, message: Admit) -> None:
        assert self._chain is not None
        self._chain.admit(message.keys, message.first_slot)

    def _restore(self, objects: Objects) -> None:
        assert self._chain is not None
        self._chain.hold_objects(objects.stage, received_states(objects))

    def _change(self, message: StageChanged, pickled: Payload) -> None:
        assert self._chain is not None
        self._chain.change(message.stage, pickle.loads(pickled))  # noqa: S301 - our own parent's bytes

    def _open(self, pickled: Payload) -> None:
        try:
            pickle.loads(pickled).opened()  # noqa: S301 - our own parent's bytes
        except (TidemillError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PlanError(f"{type(error).__name__}: {error}") from error
        self._send(Ready(), b"")

    def _copy_state(self, message: CopyState) -> None:
        """The word of it may be lost with this process: the copy itself says, last of all, that it is whole."""
        assert self._memory is not None
        for at, part in used_parts(self._memory, message.slots):
            self._copy(at, part)
        self._copy(0, memoryview(_NUMBER.pack(message.number)))
        self._send(Copied(message.number), b"")

    def _fix(self, kinds: dict[int, dict[str, str]]) -> None:
        assert self._chain is not None
        for stage, columns in kinds.items():  # what this lane has learned and the parent not yet heard stays
            self._chain.kinds.setdefault(stage, {}).update({name: Kind(kind) for name, kind in columns.items()})
        self._kinds_told = sum(map(len, self._chain.kinds.values()))

    # -- one slab --------------------------------------------------------------------------------------

    def _work(self, work: Work) -> None:
        """Run the stages over this lane's rows, hand over the result, then commit: in this order, see `Result`."""
        assert self._memory is not None
        assert self._chain is not None
        start = _Stopwatch(self._queue)
        buffer = self._slabs[work.memory]
        rows = np.frombuffer(buffer, np.int32, work.rows, work.rows_at)
        batch = self._unpacker.batch(work.packed, buffer, rows)
        slots = np.frombuffer(buffer, np.int32, work.packed.rows, work.slots_at).take(rows, mode="wrap")
        batch.key_column = Column(Kind.TEXT, slots, texts=self._chain.key_texts)
        self._memory.begin(work.slab)
        devices = None
        if work.devices_at >= 0:
            devices = np.frombuffer(buffer, np.int32, work.packed.rows, work.devices_at).take(rows, mode="wrap")
        marks = _marks(work, buffer)
        orders = _orders(work, rows, self._unpacker.taken_unread())
        outcome = self._chain.run(batch, slots, orders, places=rows, marks=marks, devices=devices)
        result, payload = self._result(work, rows, outcome, buffer, start)
        self._send(result, payload)
        self._memory.commit(work.slab)
        self._send(Committed(work.slab), b"")

    def _result(
        self, work: Work, rows: NDArray[np.int32], outcome: Outcome, buffer: Any, start: _Stopwatch
    ) -> tuple[Result, bytearray]:
        made: list[Made] | None = None
        packed: Packed | None
        outputs: list[Output] = []
        if outcome.ends is not None:
            assert self._chain is not None
            kept, packed, kept_at = len(outcome.batch), None, -1
            payload, made = pack_made(outcome, self._chain.key_texts)
        else:
            survivors = rows if outcome.rows is None else rows[outcome.rows]
            kept = len(survivors)
            outputs, framed = self._place(outcome, survivors, work, buffer)
            payload, packed, kept_at = pack_frame(
                framed, len(survivors), None if outcome.rows is None else survivors, outcome.orders
            )
        dead = [(int(rows[d.row]), d.stage, d.reason_code, d.reason) for d in outcome.dead if d.made is None]
        result = Result(
            work.slab,
            start.busy_ns(),
            outputs,
            packed,
            kept_at,
            kept,
            dead,
            outcome.counts,
            self._learned(),
            outcome.gone,
            made,
            sorted(
                (
                    (d.place, d.end, d.key, d.stage, d.reason_code, d.reason, row_as_json(d.made))
                    for d in outcome.dead
                    if d.made is not None
                ),
                key=DEAD_ROWS_ORDER,
            ),
            outcome.stage_ns,
            self._changed_objects(),
            outcome.made_came,
        )
        return result, payload

    def _changed_objects(self) -> list[Objects]:
        assert self._chain is not None
        if not self._replaceable:
            return []
        return [sent_states(stage, states) for stage, states in self._chain.changed_objects().items()]

    def _place(
        self, outcome: Outcome, survivors: NDArray[np.int32], work: Work, buffer: Any
    ) -> tuple[list[Output], dict[str, Column]]:
        """Write what has room in the slab at the rows' own places; the rest goes in the frame."""
        room = {slot.name: slot for slot in work.results}
        writer = _Writer(self._kernels, work, survivors, buffer)
        carried, outputs, framed = outcome.carried, [], {}
        for name, column in outcome.batch.columns.items():
            if name in carried:
                outputs.append(Output(name, "carried", carried[name]))
            elif (slot := room.get(name)) is not None and column.tags is None and column.kind is KINDS[slot.kind]:
                writer.put(slot, column)
                outputs.append(Output(name, "slab"))
            else:
                framed[name] = column
                outputs.append(Output(name, "frame"))
        return outputs, framed

    def _learned(self) -> dict[int, dict[str, str]] | None:
        assert self._chain is not None
        known = sum(map(len, self._chain.kinds.values()))
        if known == self._kinds_told:
            return None
        self._kinds_told = known
        return {
            stage: {name: kind.value for name, kind in columns.items()} for stage, columns in self._chain.kinds.items()
        }


class _Stopwatch:
    """How long a lane works on something: by the clock, but for the time in which others had the processor.

    On a busy machine a batch of one record would seem to take milliseconds, and batches sized by that stay small.
    """

    def __init__(self, queue: ProcessorQueue) -> None:
        self._queue = queue
        self._start = time.perf_counter_ns()
        self._waited_ns = queue.waited_ns()

    def busy_ns(self) -> int:
        waited = self._queue.waited_ns() - self._waited_ns
        return max(time.perf_counter_ns() - self._start - waited, 0)  # two clocks, of which one is being set


def _orders(work: Work, rows: NDArray[np.int32], unread: dict[int, str]) -> Orders | None:
    """What is different with this slab: ``unread`` rows, by their places in it, are set aside before the first stage."""
    if not work.isolate and not work.quarantine and not unread:
        return None
    orders = Orders(set(work.isolate))
    if unread:
        own = {row: (WRONG_TYPE, unread[place]) for row, place in enumerate(rows.tolist()) if place in unread}
        orders.quarantine[0] = own
    for row in work.quarantine:
        orders.quarantine.setdefault(row.stage, {})[row.row] = (row.reason_code, row.reason)
    return orders


def _marks(work: Work, buffer: Any) -> NDArray[np.int64] | None:
    if work.marks_at < 0:
        return None
    return np.frombuffer(buffer, np.int64, max(work.packed.rows, 1) + 1, work.marks_at)


def row_as_json(row: dict[str, Any]) -> bytes:
    """A row for the dead letters, with what JSON has no word for as text."""
    return msgspec.json.encode(row, enc_hook=str)


class _Writer:
    """Writes result columns into the slab, at the places of the rows that are left."""

    def __init__(self, kernels: Kernels | None, work: Work, survivors: NDArray[np.int32], buffer: Any) -> None:
        self._kernels = kernels
        self._rows, self._survivors, self._buffer = work.packed.rows, survivors, buffer
        self._base = 0 if kernels is None else address_of(buffer)
        own = self._base and len(survivors) == work.rows
        self._rows_at: int | NDArray[np.int32] = self._base + work.rows_at if own else survivors
        self._places: NDArray[np.intp] | None = None

    def put(self, slot: Slot, column: Column) -> None:
        values = column.values
        if self._kernels is not None and values.itemsize == _WORD:
            self._kernels.put(self._base + slot.at, self._rows_at, values)
            return
        if self._places is None:
            self._places = self._survivors.astype(
                np.intp
            )  # NumPy writes through its own index type three times as fast
        np.frombuffer(self._buffer, values.dtype, self._rows, slot.at)[self._places] = values


def pack_frame(
    framed: dict[str, Column],
    count: int,
    survivors: NDArray[np.int32] | None,
    orders: FieldOrders | None,
) -> tuple[bytearray, Packed | None, int]:
    """What goes beside a `Result`: the payload, where the columns lie in it, and where the surviving rows do."""
    if not framed and survivors is None and orders is None:
        return bytearray(), None, -1
    room = sum(array.nbytes for array in (survivors, orders[0] if orders else None) if array is not None)
    payload = bytearray(packed_bytes(framed) + room + 256)
    packer = Packer(payload)
    kept_at = -1 if survivors is None else packer.array(survivors)
    frame = Batch(framed, rows=count)
    frame.orders = orders
    packed = packer.batch(frame) if framed or orders is not None else None
    del frame
    used = packer.used
    del packer  # the view must go before the bytes can be cut
    del payload[used:]
    return payload, packed, kept_at


def pack_made(outcome: Outcome, names: NDArray[np.object_]) -> tuple[bytearray, list[Made]]:
    """The payload of a `Result` with rows that stages made; ``names`` are the sensors' by key slot.

    One watermark step may make millions of rows: they are put in order here, and packed by some thousands, so that the
    parent need not look at more than that in one turn of its loop, and no copy of them all is made.
    """
    assert outcome.places is not None
    assert outcome.ends is not None
    order = input_order(outcome.places, outcome.ends, outcome.slots, names)
    payload, made, tables = bytearray(), [], TextTables()
    for start in range(0, len(order), MADE_AT_ONCE):
        rows = order[start : start + MADE_AT_ONCE]
        arrays = outcome.places[rows], outcome.ends[rows], outcome.slots[rows]
        made.append(pack_rows(payload, tables, outcome.batch.take(rows), arrays))
    return payload, made


def pack_rows(
    payload: bytearray, tables: TextTables, part: Batch, arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
) -> Made:
    """Put rows behind what the payload has: ``part`` has their columns, the arrays their places, ends and key slots."""
    part.columns = {name: column.without_unused_texts() for name, column in part.columns.items()}
    room = sum(array.nbytes for array in arrays) + len(part) * _WORD * 2  # times, and field orders
    buffer = bytearray(packed_bytes(part.columns) + room + 512)
    packer = Packer(buffer, tables)
    packed, (places_at, ends_at, slots_at) = packer.batch(part), [packer.array(array) for array in arrays]
    made = Made(len(payload), packed, places_at, ends_at, slots_at)
    packer.reserve(0)  # up to where the next one may begin
    payload += memoryview(buffer)[: packer.used]
    return made
