"""One sender over HTTP: requests that are there as a whole are handed on at once, and all others as uvicorn does it; and what it
can do to be in the way of others: never end what it begins, or ask without end and wait for no answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final, cast

import httptools
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = ["Answer", "WholeRequest", "connection_class"]

Answer = Callable[[int, bytes, Mapping[str, str]], None]
"""Is given a status, JSON, and headers beside those of every answer."""
WholeRequest = Callable[[Scope, bytes, Answer], bool]
"""Is given a request that has come with all of its body, and how to answer it in a later turn of the loop; or says that it is for
the application."""

_HEAD_S: Final = 15.0
"""Seconds in which a request's head must have come, counted from the connection or from the answer before it: more than the ten
after which Telegraf posts again, so that it need not connect anew."""
_JSON: Final = "application/json"
_OFFER: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})
"""Headers of who would rather speak another protocol."""
_ANSWER: Final = b"HTTP/"
_CONTINUE: Final = b"HTTP/1.1 100 "
"""The head of an answer that has no body, and others behind it."""
_READ: Final = 65_536
"""Bytes that are read at a time."""
_PIECE: Final = 8_192
"""Of these, the parser is given at a time. What it makes of a request takes a hundred times the bytes of the shortest one."""
_LINGER_S: Final = 5.0
"""Seconds in which what is still sent to a connection that has had its last answer is read and thrown away: closed at once, the
system would tell the sender of a broken connection, mostly before the answer, and it would post the same again."""
_HELD: Final = 65_536
"""Bytes that the parser is given at most without getting anywhere: a head, or what stands between parts of a body."""


_log = logging.getLogger("tidemill")


def _nothing() -> None:
    pass


def connection_class(whole: WholeRequest) -> type[asyncio.Protocol]:
    """What a server makes for each of its connections."""

    class Connection(_Connection):
        _shared = memoryview(bytearray(_READ))

        def _is_taken(self, scope: Scope, body: bytes, answer: Answer) -> bool:
            return whole(scope, body, answer)

    return Connection


class _InOnePiece:
    """A transport that keeps the head of an answer back until its body follows, or what is there is sent: half the packets, and
    half the time that the system takes for an answer.

    Closed while ``more_comes``, it sends no more and waits until the sender has closed too, or `_LINGER_S`; closed once more, it is.
    """

    def __init__(self, transport: asyncio.Transport, more_comes: Callable[[], bool]) -> None:
        self._transport = transport
        self._more_comes = more_comes
        self._head = b""
        self._lingers = False

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

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
        if self.is_closing() or not self._more_comes():
            self._transport.close()
            return
        self._lingers = True
        if self._transport.can_write_eof():  # not over TLS
            self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)


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
    _begun: tuple[RequestResponseCycle, Any] | None = None
    """A request whose head has come, while what else was read is parsed."""
    _held = 0
    """Bytes that the parser was given since it last got anywhere; it has no limit of its own."""
    _ahead = b""
    """What came behind requests that wait, and is not parsed before they are begun."""
    _told_last = ""
    """What is answered behind all requests that were begun, when what came behind them cannot be read: no more is parsed then."""
    _has_said_all = False
    """Whether the sender will send no more, and waits for its answers at most."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _InOnePiece(transport, self._more_comes)))
        self.flow = _Flow(transport, self.pipeline)
        self.timeout_keep_alive = _HEAD_S  # type: ignore[assignment]  # seconds of a timer
        self.timeout_keep_alive_task = self.loop.call_later(_HEAD_S, self.timeout_keep_alive_handler)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._shared[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._told_last or self.transport.is_closing():
            return
        self._parse(self._ahead + data)

    def _parse(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self.pipeline and not self._told_last and not self.transport.is_closing():
            piece = data[start : start + _PIECE]
            start += _PIECE
            self._held += len(piece)
            try:
                self._feed(piece)
            except httptools.HttpParserError as error:
                self._garbled(f"This is not HTTP as it is read here: {error or type(error).__name__}.")
            if self._held >= _HELD:
                cast(Any, self.transport).abort()
        self._ahead = b"" if self._told_last else data[start:]
        begun, self._begun = self._begun, None
        if begun is not None and not self.transport.is_closing():
            self._start(*begun)

    def _garbled(self, why: str) -> None:
        """No more can be read. Requests that were begun before are answered first: who posted them is not to take for theirs that
        nothing was taken."""
        self._told_last = why.encode("ascii", "replace").decode()
        owes = self._owes and self._begun is None
        if self.pipeline and self.cycle is not None and self.cycle.more_body:
            self.pipeline.popleft()  # the newest, whose rest will never be read
        if not owes:
            self.send_400_response(self._told_last)

    # -- requests ----------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._begun = cycle, app  # its body may be in what was read with it

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Without a task and the messages of ASGI, which take a third of the time of a post, where all of it is there."""
        is_taken = False
        if not cycle.more_body and not cycle.waiting_for_100_continue:
            try:
                is_taken = self._is_taken(cast(Scope, cycle.scope), bytes(cycle.body), partial(self._answer, cycle))
            except Exception:  # noqa: BLE001 - whatever it is, the loop and who sends next are not to suffer
                _log.exception(
                    "a post could not be taken as a whole, and is tried otherwise; this is a fault of tidemill"
                )
        if is_taken:
            cycle.body = bytearray()  # else it would be kept beside the copy, and after its answer
        else:
            super()._start_asgi_task(cycle, app)

    def _is_taken(self, scope: Scope, body: bytes, answer: Answer) -> bool:
        raise NotImplementedError

    def _answer(self, cycle: RequestResponseCycle, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """A task would be the guard of the loop, and of whoever sends next over this connection."""
        if self.flow.write_paused:  # its sender reads no answers: this one waits until it does
            super()._start_asgi_task(cycle, cast(Any, Response(body, status, headers, _JSON)))
            return
        try:
            if not cycle.disconnected:
                self._write(cycle, status, body, headers)
                cycle.on_response()
        except Exception:  # noqa: BLE001 - as above
            _log.exception("a post could not be answered, and its connection is closed; this is a fault of tidemill")
            cast(Any, self.transport).abort()
        finally:
            cycle.on_response = _nothing  # else the two would keep each other until the next collection

    def _write(self, cycle: RequestResponseCycle, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """As the cycle of uvicorn does it, whose place this takes."""
        if headers.get("Connection") == "close":
            cycle.keep_alive = False
        head = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            head += name, b": ", value, b"\r\n"
        for told, text in headers.items():
            head.append(f"{told.lower()}: {text}\r\n".encode("latin-1"))
        head.append(f"content-length: {len(body)}\r\ncontent-type: {_JSON}\r\n".encode())
        if not cycle.keep_alive and "Connection" not in headers:
            head.append(b"connection: close\r\n")
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join([*head, b"\r\n", body]))
        if not cycle.keep_alive:
            self.transport.close()

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
            self.headers = []  # what comes behind the body as a trailer is no header of the request

    def on_body(self, body: bytes) -> None:
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._held = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(_InOnePiece, self.transport).send()  # an answer to HEAD has no body
        super().on_response_complete()
        if self._ahead or self._begun is not None:
            ahead, self._ahead = self._ahead, b""
            self._parse(ahead)
        if self._told_last and not self._owes and not self.transport.is_closing():
            self.send_400_response(self._told_last)
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

    def _more_comes(self) -> bool:
        """Whether the sender may be in the middle of something, though it has had its last answer."""
        refused = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        return bool(refused or self._told_last or self._ahead) and not self._has_said_all

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn sets its timer with each answer, and would stop it with the first byte that comes then; here it goes on, so that a
        head must come in time whatever drips meanwhile. While a request is worked on, it does not count."""
        if self.cycle is None or self.cycle.response_complete:
            cast(Any, self.transport).abort()
