"""The topics that a source asks for, and what the topic of a message says of its records. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

from tidemill.formats.shared_names import SharedNames
from tidemill.formats.topics import TopicPattern

__all__ = ["AskedTopics", "Bound"]

_MOST: Final = 100_000
"""Topics whose columns are remembered."""
_PAIRS: Final = 10_000
"""Of patterns that are compared."""


class Bound(NamedTuple):
    """What a topic says of its records."""

    columns: dict[str, str]
    known: dict[str, str]


class AskedTopics:
    """Binds topics by the first of these patterns that matches; each topic is looked at once.

    >>> asked = AskedTopics(["plant/{site}/{sensor}"], key_given=False)
    >>> asked.bind(b"plant/n/temp"), asked.bind(b"office/n/temp")
    (Bound(columns={'site': 'n', 'sensor': 'temp'}, known={'topic': 'plant/n/temp'}), None)
    """

    def __init__(self, topics: Sequence[str], *, key_given: bool) -> None:
        self.patterns = [TopicPattern(each) for each in topics]
        self.names = dict.fromkeys(name for pattern in self.patterns for name in pattern.names)
        """Of all columns that they bind."""
        self._shared = None if key_given else SharedNames(self.patterns)
        self._bound: dict[bytes, Bound | None] = {}
        self.doubt = ""
        """That two topics are taken for one sensor's, once `bind` has seen it; for whoever tells of it to empty."""

    def bind(self, topic: bytes) -> Bound | None:
        """What the topic says; None for one that nobody asked for."""
        if topic in self._bound:
            return self._bound[topic]
        if len(self._bound) >= _MOST:
            self._bound.clear()
        made = self._bound[topic] = self._look(topic)
        return made

    def _look(self, topic: bytes) -> Bound | None:
        try:
            text = topic.decode()
        except UnicodeDecodeError:
            return None
        columns = next((found for pattern in self.patterns if (found := pattern.match(text)) is not None), None)
        if columns and self._shared is not None:
            self.doubt = self.doubt or self._shared.look(text, columns)
        return None if columns is None else Bound(columns, {"topic": text})

    def overlapping(self) -> tuple[str, str] | None:
        """Two patterns that have topics in common."""
        pairs = itertools.islice(itertools.combinations(self.patterns, 2), _PAIRS)
        return next(((one.pattern, other.pattern) for one, other in pairs if one.overlaps(other)), None)
