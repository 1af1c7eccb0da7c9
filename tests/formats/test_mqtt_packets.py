"""Messages that are too long are cut on their way in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.formats.mqtt_packets import PacketLimit


def varint(value: int) -> bytes:
    made = b""
    while True:
        value, byte = divmod(value, 128)
        made += bytes((byte | (0x80 if value else 0),))
        if not value:
            return made


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + varint(len(body)) + body


def publish(topic: bytes, payload: bytes, qos: int, properties: bytes | None) -> bytes:
    head = len(topic).to_bytes(2, "big") + topic + (b"\x01\x02" if qos else b"")
    return packet(
        0x30 | qos << 1, head + (b"" if properties is None else varint(len(properties)) + properties) + payload
    )


LIMIT = 20
_MESSAGES = st.tuples(st.binary(max_size=30), st.binary(max_size=200), st.integers(0, 2), st.binary(max_size=150))
_OTHERS = st.sampled_from([packet(0x40, b"\0\1"), packet(0xD0, b""), packet(0x62, b"\0\7")])


@given(st.lists(_MESSAGES | _OTHERS, max_size=8), st.lists(st.integers(1, 60), max_size=30), st.booleans())
def test_only_what_is_too_long_comes_out_shorter(items: list, cuts: list[int], five: bool) -> None:
    """However the bytes are cut: all else as it was, and of a long message its topic, its number and its beginning."""
    stream, wanted = b"", b""
    for item in items:
        if isinstance(item, bytes):
            stream += item
            wanted += item
            continue
        topic, payload, qos, properties = item
        whole = publish(topic, payload, qos, properties if five else None)
        cut = publish(topic, payload[: LIMIT + 1], qos, b"" if five else None)
        body = (
            len(topic) + 2 + 2 * bool(qos) + len(payload) + (len(varint(len(properties)) + properties) if five else 0)
        )
        stream += whole
        wanted += whole if body <= LIMIT else cut
    limit = PacketLimit(LIMIT, five=five)
    made, place = b"", 0
    for size in [*cuts, len(stream)]:
        made += limit.feed(stream[place : place + size])
        place += size
    assert made == wanted


def test_a_claim_of_256_mib_takes_no_room() -> None:
    """What is held is the head; of the payload, the beginning is passed on, and the rest is let go as it comes."""
    limit = PacketLimit(1_000, five=False)
    made = limit.feed(b"\x30\xff\xff\xff\x7f\x00\x01T")
    for _ in range(1_000):
        made += limit.feed(bytes(65_536))
    assert len(made) == 1_001 + 1 + 2 + 3
    assert limit._held == b""


@pytest.mark.parametrize(
    "data", [b"\x30\xff\xff\xff\xff\x01", b"\x90\xff\x7f", b"\x32\x80\x10\xff\xff" + bytes(70_000)]
)
def test_what_is_no_mqtt_ends_the_connection(data: bytes) -> None:
    """A length of five bytes, a long packet that is no message, a topic longer than its packet."""
    with pytest.raises(ConnectionError):
        PacketLimit(1_000, five=False).feed(data)
