"""Where records come from. Each source is imported when it is first named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.sources.base import Source as Source
    from tidemill.sources.base import SourceContext as SourceContext
    from tidemill.sources.base import SourceStatistics as SourceStatistics
    from tidemill.sources.dead_letters import DeadLetters as DeadLetters
    from tidemill.sources.frame import Frame as Frame
    from tidemill.sources.host import Host as Host
    from tidemill.sources.http import HTTP as HTTP
    from tidemill.sources.lines import Lines as Lines
    from tidemill.sources.mqtt import MQTT as MQTT
    from tidemill.sources.records import Records as Records
    from tidemill.sources.replay import Replay as Replay
    from tidemill.sources.synthetic import Synthetic as Synthetic
    from tidemill.sources.tcp import TCP as TCP
    from tidemill.sources.udp import UDP as UDP

__all__ = [
    "HTTP",
    "MQTT",
    "TCP",
    "UDP",
    "DeadLetters",
    "Frame",
    "Host",
    "Lines",
    "Records",
    "Replay",
    "Source",
    "SourceContext",
    "SourceStatistics",
    "Synthetic",
]

_HOMES = {
    "DeadLetters": "dead_letters",
    "Frame": "frame",
    "HTTP": "http",
    "Host": "host",
    "Lines": "lines",
    "MQTT": "mqtt",
    "Records": "records",
    "Replay": "replay",
    "Source": "base",
    "SourceContext": "base",
    "SourceStatistics": "base",
    "Synthetic": "synthetic",
    "TCP": "tcp",
    "UDP": "udp",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
