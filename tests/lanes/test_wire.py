"""Frames: any message, cut anywhere, comes out whole; a lying stream is refused."""

import contextlib
import itertools
import struct

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.errors import EngineError
from tidemill.formats.packed import Packed, PackedColumn
from tidemill.lanes.framing import MAX_FRAME, READ_BYTES, Discarded, FrameReader, frame
from tidemill.lanes.wire import (
    Admit,
    Call,
    Committed,
    Failed,
    Forget,
    Function,
    KindsFixed,
    LoadPlan,
    Logged,
    OpenSink,
    Output,
    Quarantined,
    Ready,
    Result,
    Returned,
    Revoke,
    SinkClosed,
    Slot,
    Stop,
    Tried,
    Work,
    Write,
    Written,
)

PACKED = Packed(2, [PackedColumn("value", "float", 64), PackedColumn("unit", "text")], None, 128, -1, [["a", "b"]])
TO_LANE = [
    LoadPlan(b"\x00stages", {0: {"x": "float"}}),
    Admit(3, ["S1", "ü", ""]),
    KindsFixed({2: {"y": "text"}}),
    Work(7, 1, PACKED, 0, 2, 64, [Slot("y", "float", 256)], [1], [Quarantined(1, 0, "raised", "why")]),
    OpenSink(b"sink", b"schema", 0.5),
    Write(3, 1, PACKED),
    Function(5),
    Forget(5),
    Call(12, 3, 5, True, [10, 20]),
    Call(13, 4, 0, False, [10], 4096, 80_000),
    Revoke(4),
    Stop(),
]
FROM_LANE = [
    Ready(),
    Result(7, 1000, [Output("y", "slab"), Output("v", "carried", "value")], None, -1, 2, [(1, 0, "a", "b")], {}, None),
    Result(8, 1, [], PACKED, 0, 1, [], {"unknown_key": 3}, {0: {"x": "bool"}}, {"late": 2}),
    Committed(7),
    Failed("StageError", "no"),
    Written(3, 2, 10, 100, {"note": 3}),
    Tried("connection refused"),
    Logged(30, "it is gone: connecting again"),
    SinkClosed(10, 100, {}),
    Returned(12, 1_000, [False, True], [10, 20]),
    Returned(13, 1_000, [False], [10], 64, 80_000, [4], "ndarray"),
]


def read(reader, data, cuts):
    got = []
    bounds = [0, *sorted(cuts), len(data)]
    for start, stop in itertools.pairwise(bounds):
        reader.feed(memoryview(data)[start:stop])
        got.extend(reader.messages())
    return got


@given(st.data(), st.booleans())
def test_frames_survive_any_cut(data, to_lane):
    """However a read cuts the bytes, the messages come out whole, in order, each with its payload."""
    chosen = data.draw(
        st.lists(st.tuples(st.sampled_from(TO_LANE if to_lane else FROM_LANE), st.binary(max_size=40)), max_size=6)
    )
    stream = b"".join(bytes(part) for message, payload in chosen for part in frame(message, payload))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    assert read(FrameReader(to_lane=to_lane), stream, cuts) == chosen


@pytest.mark.parametrize(("to_lane", "messages"), [(True, TO_LANE), (False, FROM_LANE)])
def test_byte_by_byte(to_lane, messages):
    """Each message of either way, read one byte at a time."""
    chosen = [(message, bytes(range(number))) for number, message in enumerate(messages)]
    stream = b"".join(bytes(part) for message, payload in chosen for part in frame(message, payload))
    assert read(FrameReader(to_lane=to_lane), stream, range(1, len(stream))) == chosen


@settings(max_examples=20)
@given(st.data())
def test_frames_larger_than_the_kept_memory(data):
    """They come whole, whatever is before and behind them, and their payloads can be written to, on even addresses."""
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 5_000, READ_BYTES - 40, READ_BYTES, 700_000]), max_size=4))
    chosen = [(Committed(number), bytes([number]) * size) for number, size in enumerate(sizes)]
    stream = b"".join(bytes(part) for message, payload in chosen for part in frame(message, payload))
    reader, got, at = FrameReader(to_lane=False), [], 0
    while at < len(stream):
        count = min(len(reader.room()), len(stream) - at, data.draw(st.sampled_from([5, 70_000, READ_BYTES])))
        assert count
        reader.feed(stream[at : at + count])
        at += count
        got.extend(reader.messages())
    assert got == chosen
    for _, payload in got:
        if payload:
            assert np.frombuffer(payload, np.uint8).ctypes.data % 16 == 0
            payload[0] = 7


def test_a_length_that_lies_takes_no_memory():
    """As long as a frame may be: what is announced is not touched before it comes."""
    before = psutil.Process().memory_info().rss
    reader = FrameReader(to_lane=False)
    reader.feed(struct.pack("<II", 0, MAX_FRAME) + bytes(READ_BYTES - 8))
    assert list(reader.messages()) == []
    reader.feed(bytes(1_000_000))
    assert list(reader.messages()) == []
    assert psutil.Process().memory_info().rss - before < 20 << 20


def test_a_large_frame_is_read_to_where_it_stays():
    """However large: each read goes behind the one before, is no larger than the others, and moves nothing."""
    head = b"".join(frame(Committed(1), b"x" * 20_000))[:-20_000]
    payload = 300_000_000
    reader = FrameReader(to_lane=False)
    reader.feed(struct.pack("<II", len(head) - 8, payload) + head[8:] + bytes(100))
    places, left = [], payload - 100
    while left:
        assert list(reader.messages()) == []
        room = reader.room()
        places.append(np.frombuffer(room, np.uint8).ctypes.data - (payload - left))
        count = min(left, len(room))
        assert 0 < len(room) <= READ_BYTES
        reader.came(count)
        left -= count
    ((message, data),) = reader.messages()
    assert (message, len(data)) == (Committed(1), payload)
    assert len(set(places)) == 1


def test_a_frame_for_which_there_is_no_memory_is_refused(monkeypatch):
    """Its stream cannot be read on."""
    monkeypatch.setattr("tidemill.lanes.framing.np.empty", lambda *_: bytearray(1 << 62))
    reader = FrameReader(to_lane=True)
    reader.feed(struct.pack("<II", 0, MAX_FRAME))
    with pytest.raises(ValueError, match="2147483656 bytes, for which there is no memory"):
        list(reader.messages())


@given(st.data())
def test_a_frame_of_a_lane_for_which_there_is_no_memory_is_discarded(data):
    """Its message is given, and how long its payload was; the frames around it are as they were, wherever it is cut."""

    def none(*_):
        raise MemoryError

    large = READ_BYTES + data.draw(st.integers(-40, 3 * READ_BYTES))
    payloads = [b"one", bytes(large), b"", bytes(large), b"two"]
    stream = b"".join(b"".join(frame(Committed(n), payload)) for n, payload in enumerate(payloads))
    cuts = data.draw(st.lists(st.integers(0, 60) | st.integers(0, len(stream)), max_size=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidemill.lanes.framing.np.empty", none)
        reader, got = FrameReader(to_lane=False), []
        for start, stop in itertools.pairwise([0, *sorted(cuts), len(stream)]):
            rest = memoryview(stream)[start:stop]
            while rest:
                count = min(len(rest), len(reader.room()))
                reader.feed(rest[:count])
                got.extend(reader.messages())
                rest = rest[count:]
    assert [(message.slab, len(payload)) for message, payload in got] == [
        (n, len(payload)) for n, payload in enumerate(payloads)
    ]
    is_large = any(isinstance(payload, Discarded) for _, payload in got)
    assert is_large or large < READ_BYTES
    assert bytes(got[-1][1]) == b"two"


def test_a_message_for_which_there_is_no_memory_is_refused(monkeypatch):
    """One that is itself larger than the memory that is kept cannot be given."""

    def none(*_):
        raise MemoryError

    monkeypatch.setattr("tidemill.lanes.framing.np.empty", none)
    reader = FrameReader(to_lane=False)
    reader.feed(struct.pack("<II", READ_BYTES, 5))
    with pytest.raises(ValueError, match="for which there is no memory"):
        list(reader.messages())


def test_many_frames_in_one_read():
    """A thousand messages that arrive at once are all there."""
    stream = b"".join(b"".join(frame(Committed(n), b"x" * (n % 5))) for n in range(1000))
    got = read(FrameReader(to_lane=False), stream, [])
    assert [(message.slab, len(payload)) for message, payload in got] == [(n, n % 5) for n in range(1000)]


@pytest.mark.parametrize("lengths", [(2**32 - 1, 0), (0, 2**32 - 1), (MAX_FRAME, 1), (2**31, 2**31)])
def test_a_lying_length_is_refused_at_once(lengths):
    """A length that no frame has is refused as soon as it is read, before anything is waited for."""
    reader = FrameReader(to_lane=False)
    reader.feed(struct.pack("<II", *lengths))
    with pytest.raises(ValueError, match="a frame announces"):
        list(reader.messages())


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_waited_for(data):
    """Bytes that are no frames raise the documented ValueError, or look like the start of one."""
    reader = FrameReader(to_lane=False)
    reader.feed(data)
    with contextlib.suppress(ValueError):
        list(reader.messages())


@pytest.mark.parametrize("to_lane", [False, True])
def test_a_message_goes_one_way(to_lane):
    """What only the other side may say is refused."""
    reader = FrameReader(to_lane=to_lane)
    reader.feed(b"".join(frame(Committed(1) if to_lane else Stop())))
    with pytest.raises(ValueError, match="Invalid value"):
        list(reader.messages())


class Huge(bytes):
    """Bytes that say they are too many."""

    def __len__(self):
        return MAX_FRAME


def test_too_much_is_not_sent():
    """A payload that the other side would refuse is refused by the sender, who can say what it was."""
    with pytest.raises(EngineError, match="cannot be sent to another process"):
        frame(Committed(1), Huge())
