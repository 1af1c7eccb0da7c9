"""Topics that messages came on → a pattern for the source, and the key that it binds. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.app.new.vocabulary import METRICS, PHYSICAL, READINGS
from tidemill.formats.field_names import words_of

__all__ = ["TopicsSeen", "topics_seen"]

_QUANTITIES: Final = frozenset((*METRICS, *PHYSICAL, *READINGS))


@dataclass(frozen=True)
class TopicsSeen:
    """What topics have in common."""

    pattern: str
    """As `sources.MQTT` takes it: the levels that vary are named in braces."""
    key: str | None
    """A field or a template of those; None when nothing varies."""
    others: tuple[str, ...]
    """Topics that the pattern does not take."""


def topics_seen(counts: Mapping[str, int]) -> TopicsSeen:
    """The pattern of the topics that most messages came on; ``counts`` is of messages, by topic.

    >>> topics_seen({"plant/north/S1": 3, "plant/north/S2": 3, "plant/south/S3": 2, "alarm": 1})
    TopicsSeen(pattern='plant/{group}/{sensor}', key='{group}/{sensor}', others=('alarm',))
    >>> topics_seen({"S1/temperature": 3, "S1/humidity": 3, "S2/temperature": 2}).key
    '{sensor}/{metric}'
    """
    chosen = max(_families(counts), key=lambda topics: sum(counts[topic] for topic in topics))
    others = tuple(topic for topic in counts if topic not in chosen)
    table = [topic.split("/") for topic in chosen]
    varying = [place for place, values in enumerate(zip(*table, strict=True)) if len(set(values)) > 1]
    names = _names(table, varying)
    pattern = "/".join(
        f"{{{names[place]}}}" if place in names else level if not set("{}+#") & set(level) else "+"
        for place, level in enumerate(table[0])
    )
    if not names:
        return TopicsSeen(pattern, None, others)
    return TopicsSeen(pattern, _key(names.values()), others)


def _families(topics: Iterable[str]) -> Iterator[list[str]]:
    """Topics that one pattern may take: of as many levels, and below one root where roots have nothing in common."""
    by_depth: dict[int, dict[str, list[str]]] = {}
    for topic in topics:
        root, _, _ = topic.partition("/")
        by_depth.setdefault(topic.count("/"), {}).setdefault(root, []).append(topic)
    for by_root in by_depth.values():
        yield from (
            by_root.pop(root) for root in list(by_root) if root.startswith("$")
        )  # a wildcard does not take these
        if not by_root:
            continue
        tails = Counter(topic.partition("/")[2] for topics in by_root.values() for topic in topics)
        sizes = map(len, by_root.values())
        if max(tails.values()) == 1 and max(sizes) > 1:
            yield from by_root.values()
        else:
            yield [topic for topics in by_root.values() for topic in topics]


def _names(table: Sequence[Sequence[str]], varying: Sequence[int]) -> dict[int, str]:
    """A column's name for each level that varies."""
    values = {place: {row[place] for row in table} for place in varying}
    metric = [place for place in varying if len(varying) > 1 and _are_quantities(values[place])]
    things = [place for place in varying if place not in metric] or list(varying)
    if not things:
        return {}
    sensor = max(things, key=lambda place: (len(values[place]), place))
    names = {sensor: "sensor"}
    for place in varying:
        if place != sensor:
            kind = "metric" if place in metric or place > sensor else "group"
            taken = sum(name.startswith(kind) for name in names.values())
            names[place] = f"{kind}{taken + 1}" if taken else kind
    return dict(sorted(names.items()))


def _are_quantities(values: set[str]) -> bool:
    return all(_QUANTITIES & set(words_of(value)) for value in values)


def _key(names: Iterable[str]) -> str:
    """All of them: a sensor of another group may have the name of one that was heard."""
    several = list(names)
    return "/".join(f"{{{name}}}" for name in several) if len(several) > 1 else several[0]
