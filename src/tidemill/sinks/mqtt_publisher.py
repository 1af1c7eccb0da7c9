"""Publishing to a broker: what it has not acknowledged is kept, and published again over the next connection."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from tidemill.errors import InputError, OutsideError
from tidemill.formats.brokers import Broker, refusal
from tidemill.sinks.connecting import ANSWER_S, PROGRESS_S, connected, patiently

__all__ = ["Publisher"]

_MESSAGES: Final = 1_000
"""Published and not acknowledged, at most; the broker may want fewer."""
_BYTES: Final = 8 << 20
"""The same in bytes; one message may always go."""
_LARGEST: Final = (1 << 28) - 1
"""Bytes of a packet of MQTT."""
_HEAD: Final = 16
"""Of these, what is neither topic nor payload, at most."""
_READ: Final = 1 << 16
_TOGETHER: Final = 1 << 16
"""Bytes that wait here before they are sent."""
_UNUSABLE: Final = (144, 149, 153)
"""Reason codes of a broker that does not take this message, whatever comes of the others."""
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class _Sent:
    """A message that the broker has not acknowledged."""

    topic: str
    payload: bytes


class _Wire:
    """A connected, non-blocking socket as paho wants one. What is sent waits for `flush`."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._came = b""
        self._place = 0
        self.going = bytearray()
        self.open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        """It is not, whatever is asked for."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read that the system knows nothing of."""
        return self.open and (
            self._place < len(self._came) or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0)
        )

    def recv(self, size: int) -> bytes:
        if self._place == len(self._came):
            self._came, self._place = self._socket.recv(_READ), 0
        start = self._place
        self._place = min(start + size, len(self._came))
        return self._came[start : self._place]

    def send(self, data: bytes | bytearray) -> int:
        self.going += data
        return len(data)

    def flush(self) -> None:
        """Send what waits, as far as it goes. Raises `OSError` when the connection is lost."""
        while self.going and self.open:
            try:
                sent = self._socket.send(self.going)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            del self.going[:sent]

    def close(self) -> None:
        self.open = False
        self._socket.close()


class _Client(paho.Client):
    """One connection; a new one is made for the next. Behind paho's doors: its socket, and why it is refused, also where
    paho would try again by itself."""

    def __init__(self, wire: _Wire, client_id: str, *, five: bool) -> None:
        options: dict[str, Any] = {} if five else {"clean_session": True}
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
            **options,
        )
        self._wire = wire
        self.refused = 0
        """Why the broker does not take the connection."""
        self.max_inflight_messages_set(0)  # it is bounded by who publishes

    def _create_socket(self) -> Any:
        return self._wire

    def _handle_connack(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        self.refused = packet[1] if len(packet) > 1 else 0
        return super()._handle_connack()


class Publisher:
    """Publishes in order, within bounds, and returns from `drain` when the broker has all of it.

    After a lost connection, what was not acknowledged is published again, in order, over a new one: at least once. With QoS
    0 a message counts when the system has taken it. All calls block, and come from one thread.

    Raises `InputError` for what a broker refuses for good, `OutsideError` when it is away for longer than `PATIENCE_S`.
    """

    def __init__(
        self,
        broker: Broker,
        tls: ssl.SSLContext | None,
        client_id: str,
        *,
        five: bool,
        qos: int,
        retain: bool,
        told: str,
        tried: Callable[[str], None],
    ) -> None:
        self._broker, self._tls, self._client_id, self._told = broker, tls, client_id, told
        self._five, self._qos, self._retain, self._tried = five, qos, retain, tried
        self._wire: _Wire | None = None
        self._client: _Client | None = None
        self._lost = ""
        """Why the connection is gone; empty while it stands."""
        self._granted: bool | None = None
        self._window = _MESSAGES
        self._largest = _LARGEST
        self._under_way: dict[int, _Sent] = {}
        self._bytes = 0
        self._acknowledged: deque[tuple[int, int]] = deque()
        self.unusable = 0
        """Messages that the broker refused, each for itself."""

    # -- what is published -------------------------------------------------------------------------------

    def fits(self, topic: str, payload: bytes) -> bool:
        """Whether the broker takes messages of this size, as far as it has said."""
        return len(topic.encode()) + len(payload) + _HEAD <= self._largest

    def publish(self, topic: str, payload: bytes) -> None:
        """Hand over; wait while as much is under way as may be."""
        if len(self._under_way) >= self._window or self._bytes >= _BYTES:
            self._while(lambda: len(self._under_way) >= self._window or self._bytes >= _BYTES)
        while self._lost:
            self._reconnect()
        self._send(_Sent(topic, payload))

    def drain(self) -> None:
        """Return when everything published was acknowledged."""
        self._while(lambda: self._waits)

    def _send(self, message: _Sent) -> None:
        assert self._client is not None
        assert self._wire is not None
        info = self._client.publish(message.topic, message.payload, self._qos, self._retain)
        self._under_way[info.mid] = message
        self._bytes += len(message.payload)
        if len(self._wire.going) >= _TOGETHER:
            self._turn(0)

    def _while(self, waits: Callable[[], bool]) -> None:
        """Turn as long as it is so, over as many connections as it takes."""
        since = time.monotonic()
        self._take()
        while waits():
            if not self._lost:
                left = since + PROGRESS_S - time.monotonic()
                if self._turn(max(left, 0)):
                    since = time.monotonic()
                elif left <= 0:
                    self._lost = f"it has acknowledged nothing for {PROGRESS_S:.0f} s"
            if self._lost:
                self._reconnect()
                since = time.monotonic()

    def _turn(self, wait_s: float) -> bool:
        """Send and receive once; whether anything was acknowledged."""
        wire, client = self._wire, self._client
        if wire is None or client is None or self._lost:
            return False
        try:
            wire.flush()
            if wire.ready or self._acknowledged or (self._granted and not self._waits):
                wait_s = 0
            came, _, _ = select.select([wire], [wire] if wire.going else [], [], wait_s)
            if came or wire.ready:
                client.loop_read()
                while wire.ready:
                    client.loop_read()
            if client.want_write():
                client.loop_write()
            wire.flush()
        except (OSError, ValueError) as error:
            self._lost = getattr(error, "strerror", None) or str(error)
        return self._take() or not self._waits

    @property
    def _waits(self) -> bool:
        return bool(self._under_way) or bool(self._wire is not None and self._wire.going)

    def _take(self) -> bool:
        took = False
        while self._acknowledged:
            mid, code = self._acknowledged.popleft()
            message = self._under_way.pop(mid, None)
            if message is None:
                continue
            took = True
            self._bytes -= len(message.payload)
            if code in _UNUSABLE:
                self.unusable += 1
            elif code >= 128:
                why, lasting = refusal(code)
                told = f"{self._broker} refuses what is published to {self._told}: {why}."
                self.close()
                raise (InputError if lasting else OutsideError)(told)
        return took

    # -- the connection ----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Try once."""
        self._wire = wire = _Wire(connected(self._broker.host, self._broker.port, self._tls, self._broker))
        self._client = client = _Client(wire, self._client_id, five=self._five)
        self._lost, self._granted = "", None
        self._acknowledged.clear()
        client.on_connect = self._on_connect
        client.on_publish = lambda _c, _d, mid, reason, _p: self._acknowledged.append((mid, reason.value))
        client.on_disconnect = self._on_disconnect
        client.username_pw_set(self._broker.username, self._broker.password)
        # 0: no pings. Who is idle would have to wake up for them; what matters is whether it acknowledges.
        client.connect_async(self._broker.host, self._broker.port, 0)
        client.reconnect()
        until = time.monotonic() + ANSWER_S
        while self._granted is None and not self._lost and (left := until - time.monotonic()) > 0:
            self._turn(left)
        if self._granted:
            return
        lost = self._lost
        self._drop()
        if client.refused:
            why, lasting = refusal(client.refused)
            raise (InputError if lasting else OutsideError)(f"{self._broker} refuses the connection: {why}.")
        if lost:
            raise OutsideError(f"{self._broker} ended the connection instead of an answer to CONNECT: {lost}.")
        raise OutsideError(f"{self._broker} does not answer to CONNECT.")

    def _connect_anew(self) -> None:
        self._drop()
        self.connect()

    def close(self) -> None:
        """Say goodbye, as far as that goes; what is under way is nobody's any more."""
        if self._client is not None and not self._lost:
            with contextlib.suppress(OSError, ValueError):
                self._client.disconnect()
                self._client.loop_write()
                if self._wire is not None:
                    self._wire.flush()
        self._drop()
        self._under_way.clear()
        self._bytes = 0

    def _drop(self) -> None:
        self._lost = self._lost or "it is closed"
        if self._wire is not None:
            self._wire.close()
        self._wire = self._client = None

    def _reconnect(self) -> None:
        """Connect again, and publish again what was not acknowledged."""
        _log.warning("%s is gone: %s. Connecting again.", self._broker, self._lost)
        try:
            patiently(self._connect_anew, tried=self._tried)
        except OutsideError:
            self._under_way.clear()
            raise
        again, self._under_way, self._bytes = self._under_way, {}, 0
        waiting = deque(again.values() if self._qos else ())
        while waiting and not self._lost:
            if len(self._under_way) < self._window and self._bytes < _BYTES:
                self._send(waiting.popleft())
            elif not self._turn(PROGRESS_S):
                self._lost = self._lost or f"it has acknowledged nothing for {PROGRESS_S:.0f} s"
        for (
            message
        ) in waiting:  # lost once more: the rest is still to come, behind what went; no number can be one of these
            self._under_way[-1 - len(self._under_way)] = message

    # -- paho's callbacks --------------------------------------------------------------------------------

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: Any, properties: Any) -> None:
        self._granted = not reason.is_failure
        self._window = min(_MESSAGES, getattr(properties, "ReceiveMaximum", _MESSAGES))
        self._largest = getattr(properties, "MaximumPacketSize", _LARGEST)

    def _on_disconnect(self, _client: object, _data: object, flags: Any, reason: Any, _properties: object) -> None:
        said = refusal(reason.value)[0] if flags.is_disconnect_packet_from_server else ""
        self._lost = self._lost or said or "the connection was lost"
