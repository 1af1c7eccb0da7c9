"""`TCP`: rows as lines over a TCP connection."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from tidemill.errors import PlanError
from tidemill.sinks.base import IfExists, Where
from tidemill.sinks.line_sender import LineSender
from tidemill.sinks.sent_lines import SentLines
from tidemill.sinks.server import server_of
from tidemill.tls import client_context, passphrase

__all__ = ["TCP"]


class TCP(SentLines):
    """Rows as lines over a TCP connection: to Telegraf's ``socket_listener``, to QuestDB, to another tidemill.

    ``url``      ``"tcp://host:8094"``, ``"tls://host:8094"`` for TLS
    ``format``   ``"ndjson"`` (default) or ``"influx"``; ``measurement``, ``tags``, ``time``, ``precision`` and ``integers`` are
                 those of line protocol, as `Lines` has them
    ``numbered`` add ``_seq``, the row's number since the pipeline's first start, which is the same when it comes again, and
                 ``_epoch``, that of the start. Needs a run that keeps state; without it they are left out. A reader that
                 keeps the last ``_seq`` it has worked on leaves out rows up to it, and has each once
    ``ack``      True: the server is a `tidemill.sources.TCP` with ``ack=True`` and state, and tells how many lines are safe
    ``ca``, ``cert``, ``cert_key``  PEM files: whom to trust (default: as the system does), and what to show of oneself
    ``cert_password``   the passphrase of a private key that has one; better ``"${env:NAME}"`` or ``"${file:PATH}"``

    Lines are as `Lines` writes them: NDJSON with NaN as null, absent fields left out. What has no place in a line of line
    protocol is counted in ``left_out`` of the report.

    Delivery: in input order, each batch at once. Without ``ack`` best effort, since TCP does not tell what the other side has read: a
    row counts when the system has taken it. A connection that the server has closed is noticed before more is sent, and made
    again with growing pauses; a block of lines that was not taken whole (64 KiB) is sent again. At the end the server is given
    five seconds to read what is on its way. With ``ack`` at least once: a row counts when the server has it on its disk, and
    what was not acknowledged is sent again over the next connection; `tidemill.Dedup` there drops what comes twice.

    A server that is away for more than ten seconds, or takes or acknowledges nothing for a minute, is waited for by a live run
    with state, which begins again at its last checkpoint, again and again, while what comes goes into the ingest log: rows since
    then are sent twice. One that shuts down its own side, though it still reads, is taken for one that has gone.

    ``if_exists`` is taken as by every sink; nothing is there before a run that it could decide about.

    Raises `PlanError` for an address that is none, `InputError` for a certificate that is not trusted and for answers that are no
    numbers of lines, `OutsideError` when the server is away.

    >>> TCP("tcp://telegraf:8094", format="influx", measurement="mill"), TCP("tls://hub:9000", ack=True).delivery
    (TCP('tcp://telegraf:8094'), 'at-least-once; on the disk of the server, in order')
    """

    looked_up_options = frozenset({"url", "ca", "cert", "cert_key"})
    secret_options = frozenset({"cert_password"})

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
        ack: bool = False,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        cert_key: str | os.PathLike[str] | None = None,
        cert_password: str | None = None,
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
        self._server = server_of(url, "TCP", "tcp", "tls")
        self._cert_password = passphrase(cert_password, "TCP")
        self._certificates = (ca, cert, cert_key, self._cert_password)
        if self._server.scheme != "tls" and any(each is not None for each in self._certificates):
            raise PlanError("ca=, cert=, cert_key= and cert_password= of TCP are for TLS; write tls:// in the address.")
        self.ack = ack
        self.delivery = (
            "at-least-once; on the disk of the server, in order"
            if ack
            else "best effort; with the system, in order: what a broken connection loses is not known"
        )
        self.delivery_with_state = self.delivery

    def __repr__(self) -> str:
        return f"TCP({str(self._server)!r})"

    def check(self) -> None:
        """The certificates are there. A server that is not may come yet: it is not asked."""
        if self._cert_password is not None:
            self._cert_password.check()
        self._tls()

    def _sender(self) -> LineSender:
        made = LineSender(self._server, self._tls(), self._sent, acknowledged=self.ack, tried=self.tried)
        made.connect()
        return made

    def _tls(self) -> ssl.SSLContext | None:
        return client_context(*self._certificates) if self._server.scheme == "tls" else None
