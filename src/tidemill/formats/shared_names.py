"""Whether sensors that several topics name alike are one. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tidemill.formats.roles import DEFAULT_KEY
from tidemill.formats.topics import TopicPattern
from tidemill.printable import quoted

__all__ = ["SharedNames"]

_MOST: Final = 100_000
"""Sensors that are remembered."""


class SharedNames:
    """Looks at the topics of a source that was given no ``key=``: a level of theirs that is called as the key's field is the
    whole key, whatever their other levels are.

    >>> names = SharedNames([TopicPattern("plant/{site}/{sensor}")])
    >>> names.look("plant/n/temp", {"site": "n", "sensor": "temp"}), names.look("plant/n/flow", {"site": "n", "sensor": "flow"})
    ('', '')
    >>> names.look("plant/s/temp", {"site": "s", "sensor": "temp"})[-65:]
    "If they are two, say key='{site}/{sensor}'; if one, key='sensor'."
    """

    def __init__(self, patterns: Sequence[TopicPattern]) -> None:
        self._bound = patterns[0].names if len({pattern.names for pattern in patterns}) == 1 else ()
        self._topics: dict[str, tuple[str, Mapping[str, str]]] | None = {}
        """The first topic of each sensor, and what it binds; None once it was said."""

    def look(self, topic: str, bound: Mapping[str, str]) -> str:
        """A topic. A sentence at the first one that names a sensor as another does; else nothing."""
        if self._topics is None or (sensor := bound.get(DEFAULT_KEY)) is None:
            return ""
        if sensor not in self._topics:
            if len(self._topics) < _MOST:
                self._topics[sensor] = topic, bound
            return ""
        other, others = self._topics[sensor]
        if other == topic:
            return ""
        self._topics = None
        apart = self._bound if dict(others) != dict(bound) else ()
        key = "/".join(f"{{{name}}}" for name in apart) or "{topic}"
        return (
            f"the topics {quoted(other)} and {quoted(topic)} are taken for one sensor's, {quoted(sensor)}. If they are two, say "
            f"key={key!r}; if one, key={DEFAULT_KEY!r}."
        )
