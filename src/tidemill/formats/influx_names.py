"""Names and texts as a line of line protocol has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from tidemill.column import Column, object_array

__all__ = ["Texts", "of_measurement", "of_name", "of_tag", "quoted"]

_MOST_TEXTS: Final = 65_536
_LONG: Final = 256
_SPECIAL: Final = re.compile(r"[ ,=]")
_SPECIAL_IN_MEASUREMENT: Final = re.compile(r"[ ,]")
_SPECIAL_IN_TEXT: Final = re.compile(r'["\\]')
_BREAKS: Final = {"\n": r"\n", "\r": r"\r", "\f": r"\f"}
_BREAKS_IN_NAMES: Final = {**_BREAKS, "\t": r"\t"}


def _without(breaks: dict[str, str], text: str) -> str:
    for glyph, shown in breaks.items():
        text = text.replace(glyph, shown)
    return text


def of_name(name: str) -> str | None:
    """The name of a tag or field; None when there is no way to write it."""
    if not name or name.endswith("\\") or _without(_BREAKS_IN_NAMES, name) != name:
        return None
    return _SPECIAL.sub(r"\\\g<0>", name)


def of_measurement(text: str) -> tuple[str, bool]:
    """The measurement, empty when there is no way to write it; and whether it is as it was."""
    shown = _without(_BREAKS_IN_NAMES, text).rstrip("\\")
    if shown.startswith("#"):
        shown = ""  # the line would be a comment
    return _SPECIAL_IN_MEASUREMENT.sub(r"\\\g<0>", shown), shown == text or not shown


def of_tag(text: str) -> tuple[str, bool]:
    """The value of a tag, and whether it is as it was."""
    shown = _without(_BREAKS_IN_NAMES, text).rstrip("\\")
    return _SPECIAL.sub(r"\\\g<0>", shown), shown == text


def quoted(text: str) -> tuple[str, bool]:
    """A text as a field's value, and whether it is as it was."""
    shown = _without(_BREAKS, text)
    return '"' + _SPECIAL_IN_TEXT.sub(r"\\\g<0>", shown) + '"', shown == text


class Texts(dict[str | None, str]):
    """Texts as a line has them, behind ``before`` where they are not empty. None is nothing.

    Most of what a stream says it has said before.

    Holds up to 65,536 texts of up to 256 characters and then begins anew.
    """

    def __init__(self, made: Callable[[str], tuple[str, bool]], before: str = "") -> None:
        super().__init__({None: ""})
        self._made = made
        self._before = before
        self._changed: set[str | None] = set()
        self._changed_long = 0

    def __missing__(self, text: str) -> str:
        made, exact = self._made(text)
        made = made and self._before + made
        if len(text) > _LONG:
            self._changed_long += not exact
            return made
        if len(self) > _MOST_TEXTS:
            self.clear()
            self._changed.clear()
            self[None] = ""
        if not exact:
            self._changed.add(text)
        self[text] = made
        return made

    def of(self, texts: Sequence[str | None]) -> tuple[list[str], int]:
        """Each text as it is written, and how many of them could not be written as they are."""
        self._changed_long = 0
        made = list(map(self.__getitem__, texts))
        changed = sum(map(self._changed.__contains__, texts)) if self._changed else 0
        return made, changed + self._changed_long

    def of_column(self, column: Column) -> tuple[list[str], int]:
        """The same for a TEXT column."""
        assert column.texts is not None
        if column.tags is None and len(column.texts) <= len(column):
            texts, changed = self.of(column.texts.tolist())
            if not changed:
                made: list[str] = object_array([*texts, ""])[column.values].tolist()  # code -1 is no text
                return made, 0
        items = column.array.tolist() if column.tags is None else _told(column)
        return self.of(items)


def _told(column: Column) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in column.to_list()]
