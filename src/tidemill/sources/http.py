"""`HTTP`: senders that post records."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final

from tidemill.batch import Batch
from tidemill.core.refusals import Refusals
from tidemill.errors import InputError, MissingExtra, PlanError
from tidemill.first_of import first_of
from tidemill.formats.line_formats import LINE_FORMATS, line_format, set_up
from tidemill.printable import printable
from tidemill.rows import RowsByField
from tidemill.schema import Schema
from tidemill.secret import SecretText
from tidemill.sources.acknowledgements import Acknowledgements
from tidemill.sources.base import SourceContext, SourceStatistics
from tidemill.sources.blocks import FEW_ROWS, Gathered, amounts, groups_of, rows_of_all
from tidemill.sources.edged import checked_limit, until_told
from tidemill.sources.http_bodies import Posted, Refused, records_of, sliced
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import ConnectedSource, bound, is_loopback
from tidemill.tls import passphrase, server_context

if TYPE_CHECKING:
    from tidemill.sources.http_server import Server

__all__ = ["HTTP"]

_DECODED: Final = 1 << 15
"""Bytes of NDJSON, of one body by itself, that are decoded in one turn of the loop; other formats take longer."""
_QUIET_TURNS: Final = 3
"""Of the loop, without a further body, after which those that are there are taken. In the first of them answers are sent, and
who gets one posts again."""
_SHORTEST_TOKEN: Final = 16
_TOLD: Final = 300
"""Letters of an answer that the log repeats."""


class HTTP(ConnectedSource):
    """Records that are posted: ``POST /ingest`` with lines, or with a JSON object or array (``Content-Type:
    application/json``), also packed (``Content-Encoding: gzip``). A body that is no JSON as a whole, and whose first line
    is an object, is lines, whatever it calls itself.

    ``host``, ``port``  where to listen; port 0 takes a free one, which `port` names once the run has started
    ``path``            where to post to
    ``format``          of the lines: ``"ndjson"`` (default), ``"influx"`` for line protocol, or ``"telegraf-json"``, which
                        holds for JSON objects and arrays too
    ``precision``       ``"ns"``, ``"us"``, ``"ms"`` or ``"s"``: the unit of the timestamps of the latter two
    ``key``             the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``            the field of its time (``"time"``; without that, its arrival)
    ``time_format``     the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``         kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                        one (UTC), as `Source` has them
    ``token``           what senders must show: ``Authorization: Bearer TOKEN``. Beyond this machine (a ``host`` other than
                        loopback) there must be one, of 16 characters at least. Better ``"${env:NAME}"`` or ``"${file:PATH}"``
                        than the token itself
    ``cert``, ``cert_key``  PEM files, for HTTPS; beyond this machine they must be there too, or ``plaintext=True``, for who
                        has a proxy that does it
    ``proxy``           addresses or networks, separated by commas, of proxies in front of it: of what comes from one, the sender is
                        who its ``X-Forwarded-For`` says. Else nobody's word is taken for that. Name no network in which senders
                        are too: they could say what they like
    ``cert_password``   the passphrase of a private key that has one, better referred to too
    ``limit``           bytes of one body, as it comes and unpacked; of these, one record may have 256 KiB
    ``buffer``          bytes of bodies that wait to be worked on; above, senders are told to come again

    ``connections``     at a time; more are turned away and counted
    ``per_host``        of these, from one host, a proxy too; on loopback not bounded. Whoever has not yet agreed on TLS counts, for 10 s at most

    What is answered:

    - 202: all records of the body are in the ingest log, on the disk; without state, they were taken in. One that is
      complete and no record (no time that can be read, no sensor, a name that is a tag and a field, longer than one may be, a
      number in a line that is too large for a float) is safe among the dead letters, and no reason to send the body again.
    - 400, with ``{"error": ..., "line": 3}``: a line is no JSON object, no line protocol; or of what is no JSON as a whole,
      the byte where it breaks, or that it holds such a number. Nothing of the body was taken.
    - 401 without the token, 429 instead to a host that has shown ten wrong ones within a minute, though the right one is
      always taken; 403 for what comes from a web page (it says its ``Origin``) where no token is asked for.
    - 408 when the body takes too long to come, 413 beyond ``limit``, 415 for another encoding.
    - 429 with ``Retry-After`` when too much waits, or is coming at the same time, 503 when the run ends. Nothing was taken, or
      not known to be safe.

    A record without the default time field gets the time of its arrival. ``key=`` may use ``{peer_host}``, the sender's address.
    `check` raises `OutsideError` when the port is in use.

    Delivery: in order for a sender that waits for its answers. At least once for one that sends again what was not
    answered with 202, when the answer was lost; `Dedup` drops the second.

    >>> HTTP(port=8080).path
    '/ingest'
    """

    push = True
    finite = False
    arrival = True
    formats = LINE_FORMATS
    looked_up_options = frozenset({"host", "cert", "cert_key"})
    secret_options = frozenset({"token", "cert_password"})

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        path: str = "/ingest",
        token: str | None = None,
        cert: str | os.PathLike[str] | None = None,
        cert_key: str | os.PathLike[str] | None = None,
        cert_password: str | None = None,
        plaintext: bool = False,
        proxy: str | None = None,
        format: str = "ndjson",  # noqa: A002 - the user's word
        precision: str | None = None,
        limit: int = 1 << 20,
        buffer: int = 8 << 20,
        connections: int = 1_000,
        per_host: int | None = 100,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            host, port, connections=connections, per_host=per_host,
            key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name,
        )  # fmt: skip
        if not path.startswith("/"):
            raise PlanError(f"path={path!r} of HTTP must begin with a slash.")
        if token == "":
            raise PlanError("token= of HTTP is empty; give one that nobody can guess, or leave it out.")
        if not is_loopback(host):
            if token is None:
                raise PlanError(
                    f"HTTP on {host!r} can be reached from other machines; give it a token= that senders must show, or listen "
                    "on 127.0.0.1."
                )
            if cert is None and not plaintext:
                raise PlanError(
                    f"HTTP on {host!r} would send its token in the clear; give it cert= and cert_key=, or write "
                    "plaintext=True if a proxy in front of it does TLS."
                )
        self.path = path
        self._proxy = None if proxy is None else _networks(proxy)
        self._form = line_format(format, precision, source="HTTP")
        set_up(self.edge, self._form)
        self._decoded = _DECODED if format == "ndjson" else _DECODED // 4
        self._amounts = amounts(format)
        self.limit = checked_limit(limit, "HTTP")
        self.buffer = checked_limit(buffer, "HTTP")
        self._token = SecretText(token, "token= of HTTP") if token is not None else None
        if self._token is not None and not self._token.refers:
            self._shown_token()
        self._cert_password = passphrase(cert_password, "HTTP")
        self._certificate = (cert, cert_key, self._cert_password)
        self._refusals = Refusals()
        self._inbox: Inbox[Posted] | None = None
        self._pending: Acknowledgements[Posted] = Acknowledgements()
        self._taken: list[Posted] = []
        """Bodies that are being made records."""
        self._yielded = 0
        self._told = asyncio.Event()

    @property
    def buffered(self) -> int:
        """Bytes of bodies that wait here."""
        return self._inbox.size if self._inbox is not None else 0

    def check(self) -> None:
        _require_libraries()
        self._shown_token(SecretText.check)
        if self._cert_password is not None:
            self._cert_password.check()
        server_context(*self._certificate)
        bound(self.host, self._wanted_port, "HTTP").close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(
            *(self.name, self._connected, self._records, self._rejected),
            turned_away=self._admission.turned_away,
            last_away=self._admission.last,
            refused=self._refusals.count,
        )

    @property
    def acknowledges(self) -> bool:
        return True

    def kept(self, batches: int) -> None:
        for posted in self._pending.kept(batches):
            posted.settle()
        self._told.set()

    # -- the run -----------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        from tidemill.sources.http_server import Server

        inbox: Inbox[Posted] = Inbox(self.buffer, _nothing, _nothing)
        self._inbox = inbox
        self._pending = Acknowledgements()
        self._yielded = 0
        token = await asyncio.to_thread(self._shown_token)
        tls = await asyncio.to_thread(server_context, *self._certificate)
        listening = self._listening()
        server = Server(
            inbox,
            context.clock,
            path=self.path,
            token=token,
            limit=self.limit,
            tls=tls,
            proxy=self._proxy,
            refusals=self._refusals,
        )
        serving = asyncio.ensure_future(server.serve_on(listening))
        serving.add_done_callback(lambda _: inbox.close())
        try:
            await first_of(server.listening.wait(), asyncio.wait([serving]))
            self._listens(listening)
            async with self._swept(context.clock), inbox.until_stopping(context, server.refuse_more):
                while await inbox.filled():
                    if inbox.size < self._amounts.batch and not inbox.paused:
                        await context.gather()  # meanwhile senders post more, which would not be safe any sooner
                    await inbox.growing(self._amounts.batch, turns=_QUIET_TURNS)
                    self._taken = inbox.take(self._amounts.batch)
                    async for batch in self._batches(context, self._taken):
                        yield batch
                        if not context.tells_kept:
                            self.kept(self._yielded)
                        await asyncio.sleep(0)
                await until_told(context, lambda: self._pending.waiting, self._told)
        finally:
            self._connected = False
            self._started.clear()
            await self._end(server, serving)

    def _shown_address(self) -> str:
        return f"http{'s' if self._certificate[0] is not None else ''}://{super()._shown_address()}{self.path}"

    def _shown_token(self, look_up: Callable[[SecretText], str] = SecretText.resolved) -> str | None:
        """What senders must show. Raises where others than this machine may guess at it, and it is soon found."""
        if self._token is None:
            return None
        token = look_up(self._token)
        if not is_loopback(self.host) and len(token.strip()) < _SHORTEST_TOKEN:
            raise (InputError if self._token.refers else PlanError)(
                f"HTTP on {self.host!r} can be reached from other machines, and its token= has fewer than {_SHORTEST_TOKEN} "
                "characters, blanks around it not counted; give it one that nobody can guess, such as this prints: "
                'python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return token

    def _news(self, now_ns: int) -> list[str | None]:
        return [*super()._news(now_ns), self._refusals.tell(now_ns)]

    def nothing_yet(self) -> str:
        refusals = self._refusals
        if not refusals.count:
            return ""
        told = printable(refusals.last, longest=_TOLD)
        return f"nothing was taken so far, and {refusals.count:,} refused; the last sender was told {told}"

    async def _end(self, server: Server, serving: asyncio.Future[None]) -> None:
        """Whoever still waits for an answer learns that nothing is known of its records."""
        assert self._inbox is not None
        server.refuse_more()
        unknown = Refused(503, "the run ended before these records were known to be safe; send them again")
        for posted in [*self._pending.kept(self._yielded), *self._taken, *self._inbox.take(1 << 62)]:
            posted.settle(unknown)
        server.end()
        await serving

    async def _batches(self, context: SourceContext, bodies: list[Posted]) -> AsyncIterator[Batch]:
        """Bodies that have the same fields become one batch; a body is safe with the last of its rows."""
        gathered = Gathered(self.edge, bodies[0])
        ended: list[Posted] = []
        for group, some in enumerate(groups_of(bodies, self._amounts.alike)):
            if group:
                await asyncio.sleep(0)
            rows = self._rows_of_all(some)
            if rows is not None:
                if not gathered.has_room_for(rows):
                    async for batch in self._made(context, gathered, ended):
                        yield batch
                    ended = []
                for posted, records in zip(some, gathered.add_together(rows, some), strict=True):
                    posted.records = records
                ended += some
                continue
            for posted in some:
                try:
                    parts = await records_of(posted, self._form, self._decoded)
                except Refused as refused:
                    posted.settle(refused)
                    continue
                for part in sliced(parts, FEW_ROWS):
                    if len(gathered) + len(part.rows) > FEW_ROWS:
                        async for batch in self._made(context, gathered, ended):
                            yield batch
                        ended = []
                    gathered.add(part, posted)
                    posted.records += len(part.rows)
                ended.append(posted)
        if ended:
            async for batch in self._made(context, gathered, ended):
                yield batch

    def _rows_of_all(self, bodies: list[Posted]) -> RowsByField | None:
        """None where one is a document, or one alone is large."""
        if len(bodies[0].lines) > self._amounts.alike or any(posted.document for posted in bodies):
            return None
        return rows_of_all(self.edge, self._form, bodies)

    async def _made(self, context: SourceContext, gathered: Gathered, ended: list[Posted]) -> AsyncIterator[Batch]:
        """With the last of it, the bodies that ``ended`` are in."""
        for turn in gathered.taken(ends=True):
            batch = await self.accept(context, turn.batch, turn.letters)
            self._yielded += 1
            self._pending.yielded(dict.fromkeys(ended, 0) if turn.ends else {})
            yield batch


def _nothing() -> None:
    pass


def _networks(proxy: str) -> str:
    """As uvicorn takes them; those of IPv4 also as a socket for both families sees them."""
    networks = []
    try:
        for each in proxy.split(","):
            networks.append(network := ipaddress.ip_network(each.strip()))
            if network.version == 4:
                networks.append(ipaddress.ip_network(f"::ffff:{network.network_address}/{96 + network.prefixlen}"))
    except (AttributeError, ValueError):
        raise PlanError(
            f"proxy={proxy!r} of HTTP must be addresses or networks, such as '127.0.0.1' or '10.0.0.5, fd00::/64'."
        ) from None
    return ", ".join(map(str, networks))


def _require_libraries() -> None:
    try:
        import httptools  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "uvicorn", "http", "Records by HTTP") from None
