"""The server of `HTTP`: what is checked of a request, and what is answered. starlette reads requests, uvicorn serves them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import ssl
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tidemill.clock import Clock
from tidemill.core.admission import Admission
from tidemill.core.refusals import Refusals
from tidemill.formats.decoded import BadLine, Decoded
from tidemill.formats.json_limits import excess, may_exceed
from tidemill.formats.line_formats import LineFormat, known_of
from tidemill.rows import joined
from tidemill.sources.http_connection import connections_through
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import BACKLOG

__all__ = ["Posted", "Server"]

_BODY_S: Final = 30.0
"""Seconds in which a body must have come."""
_ACCEPTED: Final = 16
"""Connections that are taken in one turn of the loop."""
_LAST_S: Final = 2
"""Seconds that answers which are under way get at the end."""


@dataclass(frozen=True)
class _Body:
    """What is in one."""

    rows: list[Sequence[dict[str, Any]]] = field(default_factory=list)
    """Of each part."""
    known: list[Mapping[str, str]] = field(default_factory=list)
    """What is known of each row."""
    bad: list[BadLine] = field(default_factory=list)
    """What is no record, and no reason to refuse the others."""

    async def takes(self, parts: Iterable[Decoded] | None, common: Mapping[str, str]) -> bool:
        """Add these, each in its own turn of the loop; False when there is a line that the sender is to mend."""
        for part in parts or ():
            if not all(bad.sound for bad in part.bad):
                return False
            known = known_of(part, common)
            self.rows.append(part.rows)
            self.known.extend([known] * len(part.rows) if isinstance(known, Mapping) else known)
            self.bad.extend(part.bad)
            await asyncio.sleep(0)
        return True


class Posted:
    """One body."""

    def __init__(self, body: _Body, arrived_ns: int, wall_ns: int) -> None:
        self.rows = joined(body.rows)
        self.known = body.known
        self.bad = body.bad
        self.arrived_ns = arrived_ns
        self.wall_ns = wall_ns
        self.safe: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def settle(self, *, safe: bool) -> None:
        """Its records are on the disk; or it will never be known."""
        if not self.safe.done():
            self.safe.set_result(safe)


class _Refused(Exception):
    """What is answered to a request that is not taken."""

    def __init__(self, status: int, error: str, *, again_s: int = 1, **more: Any) -> None:
        super().__init__(error)
        self.status = status
        self.headers = {"Connection": "close"}  # the rest of its body is read no more
        if status in (429, 503):
            self.headers["Retry-After"] = str(again_s)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        self.content = {"error": error, **more}

    def answer(self) -> Response:
        return JSONResponse(self.content, self.status, self.headers)


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
        form: LineFormat,
        turn: int,
        tls: ssl.SSLContext | None,
        door: Admission,
        refusals: Refusals,
    ) -> None:
        app = Starlette(routes=[Route(path, self._ingest, methods=["POST"])])
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            http=connections_through(door),
            backlog=_ACCEPTED,
            timeout_graceful_shutdown=_LAST_S,
        )
        super().__init__(config)
        config.load()
        config.ssl = tls
        self.listening = asyncio.Event()
        self._inbox, self._clock = inbox, clock
        self._refusals = refusals
        self._token = None if token is None else f"Bearer {token}".encode()
        self._limit = limit
        self._form = form
        self._turn = turn
        self._ending = False

    async def serve_on(self, listening: socket.socket) -> None:
        """Until `end`."""
        await self.serve([listening])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the application's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)  # what asyncio is told bounds both those that wait and those it takes in one turn
        self.listening.set()

    def refuse_more(self) -> None:
        """The run wants to end."""
        self._ending = True

    def end(self) -> None:
        """Close, when what is under way is answered."""
        self.should_exit = True

    # -- a request ---------------------------------------------------------------------------------

    async def _ingest(self, request: Request) -> Response:
        try:
            return await self._taken(request)
        except _Refused as refused:
            self._refusals.count += 1
            return refused.answer()
        except ClientDisconnect:
            return Response(status_code=400)

    async def _taken(self, request: Request) -> Response:
        self._check(request)
        posted = await self._read(request)
        if not await posted.safe:
            raise _Refused(503, "the run ended before these records were known to be safe; send them again")
        return JSONResponse({"records": len(posted.rows)}, 202)

    def _check(self, request: Request) -> None:
        """All that is known before the body comes."""
        if self._token is not None:
            shown = request.headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(shown, self._token):
                host = request.client.host if request.client is not None else ""
                if shown and not self._refusals.wrong_token(host, self._clock.monotonic_ns()):
                    raise _Refused(429, "too many wrong tokens came from here; show the right one", again_s=60)
                raise _Refused(401, "show the token: Authorization: Bearer TOKEN")
        elif "origin" in request.headers:  # any page that somebody on this machine looks at could post here
            raise _Refused(403, "this comes from a web page, and needs a token; give HTTP a token= that the page shows")
        if self._ending:
            raise _Refused(503, "the run ends; send these records again")
        if self._inbox.paused:
            raise _Refused(429, "too much waits to be worked on; send these records again")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit:
            raise self._too_long()

    async def _read(self, request: Request) -> Posted:
        data = await self._body(request)
        arrived_ns, wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        known = {"peer_host": request.client.host if request.client is not None else ""}
        body = await self._document(data, known) if kind == "application/json" else None
        posted = Posted(body or await self._lines(data, known), arrived_ns, wall_ns)
        if self._ending:
            raise _Refused(503, "the run ends; send these records again")
        self._inbox.put(posted, max(len(data), 1))
        return posted

    async def _body(self, request: Request) -> bytes:
        """Unpacked; never more of it is held than the limit."""
        packing = request.headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip"):
            raise _Refused(415, f"Content-Encoding: {packing[:40]} is not known here; gzip is")
        unpacker = zlib.decompressobj(wbits=31) if packing == "gzip" else None
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                async for data in request.stream():
                    left = self._limit - len(body)
                    body += unpacker.decompress(data, left + 1) if unpacker is not None else data
                    if len(body) > self._limit:
                        raise self._too_long()
        except TimeoutError:
            raise _Refused(408, f"the body did not come within {_BODY_S:g} s") from None
        except zlib.error as error:
            raise _Refused(400, f"the body is not gzip: {error}") from None
        if unpacker is not None and not unpacker.eof:
            raise _Refused(400, "the body is not whole gzip")
        return bytes(body)

    def _too_long(self) -> _Refused:
        return _Refused(413, f"the body is longer than {self._limit} bytes; send fewer records at a time")

    # -- what is in a body -------------------------------------------------------------------------

    async def _document(self, data: bytes, known: Mapping[str, str]) -> _Body | None:
        """JSON as a whole; None when the format is none of JSON, whatever the body calls itself."""
        if self._form.items([]) is None:
            return None
        try:
            document = msgspec.json.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _Refused(400, f"the body is not JSON: {error}") from None
        body = _Body()
        items = document if isinstance(document, list) else [document]
        if may_exceed(data) and (why := excess(document, data)):
            raise _Refused(400, f"the body {why}")
        if not await body.takes(self._form.items(items), known):
            number, reason = _first_bad(self._form.items, ([item] for item in items))
            raise _Refused(400, f"item {number}: {reason}", item=number)
        return body

    async def _lines(self, data: bytes, known: Mapping[str, str]) -> _Body:
        body = _Body()
        start, before = 0, 0
        while start < len(data):
            end = (
                data.rfind(b"\n", start, start + self._turn) + 1
                or data.find(b"\n", start + self._turn) + 1
                or len(data)
            )
            block = data[start:end]
            if not await body.takes(self._form.parts(block), known):
                number, reason = _first_bad(self._form.parts, block.split(b"\n"))
                raise _Refused(400, f"line {before + number}: {reason}", line=before + number)
            before += block.count(b"\n")
            start = end
        return body


def _first_bad(decode: Callable[[Any], Iterator[Decoded] | None], pieces: Iterable[Any]) -> tuple[int, str]:
    """The number of the first piece that is to be refused, from 1, and why."""
    for number, piece in enumerate(pieces, start=1):
        for part in decode(piece) or ():
            for bad in part.bad:
                if not bad.sound:
                    return number, bad.reason
    raise AssertionError("what was refused is sound piece by piece")
