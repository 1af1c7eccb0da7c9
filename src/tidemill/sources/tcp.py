"""`TCP`: sensors that connect and write lines."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping

from tidemill.batch import Batch
from tidemill.durations import duration_ns
from tidemill.errors import PlanError
from tidemill.formats.line_formats import LINE_FORMATS, line_format, set_up
from tidemill.formats.lines import MESSAGE_LIMIT
from tidemill.letters import DeadLetter
from tidemill.schema import Schema
from tidemill.sources.acknowledgements import Acknowledgements
from tidemill.sources.base import SourceContext, SourceStatistics
from tidemill.sources.blocks import amounts, turns_of
from tidemill.sources.edged import checked_limit, until_told
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import ConnectedSource, Reception, bound, is_loopback
from tidemill.sources.tcp_connection import Block, Connection
from tidemill.tls import passphrase, server_context

__all__ = ["TCP"]


class TCP(ConnectedSource):
    """Lines from any number of TCP connections.

    ``host``, ``port``  where to listen; port 0 takes a free one, which `port` names once the run has started
    ``format``          ``"ndjson"`` (default), ``"influx"`` for line protocol, or ``"telegraf-json"``: as `Lines` has them
    ``precision``       ``"ns"``, ``"us"``, ``"ms"`` or ``"s"``: the unit of the timestamps of the latter two
    ``key``             the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``            the field of its time (``"time"``; without that, its arrival)
    ``time_format``     the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``         kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                        one (UTC), as `Source` has them
    ``limit``           bytes of one line; a longer one is rejected and read over
    ``buffer``          bytes of lines that wait to be decoded; above, connections are not read, so that senders wait
    ``ack``             tell each connection how many of its lines are safe; for a run with state
    ``cert``, ``cert_key``, ``ca``  PEM files, for TLS; with ``ca``, senders must show a certificate that it has signed
    ``cert_password``   the passphrase of a private key that has one; better ``"${env:NAME}"`` or ``"${file:PATH}"``
    ``exposed``         beyond this machine (a ``host`` other than loopback) senders must show a certificate; or this says that
                        whoever reaches the port may send, as in a network of the plant's own
    ``connections``     at a time; more are turned away and counted. Never more than the process may have files open
    ``per_host``        of these, from one host; on loopback not bounded. Whoever has not yet agreed on TLS counts, for 10 s at most
    ``idle``            close a connection that has brought nothing for so long (``"1h"``). By default sensors may be silent for
                        ever; those that are gone without a word are found by the system's keep-alive, within two minutes

    A record without the default key field belongs to a sensor named by its connection (``peer``, ``host:port``), and one of
    line protocol or Telegraf's JSON to its series; where another field of the first ones seems to name several sensors, the log
    says so, unless ``key="{peer}"`` says that they are one. A record without the default time field gets the time of its arrival. A last
    line without an end counts when the sender closes; one that the end of the run or a broken connection cuts is rejected.
    `check` raises `OutsideError` when the port is in use.

    Delivery: in order for each connection. Without ``ack`` at most once: a sender cannot know what was read before it or
    we died; with state, what was read and kept in the ingest log is delivered exactly once.

    With ``ack`` at least once, as the sender sees it: the source writes back one line with the number of lines of this
    connection that have reached the disk so far, ``1234\\n``, each time there are more. Every line counts, also an empty
    one and one that is rejected, which is safe among the dead letters. A sender keeps what was not acknowledged and
    sends it again over its next connection, whose lines are counted from 0. If only the acknowledgement was lost, the
    records come twice; `Dedup` drops the second. A line that the end of the run or a broken connection cuts
    is not counted and not rejected, since it will be sent again. A sender that shuts down its side for writing gets its
    last acknowledgement before the connection is closed. Over TLS it does not, since whoever says there that it has sent
    all is closed at once: such a sender ends its last line, and closes when it has read the number of its lines. One that
    does not read them costs no memory: only the newest number waits for it.
    """

    push = True
    finite = False
    arrival = True
    formats = LINE_FORMATS
    fallback = "peer"
    looked_up_options = frozenset({"host", "cert", "cert_key", "ca"})
    secret_options = frozenset({"cert_password"})

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        format: str = "ndjson",  # noqa: A002 - the user's word
        precision: str | None = None,
        limit: int = MESSAGE_LIMIT,
        buffer: int = 4 << 20,
        ack: bool = False,
        cert: str | os.PathLike[str] | None = None,
        cert_key: str | os.PathLike[str] | None = None,
        cert_password: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        exposed: bool = False,
        connections: int = 10_000,
        per_host: int | None = 1_000,
        idle: str | float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            host, port, connections=connections, per_host=per_host,
            key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name,
        )  # fmt: skip
        if buffer < 1:
            raise PlanError(f"buffer={buffer!r} of TCP must be a number of bytes above 0.")
        if cert is None and (cert_key, cert_password, ca) != (None, None, None):
            raise PlanError(
                "cert_key=, cert_password= and ca= of TCP are for TLS, which needs cert=, the certificate that it shows "
                "itself."
            )
        if ca is None and not exposed and not is_loopback(host):
            raise PlanError(
                f"TCP on {host!r} can be reached from other machines, and anybody there could send; give it cert=, cert_key= "
                "and ca=, so that senders show a certificate, write exposed=True if only the plant reaches it, or listen "
                "on 127.0.0.1."
            )
        self._form = line_format(format, precision, source="TCP")
        set_up(self.edge, self._form)
        self._amounts = amounts(format)
        self.limit = checked_limit(limit, "TCP")
        self._idle_ns = None if idle is None else duration_ns(idle, name="idle of TCP")
        self._cert_password = passphrase(cert_password, "TCP")
        self._certificate = (cert, cert_key, self._cert_password, ca)
        self.buffer = buffer
        self.ack = ack
        self._connections: set[Connection] = set()
        self._inbox: Inbox[Block] | None = None
        self._lost: list[DeadLetter] = []
        self._unfinished = 0
        self._pending: Acknowledgements[Connection] = Acknowledgements()
        self._told = asyncio.Event()

    @property
    def buffered(self) -> int:
        """Bytes that wait here: lines to be decoded and unfinished lines."""
        return self._unfinished + (self._inbox.size if self._inbox is not None else 0)

    def check(self) -> None:
        if self._cert_password is not None:
            self._cert_password.check()
        server_context(*self._certificate)
        bound(self.host, self._wanted_port, "TCP").close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(
            *(self.name, self._connected, self._records, self._rejected, len(self._connections)),
            turned_away=self._admission.turned_away,
            last_away=self._admission.last,
        )

    @property
    def acknowledges(self) -> bool:
        return self.ack

    @property
    def promises(self) -> bool:
        return self.ack

    def kept(self, batches: int) -> None:
        for connection, count in self._pending.kept(batches).items():
            connection.acknowledge(count)
        self._told.set()

    # -- the run -----------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        inbox: Inbox[Block] = Inbox(self.buffer, self._pause, self._resume)
        self._inbox = inbox
        tls = await asyncio.to_thread(server_context, *self._certificate)
        listening = self._listening()
        step = self._amounts.step
        shared = memoryview(bytearray(step))
        reception = Reception(listening, lambda: Connection(self, inbox, context.clock, shared), tls)
        self._pending = Acknowledgements()
        self._listens(listening)

        def stop() -> None:
            reception.close()
            for connection in list(self._connections):
                connection.cut()

        def close() -> None:
            stop()
            for connection in list(self._connections):
                connection.abort()

        try:
            async with self._swept(context.clock), inbox.until_stopping(context, stop):
                while await inbox.filled():
                    if inbox.size < step // 2:
                        await context.gather()
                    await inbox.growing(self._amounts.batch)
                    blocks = inbox.take(self._amounts.batch)
                    counts = {block.sender: block.count for block in blocks}
                    for turn in turns_of(self.edge, self._form, blocks, self._amounts):
                        if turn is not None:
                            await self.accept(context, turn.batch, itertools.chain(turn.letters, self._taken_lost()))
                            if self.ack:
                                self._pending.yielded(counts if turn.ends else {})
                            if len(turn.batch) or self.ack:
                                yield turn.batch
                        await asyncio.sleep(0)
                await until_told(context, lambda: self._pending.waiting, self._told)
        finally:
            self._connected = False
            self._started.clear()
            close()
            await self.accept(context, Batch({}, rows=0), self._taken_lost())
            await reception.wait_closed()
            await asyncio.sleep(0)  # let the transports close

    def _taken_lost(self) -> list[DeadLetter]:
        lost, self._lost = self._lost, []
        return lost

    def _sweep(self, now_ns: int) -> None:
        """Close those that are slower than anybody who means it, too."""
        for connection in list(self._connections):
            connection.check(now_ns, self._idle_ns)
        super()._sweep(now_ns)

    def _pause(self) -> None:
        for connection in self._connections:
            connection.pause()

    def _resume(self) -> None:
        for connection in self._connections:
            connection.resume()
