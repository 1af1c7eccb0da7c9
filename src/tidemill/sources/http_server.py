"""The server of `HTTP`: what is checked of a request, and what is answered. starlette reads requests, uvicorn serves them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

import msgspec
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from tidemill.clock import Clock
from tidemill.core.refusals import Refusals
from tidemill.sources.http_bodies import Gzip, Posted, Refused, Settled
from tidemill.sources.http_connection import Answer, connection_class
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import Reception

__all__ = ["Server"]

_BODY_S: Final = 30.0
"""Seconds in which a body must have come."""
_UNFINISHED: Final = 64 << 20
"""Bytes, unpacked, of bodies that are still coming, over all connections, or of one where more is allowed; the one that passes
it is not taken."""
_DIGITS: Final = 19
_LAST_S: Final = 2
"""Seconds that answers which are under way get at the end."""


class Server(uvicorn.Server):
    """Puts bodies into the inbox, and answers when they are safe."""

    def __init__(
        self,
        inbox: Inbox[Posted],
        clock: Clock,
        *,
        path: str,
        token: str | None,
        limit: int,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        refusals: Refusals,
    ) -> None:
        self._path = path
        self._is_behind = proxy is not None
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=proxy is not None,
            forwarded_allow_ips=proxy,  # else the environment could say whom to believe
            ws="none",
            http=connection_class(self._whole),
            timeout_graceful_shutdown=_LAST_S,
        )
        super().__init__(config)
        config.load()
        self._tls = tls
        self.listening = asyncio.Event()
        self._inbox, self._clock = inbox, clock
        self._refusals = refusals
        self._token = None if token is None else f"Bearer {token}".encode()
        self._limit = limit
        self._unfinished = 0
        self._most_unfinished = max(_UNFINISHED, limit)
        self._ending = False
        self._coming: set[asyncio.Timeout] = set()
        """How long is waited for each body that is still coming."""

    async def serve_on(self, listening: socket.socket) -> None:
        """Until `end`."""
        await self.serve([listening])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the application's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        for each in sockets or ():
            self.servers.append(cast(asyncio.Server, Reception(each, self._connection, self._tls)))
        self.listening.set()

    def _connection(self) -> asyncio.Protocol:
        made = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def refuse_more(self) -> None:
        """The run wants to end: what comes now is not taken, nor what has come in part."""
        self._ending = True
        for wait in self._coming:
            if not wait.expired():
                wait.reschedule(0)

    def end(self) -> None:
        """Close, when what is under way is answered."""
        self.should_exit = True

    # -- a request ---------------------------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without starlette's routing, which would take a tenth of the time of a post to find the one path there is."""
        if scope["path"] != self._path:
            answer: Response = PlainTextResponse(f"Not Found: post to {self._path}", 404)
        elif scope["method"] != "POST":
            answer = PlainTextResponse("Method Not Allowed", 405, {"Allow": "POST"})
        else:
            answer = await self._ingest(scope, receive)
        await answer(scope, receive, send)

    def _whole(self, scope: Scope, body: bytes, answer: Answer) -> bool:
        """Most posts: what is not packed, and has come as a whole. Who sends what comes from a proxy, uvicorn tells the application."""
        headers = _headers(scope)
        if (
            scope["path"] != self._path
            or scope["method"] != "POST"
            or b"content-encoding" in headers
            or self._is_behind
        ):
            return False
        later = asyncio.get_running_loop().call_soon

        def settled(outcome: int | Refused) -> None:
            if isinstance(outcome, Refused):
                self._refusals.refused(f"{outcome.status}: {outcome}")
                later(answer, outcome.status, msgspec.json.encode(outcome.content), outcome.headers)
            else:
                later(answer, 202, b'{"records":%d}' % outcome, {})

        try:
            host = self._checked(scope, headers)
            if len(body) > self._limit:
                raise self._too_long()
            self._put(body, host, headers, settled)
        except Refused as refused:
            settled(refused)
        return True

    async def _ingest(self, scope: Scope, receive: Receive) -> Response:
        """The others, as they come."""
        outcome: asyncio.Future[int | Refused] = asyncio.get_running_loop().create_future()

        def settled(records: int | Refused) -> None:
            if not outcome.done():  # nobody may wait any more
                outcome.set_result(records)

        try:
            headers = _headers(scope)
            host = self._checked(scope, headers)
            self._put(await self._body(Request(scope, receive), headers), host, headers, settled)
            if isinstance(records := await outcome, Refused):
                raise records
        except Refused as refused:
            self._refusals.refused(f"{refused.status}: {refused}")
            return JSONResponse(refused.content, refused.status, refused.headers)
        except ClientDisconnect:
            return Response(status_code=400)
        return JSONResponse({"records": records}, 202)

    def _checked(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """All that is known before the body comes; the sender's address."""
        host: str = scope["client"][0] if scope["client"] is not None else ""
        if self._token is not None:
            shown = headers.get(b"authorization", b"")
            if not hmac.compare_digest(shown, self._token):
                if shown and not self._refusals.wrong_token(host, self._clock.monotonic_ns()):
                    raise Refused(429, "too many wrong tokens came from here; show the right one", again_s=60)
                raise Refused(401, "show the token: Authorization: Bearer TOKEN")
        elif b"origin" in headers:  # any page that somebody on this machine looks at could post here
            raise Refused(403, "this comes from a web page, and needs a token; give HTTP a token= that the page shows")
        if self._ending:
            raise self._ends()
        if self._inbox.paused:
            raise Refused(429, "too much waits to be worked on; send these records again")
        if _length(headers) > self._limit:
            raise self._too_long()
        return host

    def _put(self, data: bytes, host: str, headers: Mapping[bytes, bytes], settled: Settled) -> None:
        """Into the inbox."""
        if self._ending:
            raise self._ends()
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        posted = Posted(
            data,
            settled,
            document=kind == b"application/json",
            known={"peer_host": host},
            arrived_ns=self._clock.monotonic_ns(),
            wall_ns=self._clock.wall_ns(),
        )
        self._inbox.put(posted, max(len(data), 1))

    async def _body(self, request: Request, headers: Mapping[bytes, bytes]) -> bytes:
        """Unpacked; neither packed nor unpacked may it be longer than the limit, and never more of it is held."""
        packing = headers.get(b"content-encoding", b"identity").strip().lower()
        if packing not in (b"identity", b"gzip"):
            told = packing[:40].decode("ascii", "replace")
            raise Refused(415, f"Content-Encoding: {told} is not known here; gzip is")
        unpacker = Gzip(self._limit) if packing == b"gzip" else None
        body = unpacker.unpacked if unpacker is not None else bytearray()
        length = _length(headers)
        came = held = 0
        wait = asyncio.timeout(_BODY_S)
        try:
            async with wait:
                self._coming.add(wait)
                async for data in request.stream():
                    came += len(data)
                    if came > self._limit:
                        raise self._too_long()
                    if unpacker is None:
                        body += data
                    elif not unpacker.feed(data):
                        raise self._too_long()
                    self._unfinished += len(body) - held
                    held = len(body)
                    if self._unfinished > self._most_unfinished and came != length:
                        raise Refused(429, "too many bodies are coming at the same time; send these records again")
        except TimeoutError:
            if self._ending:
                raise self._ends() from None
            raise Refused(408, f"the body did not come within {_BODY_S:g} s") from None
        except zlib.error as error:
            raise Refused(400, f"the body is not gzip: {error}") from None
        finally:
            self._coming.discard(wait)
            self._unfinished -= held
        if unpacker is not None and not unpacker.whole:
            raise Refused(400, "the body is not whole gzip")
        return bytes(body)

    def _ends(self) -> Refused:
        return Refused(503, "the run ends; send these records again")

    def _too_long(self) -> Refused:
        return Refused(413, f"the body is longer than {self._limit} bytes; send fewer records at a time")


def _length(headers: Mapping[bytes, bytes]) -> int:
    """Of the body, as far as its sender says it, or -1; of its digits no more are read than a length can have."""
    told = headers.get(b"content-length")
    if told is None:
        return -1
    return int(told.lstrip(b"0")[:_DIGITS] or b"0") if told.isdigit() else 10**_DIGITS


def _headers(scope: Scope) -> Mapping[bytes, bytes]:
    """Of several with one name the first."""
    return dict(reversed(scope["headers"]))
