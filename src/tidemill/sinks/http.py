"""`HTTP`: rows as lines in posts."""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import msgspec

from tidemill.errors import InputError, PlanError
from tidemill.schema import Schema
from tidemill.secret import SecretText
from tidemill.sinks.base import IfExists, Keeping, Where
from tidemill.sinks.hidden import Hidden
from tidemill.sinks.notes import read_note, write_note
from tidemill.sinks.poster import Poster
from tidemill.sinks.sent import REFUSED, TOO_LARGE
from tidemill.sinks.sent_lines import SentLines
from tidemill.tls import client_context, passphrase

__all__ = ["HTTP"]

_CONTENT: Final = {"ndjson": "application/x-ndjson", "influx": "text/plain; charset=utf-8"}
_BODY: Final = 512 << 10
_NOT_ALLOWED: Final = "\r\n\0"
_AUTHORIZATION: Final = "Authorization"
_OURS: Final = ("Connection", "Content-Encoding", "Content-Length", "Expect", "Host", "Transfer-Encoding")
_OPEN: Final = ("bucket", "consistency", "db", "org", "orgid", "precision", "rp")
"""Parts of a query that keep nothing secret: where lines go."""
_KEPT: Final = "\ue000"
"""Stands for what is kept elsewhere: no address has one."""
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class _Proven(msgspec.Struct, frozen=True):
    """What the state folder knows: this server has taken lines."""

    address: str


class HTTP(SentLines):
    """Rows as lines in posts: to InfluxDB, VictoriaMetrics, QuestDB or Telegraf by line protocol, to another tidemill.

    ``url``      ``"https://host:8086/api/v2/write?org=plant&bucket=features"``; shown without its query and login. With line
                 protocol, the server is to read timestamps as ``precision`` says, ``"ns"`` by default there and here
    ``token``    shown as ``Authorization: Bearer TOKEN``. Better than written out: ``"${env:NAME}"``, ``"${file:PATH}"``
    ``headers``  more of them, ``{"Authorization": "Token ${file:/run/secrets/influx}"}``; never shown, also where the server
                 repeats what it was sent
    ``format``   ``"ndjson"`` (default) or ``"influx"``; ``measurement``, ``tags``, ``time``, ``precision`` and ``integers`` are
                 those of line protocol, as `Lines` has them
    ``numbered`` add ``_seq``, the row's number since the pipeline's first start, which is the same when it comes again, and
                 ``_epoch``, that of the start. Needs a run that keeps state; without it they are left out. A reader that
                 keeps the last ``_seq`` it has worked on leaves out rows up to it, and has each once
    ``body``     bytes of lines in a post, at most, but for a line that is longer
    ``gzip``     pack what is posted
    ``ca``, ``cert``, ``cert_key``  PEM files: whom to trust (default: as the system does), and what to show of oneself
    ``cert_password``   the passphrase of a private key that has one; better ``"${env:NAME}"`` or ``"${file:PATH}"``

    What an answer means:

    - 2xx: the lines are taken, and count as written.
    - 400, 422: some line is refused. It is looked for by halves; one that is refused by itself is counted in ``left_out`` of the
      report, told of once with the server's words, and its neighbours are taken.
    - 413: the same with less at a time.
    - 408, 425, 429, 5xx, or no answer: the same post again, with growing pauses, and not before ``Retry-After``.
    - Any other: the server refuses whatever is posted, such as for a wrong token. Before it has ever taken a line that ends the
      run, as do 100 lines of which each was refused by itself; later it is waited for like a server that is away, and address
      and token are looked up again at each try.

    Delivery: at least once, in input order, one post at a time: rows count as written when they are answered for. They are posted
    at each flush (at least every 0.25 s), with state at each commit (about once a second), and as soon as there are ``body`` bytes of
    them. What was not answered is posted again; after ten seconds, a minute where posts are taken and never answered, a live run
    with state begins again at its last checkpoint, again and again, while what comes goes into the ingest log. InfluxDB and others keep one point of a series and time, so
    that what comes twice is there once; `tidemill.Dedup` does that behind a `tidemill.sources.HTTP`.

    ``if_exists`` is taken as by every sink; nothing is there before a run that it could decide about.

    Raises `InputError` for what is refused for good, `OutsideError` when the server is away.

    >>> HTTP("https://influx:8086/api/v2/write?org=plant&bucket=b", token="${env:INFLUX_TOKEN}", format="influx")
    HTTP('https://influx:8086/api/v2/write')
    """

    looked_up_options = frozenset({"ca", "cert", "cert_key"})
    secret_options = frozenset({"url", "token", "headers", "cert_password"})
    delivery = "at-least-once; answered for by the server, in order"
    delivery_with_state = delivery

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        format: str = "ndjson",  # noqa: A002 - the user's word
        measurement: str | None = None,
        tags: Sequence[str] | None = None,
        time: str | None = None,
        precision: str | None = None,
        integers: bool = True,
        numbered: bool = False,
        body: int = _BODY,
        gzip: bool = False,
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
        if not isinstance(body, int) or body < 1:
            raise PlanError(f"body={body!r} of HTTP must be a number of bytes above 0.")
        if token == "":
            raise PlanError("token= of HTTP is empty; leave it out where none is asked for.")
        if not isinstance(headers, Mapping | None):
            raise PlanError('headers= of HTTP must be {"Name": "what it says"}.')
        self._headers = dict(_header(each, value, "headers= of HTTP") for each, value in (headers or {}).items())
        if token is not None:
            if _AUTHORIZATION in self._headers:
                raise PlanError("HTTP(...) has a token= and a header Authorization; it can show one of them.")
            self._headers.update([_header(_AUTHORIZATION, f"Bearer {token}", "token= of HTTP")])
        self._cert_password = passphrase(cert_password, "HTTP")
        self._certificates = (ca, cert, cert_key, self._cert_password)
        self._url = SecretText(url if isinstance(url, str) else "", "the address of HTTP")
        self._shown = self._url.shown(_without_secrets)
        if not self._url.whole:
            self._require_address(self._url.standing_in("1"))
        self.body = body
        self.gzip = gzip
        self._keeping: Keeping | None = None

    def __repr__(self) -> str:
        return f"HTTP({self._shown!r})"

    def check(self) -> None:
        """The certificates and what the options refer to are there. A server that is not may come yet: it is not
        asked."""
        for each in (self._url, *self._headers.values(), self._cert_password):
            if each is not None:
                each.check()
        self._tls(self._address())

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        self._keeping = keeping
        return super().resume(schema, keeping)

    def why_left_out(self, name: str) -> str:
        if name == TOO_LARGE:
            return f"{self._shown} takes no post as large as a row's line, which was left out"
        if name == REFUSED:
            return f"{self._shown} refuses rows; each was posted by itself, refused again, and left out"
        return super().why_left_out(name)

    # -- the server ----------------------------------------------------------------------------------

    def _sender(self) -> Poster:
        url = self._address()
        headers = {"Content-Type": _CONTENT[self.format], **_login(url), **self._shown_of_us()}
        proven = read_note(self._proven_in, _Proven) if self._proven_in is not None else None
        return Poster(
            url,
            self._shown,
            headers,
            self._tls(url),
            self._sent,
            size=self.body,
            gzip=self.gzip,
            proven=proven == self._noted,
            prove=self._prove,
            hide=Hidden([*self._secrets_of(url), *(headers[name] for name in headers.keys() - {"Content-Type"})]).hide,
            tried=self.tried,
        )

    @property
    def _noted(self) -> _Proven:
        """The address as it was written, without what may be secret."""
        query = self._url.shown(lambda text: urlencode([each for each in _query(text) if each[0].casefold() in _OPEN]))
        return _Proven(f"{self._shown}?{query}")

    @property
    def _proven_in(self) -> Path | None:
        return self._keeping.folder / "proven.json" if self._keeping is not None else None

    def _prove(self) -> None:
        if self._proven_in is not None:
            write_note(self._proven_in, self._noted)

    def _address(self) -> str:
        url = self._url.in_url()
        try:
            self._require_address(url)
        except PlanError as error:
            raise InputError(f"with what the options of HTTP refer to, they cannot be used: {error}") from None
        return url

    def _require_address(self, url: str) -> None:
        """Raises `PlanError` that does not show it: there may be a password in it."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna"), parts.port
        except ValueError:
            host, port = b"", 0
        if not host or port == 0 or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
            raise PlanError("The address of HTTP(...) must be http://HOST:PORT/PATH, or https://HOST/PATH for TLS.")
        if parts.username is not None and _AUTHORIZATION in self._headers:
            raise PlanError(
                "The address of HTTP(...) has a login, and there is a token= or a header Authorization too."
            )
        if parts.scheme == "http" and any(each is not None for each in self._certificates):
            raise PlanError(
                "ca=, cert=, cert_key= and cert_password= of HTTP are for TLS; write https:// in the address."
            )

    def _shown_of_us(self) -> dict[str, str]:
        """The headers; what is beyond Latin letters goes as UTF-8."""
        try:
            return {name: text.resolved().encode().decode("latin-1") for name, text in self._headers.items()}
        except UnicodeEncodeError:
            raise InputError("what headers= or token= of HTTP refer to is not UTF-8 text.") from None

    def _secrets_of(self, url: str) -> list[str]:
        """What of it nobody is to read in what a server repeats."""
        parts = urlsplit(url)
        login = [unquote(each) for each in (parts.username, parts.password) if each]
        kept = "" if self._url.whole else self._url.standing_in(_KEPT)
        open_names = {name for name, value in _query(kept or url) if name.casefold() in _OPEN and _KEPT not in value}
        written = [piece.partition("=") for piece in parts.query.split("&")]
        raw = [value or name for name, _, value in written if unquote(name) not in open_names]
        return [*login, *raw, *(value or name for name, value in _query(url) if name not in open_names)]

    def _tls(self, url: str) -> ssl.SSLContext | None:
        return client_context(*self._certificates) if url.startswith("https:") else None


def _header(name: object, value: object, option: str) -> tuple[str, SecretText]:
    """With its name in the one way of writing it."""
    if not isinstance(name, str) or not _HEADER.fullmatch(name):
        raise PlanError(f"{option}: {name!r} is not the name of a header.")
    if not isinstance(value, str) or any(each in value for each in _NOT_ALLOWED):
        raise PlanError(f"{option}: what {name!r} is to say is no line of text.")
    if name.title() in _OURS:
        raise PlanError(f"{option}: {name!r} is for the sink to say.")
    return name.title(), SecretText(value, f"{option} ({name})" if option.startswith("headers") else option)


def _without_secrets(url: str) -> str:
    """Without login, query and fragment."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def _query(url: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(url).query, keep_blank_values=True)


def _login(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    told = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {_AUTHORIZATION: f"Basic {base64.b64encode(told.encode()).decode()}"}
