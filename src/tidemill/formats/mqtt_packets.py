"""Packets of MQTT within a bound: what is too long is cut before anybody makes room for it."""

from __future__ import annotations

from typing import Final

__all__ = ["PacketLimit"]

_PUBLISH: Final = 3
_MOST_BYTES: Final = 4
"""Of a packet's length."""


class PacketLimit:
    """Bytes from a broker → the same bytes, but for messages of more than ``limit`` bytes, topic included.

    A longer one comes out with the first ``limit`` + 1 bytes of its payload, which no other message can have, and under
    MQTT 5 without its properties; its lengths are made to fit. Never holds more than a topic. Raises `ConnectionError`
    for what cannot be a packet of MQTT.

    >>> limit = PacketLimit(5, five=False)
    >>> limit.feed(b"\\x30\\x09\\x00\\x01T" + b"123456") + limit.feed(b"\\x30\\x04\\x00\\x01T1")
    b'0\\t\\x00\\x01T1234560\\x04\\x00\\x01T1'
    >>> PacketLimit(5, five=False).feed(b"\\x30\\x0d\\x00\\x01T" + b"1234567890")
    b'0\\t\\x00\\x01T123456'
    """

    def __init__(self, limit: int, *, five: bool) -> None:
        self._limit = limit
        self._five = five
        self._held = b""
        """The beginning of a packet of which it is not known yet what to do with it."""
        self._steps: list[tuple[bool, int]] = []
        """What is to be done with the bytes that come, the next last: whether so many of them are passed on."""

    def feed(self, data: bytes) -> bytes:
        """What is passed on of it, and of what was held."""
        if self._held:
            data = self._held + data
            self._held = b""
        made: list[bytes] = []
        start = place = 0  # what is between them is passed on as it is
        while place < len(data):
            if self._steps:
                passed, count = self._steps.pop()
                taken = min(count, len(data) - place)
                if taken < count:
                    self._steps.append((passed, count - taken))
                place += taken
                if not passed:
                    made.append(data[start : place - taken])
                    start = place
                continue
            head = _varint(data, place + 1)
            if head is None:
                break
            length, body = head
            if length <= self._limit:
                self._steps.append((True, body - place + length))
                continue
            cut = self._cut(data, place, length, body)
            if cut is None:
                break
            made += (data[start:place], cut[0])
            start = place = cut[1]
        made.append(data[start:place])
        self._held = data[place:]
        return b"".join(made) if len(made) > 1 else made[0]

    def _cut(self, data: bytes, place: int, length: int, body: int) -> tuple[bytes, int] | None:
        """A shorter head for a long message, and where what follows begins; None when not enough has come."""
        command = data[place]
        if command >> 4 != _PUBLISH:
            raise ConnectionError(f"the broker sent a packet of {length} bytes that is no message")
        if body + 2 > len(data):
            return None
        end = body + 2 + int.from_bytes(data[body : body + 2], "big") + (2 if command & 0x06 else 0)
        if end > len(data):
            return None
        properties, payload = 0, end
        if self._five:
            found = _varint(data, end)
            if found is None:
                return None
            properties, payload = found
        size = body + length - payload - properties
        if size < 0:
            raise ConnectionError("the broker sent a message whose lengths contradict each other")
        kept = min(size, self._limit + 1)
        head = data[body:end] + (b"\0" if self._five else b"")
        self._steps += [step for step in ((False, size - kept), (True, kept), (False, properties)) if step[1]]
        return bytes((command,)) + _length(len(head) + kept) + head, payload


def _varint(data: bytes, place: int) -> tuple[int, int] | None:
    """A length, and where it ends; None when it has not come whole."""
    value = 0
    for count in range(_MOST_BYTES):
        if place + count >= len(data):
            return None
        byte = data[place + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, place + count + 1
    raise ConnectionError("the broker sent a length of more than four bytes")


def _length(value: int) -> bytes:
    made = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        if not value:
            made.append(byte)
            return bytes(made)
        made.append(byte | 0x80)
