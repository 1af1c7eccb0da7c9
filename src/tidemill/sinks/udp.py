"""`UDP`: rows as lines in datagrams."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.errors import PlanError
from tidemill.sinks.base import IfExists, Where
from tidemill.sinks.datagram_sender import LARGEST, DatagramSender
from tidemill.sinks.sent import REFUSED, TOO_LARGE
from tidemill.sinks.sent_lines import SentLines
from tidemill.sinks.server import server_of

__all__ = ["UDP"]

_FITTING = 1_400
"""Bytes that go through nearly every network in one piece."""


class UDP(SentLines):
    """Rows as lines in datagrams: to Telegraf's ``socket_listener``, to InfluxDB's UDP service, to another tidemill.

    ``url``      ``"udp://host:8094"``
    ``format``   ``"ndjson"`` (default) or ``"influx"``; ``measurement``, ``tags``, ``time``, ``precision`` and ``integers`` are
                 those of line protocol, as `Lines` has them
    ``numbered`` add ``_seq``, the row's number since the pipeline's first start, which is the same when it comes again, and
                 ``_epoch``, that of the start. Needs a run that keeps state; without it they are left out. A reader
                 that remembers these leaves out rows that it has had
    ``datagram`` bytes that a datagram of several lines may have: 1,400 (default) go through nearly every network in one
                 piece, on one machine it may be 65,507

    A datagram has whole lines, each with its end; a line that is longer has one of its own, and one that no datagram holds (65,507
    bytes over IPv4) is not sent, and counted in ``left_out`` of the report.

    Delivery: at most once, in no certain order: nobody waits, and what a network or a busy receiver loses is not known. A row
    counts when the system has taken it. Where the other machine says that nobody listens, rows are counted as refused too, as far
    as it says so. After a failure, a run with state sends what came since its last checkpoint again.

    ``if_exists`` is taken as by every sink; nothing is there before a run that it could decide about.

    Raises `PlanError` for an address that is none, `OutsideError` for a host that the system does not know or has no way to.

    >>> UDP("udp://telegraf:8094", format="influx", measurement="mill")
    UDP('udp://telegraf:8094')
    """

    looked_up_options = frozenset({"url"})
    delivery = "at-most-once"
    delivery_with_state = "at-most-once; after a failure, rows since the last checkpoint again"

    def __init__(
        self,
        url: str,
        *,
        format: str = "ndjson",  # noqa: A002 - the user's word
        measurement: str | None = None,
        tags: Sequence[str] | None = None,
        time: str | None = None,
        precision: str | None = None,
        integers: bool = True,
        numbered: bool = False,
        datagram: int = _FITTING,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(
            format,
            measurement=measurement, tags=tags, time=time, precision=precision, integers=integers,
            numbered=numbered,
            where=where, columns=columns, if_exists=if_exists, name=name,
        )  # fmt: skip
        if not isinstance(datagram, int) or not 1 <= datagram <= LARGEST:
            raise PlanError(f"datagram={datagram!r} of UDP must be a number of bytes from 1 to {LARGEST}.")
        self._server = server_of(url, "UDP", "udp")
        self.datagram = datagram

    def __repr__(self) -> str:
        return f"UDP({str(self._server)!r})"

    def why_left_out(self, name: str) -> str:
        if name == TOO_LARGE:
            return f"a row makes a line of more than {LARGEST} bytes, which no datagram holds, and was not sent"
        if name == REFUSED:
            return (
                f"nobody listens at {self._server}, as the other machine says of some rows; others are lost in silence"
            )
        return super().why_left_out(name)

    def _sender(self) -> DatagramSender:
        return DatagramSender(self._server, self.datagram, self._sent)
