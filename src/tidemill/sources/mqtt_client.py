"""paho's client on our sockets, with messages handed over before anything is acknowledged.

Only this file and the sink's know the library, and only this one steps behind its public doors, at four places:

``_create_socket``   the sockets are connected on the event loop, read in large pieces and bounded: see `Wire`
``_handle_publish``  a message of QoS 2 is handed over when it comes. paho answers PUBREC to it at once and hands it over
                     with PUBREL: who is killed in between has lost it, since the broker sends it no more
``_handle_pubrel``   is then answered at once
``_handle_connack``  tells why a connection is refused, also where paho would try again by itself
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tidemill.formats.mqtt_packets import PacketLimit

__all__ = ["Client", "Message", "Wire", "asking", "expiring"]

_READ: Final = 1 << 16
_UNDER_WAY: Final = 4_096
"""Messages that the broker sends before it waits for an acknowledgement: as many may come twice after a crash. They are
acknowledged in groups, as the log syncs them, some milliseconds apart."""
"""Bytes taken from the socket at a time."""


@dataclass(slots=True)
class Message:
    """What came from the broker."""

    topic: bytes
    payload: bytes
    mid: int
    qos: int
    retained: bool
    again: bool = False
    """It was handed over before, in this run: there is only something to acknowledge."""


class Wire:
    """A connected, non-blocking socket as paho wants one. What is sent waits for `flush`: acknowledgements go together."""

    def __init__(self, connected: socket.socket, limit: PacketLimit) -> None:
        self._socket = connected
        self._limit = limit
        self._came = b""
        self._place = 0
        self._going = bytearray()
        self.open = True
        self.lingers = False
        """Whether `close`, which paho calls by itself, leaves the socket to whoever waits for the broker's end."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read that the system knows nothing of, so that it will not wake us for it."""
        return self.open and (self._place < len(self._came) or self._pending > 0)

    @property
    def _pending(self) -> int:
        return self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        """It is not, whatever is asked for."""

    def recv(self, buffer_size: int) -> bytes:
        while self._place == len(self._came):
            data = self._socket.recv(_READ)
            if not data:
                return b""
            self._came, self._place = self._limit.feed(data), 0
        start = self._place
        self._place = min(start + buffer_size, len(self._came))
        return self._came[start : self._place]

    def send(self, buffer: bytes | bytearray) -> int:
        self._going += buffer
        return len(buffer)

    def flush(self) -> bool:
        """Send what waits, as far as it goes; whether all has gone. Raises `OSError` when the connection is lost."""
        while self._going and (self.open or self.lingers):
            try:
                sent = self._socket.send(self._going)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            del self._going[:sent]
        return True

    def close(self) -> None:
        """A last attempt to send what waits, and the end."""
        if self.open:
            with contextlib.suppress(OSError):
                self.flush()
            self.open = False
        if not self.lingers:
            self._socket.close()

    def shut(self) -> None:
        """Nothing more will be sent. Raises `OSError`."""
        self._socket.shutdown(socket.SHUT_WR)

    def ended(self) -> bool:
        """Read what came, for nobody; whether the other side has ended it. Raises `OSError`."""
        try:
            while self._socket.recv(_READ):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        return True


class Client(paho.Client):
    """One connection; a new one is made for the next."""

    def __init__(self, wire: Wire, client_id: str, *, five: bool, clean: bool) -> None:
        options: dict[str, Any] = {} if five else {"clean_session": clean}
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
            **options,
        )
        self._wire = wire
        self._five = five
        self._half_way: set[int] = set()
        self._came: Callable[[Message], object] = lambda _: None
        self.refused: int | None = None
        """Why the broker does not take the connection; 0 when it does."""

    def hand_over(self, came: Callable[[Message], object], half_way: set[int]) -> None:
        """``came`` is called for each message. ``half_way`` holds those of QoS 2, by their numbers, that have come and of
        which the broker has not said yet that it knows; it belongs to the session and outlives this connection."""
        self._came, self._half_way = came, half_way

    def acknowledge(self, message: Message) -> None:
        """It is safe: the broker may forget it."""
        if message.qos == 1:
            self.ack(message.mid, 1)
        elif message.qos == 2:
            self._send_pubrec(message.mid)

    # -- behind paho's doors -----------------------------------------------------------------------------

    def _create_socket(self) -> Any:
        return self._wire

    def _handle_connack(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        self.refused = packet[1] if len(packet) > 1 else None
        return super()._handle_connack()

    def _handle_publish(self) -> MQTTErrorCode:
        command, packet = self._in_packet["command"], self._in_packet["packet"]
        qos = command >> 1 & 3
        end = 2 + int.from_bytes(packet[:2], "big")
        topic = bytes(packet[2:end])
        mid = 0
        if qos:
            mid = int.from_bytes(packet[end : end + 2], "big")
            end += 2
        if self._five:
            end = _after_properties(packet, end)
        if end > len(packet) or qos == 3:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        message = Message(topic, bytes(packet[end:]), mid, qos, bool(command & 1))
        if qos == 2:
            message.again = mid in self._half_way and bool(command & 8)  # DUP: else the broker has begun to count anew
            self._half_way.add(mid)
        self._came(message)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubrel(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        if len(packet) < 2:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        mid = int.from_bytes(packet[:2], "big")
        self._half_way.discard(mid)
        return self._send_pubcomp(mid)


def asking(expiry_s: int) -> Properties:
    """What a ``CONNECT`` of MQTT 5 asks for."""
    made = expiring(expiry_s, "CONNECT")
    made.ReceiveMaximum = _UNDER_WAY
    return made


def expiring(seconds: int, packet: str) -> Properties:
    """How long the broker keeps the session once the connection is gone, for a ``CONNECT`` or a ``DISCONNECT``."""
    made = Properties(getattr(PacketTypes, packet))  # type: ignore[no-untyped-call]
    made.SessionExpiryInterval = seconds
    return made


def _after_properties(packet: bytearray, place: int) -> int:
    length = shift = 0
    for byte in packet[place : place + 4]:
        length |= (byte & 0x7F) << shift
        shift += 7
        place += 1
        if byte < 0x80:
            return place + length
    return len(packet) + 1
