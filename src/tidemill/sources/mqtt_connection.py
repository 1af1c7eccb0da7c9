"""One connection to a broker, driven by the event loop: no thread, and nothing that waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paho.mqtt.subscribeoptions import SubscribeOptions

from tidemill.clock import Clock
from tidemill.errors import InputError, OutsideError
from tidemill.formats.brokers import Broker, refusal
from tidemill.formats.mqtt_packets import PacketLimit
from tidemill.keep_alive import keep_alive
from tidemill.sources.mqtt_client import Client, Message, Wire, asking, expiring
from tidemill.tls import no_tls

__all__ = ["UNEXPLAINED", "Block", "Connection", "Session"]

UNEXPLAINED: Final = "the connection was lost"
"""The reason when nobody gives one."""

_ANSWER_S: Final = 10.0
"""In which a broker must answer, to each of: the connection, TLS, CONNECT, SUBSCRIBE."""
_GOODBYE_S: Final = 8.0
"""For how long it may read what it was told last."""
_KEEPALIVE_S: Final = 30
_MISC_S: Final = 1.0
"""How often paho looks whether a ping is due."""
_PACKETS: Final = 64
"""Read in one turn of the loop: below 1 ms."""
_OVERHEAD: Final = 200
"""Bytes that a message takes beside its payload."""
_GONE_S: Final = 30
"""In which a broker that is gone without a word is noticed."""


@dataclass(frozen=True)
class Session:
    """What a connection asks for."""

    broker: Broker
    tls: ssl.SSLContext | None
    client_id: str
    five: bool
    clean: bool
    expiry_s: int
    """For how long the broker keeps the session when the connection is lost .."""
    leaves: bool
    """.. and whether it does so when we say goodbye."""
    qos: int
    filters: Sequence[str]
    limit: int
    half_way: set[int]
    """Numbers of messages of QoS 2 in the middle of their way; the session's, not the connection's."""


@dataclass(frozen=True)
class Block:
    """Messages that one turn of the loop has brought."""

    messages: Sequence[Message]
    arrived_ns: int
    wall_ns: int
    sender: Connection
    count: int
    """Messages that the connection has brought, these included."""


class Connection:
    """From the moment when the subscriptions stand; made by `opened`."""

    def __init__(self, session: Session, put: Callable[[Block, int], object], clock: Clock) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone, with the reason."""
        self._session = session
        self._put = put
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._client: Client | None = None
        self._connected: asyncio.Future[bool] = self._loop.create_future()
        self._subscribed: asyncio.Future[list[int]] = self._loop.create_future()
        self._came: list[Message] = []
        self._count = 0
        self._unacknowledged: deque[tuple[int, Message]] = deque()
        self._paused = False
        self._again: asyncio.Handle | None = None
        self._writing: asyncio.Handle | None = None
        self._misc: asyncio.Task[None] | None = None

    # -- its life ----------------------------------------------------------------------------------------

    async def open(self, *, resubscribe: bool) -> None:
        """Connect and subscribe; ``resubscribe`` False leaves a session that the broker has kept as it is.

        Raises `InputError` for a refusal that stays so until somebody changes something, `OutsideError` for one that may pass.
        """
        session = self._session
        connected = await self._socket()
        self._wire = wire = Wire(connected, PacketLimit(session.limit, five=session.five))
        self._client = client = Client(wire, session.client_id, five=session.five, clean=session.clean)
        client.hand_over(self._came.append, session.half_way)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_socket_close = lambda *_: self._forget_socket()
        client.on_socket_register_write = lambda *_: self._write_soon()
        client.username_pw_set(session.broker.username, session.broker.password)
        options: dict[str, Any] = {}
        if session.five:
            options = {"clean_start": session.clean, "properties": asking(session.expiry_s)}
        client.connect_async(session.broker.host, session.broker.port, _KEEPALIVE_S, **options)
        client.reconnect()
        self._loop.add_reader(wire.fileno(), self._read)
        self._misc = asyncio.ensure_future(self._keep_alive())
        kept = await self._answered(self._connected, "to CONNECT")
        if not kept:
            session.half_way.clear()
        if resubscribe or not kept:
            await self._subscribe(client)

    async def _socket(self) -> socket.socket:
        broker = self._session.broker
        try:
            async with asyncio.timeout(_ANSWER_S):
                found = await self._loop.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
                connected = await self._first_of(found)
        except TimeoutError:
            raise OutsideError(f"{broker} does not answer") from None
        except OSError as error:
            # asyncio's own words ("Connect call failed") say less than the system's
            said = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise OutsideError(f"{broker} cannot be reached: {said}") from None
        if self._session.tls is None:
            return connected
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await _shaken(connected, self._session.tls, broker.host)
        except TimeoutError:
            raise OutsideError(f"{broker} does not answer in TLS; is this its port for TLS?") from None
        except ssl.SSLError as error:
            raise InputError(no_tls(broker, error)) from None
        except OSError as error:
            raise OutsideError(f"{broker} ended the connection during TLS: {error.strerror or error}") from None

    async def _first_of(self, found: Sequence[Any]) -> socket.socket:
        """Connected to the first address that answers. Raises what the last one raised."""
        for number, (family, kind, proto, _, address) in enumerate(found, 1):
            tried = socket.socket(family, kind, proto)
            tried.setblocking(False)
            try:
                keep_alive(tried, within_s=_GONE_S)
                tried.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(tried, address)
            except BaseException as error:
                tried.close()
                if number == len(found) or not isinstance(error, OSError):
                    raise
            else:
                return tried
        raise OSError("the name has no address")

    async def _subscribe(self, client: Client) -> None:
        session = self._session
        # A session that the broker kept must not bring retained messages again and again.
        options = SubscribeOptions(qos=session.qos, retainHandling=1)
        asked: list[Any] = [(each, options if session.five else session.qos) for each in session.filters]
        client.subscribe(asked)
        codes = await self._answered(self._subscribed, "to SUBSCRIBE")
        for each, code in zip(session.filters, codes, strict=True):
            if code >= 128:
                why, lasting = refusal(code)
                told = f"{session.broker} refuses the subscription to {each!r}: {why}"
                raise (InputError if lasting or code == 128 else OutsideError)(told)

    async def _answered(self, answer: asyncio.Future[Any], to_what: str) -> Any:
        broker = self._session.broker
        await asyncio.wait({answer, self.lost}, timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if self._client is not None and self._client.refused:
            why, lasting = refusal(self._client.refused)
            raise (InputError if lasting else OutsideError)(f"{broker} refuses the connection: {why}")
        if self.lost.done():
            raise OutsideError(f"{broker} ended the connection instead of an answer {to_what}: {self.lost.result()}")
        raise OutsideError(f"{broker} does not answer {to_what}")

    async def _keep_alive(self) -> None:
        while True:
            await self._clock.sleep(_MISC_S)
            assert self._client is not None
            if self._paused:  # the answer to the last ping may be among what is not read
                self._client._ping_t = 0.0
            self._client.loop_misc()

    async def close(self) -> None:
        """Say goodbye, and let go when the broker has heard all of it."""
        if self._misc is not None:
            self._misc.cancel()
            await asyncio.gather(self._misc, return_exceptions=True)
        for handle in (self._again, self._writing):
            if handle is not None:
                handle.cancel()
        if self._client is not None and self._wire is not None:
            if self._wire.open:
                self._wire.lingers = True
                session = self._session
                properties = expiring(session.expiry_s if session.leaves else 0, "DISCONNECT") if session.five else None
                self._client.disconnect(properties=properties)
                self._client.loop_write()
                self._forget_socket()
                await self._heard(self._wire)
                self._wire.lingers = False
            self._wire.close()
        self._lose("we have ended it")

    async def _heard(self, wire: Wire) -> None:
        """Wait until the broker has ended the connection, as it does when it has come to our goodbye, but not for ever.

        Until then, acknowledgements may lie unread on its side. A socket that is closed with something unread on ours has
        them thrown away, and so does a broker, when the next start comes and takes the session over.
        """
        with contextlib.suppress(OSError):  # a TimeoutError, too
            async with asyncio.timeout(_GOODBYE_S):
                while not wire.flush():
                    await _ready(self._loop.add_writer, self._loop.remove_writer, wire)
                wire.shut()
                while not wire.ended():
                    await _ready(self._loop.add_reader, self._loop.remove_reader, wire)

    # -- what comes --------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Read no more for a while, so that the broker waits."""
        if not self._paused:
            self._paused = True
            if self._wire is not None and self._wire.open:
                self._loop.remove_reader(self._wire.fileno())

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._wire is not None and self._wire.open:
                self._loop.add_reader(self._wire.fileno(), self._read)
                self._again = self._loop.call_soon(self._read)

    def _read(self) -> None:
        wire, client = self._wire, self._client
        if self._paused or wire is None or client is None or not wire.open:
            return
        try:
            for _ in range(_PACKETS):
                client.loop_read()
                if not wire.ready:
                    break
            else:
                self._again = self._loop.call_soon(self._read)
        except Exception as error:  # noqa: BLE001 - a broker's nonsense must not reach the loop
            self._lose(f"it sent what cannot be read ({type(error).__name__}: {error})")
        self._hand_on()

    def _hand_on(self) -> None:
        if not self._came:
            return
        messages = self._came[:]
        self._came.clear()
        size = 0
        for message in messages:
            self._count += 1
            size += len(message.payload) + _OVERHEAD
            if message.qos:
                self._unacknowledged.append((self._count, message))
        self._put(Block(messages, self._clock.monotonic_ns(), self._clock.wall_ns(), self, self._count), size)

    # -- what it is told ---------------------------------------------------------------------------------

    def acknowledge(self, count: int) -> None:
        """So many of its messages are safe."""
        if self._client is None or self._wire is None or not self._wire.open:
            return
        while self._unacknowledged and self._unacknowledged[0][0] <= count:
            self._client.acknowledge(self._unacknowledged.popleft()[1])

    def _write_soon(self) -> None:
        """Once in a turn of the loop, for all that is written in it."""
        if self._writing is None:
            self._writing = self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._writing = None
        wire, client = self._wire, self._client
        if wire is None or client is None or not wire.open:
            return
        client.loop_write()
        if not wire.open:
            return
        try:
            done = wire.flush()
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if done:
            self._loop.remove_writer(wire.fileno())
        else:
            self._loop.add_writer(wire.fileno(), self._write)

    # -- paho's callbacks --------------------------------------------------------------------------------

    def _on_connect(self, _client: object, _data: object, flags: Any, reason: Any, _properties: object) -> None:
        if not reason.is_failure and not self._connected.done():
            self._connected.set_result(bool(flags.session_present))

    def _on_subscribe(self, _client: object, _data: object, _mid: int, reasons: Any, _properties: object) -> None:
        if not self._subscribed.done():
            self._subscribed.set_result([reason.value for reason in reasons])

    def _on_disconnect(self, _client: object, _data: object, flags: Any, reason: Any, _properties: object) -> None:
        if flags.is_disconnect_packet_from_server:
            self._lose(refusal(reason.value)[0])
        else:
            self._lose(UNEXPLAINED)

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)

    def _forget_socket(self) -> None:
        if self._wire is not None and self._wire.open:
            self._loop.remove_reader(self._wire.fileno())
            self._loop.remove_writer(self._wire.fileno())


async def _shaken(connected: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """The socket in TLS, the other side's name checked. Raises `ssl.SSLError`, `OSError`."""
    loop = asyncio.get_running_loop()
    wrapped = context.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(loop.add_reader, loop.remove_reader, wrapped)
            except ssl.SSLWantWriteError:
                await _ready(loop.add_writer, loop.remove_writer, wrapped)
            else:
                return wrapped
    except BaseException:
        with contextlib.suppress(OSError):
            wrapped.close()
        raise


async def _ready(add: Callable[..., object], remove: Callable[[int], object], waiting: socket.socket | Wire) -> None:
    woken = asyncio.Event()
    add(waiting.fileno(), woken.set)
    try:
        await woken.wait()
    finally:
        remove(waiting.fileno())
