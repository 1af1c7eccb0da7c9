"""`UDP`: senders that write lines and wait for nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import operator
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.errors import PlanError
from tidemill.formats.line_formats import LINE_FORMATS, line_format, set_up
from tidemill.formats.lines import BYTE_ORDER_MARK, shown
from tidemill.letters import OVERSIZE, DeadLetter
from tidemill.schema import Schema
from tidemill.sources.base import SourceContext, SourceStatistics
from tidemill.sources.blocks import amounts, turns_of
from tidemill.sources.edged import checked_limit
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import ListeningSource, bound, is_loopback
from tidemill.sources.udp_losses import Losses

__all__ = ["UDP"]

_LARGEST: Final = 65_507
"""Bytes of a datagram, at most, in IPv4."""
_DATAGRAMS: Final = 256
"""Datagrams that are read in one turn of the loop."""
_OVERHEAD: Final = 512
"""Bytes that the system counts for each datagram besides its own, at least."""
_HELD: Final = 128
"""Bytes that datagrams which wait here take besides their own."""
_SENDERS: Final = 4_096
"""Senders that are remembered."""

_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class _Datagrams:
    """Of one sender, one behind the other, as lines."""

    lines: bytes
    known: Mapping[str, str]
    arrived_ns: int
    wall_ns: int
    letters: tuple[DeadLetter, ...] = ()


class UDP(ListeningSource):
    """Lines from any number of senders by UDP: one or more in a datagram, whose end ends a line.

    ``host``, ``port``  where to listen; port 0 takes a free one, which `port` names once the run has started
    ``format``          ``"ndjson"`` (default), ``"influx"`` for line protocol, or ``"telegraf-json"``: as `Lines` has them
    ``precision``       ``"ns"``, ``"us"``, ``"ms"`` or ``"s"``: the unit of the timestamps of the latter two
    ``key``             the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``            the field of its time (``"time"``; without that, its arrival)
    ``time_format``     the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``         kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                        one (UTC), as `Source` has them
    ``limit``           bytes of one datagram; a longer one is rejected whole
    ``buffer``          bytes of datagrams that wait to be decoded; and what is asked of the system for those that wait to be
                        read, of which it gives no more than it is set to (``net.core.rmem_max``)
    ``exposed``         beyond this machine (a ``host`` other than loopback) this must say that whoever reaches the port may
                        send, under any address, as in a network of the plant's own: UDP knows no certificates

    A record without the default key field belongs to a sensor named by its sender's address (``peer_host``; ``peer`` is
    ``host:port``), and one of line protocol or Telegraf's JSON to its series; where another field of the first ones seems to
    name several sensors, the log says so, unless ``key="{peer_host}"`` says that they are one. A record without the default time
    field gets the time of its arrival. `check` raises `OutsideError` when the port is in use.

    Delivery: at most once, and in the order in which datagrams arrive. What the network loses nobody counts. What the system
    drops, because what came before still waits to be read, is counted, on Linux: ``lost`` in the statistics, the report and
    the metrics, and a warning. With state, what was read and has reached the ingest log is delivered exactly once. At the end
    of a run, what waits to be read is read.

    >>> UDP(port=8094, format="influx").port
    8094
    """

    push = True
    finite = False
    arrival = True
    formats = LINE_FORMATS
    fallback = "peer_host"
    looked_up_options = frozenset({"host"})

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
        limit: int = _LARGEST,
        buffer: int = 4 << 20,
        exposed: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(host, port, key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        if not exposed and not is_loopback(host):
            raise PlanError(
                f"UDP on {host!r} can be reached from other machines, and anybody there could send; write exposed=True if only "
                "the plant reaches it, or listen on 127.0.0.1."
            )
        self.limit = checked_limit(limit, "UDP")
        self.buffer = checked_limit(buffer, "UDP")
        self._form = line_format(format, precision, source="UDP")
        set_up(self.edge, self._form)
        self._amounts = amounts(format)
        self._losses = Losses()
        self._inbox: Inbox[_Datagrams] | None = None

    @property
    def buffered(self) -> int:
        """Bytes of datagrams that were read and wait here."""
        return self._inbox.size if self._inbox is not None else 0

    def check(self) -> None:
        bound(self.host, self._wanted_port, "UDP", socket.SOCK_DGRAM).close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(self.name, self._connected, self._records, self._rejected, lost=self._losses.read())

    # -- the run -----------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        listening = bound(self.host, self._wanted_port, "UDP", socket.SOCK_DGRAM)
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        reader = _Reader(self, listening, context.clock)
        inbox = self._inbox = reader.inbox
        self._losses.watch(listening)
        reader.go_on()
        self._listens(listening)
        try:
            async with inbox.until_stopping(context, reader.read_rest):
                while await inbox.filled():
                    if inbox.size < self._amounts.step // 2:
                        await context.gather()
                    taken = inbox.take(self._amounts.batch)
                    letters = [letter for datagrams in taken for letter in datagrams.letters]
                    self._tell_of_losses()
                    for turn in turns_of(self.edge, self._form, taken, self._amounts):
                        if turn is not None:
                            await self.accept(context, turn.batch, itertools.chain(letters, turn.letters))
                            letters = []
                            if len(turn.batch):
                                yield turn.batch
                        await asyncio.sleep(0)
        finally:
            self._connected = False
            self._started.clear()
            reader.end()
            self._losses.end()
            listening.close()

    def _tell_of_losses(self) -> None:
        lost = self._losses.news()
        if lost:
            _log.warning(
                "source %s: %d datagrams are lost: they came faster than they could be read, and the system had no room for "
                "more; raise buffer= and net.core.rmem_max, or let the senders use TCP",
                self.name,
                lost,
                extra={"source": self.name, "lost": lost},
            )


class _Reader:
    """Puts datagrams into the inbox."""

    def __init__(self, source: UDP, listening: socket.socket, clock: Clock) -> None:
        self.inbox: Inbox[_Datagrams] = Inbox(source.buffer, self.pause, self.go_on)
        self._source = source
        self._listening = listening
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._place = memoryview(bytearray(1 << 16))
        self._senders: dict[tuple[str, int], Mapping[str, str]] = {}
        self._ended = False

    def pause(self) -> None:
        """What comes waits in the system, and is dropped there when that is full."""
        self._loop.remove_reader(self._listening)

    def go_on(self) -> None:
        if not self._ended:
            self._loop.add_reader(self._listening, self.read)

    def end(self) -> None:
        """Read no more."""
        self._ended = True
        self.pause()

    def read(self) -> int:
        """What waits in the system, up to a turn's worth; whatever is left makes the loop call again. Returns how much room
        it took there, at least."""
        came: list[tuple[tuple[str, int], bytes]] = []
        size = 0
        while len(came) < _DATAGRAMS and size < self._source._amounts.step and (one := self._next()) is not None:
            came.append(one)
            size += len(one[1])
        now_ns, wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        for sender, some in itertools.groupby(came, operator.itemgetter(0)):
            self._put(self._known(sender), [data for _, data in some], now_ns, wall_ns)
        return size + _OVERHEAD * len(came)

    def read_rest(self) -> None:
        """The run ends: read what waits in the system, but not for ever what comes meanwhile."""
        self.end()
        room = self._listening.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        while room > 0 and (taken := self.read()):
            room -= taken

    def _next(self) -> tuple[tuple[str, int], bytes] | None:
        try:
            size, address = self._listening.recvfrom_into(self._place)
        except BlockingIOError:
            return None
        return address[:2], bytes(self._place[:size])

    def _known(self, sender: tuple[str, int]) -> Mapping[str, str]:
        known = self._senders.get(sender)
        if known is None:
            if len(self._senders) >= _SENDERS:
                self._senders.clear()
            host, port = sender
            known = self._senders[sender] = {"peer": f"{host}:{port}", "peer_host": host, "peer_port": str(port)}
        return known

    def _put(self, known: Mapping[str, str], datagrams: list[bytes], now_ns: int, wall_ns: int) -> None:
        limit = self._source.limit
        size = sum(map(len, datagrams)) + _HELD
        letters = []
        if max(map(len, datagrams)) > limit:
            reason = f"the datagram is longer than {limit} bytes"
            refuse = self._source.edge.refuse
            letters = [refuse(OVERSIZE, reason, shown(data), known=known) for data in datagrams if len(data) > limit]
            datagrams = [data for data in datagrams if len(data) <= limit]
        lines = b"".join([data.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n") + b"\n" for data in datagrams])
        self.inbox.put(_Datagrams(lines, known, now_ns, wall_ns, tuple(letters)), size)
