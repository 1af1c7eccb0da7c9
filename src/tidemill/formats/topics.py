"""Topics of MQTT: patterns that bind their levels to columns, and filters as a broker reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tidemill.errors import PlanError

__all__ = ["TopicPattern", "TopicTemplate"]

_NAME: Final = re.compile(r"\{([^{}/+#]+)\}")
_MOST_BYTES: Final = 65_535
"""Of a topic or a filter: its length is sent in two bytes."""


class TopicPattern:
    """``"plant/{site}/{sensor}"``: a name in braces matches one level and binds it to a column; ``+`` matches one
    level and ``#``, at the end, all that follow, without binding them. ``"$share/group/..."`` shares what comes between
    all subscribers of the group.

    Raises `PlanError` for what is no pattern.

    >>> pattern = TopicPattern("plant/{site}/{sensor}")
    >>> pattern.filter, pattern.match("plant/north/S1"), pattern.match("plant/north")
    ('plant/+/+', {'site': 'north', 'sensor': 'S1'}, None)
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str) or not pattern:
            raise PlanError(f"topics={pattern!r} of MQTT must be a topic such as 'plant/{{site}}/{{sensor}}'.")
        share, levels = _shared(pattern)
        self.pattern = pattern
        self._levels = tuple(levels)
        names: list[str] = []
        for place, level in enumerate(levels):
            name = _NAME.fullmatch(level)
            if name is not None:
                names.append(name[1])
            elif level == "#" and place < len(levels) - 1:
                raise _refused(pattern, "# may stand only at the end")
            elif level not in ("+", "#") and re.search(r"[+#{}]", level):
                raise _refused(pattern, f"a name in braces, + or # must be a whole level, which {level!r} is not")
        if len(set(names)) < len(names):
            raise _refused(pattern, "a name may stand in it only once")
        self.names = tuple(names)
        """The columns it binds."""
        self._made = tuple("+" if _NAME.fullmatch(level) else level for level in levels)
        self.filter = "/".join((*share, *self._made))
        """What the broker is asked for."""
        if "\0" in pattern or len(self.filter.encode("utf-8", "replace")) > _MOST_BYTES:
            raise _refused(pattern, f"a topic has at most {_MOST_BYTES} bytes, none of which is NUL")

    def overlaps(self, other: TopicPattern) -> bool:
        """Whether there are topics of both.

        >>> TopicPattern("plant/{site}/{sensor}").overlaps(TopicPattern("plant/#"))
        True
        """
        for mine, theirs in zip(self._made, other._made, strict=False):
            if "#" in (mine, theirs):
                return True
            if "+" not in (mine, theirs) and mine != theirs:
                return False
        longer = max(self._made, other._made, key=len)
        shorter = min(len(self._made), len(other._made))
        return len(longer) == shorter or longer[shorter] == "#"

    def match(self, topic: str) -> dict[str, str] | None:
        """The columns that the topic binds; None when it is not one of these topics."""
        levels = topic.split("/")
        made = self._made
        if made[-1] == "#":
            if len(levels) < len(made) - 1:
                return None
        elif len(levels) != len(made):
            return None
        if topic.startswith("$") and made[0] in ("+", "#"):  # topics of the broker itself
            return None
        bound: dict[str, str] = {}
        for wanted, pattern, level in zip(made, self._levels, levels, strict=False):
            if wanted == "#":
                break
            if wanted == "+":
                if pattern != "+":
                    bound[pattern[1:-1]] = level
            elif wanted != level:
                return None
        return bound


def _shared(pattern: str) -> tuple[list[str], list[str]]:
    """The levels that name a group, and the others."""
    levels = pattern.split("/")
    if levels[0] != "$share":
        return [], levels
    if len(levels) < 3 or not levels[1] or re.search(r"[+#{}]", levels[1]) or not "".join(levels[2:]):
        raise _refused(pattern, "a shared subscription is written '$share/group/' and the topic, with a group by name")
    return levels[:2], levels[2:]


def _refused(pattern: str, why: str) -> PlanError:
    return PlanError(f"topics={pattern!r} of MQTT cannot be subscribed to: {why}.")


class TopicTemplate:
    """``"features/{sensor}"``: a topic for each row, from columns of it.

    Raises `PlanError` for what makes no topic.

    >>> template = TopicTemplate("features/{site}/{sensor}")
    >>> template.names, template.of(("north", "S1")), template.unfit(("north", "S/1"))
    (('site', 'sensor'), 'features/north/S1', 'sensor')
    """

    def __init__(self, template: str) -> None:
        if not isinstance(template, str) or not template:
            raise PlanError(f"topic={template!r} of MQTT must be a topic such as 'features/{{sensor}}'.")
        parts = re.split(r"\{([^{}]+)\}", template)
        self.template = template
        self._literals = parts[::2]
        self.names = tuple(parts[1::2])
        """The columns that it needs."""
        literal = "".join(self._literals)
        if (
            re.search(r"[+#{}\0\ud800-\udfff]", literal)
            or template.startswith("$")
            or len(literal.encode()) > _MOST_BYTES
        ):
            raise PlanError(
                f"topic={template!r} of MQTT is no topic that can be published to: it may hold columns in braces, and "
                f"neither + nor #, nor a $ at its beginning, nor more than {_MOST_BYTES} bytes."
            )

    def of(self, values: Sequence[object]) -> str | None:
        """The topic of these values of `names`; None when it would be another one than meant: see `unfit`."""
        made = [self._literals[0]]
        for value, literal in zip(values, self._literals[1:], strict=True):
            level = _level(value)
            if level is None:
                return None
            made += (level, literal)
        topic = "".join(made)
        return None if topic.startswith("$") or len(topic.encode()) > _MOST_BYTES else topic

    def unfit(self, values: Sequence[object]) -> str:
        """The column whose value is no level of a topic: neither a text nor a whole number, empty, or with ``/``, ``+``,
        ``#``, NUL or half a surrogate pair in it, or a ``$`` where the topic begins; the last one for a topic that is too
        long."""
        for name, value in zip(self.names, values, strict=True):
            level = _level(value)
            if level is None or (name == self.names[0] and not self._literals[0] and level.startswith("$")):
                return name
        return self.names[-1]


_UNSAFE: Final = re.compile(r"[/+#\0\ud800-\udfff]")


def _level(value: object) -> str | None:
    if type(value) is str:
        return value if value and not _UNSAFE.search(value) else None
    return str(value) if type(value) is int else None
