"""`MQTT`: a message to a broker for each row."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tidemill.batch import Batch
from tidemill.errors import MissingExtra, PlanError
from tidemill.formats.brokers import Access, Broker, check_session
from tidemill.formats.json_lines import encode_json_lines
from tidemill.formats.topics import TopicTemplate
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, ProcessSink, SinkStatistics, Where
from tidemill.sinks.numbers import refuse_numbers, with_numbers
from tidemill.tls import client_context, passphrase

if TYPE_CHECKING:
    from tidemill.sinks.mqtt_publisher import Publisher

__all__ = ["MQTT"]

_TOPICS: Final = 100_000
"""Topics that are remembered."""
_TOO_LARGE: Final = "(message too large)"
_REFUSED: Final = "(refused by the broker)"


class MQTT(ProcessSink):
    """A message for each row, MQTT 5 and 3.1.1.

    ``url``        ``"mqtt://host:1883"``, ``"mqtts://host:8883"`` for TLS
    ``topic``      ``"features/{site}/{sensor}"``: each name in braces is a column, whose value becomes a level of the topic
    ``payload``    a column whose value alone is the payload; by default the row as a JSON object
    ``qos``        0, 1 (default) or 2
    ``retain``     have the broker keep the newest message of each topic for who subscribes later
    ``numbered``   add ``_seq`` to the JSON, which numbers the rows since the pipeline's first start, and ``_epoch``, which
                   numbers the starts: a reader that keeps the last ``_seq`` it has worked on leaves out rows up to it, and has
                   each once. Needs a run that keeps state; without it they are left out
    ``client_id``  what the sink calls itself; each needs one of its own (default: made up)
    ``version``    ``"5"`` (default) or ``"3.1.1"``
    ``username``, ``password``  may also be in the address; never shown. These and the address may refer to what is
                   kept elsewhere: ``"${env:MQTT_PASSWORD}"``, ``"${file:/run/secrets/mqtt}"``, looked up at each start
    ``ca``, ``cert``, ``cert_key``  PEM files: whom to trust (default: as the system does), and what to show of oneself
    ``cert_password``   the passphrase of a private key that has one

    A text and a whole number can be a level of a topic. Any other value, and a text that is empty or has ``/``, ``+``, ``#``
    or NUL in it, would make another topic than meant: such a row is not published, and counted under the column's name in
    ``left_out`` of the report. So is a row without a value in the ``payload`` column, and one that is larger than the
    broker takes. In JSON, NaN is null, an absent field is left out, and times are ISO 8601.

    Delivery: at least once with QoS 1 and 2, in input order: rows count as written when the broker has acknowledged them. A
    lost connection is made again with growing pauses, and what was not acknowledged is published again; after ten seconds a
    live run begins again at its last checkpoint, again and again, while what comes goes into the ingest log. Rows since the
    last checkpoint come twice then. QoS 0 is at most once: a row counts when the system has taken it.

    ``if_exists`` is taken as by every sink; nothing is there before a run that it could decide about.

    Raises `InputError` for what the broker refuses for good (password, certificate, under MQTT 5 also a topic), and
    `OutsideError` when it is away; 3.1.1 has no words for a refused topic, and a broker drops such messages in silence.

    >>> sink = MQTT("mqtt://localhost", "features/{sensor}", payload="value_mean_50")
    >>> sink, sink.delivery
    (MQTT('mqtt://localhost:1883', 'features/{sensor}'), 'at-least-once; acknowledged by the broker, in order')
    """

    looked_up_options = frozenset({"topic", "client_id", "ca", "cert", "cert_key"})
    secret_options = frozenset({"url", "username", "password", "cert_password"})

    def __init__(
        self,
        url: str,
        topic: str,
        *,
        payload: str | None = None,
        qos: int = 1,
        retain: bool = False,
        numbered: bool = False,
        client_id: str | None = None,
        version: str = "5",
        username: str | None = None,
        password: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        cert_key: str | os.PathLike[str] | None = None,
        cert_password: str | None = None,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        self._access = Access(url, username, password)
        self._broker = self._access.broker
        self._topic = TopicTemplate(topic)
        check_session(qos, version, client_id)
        if payload is not None and (columns is not None or numbered):
            raise PlanError("payload= of MQTT makes one column the message; columns= and numbered= are for JSON.")
        if not self._broker.tls and (ca is not None or cert is not None):
            raise PlanError("ca= and cert= of MQTT are for TLS; write mqtts:// in the address.")
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.numbered = numbered
        self.version = version
        self.client_id = client_id
        self._shown = tuple(columns) if columns is not None else None
        if payload is not None:
            self._shown = (payload,)
        if self._shown is not None:
            self.columns = tuple(dict.fromkeys((*self._shown, *self._topic.names)))
        self.delivery = "at-least-once; acknowledged by the broker, in order" if qos else "at-most-once; in order"
        self.delivery_with_state = self.delivery
        self._cert_password = passphrase(cert_password, "MQTT")
        self._certificates = (ca, cert, cert_key, self._cert_password)
        self._topics: dict[tuple[object, ...], str | None] = {}
        self._publisher: Publisher | None = None
        self._rows = 0
        self._bytes = 0
        self._left_out: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"MQTT({str(self._broker)!r}, {self._topic.template!r})"

    # -- the contract of a sink ----------------------------------------------------------------------

    def check(self) -> None:
        """The library, the certificates and what the options refer to are there. A broker that is not may come yet: it is not
        asked."""
        _require_library()
        self._access.check()
        if self._cert_password is not None:
            self._cert_password.check()
        self._tls(self._access.looked_up())

    @property
    def asks_for(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._topic.names, *(self.columns or ()))))

    def bind(self, schema: Schema) -> None:
        super().bind(schema)
        if self.numbered:
            refuse_numbers(schema.names if self._shown is None else self._shown, self.name)

    def open(self, schema: Schema) -> None:
        _require_library()
        from tidemill.sinks.mqtt_publisher import Publisher

        self.close()
        broker = self._access.looked_up()
        publisher = Publisher(
            broker,
            self._tls(broker),
            self.client_id or f"tidemill-{secrets.token_hex(8)}",
            five=self.version == "5",
            qos=self.qos,
            retain=self.retain,
            told=repr(self._topic.template),
            tried=self.tried,
        )
        publisher.connect()
        self._publisher = publisher

    def write(self, batch: Batch) -> None:
        with self._opened() as publisher:
            if not len(batch):
                return
            for topic, payload in zip(self._topics_of(batch), self._payloads_of(batch), strict=True):
                if topic is None:
                    continue  # counted where it was found
                if payload is None:
                    self._leave_out(str(self.payload))
                elif not publisher.fits(topic, payload):
                    self._leave_out(_TOO_LARGE)
                else:
                    publisher.publish(topic, payload)
                    self._rows += 1
                    self._bytes += len(payload)

    def flush(self) -> None:
        with self._opened() as publisher:
            self._drain(publisher)

    def close(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with contextlib.closing(publisher):
                self._drain(publisher)

    def _drain(self, publisher: Publisher) -> None:
        publisher.drain()
        if publisher.unusable:
            self._rows -= publisher.unusable
            self._leave_out(_REFUSED, publisher.unusable)
            publisher.unusable = 0

    def statistics(self) -> SinkStatistics:
        """``bytes`` is what the payloads have; ``left_out`` counts rows that were not published, by the column at fault."""
        return SinkStatistics(self.name, self._rows, self._bytes, self._left_out)

    def why_left_out(self, name: str) -> str:
        if name == _TOO_LARGE:
            return f"a message is larger than {self._broker} takes, and was not published"
        if name == _REFUSED:
            return f"{self._broker} refused a message that was published to {self._topic.template!r}"
        if name == self.payload and name not in self._topic.names:
            return f"a row without a value in {name!r}, which is the payload, was not published"
        return (
            f"a row whose {name!r} is no level of a topic (empty, not a text, or with '/', '+', '#' in it) was not published "
            f"to {self._topic.template!r}"
        )

    # -- messages ------------------------------------------------------------------------------------

    def _topics_of(self, batch: Batch) -> list[str | None]:
        """The topic of each row; None, and counted, where a value makes none."""
        names = self._topic.names
        if not names:
            return [self._topic.of(())] * len(batch)
        there = batch.select({name: name for name in names if name in batch})
        made: list[str | None] = []
        for row in there.to_rows():
            values = tuple(map(row.get, names))
            if not all(type(value) is str or type(value) is int for value in values):
                topic = None
            elif values in self._topics:
                topic = self._topics[values]
            else:
                if len(self._topics) >= _TOPICS:
                    self._topics.clear()
                topic = self._topics[values] = self._topic.of(values)
            if topic is None:
                self._leave_out(self._topic.unfit(values))
            made.append(topic)
        return made

    def _payloads_of(self, batch: Batch) -> Sequence[bytes | None]:
        if self.payload is not None:
            if self.payload not in batch:
                return [None] * len(batch)
            rows = batch.select({self.payload: self.payload}).to_rows()
            return [_bare(row, self.payload) for row in rows]
        shown = batch
        if self._shown is not None:
            shown = batch.select({name: name for name in self._shown})
        if self.numbered:
            shown = with_numbers(shown, self.name)
        if not shown.columns:
            return [b"{}"] * len(batch)
        return encode_json_lines(shown).split(b"\n")[: len(batch)]

    def _leave_out(self, name: str, count: int = 1) -> None:
        self._left_out = {**self._left_out, name: self._left_out.get(name, 0) + count}

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Publisher]:
        """Whatever is raised, the connection is let go, and with it what was not acknowledged."""
        publisher = self._publisher
        if publisher is None:
            raise PlanError(f"sink {self.name} is not open.")
        try:
            yield publisher
        except BaseException:
            self._publisher = None
            publisher.close()
            raise

    def _tls(self, broker: Broker) -> ssl.SSLContext | None:
        return client_context(*self._certificates) if broker.tls else None


def _bare(row: Mapping[str, Any], name: str) -> bytes | None:
    """A value by itself: a text as it is, all else as in JSON; None for what is none."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return msgspec.json.encode(value, enc_hook=str)


def _require_library() -> None:
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError:
        raise MissingExtra("paho-mqtt", "mqtt", "Messages of MQTT") from None
