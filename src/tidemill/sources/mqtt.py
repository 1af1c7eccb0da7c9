"""`MQTT`: messages from a broker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.core.backoff import Backoff, level_of_try
from tidemill.durations import duration_ns
from tidemill.errors import InputError, MissingExtra, OutsideError, PlanError
from tidemill.formats.asked_topics import AskedTopics, Bound
from tidemill.formats.brokers import Access, Broker, check_session
from tidemill.formats.field_names import SENSORS, TIMES
from tidemill.formats.lines import shown, text_of
from tidemill.formats.payloads import PayloadReader
from tidemill.letters import AT_A_TIME, OVERSIZE, UNASKED, DeadLetter
from tidemill.printable import quoted
from tidemill.rows import runs_of_rows
from tidemill.schema import Field, Kind, Schema
from tidemill.sources.acknowledgements import Acknowledgements
from tidemill.sources.base import SourceContext, SourceStatistics
from tidemill.sources.edged import EdgedSource, checked_limit, pause, until_told
from tidemill.sources.inbox import Inbox
from tidemill.tls import client_context, passphrase

if TYPE_CHECKING:
    from tidemill.sources.mqtt_client import Message
    from tidemill.sources.mqtt_connection import Block, Connection, Session

__all__ = ["MQTT"]

_TAKEN: Final = 1 << 16
"""Bytes of messages, with their overhead, that are decoded in one turn of the loop."""
_ROWS: Final = 1_000
"""Records that become one batch in one turn of the loop."""
_TOPICS_SHOWN: Final = 5
_UNNAMED_EXPIRY_S: Final = 3_600
"""For how long the session of a run without a client_id outlives its connection: while it connects anew."""
_BRIEF: Final = 3
"""Connections in a row, lost within seconds and without a reason, after which somebody else may be who takes them."""
_NOT_TLS: Final = "ca= and cert= of MQTT are for TLS; write mqtts:// in the address."
_Row = dict[str, Any]
_Came = tuple[bytes, int]
"""A message, and which of its readings."""
_log = logging.getLogger("tidemill")


class MQTT(EdgedSource):
    """Messages from a broker, MQTT 5 and 3.1.1.

    ``url``             ``"mqtt://host:1883"``, ``"mqtts://host:8883"`` for TLS
    ``topics``          one pattern or several: ``"plant/{site}/{sensor}"`` binds the columns ``site`` and ``sensor``, each
                        to one level of the topic; ``+`` and ``#`` match without binding, ``"$share/group/plant/{sensor}"``
                        shares the messages with the other subscribers of the group. Of patterns that overlap the first one binds,
                        and the broker may send a message twice: the log says so
    ``value``           where in a JSON payload the value is: ``"data.temp"``; or a path for each column:
                        ``{"rssi": "rxInfo[*].rssi", "frame": "fCnt"}``, with ``[*]`` for a record of each item of a list.
                        A record has these columns, and the fields at the top of its message that ``key`` and ``time`` name
    ``key``             the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``            the field of its time (``"time"``; without that, its arrival)
    ``time_format``     the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``         kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                        one (UTC), as `Source` has them
    ``qos``             0, 1 (default) or 2: what the broker is asked for; a message comes with the lower one of this and
                        its publisher's
    ``retained``        ``"skip"`` (default) passes over what the broker had retained before the subscription, and counts
                        it; ``"take"`` takes it as a reading
    ``client_id``       gives the session a name, so that the broker keeps it, and what comes for it, while no run is there;
                        each run needs one of its own. Without it, what is published between two runs does not come, nor,
                        under 3.1.1, what is published while it connects anew
    ``clean_start``     have the broker forget what it has kept for ``client_id`` (under 3.1.1 at each connection)
    ``session_expiry``  how long it keeps it, from MQTT 5 on (``"7d"``)
    ``version``         ``"5"`` (default) or ``"3.1.1"``
    ``username``, ``password``  may also be in the address; never shown. These and the address may refer to what is kept
                        elsewhere: ``"${env:MQTT_PASSWORD}"``, ``"${file:/run/secrets/mqtt}"``, looked up at each connection
    ``ca``, ``cert``, ``cert_key``  PEM files: whom to trust (default: as the system does), and what to show of oneself
    ``cert_password``   the passphrase of a private key that has one
    ``limit``           bytes of one message, topic included; a longer one is rejected, and never held whole
    ``buffer``          bytes of messages that wait to be decoded; above, the connection is not read, so that the broker waits

    A payload is a number (``51.3``), a JSON object (a record), or a JSON array of these (a record each). The columns of the
    topic come first, and replace fields of their names. A record without the default key field belongs to a sensor named
    by its topic; ``key=`` may use ``{topic}``. The level ``{sensor}`` alone is the default key: where sensors of two sites have one
    name, say ``key="{site}/{sensor}"``. The log says once that two topics are taken for one sensor's, and that within one topic a
    field that is called as sensors are names several. One without the default time field gets the time of its arrival.

    Delivery: in the broker's order. With QoS 1 or 2 and state, a message is acknowledged when it is in the ingest log, on
    the disk, and not before: everything that the broker has taken is worked on at least once, over crashes of either side,
    if the broker keeps the session (``client_id``). A session keeps its subscriptions too: of a plan that asks for other topics
    under the ``client_id`` of an earlier one, what comes on the earlier one's is a dead letter. A message comes twice when an acknowledgement was lost with a connection,
    or with us; `Dedup` drops the second. What is rejected is acknowledged too: it is safe among the dead letters,
    with all of its message, also what no path of ``value`` took; of a list whose items are readings, with the one item.
    Without state, a message is acknowledged when it was taken in, and what is in flight is lost with us. QoS 0 is at most once.

    A lost connection is tried again with growing pauses, for ever, and each time the log says why. What the broker refuses at
    the first connection (password, certificate, topic) ends the run, with an `InputError`; later it is tried again.

    >>> source = MQTT("mqtt://localhost", "plant/{site}/{sensor}", key="{site}/{sensor}", value="data.temp")
    >>> source.topics, source.peek()
    (('plant/{site}/{sensor}',), Schema(site: text, sensor: text, ...))
    """

    push = True
    finite = False
    arrival = True
    fallback = "topic"
    looked_up_options = frozenset({"topics", "client_id", "ca", "cert", "cert_key"})
    secret_options = frozenset({"url", "username", "password", "cert_password"})

    def __init__(
        self,
        url: str,
        topics: str | Sequence[str],
        *,
        value: str | Mapping[str, str] | None = None,
        qos: int = 1,
        retained: str = "skip",
        client_id: str | None = None,
        clean_start: bool = False,
        session_expiry: str | float = "7d",
        version: str = "5",
        username: str | None = None,
        password: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        cert_key: str | os.PathLike[str] | None = None,
        cert_password: str | None = None,
        limit: int = 256 << 10,
        buffer: int = 4 << 20,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        self._access = Access(url, username, password)
        self._broker = self._access.broker
        self._asked = AskedTopics([topics] if isinstance(topics, str) else topics, key_given=key is not None)
        if not self._asked.patterns:
            raise PlanError("topics= of MQTT is empty; name at least one topic.")
        check_session(qos, version, client_id)
        if retained not in ("skip", "take"):
            raise PlanError(f'retained={retained!r} of MQTT must be "skip" or "take".')
        if clean_start and client_id is None:
            raise PlanError("clean_start=True of MQTT needs a client_id=; without one each run starts clean.")
        if not self._broker.tls and (ca is not None or cert is not None):
            raise PlanError(_NOT_TLS)
        if buffer < 1:
            raise PlanError(f"buffer={buffer!r} of MQTT must be a number of bytes above 0.")
        self.qos = qos
        self.retained = retained
        self.client_id = client_id
        self.clean_start = clean_start
        self.version = version
        self.limit = checked_limit(limit, "MQTT")
        self.buffer = buffer
        self._expiry_s = duration_ns(session_expiry, name="session_expiry of MQTT", zero=True) // 10**9
        self._payloads = PayloadReader(value, self._given_roles())
        self._cert_password = passphrase(cert_password, "MQTT")
        self._certificates = (ca, cert, cert_key, self._cert_password)
        self._skipped = 0
        self._unasked = False
        self._tries = 0
        self._trouble = ""
        self._connection: Connection | None = None
        self._inbox: Inbox[Block] | None = None
        self._pending: Acknowledgements[Connection] = Acknowledgements()
        self._yielded = 0
        self._told = asyncio.Event()
        self._subscribed = asyncio.Event()

    @property
    def topics(self) -> tuple[str, ...]:
        """The patterns."""
        return tuple(pattern.pattern for pattern in self._asked.patterns)

    def __repr__(self) -> str:
        return f"MQTT({str(self._broker)!r}, {list(self.topics)!r})"

    def check(self) -> None:
        """The library, the certificates and what the options refer to are there. A broker that is not may come yet: it is
        not asked."""
        _require_library()
        self._access.check()
        if self._cert_password is not None:
            self._cert_password.check()
        self._tls(self._access.looked_up())

    def peek(self) -> Schema:
        bound = self._asked.names
        fields = {name: Field(name, self.columns.get(name, Kind.TEXT)) for name in bound}
        fields |= {name: Field(name, kind) for name, kind in self.columns.items() if name not in fields}
        return Schema(fields.values(), open=True)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(
            self.name,
            self._connected,
            self._records,
            self._rejected,
            connections=int(self._connected),
            skipped=self._skipped,
            tries=self._tries,
            trouble=self._trouble,
            dials=True,
        )

    def _given_roles(self) -> dict[str, Sequence[str]]:
        """The fields of messages that key= and time= name, with what such fields are called."""
        bound = {"topic", *self._asked.names}
        keys = self.edge.roles.key_fields if self.key is not None else ()
        roles: dict[str, Sequence[str]] = {name: SENSORS for name in keys if name not in bound}
        return roles if self.time is None else {**roles, self.time: TIMES}

    def doubt(self, batch: Batch) -> str:
        return " ".join(filter(None, (super().doubt(batch), self._payloads.seen.look(self.edge.roles))))

    def explain(self) -> str:
        return self.edge.explain(paths=self._payloads.seen.explained)

    def nothing_yet(self) -> str:
        topics = ", ".join(repr(pattern.filter) for pattern in self._asked.patterns[:_TOPICS_SHOWN])
        more = len(self._asked.patterns) - _TOPICS_SHOWN
        topics += f" and {more:,} more" if more > 0 else ""
        if self._skipped:
            return f"only retained messages on {topics} so far, which are passed over (retained='take' takes them)"
        return (
            f"no message on {topics} so far; if there should be, compare that with the topics that "
            f"`tidemill new other.py --mqtt {self._broker}` hears"
        )

    async def wait_subscribed(self) -> None:
        """Return once the broker has taken the subscriptions."""
        await self._subscribed.wait()

    @property
    def buffered(self) -> int:
        """Bytes of messages that wait here to be decoded."""
        return self._inbox.size if self._inbox is not None else 0

    @property
    def acknowledges(self) -> bool:
        return self.qos > 0

    def kept(self, batches: int) -> None:
        for connection, count in self._pending.kept(batches).items():
            connection.acknowledge(count)
        self._told.set()

    # -- the run -----------------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        _require_library()
        inbox: Inbox[Block] = Inbox(self.buffer, self._pause, self._resume)
        self._inbox = inbox
        self._pending = Acknowledgements()
        self._yielded = 0
        staying = asyncio.ensure_future(self._stay_connected(context, inbox))
        staying.add_done_callback(lambda _: inbox.close())
        try:
            async with inbox.until_stopping(context, self._pause):
                while await inbox.filled():
                    async for batch in self._batches(context, inbox.take(_TAKEN)):
                        yield batch
                        if not context.tells_kept and self.acknowledges:
                            self.kept(self._yielded)
                    await asyncio.sleep(0)
            if staying.done():
                staying.result()  # a refusal for good
            await until_told(context, lambda: self._pending.waiting, self._told)
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)

    async def _batches(self, context: SourceContext, blocks: list[Block]) -> AsyncIterator[Batch]:
        """What these blocks hold, in batches that are made in one turn of the loop each; the last one stands for them."""
        counts = {block.sender: block.count for block in blocks}
        made: Batch | None = None
        for rows, came, known, wall_ns, letters in self._pieces(blocks):
            for run in runs_of_rows(rows):
                if made is not None:
                    self._note({})
                    yield made
                    await asyncio.sleep(0)
                walls = np.array(wall_ns[run], np.int64)
                batch, more = self.edge.rows(
                    rows[run],
                    arrived_ns=blocks[0].arrived_ns,
                    wall_ns=walls,
                    known=known[run],
                    raw_of=self._wholes(rows[run], came[run]) if came else None,
                    parsed=True,
                )
                made = await self.accept(context, batch, more if run.start else itertools.chain(*letters, more))
        if made is not None and (len(made) or self.acknowledges):
            self._note(counts)
            yield made

    def _note(self, counts: Mapping[Connection, int]) -> None:
        self._yielded += 1
        self._pending.yielded(counts)

    def _pieces(
        self, blocks: list[Block]
    ) -> Iterator[tuple[list[_Row], list[_Came], list[Mapping[str, str]], list[int], list[Sequence[DeadLetter]]]]:
        """Rows, of what messages they are a part, what is known of each, when it came, and what is no row; of both what one
        turn of the loop makes."""
        rows: list[_Row] = []
        came: list[_Came] = []
        parts = bool(self._payloads.columns)
        known: list[Mapping[str, str]] = []
        wall_ns: list[int] = []
        letters: list[Sequence[DeadLetter]] = []
        for block in blocks:
            for message in block.messages:
                if message.again or self._passed_over(message):
                    continue
                bound = self._asked.bind(message.topic)
                if self._asked.doubt:
                    _log.warning("source %s: %s", self.name, self._asked.doubt, extra={"source": self.name})
                    self._asked.doubt = ""
                if bound is None or len(message.payload) + len(message.topic) > self.limit:
                    letters.append([self._refused(message, bound)])
                else:
                    made, bad = self._payloads.read(message.payload)
                    columns, knows = bound
                    if bad:
                        letters.append(self.edge.refused(bad, known={**columns, **knows}))
                    rows += [{**columns, **row, **columns} for row in made] if columns else made
                    if parts and len(made) == 1:
                        came.append((message.payload, 0))
                    elif parts:
                        came += [(message.payload, place) for place in range(len(made))]
                    known += [knows] * len(made)
                    wall_ns += [block.wall_ns] * len(made)
                while len(rows) > _ROWS or len(letters) >= AT_A_TIME:
                    yield rows[:_ROWS], came[:_ROWS], known[:_ROWS], wall_ns[:_ROWS], letters
                    letters = []
                    del rows[:_ROWS], came[:_ROWS], known[:_ROWS], wall_ns[:_ROWS]
        yield rows, came, known, wall_ns, letters

    def _wholes(self, rows: Sequence[_Row], came: Sequence[_Came]) -> Callable[[int], Any]:
        """What the dead letters of rows hold that are parts of messages."""
        return lambda place: self._payloads.whole(*came[place], rows[place])

    def _passed_over(self, message: Message) -> bool:
        if not message.retained or self.retained == "take":
            return False
        self._skipped += 1
        if self._skipped == 1:
            _log.info(
                "source %s: passing over messages that the broker had retained; they may be old (retained='take' takes them)",
                self.name,
                extra={"source": self.name},
            )
        return True

    def _refused(self, message: Message, bound: Bound | None) -> DeadLetter:
        if bound is not None:
            reason = f"the message is longer than {self.limit} bytes, its topic included"
            return self.edge.refuse(OVERSIZE, reason, shown(message.payload), known={**bound.columns, **bound.known})
        topic = text_of(message.topic)
        reason = f"nothing in topics= asks for the topic {quoted(topic)}"
        if self.client_id is not None:
            reason += (
                f"; if an earlier run with client_id {quoted(self.client_id)} did, the broker still sends it: give another "
                "client_id=, or run once with clean_start=True, which drops what the broker keeps for it"
            )
        if not self._unasked:
            self._unasked = True
            _log.warning("source %s: %s", self.name, reason, extra={"source": self.name})
        return self.edge.refuse(UNASKED, reason, text_of(message.payload), known={"topic": topic})

    def _pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def _resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # -- the connection ----------------------------------------------------------------------------------

    async def _stay_connected(self, context: SourceContext, inbox: Inbox[Block]) -> None:
        """Connect again and again, until cancelled. Raises `InputError` for what is refused at the first time."""
        from tidemill.sources.mqtt_connection import UNEXPLAINED, Connection

        backoff = Backoff()
        half_way: set[int] = set()
        made_id = f"tidemill-{secrets.token_hex(8)}"
        tls: ssl.SSLContext | None = None
        ever = False
        while True:
            connection = None
            try:
                broker = await asyncio.to_thread(self._access.looked_up)
                tls = tls or self._tls(broker)  # once: files that are being replaced must not end a run
                session = self._session(broker, self.client_id or made_id, tls, ever, half_way)
                connection = Connection(session, inbox.put, context.clock)
                await connection.open(resubscribe=not ever)
                self._connection = connection  # not before: the answers may be behind more messages than fit
                if inbox.paused or context.stopping.is_set():
                    connection.pause()
                self._say_connected(ever)
                ever = True
                backoff.connected(context.clock.monotonic_ns())
                why = f"{self._broker} is gone: {await connection.lost}"
            except OutsideError as error:
                why = str(error)
            except InputError as error:
                if not ever:
                    raise InputError(f"source {self.name}: {str(error).rstrip('.')}.") from None
                why = str(error)
            finally:
                self._connected = False
                if connection is not None:
                    await connection.close()
            self._tries += 1
            self._trouble = why.rstrip(".")
            wait_s = backoff.failed(context.clock.monotonic_ns())
            if backoff.brief >= _BRIEF and self.client_id is not None and why.endswith(UNEXPLAINED):
                why = self._trouble = f"{why} (is another run using client_id {self.client_id!r}?)"
            _log.log(
                level_of_try(self._tries),
                "source %s: %s. Connecting again in %.1f s.",
                self.name,
                why.rstrip("."),
                wait_s,
                extra={"source": self.name},
            )
            await pause(context, wait_s)
            if context.stopping.is_set():
                return

    def _say_connected(self, again: bool) -> None:
        self._connected = True
        self._tries, self._trouble = 0, ""
        self._subscribed.set()
        _log.info(
            "source %s: %s to %s", self.name, "connected again" if again else "connected", self._broker,
            extra={"source": self.name},
        )  # fmt: skip
        if not again and (both := self._asked.overlapping()):
            _log.warning(
                "source %s: the topics %r and %r overlap: a broker may send a message of both twice, and it is two records then",
                self.name, *both, extra={"source": self.name},
            )  # fmt: skip
        if not again and self.client_id is None and self.qos:
            _log.info(
                "source %s: without client_id= the broker keeps nothing for it between two runs", self.name,
                extra={"source": self.name},
            )  # fmt: skip

    def _session(
        self, broker: Broker, client_id: str, tls: ssl.SSLContext | None, again: bool, half_way: set[int]
    ) -> Session:
        from tidemill.sources.mqtt_connection import Session

        five = self.version == "5"
        named = self.client_id is not None
        clean = (self.clean_start or not named) and not (five and again)
        return Session(
            broker=broker,
            tls=tls,
            client_id=client_id,
            five=five,
            clean=clean,
            expiry_s=self._expiry_s if named else _UNNAMED_EXPIRY_S,
            leaves=named,
            qos=self.qos,
            filters=[pattern.filter for pattern in self._asked.patterns],
            limit=self.limit,
            half_way=half_way,
        )

    def _tls(self, broker: Broker) -> ssl.SSLContext | None:
        if broker.tls:
            return client_context(*self._certificates)
        if any(self._certificates):
            raise InputError(_NOT_TLS)
        return None


def _require_library() -> None:
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError:
        raise MissingExtra("paho-mqtt", "mqtt", "Messages of MQTT") from None
