"""Where rows go. Each sink says in its docstring what it guarantees and when rows become visible.

`SQLite`, `PostgreSQL`, `MQTT`, `HTTP`, `TCP`, `UDP`, `Parquet` and `Lines` run in a process of their own; `Callback` and
`Latest` live in the application, on its event loop. `for_path` picks one by a path's suffix or a URL. A sink imports its own
library only when it is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidemill.sinks.base import LoopSink, ProcessSink, Sink, SinkStatistics
    from tidemill.sinks.callback import Callback
    from tidemill.sinks.http import HTTP
    from tidemill.sinks.latest import Latest
    from tidemill.sinks.lines import Lines
    from tidemill.sinks.mqtt import MQTT
    from tidemill.sinks.parquet import Parquet
    from tidemill.sinks.paths import for_path
    from tidemill.sinks.postgres import PostgreSQL
    from tidemill.sinks.sqlite import SQLite
    from tidemill.sinks.tcp import TCP
    from tidemill.sinks.udp import UDP

__all__ = [
    "HTTP",
    "MQTT",
    "TCP",
    "UDP",
    "Callback",
    "Latest",
    "Lines",
    "LoopSink",
    "Parquet",
    "PostgreSQL",
    "ProcessSink",
    "SQLite",
    "Sink",
    "SinkStatistics",
    "for_path",
]

_HOMES: Final = {
    "Callback": "callback",
    "HTTP": "http",
    "Latest": "latest",
    "Lines": "lines",
    "LoopSink": "base",
    "MQTT": "mqtt",
    "Parquet": "parquet",
    "PostgreSQL": "postgres",
    "ProcessSink": "base",
    "SQLite": "sqlite",
    "Sink": "base",
    "SinkStatistics": "base",
    "TCP": "tcp",
    "UDP": "udp",
    "for_path": "paths",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tidemill.sinks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tidemill.sinks.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
