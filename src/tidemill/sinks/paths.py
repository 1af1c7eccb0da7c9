"""Which sink a path means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from tidemill import files
from tidemill.errors import PlanError
from tidemill.formats.line_formats import INFLUX_SUFFIXES
from tidemill.secret import SecretText, refers
from tidemill.sinks.base import ProcessSink

__all__ = ["for_path"]

_DATABASES: Final = (".db", ".sqlite", ".sqlite3")
_SERVERS: Final = ("postgresql://", "postgres://")
_BROKERS: Final = ("mqtt://", "mqtts://")
_POSTS: Final = ("http://", "https://")
_STREAMS: Final = ("tcp://", "tls://")
_DATAGRAMS: Final = ("udp://",)
_OF_LINES: Final = (*_POSTS, *_STREAMS, *_DATAGRAMS)
_KNOWN: Final = (*_SERVERS, *_BROKERS, *_OF_LINES)
_INFLUX: Final = "influx+"
"""Before the URL of a server of lines: that they are of line protocol."""
_LINES: Final = (".ndjson", ".jsonl", ".csv", *INFLUX_SUFFIXES)
_TAGGED: Final = {"tags": "text"}
"""Of line protocol that may be read again: its sensors are then those that were read."""


def for_path(path: str | Path, **options: Any) -> ProcessSink:
    """The sink that a path's suffix means; ``options`` are the sink's own (``if_exists=``, ``columns=``, ``where=``).

    ``.db`` or ``.sqlite`` → `SQLite`; ``.parquet``, or a folder (it ends with ``/``, or is there) → `Parquet`;
    ``.ndjson``, ``.jsonl``, ``.csv``, ``.influx``, ``.lp``, each also with ``.gz``, and ``-`` for standard output → `Lines`,
    of line protocol with ``tags="text"`` unless the options say otherwise: read again, its sensors are those that were read;
    ``postgresql://...`` → `PostgreSQL`; ``mqtt://host/topic`` or ``mqtts://...`` → `MQTT`, with the topic as it is
    written there: ``mqtt://broker/features/{sensor}``; ``http://...`` or ``https://...`` → `HTTP`, of line protocol, with tags as
    above, where the path ends with ``/write``, as that of InfluxDB and others does; ``tcp://HOST:PORT``, ``tls://...`` →
    `TCP`; ``udp://HOST:PORT`` → `UDP`. The last three write JSON; ``influx+`` before the URL says that they, or `HTTP` whatever its
    path, write line protocol, with tags as above: ``influx+tcp://HOST:PORT``.

    It may refer to what is kept elsewhere, in whole or in part: ``${env:NAME}``, ``${file:PATH}``.

    Raises `PlanError` naming the suffixes known.

    >>> type(for_path("features.db")).__name__, type(for_path("features/")).__name__, type(for_path("-")).__name__
    ('SQLite', 'Parquet', 'Lines')
    """
    text = os.fspath(path)
    if text.startswith(_INFLUX) and _meant(text.removeprefix(_INFLUX)).startswith(_OF_LINES):
        return for_path(text.removeprefix(_INFLUX), **{"format": "influx", **_TAGGED} | options)
    meant = _meant(text)
    if meant.startswith(_SERVERS):
        from tidemill.sinks.postgres import PostgreSQL

        return PostgreSQL(text, **options)
    if meant.startswith(_BROKERS):
        from tidemill.sinks.mqtt import MQTT

        return MQTT(*_broker_and_topic(text), **options)
    if meant.startswith(_OF_LINES):
        return _sender(text, meant, options)
    if "://" in meant:  # not to be shown whole: it may hold a password
        begins = "what it refers to" if refers(text) else f"{text.partition('://')[0]}://"
        raise PlanError(
            f"{begins} is not the beginning of a sink's URL; those known are {', '.join(_KNOWN)}, and for line protocol "
            f"{', '.join(f'{_INFLUX}{known}' for known in _OF_LINES)}."
        )
    suffix = files.suffix(meant)
    packed = meant.lower().endswith(".gz")
    if meant == "-" or suffix in _LINES:
        from tidemill.sinks.lines import Lines

        influx = suffix in INFLUX_SUFFIXES and options.get("format") in (None, "influx")
        return Lines(path, **(_TAGGED | options if influx else options))
    if suffix in _DATABASES and not packed:
        from tidemill.sinks.sqlite import SQLite

        return SQLite(path, **options)
    if (suffix == ".parquet" and not packed) or meant.endswith("/") or files.absolute(meant).is_dir():
        from tidemill.sinks.parquet import Parquet

        return Parquet(path, **options)
    shown = "the output, which may hold a password," if "@" in text or "password" in text.casefold() else repr(text)
    raise PlanError(
        f"{shown} does not say which sink it is; the suffixes are {', '.join(_DATABASES)} (SQLite), .parquet or a "
        f"folder that ends with / (Parquet), {', '.join(_LINES)} with or without .gz, - for standard output, and "
        f"postgresql://..., mqtt://HOST/TOPIC, http(s)://..., tcp://HOST:PORT, tls://HOST:PORT or udp://HOST:PORT for a server, the "
        f"last five with {_INFLUX} before them for line protocol."
    )


def _sender(url: str, meant: str, options: dict[str, Any]) -> ProcessSink:
    if meant.startswith(_STREAMS):
        from tidemill.sinks.tcp import TCP

        return TCP(url, **options)
    if meant.startswith(_DATAGRAMS):
        from tidemill.sinks.udp import UDP

        return UDP(url, **options)
    from tidemill.sinks.http import HTTP

    influx = meant.partition("?")[0].rstrip("/").endswith("/write") and options.get("format") in (None, "influx")
    return HTTP(url, **({"format": "influx", **_TAGGED} | options if influx else options))


def _meant(text: str) -> str:
    """What says which sink it is: of a server's URL that begins as one nothing is looked up here."""
    if not refers(text) or text.startswith(_KNOWN):
        return text
    return SecretText(text, "the path of the output").resolved()


def _broker_and_topic(url: str) -> tuple[str, str]:
    address, topic = SecretText(url, "the address of MQTT").parted("/", behind="://")
    if not topic:
        raise PlanError(
            "The URL of an MQTT sink names the topic too: mqtt://HOST/TOPIC, such as mqtt://broker/features/{sensor}. Of what "
            "is kept elsewhere, the topic is no part: ${env:BROKER}/features/{sensor}."
        )
    return address, topic
