"""One sender over HTTP, as far as it can be in the way of others: too many of them, those that never end what they begin, and
those that ask without end and wait for no answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, ClassVar, Final, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["WHOLE", "connection_class"]

WHOLE: Final = "tidemill.whole"
"""In the scope of a request whose body has come: the first message brings all of it."""

_HEAD_S: Final = 15.0
"""Seconds in which a request's head must have come, counted from the connection or from the answer before it: more than the ten
after which Telegraf posts again, so that it need not connect anew."""
_OFFER: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})
"""Headers of who would rather speak another protocol."""
_ANSWER: Final = b"HTTP/"
_CONTINUE: Final = b"HTTP/1.1 100 "
"""The head of an answer that has no body, and others behind it."""
_READ: Final = 65_536
"""Bytes that are read at a time."""
_PIECE: Final = 8_192
"""Of these, the parser is given at a time. What it makes of a request takes a hundred times the bytes of the shortest one."""
_HELD: Final = 65_536
"""Bytes that the parser is given at most without getting anywhere: a head, or what stands between parts of a body."""


def connection_class() -> type[asyncio.Protocol]:
    """What a server makes for each of its connections."""

    class Connection(_Connection):
        _shared = memoryview(bytearray(_READ))

    return Connection


class _InOnePiece:
    """A transport that keeps the head of an answer back until its body follows, or what is there is sent: half the packets, and
    half the time that the system takes for an answer."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(_ANSWER) and not data.startswith(_CONTINUE):
            self._head = data
        else:
            self._transport.write(data)

    def send(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.send()
        self._transport.close()


class _Flow(FlowControl):
    """Reads on when all requests that came are begun: uvicorn would with each answer, however many wait for theirs."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class _Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    _shared: ClassVar[memoryview]
    """All connections read into it, one after the other, and keep nothing there. Else asyncio takes 256 KiB of memory for each read,
    which takes longer than all else that is done for it."""
    _held = 0
    """Bytes that the parser was given since it last got anywhere; it has no limit of its own."""
    _ahead = b""
    """What came behind requests that wait, and is not parsed before they are begun."""
    _has_said_all = False
    """Whether the sender will send no more, and waits for its answers at most."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _InOnePiece(transport)))
        self.flow = _Flow(transport, self.pipeline)
        self.timeout_keep_alive = _HEAD_S  # type: ignore[assignment]  # seconds of a timer
        self.timeout_keep_alive_task = self.loop.call_later(_HEAD_S, self.timeout_keep_alive_handler)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._shared[:nbytes]))

    def data_received(self, data: bytes) -> None:
        self._parse(self._ahead + data)

    def _parse(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self.pipeline and not self.transport.is_closing():
            piece = data[start : start + _PIECE]
            start += _PIECE
            self._held += len(piece)
            try:
                self._feed(piece)
            except httptools.HttpParserError as error:
                told = f"This is not HTTP as it is read here: {error or type(error).__name__}."
                self.send_400_response(told.encode("ascii", "replace").decode())
            if self._held >= _HELD:
                cast(Any, self.transport).abort()
        self._ahead = data[start:]

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # Who offers another protocol may be answered in this one, but the parser would leave the body out: it
            # reads the request again without the offer.
            head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
            for name, value in self.headers:
                if name not in _OFFER:
                    head += name, b": ", value, b"\r\n"
            self.parser = httptools.HttpRequestParser(self)
            self._feed(b"".join([*head, b"\r\n", data[offer.args[0] :]]))

    def on_headers_complete(self) -> None:
        self._held = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._held = 0
        if not self.parser.should_upgrade():
            self.scope[WHOLE] = True  # type: ignore[typeddict-unknown-key]
            super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(_InOnePiece, self.transport).send()  # an answer to HEAD has no body
        super().on_response_complete()
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            self._parse(ahead)
        if self._has_said_all and not self._owes:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Who sends no more may wait for an answer all the same; over TLS there is no end of one direction alone."""
        self._has_said_all = True
        return self._owes and self.scheme == "http"

    @property
    def _owes(self) -> bool:
        """Whether a request that came as a whole has no answer yet: all have but the last, if others wait behind them."""
        return bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn sets its timer with each answer, and would stop it with the first byte that comes then; here it goes on, so that a
        head must come in time whatever drips meanwhile. While a request is worked on, it does not count."""
        if self.cycle is None or self.cycle.response_complete:
            cast(Any, self.transport).abort()
