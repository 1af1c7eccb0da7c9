"""The first messages out of which a source takes columns by paths → what to type where a path leads nowhere, and where times
are that nobody takes. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from tidemill.formats.field_names import TIMES, words_of
from tidemill.formats.rejects import MOST_SHOWN, shown_names
from tidemill.formats.roles import Roles
from tidemill.formats.timed_by_arrival import are_times
from tidemill.kinds import Kinds
from tidemill.printable import quoted

__all__ = ["PathsSeen", "leaves", "path_of"]

_MESSAGES: Final = 100
"""The first ones, which are looked at."""
_ENOUGH: Final = 20
"""Of them, after which a path that has led nowhere will not lead anywhere."""
_LEAVES: Final = 200
"""Of one message."""
_ROWS: Final = 20
_DEEPEST: Final = 8
_LONGEST_NAME: Final = 80
_LONGEST_TIME: Final = 40

Steps = tuple[str | None, ...]


class PathsSeen:
    """Looks at the first messages and at the records that ``paths`` made of them. ``roles`` are the fields that name the sensor
    or the time, with the words that such fields are called by; those that no path takes are read at the top of the message.
    """

    def __init__(self, paths: Mapping[str, str], roles: Mapping[str, Sequence[str]]) -> None:
        self.left = _MESSAGES if paths else 0
        """Messages that it wants to see yet."""
        self._paths, self._roles = paths, roles
        self._each = next((f"{path.partition('[*]')[0]}[*]" for path in paths.values() if "[*]" in path), None)
        self._never = set(paths) | set(roles)
        """What no message has had so far."""
        self._lacking = False
        self._seen: dict[str, float | None] = {}
        """Paths of messages, and the number that the first of them has there: what else is there may be as long as a message."""
        self._times: dict[Steps, Any] = {}
        self._told_nowhere = self._over = not paths

    def note(self, message: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """The next message."""
        self.left -= 1
        wanted = {*self._paths, *self._roles}
        self._lacking = self._lacking or not rows or any(wanted - row.keys() for row in rows[:_ROWS])
        self._never.difference_update(*rows[:_ROWS])
        if type(message) is dict:
            self._never -= {name for name in self._roles if name not in self._paths and name in message}
        for steps, item in islice(leaves(message), _LEAVES):
            if len(self._seen) < MOST_SHOWN:
                self._seen.setdefault(path_of(steps), item if type(item) in (int, float) else None)
            if (
                len(self._times) < MOST_SHOWN
                and set(TIMES).intersection(words_of(_last(steps)))
                and self._reached(steps)
            ):
                short = type(item) in (int, float) or (type(item) is str and len(item) <= _LONGEST_TIME)
                self._times.setdefault(steps, item if short else None)

    def look(self, roles: Roles) -> str:
        """What is to be said by now, once each: the paths that lead nowhere, and that there are times; else nothing."""
        if self._over:
            return ""
        self._over = not self.left
        return " ".join(filter(None, (self._nowhere(), self._untimed(roles))))

    def _nowhere(self) -> str:
        never = [name for name in self._paths if name in self._never]
        if self._told_nowhere or self.left > _MESSAGES - _ENOUGH or not never or len(never) == len(self._paths):
            return ""
        self._told_nowhere = True
        places = " or ".join(repr(self._paths[name]) for name in never)
        return f"no record has a {' or '.join(map(quoted, never))} so far: the messages have nothing at {places}. {self._advice}"

    def _untimed(self, roles: Roles) -> str:
        if not roles.arrival or any(set(TIMES).intersection(words_of(name)) for name in self._paths):
            return ""
        for word in TIMES:
            for steps, item in self._times.items():
                if item is not None and word in words_of(_last(steps)):
                    column, _ = Kinds().column("", [item])
                    if are_times(column, roles.times):
                        self._times = dict.fromkeys(self._times)
                        return self._told(steps, item)
        return ""

    def _told(self, steps: Steps, item: Any) -> str:
        path, name = path_of(steps), _last(steps)
        value = "" if steps == (name,) else f"value={ {**self._paths, name: path}!r}, "
        return (
            f"no path of value= takes a time, so that of the records is that of their arrival, though there are times in the messages "
            f"at {path!r}: {quoted(str(item))}. If that is when they were measured, say {value}time={name!r}."
        )

    @property
    def explained(self) -> str:
        """Of messages in which something was missing: the paths that they have, and the ``value=`` to try; empty without any."""
        return self._advice if self._lacking and self._seen else ""

    @property
    def _advice(self) -> str:
        options = dict(self._paths)
        for name in [*self._paths, *self._roles]:
            if name in self._never:
                options[name] = self._likely(name, [options[other] for other in options if other not in self._never])
        plain = tuple(options) == ("value",)
        value = repr(options["value"] if plain else options)
        what = "the reading is" if plain else "each column is"
        return f"The paths seen are: {shown_names(tuple(self._seen))}; say where {what}, for example value={value}."

    def _likely(self, name: str, taken: Sequence[str]) -> str:
        """The path that is most like this column's: it ends as that or its path does, or as fields of its role are called; for a
        reading, also a number that is no time, or anything."""
        left = [path for path in self._seen if path not in taken]
        words = {path: words_of(path)[-1:] for path in left}
        wanted = {word for one in (name, self._paths.get(name, "")) for word in words_of(one)[-1:]}
        found = [path for path in left if wanted.intersection(words[path])]
        found += [
            path for word in self._roles.get(name, ()) for path in left if word in words_of(path.rpartition(".")[2])
        ]
        if name not in self._roles:
            found += [path for path in left if self._seen[path] is not None and not set(words[path]) & set(TIMES)]
            found += left
        return next(iter(found), "PATH")

    def _reached(self, steps: Steps) -> bool:
        """Whether a path may lead there beside the others: into one list only."""
        return None not in steps or (self._each is not None and path_of(steps).startswith(self._each))


def path_of(steps: Sequence[str | None]) -> str:
    """The path that these names make; None goes into every item of a list.

    >>> path_of(["data", "temp"]), path_of(["data", "a.b"]), path_of(["rxInfo", None, "rssi"])
    ('data.temp', 'data["a.b"]', 'rxInfo[*].rssi')
    """
    made = ["[*]" if name is None else f'["{name}"]' if set('.[]"') & set(name) else f".{name}" for name in steps]
    return "".join(made).removeprefix(".")


def leaves(item: Any, steps: Steps = ()) -> Iterator[tuple[Steps, Any]]:
    """What in a message a path can lead to, but for what is too deep or has a name that nobody would type."""
    if len(steps) > _DEEPEST:
        return
    if type(item) is dict:
        for name, inner in item.items():
            if name and '"' not in name and len(name) <= _LONGEST_NAME:
                yield from leaves(inner, (*steps, name))
    elif type(item) is list and item and type(item[0]) is dict and None not in steps:
        yield from leaves(item[0], (*steps, None))
    elif steps:
        yield steps, item


def _last(steps: Steps) -> str:
    return next((name for name in reversed(steps) if name is not None), "")
