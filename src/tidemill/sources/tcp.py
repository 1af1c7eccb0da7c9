"""`TCP`: sensors that connect and write lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.formats.line_formats import line_format, set_up
from tidemill.formats.lines import LINE_LIMIT
from tidemill.letters import DeadLetter
from tidemill.schema import Schema
from tidemill.sources.acknowledgements import Acknowledgements
from tidemill.sources.base import SourceContext, SourceStatistics
from tidemill.sources.blocks import batch_of, bytes_of_a_turn
from tidemill.sources.edged import EdgedSource, checked_limit, until_told
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import BACKLOG, bound, checked_port
from tidemill.sources.tcp_connection import Block, Connection

__all__ = ["TCP"]


class TCP(EdgedSource):
    """Lines from any number of TCP connections.

    ``host``, ``port``  where to listen; port 0 takes a free one, which `port` names once the run has started
    ``format``          ``"ndjson"`` (default), ``"influx"`` for line protocol, or ``"telegraf-json"``: as `Lines` has them
    ``precision``       ``"ns"``, ``"us"``, ``"ms"`` or ``"s"``: the unit of the timestamps of the latter two
    ``limit``           bytes of one line; a longer one is rejected and read over
    ``buffer``          bytes of lines that wait to be decoded; above, connections are not read, so that senders wait
    ``ack``             tell each connection how many of its lines are safe; for a run with state

    A record without the default key field belongs to a sensor named by its connection (``peer``, ``host:port``), and one of
    line protocol or Telegraf's JSON to its series; a record without the default time field gets the time of its arrival. A last line without an end counts when the
    sender closes; one that the end of the run cuts is rejected. `check` raises `OutsideError` when the port is in use.

    Delivery: in order for each connection. Without ``ack`` at most once: a sender cannot know what was read before it or
    we died; with state, what was read and kept in the ingest log is delivered exactly once.

    With ``ack`` at least once, as the sender sees it: the source writes back one line with the number of lines of this
    connection that have reached the disk so far, ``1234\\n``, each time there are more. Every line counts, also an empty
    one and one that is rejected, which is safe among the dead letters. A sender keeps what was not acknowledged and
    sends it again over its next connection, whose lines are counted from 0. If only the acknowledgement was lost, the
    records come twice; `Dedup` drops the second. A line that the end of the run or a broken connection cuts
    is not counted and not rejected, since it will be sent again. A sender that shuts down its side for writing gets its
    last acknowledgement before the connection is closed. One that does not read them costs no memory: only the newest
    number waits for it.
    """

    push = True
    finite = False
    arrival = True
    fallback = "peer"

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
        limit: int = LINE_LIMIT,
        buffer: int = 4 << 20,
        ack: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        if buffer < 1:
            raise PlanError(f"buffer={buffer!r} of TCP must be a number of bytes above 0.")
        self.host = host
        self._form = line_format(format, precision, source="TCP")
        set_up(self.edge, self._form)
        self._read = bytes_of_a_turn(format)
        self.limit = checked_limit(limit, "TCP")
        self.buffer = buffer
        self.ack = ack
        self._wanted_port = checked_port(port, "TCP")
        self._address: tuple[str, int] | None = None
        self._connections: set[Connection] = set()
        self._inbox: Inbox[Block] | None = None
        self._lost: list[DeadLetter] = []
        self._unfinished = 0
        self._pending: Acknowledgements[Connection] = Acknowledgements()
        self._told = asyncio.Event()
        self._started = asyncio.Event()

    @property
    def port(self) -> int:
        """The port listened on; before the run, the one asked for."""
        return self._address[1] if self._address is not None else self._wanted_port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return (self.host, self.port)

    async def wait_listening(self) -> tuple[str, int]:
        """Return the address once connections are accepted."""
        await self._started.wait()
        return self.address

    @property
    def buffered(self) -> int:
        """Bytes that wait here: lines to be decoded and unfinished lines."""
        return self._unfinished + (self._inbox.size if self._inbox is not None else 0)

    def check(self) -> None:
        bound(self.host, self._wanted_port, "TCP").close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(self.name, self._connected, self._records, self._rejected, len(self._connections))

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
        loop = asyncio.get_running_loop()
        inbox: Inbox[Block] = Inbox(self.buffer, self._pause, self._resume)
        self._inbox = inbox
        shared = memoryview(bytearray(self._read))
        server = await loop.create_server(
            lambda: Connection(self, inbox, context.clock, shared),
            sock=bound(self.host, self._wanted_port, "TCP"),
            backlog=BACKLOG,
        )
        self._pending = Acknowledgements()
        self._address = server.sockets[0].getsockname()[:2]
        self._connected = True
        self._started.set()

        def stop() -> None:
            server.close()
            for connection in list(self._connections):
                connection.cut()

        def close() -> None:
            stop()
            for connection in list(self._connections):
                connection.abort()

        try:
            async with inbox.until_stopping(context, stop):
                while await inbox.filled():
                    if inbox.size < self._read // 2:
                        await context.gather()
                    blocks = inbox.take(self._read)
                    batch, letters = batch_of(self.edge, self._form, blocks)
                    batch = self.accept(context, batch, letters + self._taken_lost())
                    if self.ack:
                        self._pending.yielded({block.sender: block.count for block in blocks})
                    if len(batch) or self.ack:
                        yield batch
                    await asyncio.sleep(0)
                await until_told(context, lambda: self._pending.waiting, self._told)
        finally:
            self._connected = False
            self._started.clear()
            close()
            self.accept(context, Batch({}, rows=0), self._taken_lost())
            await asyncio.sleep(0)  # let the transports close

    def _taken_lost(self) -> list[DeadLetter]:
        lost, self._lost = self._lost, []
        return lost

    def _pause(self) -> None:
        for connection in self._connections:
            connection.pause()

    def _resume(self) -> None:
        for connection in self._connections:
            connection.resume()
