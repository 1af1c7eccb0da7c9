"""What was rejected of a source's records → what to type, when nothing comes through. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from tidemill.formats.field_names import SENSORS, TIMES, likely
from tidemill.formats.influx_lines import InfluxLines
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.roles import Roles
from tidemill.letters import BAD_TIME, MALFORMED, MISSING_FIELD, NO_KEY, UNASKED
from tidemill.printable import NAME, printable, quoted

__all__ = ["MOST_SHOWN", "Rejects", "format_hint", "shown_names", "suggestion"]

MOST_SHOWN: Final = 20
"""Fields and paths that are named in one sentence."""
_MOST_REASONS: Final = 256
"""Different ones that are counted, of which the most frequent is told."""
_REASON: Final = 300
_LOOKED_AT: Final = 4_096
"""Letters of a line by which its format is told."""
_NUMBER: Final = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?").fullmatch
_NAME: Final = re.compile(r"[^\W\d][\w .-]*").fullmatch
_CALLED: Final = {"influx": "line protocol", "csv": "CSV", "ndjson": "NDJSON", "telegraf-json": "Telegraf's JSON"}


class Rejects:
    """Counts reasons, and keeps an example of what was malformed.

    >>> rejects = Rejects()
    >>> for line in ("S1;20", "S2;21"):
    ...     rejects.add("malformed", "the line is not JSON")
    ...     rejects.show(line)
    >>> rejects.worst, rejects.example
    (('malformed', 'the line is not JSON'), 'S1;20')
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._reasons: dict[tuple[str, str], int] = {}
        self.example = ""
        """Of what was malformed, the first, or the beginning of it; empty when nothing was that can be shown."""

    def add(self, reason_code: str, reason: str, *, times: int = 1) -> None:
        """So many more."""
        self._codes[reason_code] = self._codes.get(reason_code, 0) + times
        told = reason_code, reason
        if told in self._reasons or len(self._reasons) < _MOST_REASONS:
            self._reasons[told] = self._reasons.get(told, 0) + times

    def show(self, raw: Any) -> None:
        """One that was malformed."""
        if not self.example and type(raw) is str:
            self.example = raw[: _LOOKED_AT + 1]

    @property
    def worst(self) -> tuple[str, str]:
        """The most frequent reason code, and of it the most frequent reason."""
        code = max(self._codes, key=lambda code: self._codes[code], default="")
        reasons = [told for told in self._reasons if told[0] == code]
        return max(reasons, key=lambda told: self._reasons[told], default=(code, "nothing was rejected"))

    @property
    def told(self) -> str:
        """The worst reason, for a sentence."""
        return printable(self.worst[1], longest=_REASON)

    def advice(
        self, fields: Sequence[str], roles: Roles, formats: Sequence[str], own: str = "", paths: str = ""
    ) -> str:
        """Sentences behind the worst reason, which decides what would help: of the ``fields`` seen, the ``roles`` read from them,
        the ``formats`` that could be said in place of the source's ``own``, or the ``paths`` seen in messages."""
        code, _ = self.worst
        if code == MALFORMED:
            return self._malformed(formats, own)
        if code == UNASKED:
            return ""
        if paths and code in (MISSING_FIELD, BAD_TIME, NO_KEY):
            return f" {paths}"
        if code not in ("", BAD_TIME, NO_KEY):
            return f" The fields seen are: {shown_names(fields)}." if fields else ""
        return f" The fields seen are: {shown_names(fields)}.{_telegraf_hint(fields, formats) or _roles_hint(fields, roles)}"

    def _malformed(self, formats: Sequence[str], own: str) -> str:
        """What came instead of records, and which of the ``formats`` reads it but the source's ``own``; empty without an example."""
        if not self.example:
            return ""
        hint = format_hint(self.example, formats, own)
        return f" An example: {quoted(self.example)}.{f' This {hint}.' if hint else ''}"


def format_hint(line: str, formats: Sequence[str], own: str = "") -> str:
    """What a line looks like that could not be read, and the option with which it could; empty when nobody can tell, or it is
    the format in which it was read: the text that is shown of a line need not have the line's fault.

    >>> format_hint("mill,line=L1 speed=41 1700000000000000000", ["ndjson", "influx"])
    'looks like line protocol: say format="influx"'
    >>> format_hint("S1,20.5,7", ["ndjson", "influx"]), format_hint("hello", ["ndjson"])
    ('looks like CSV, which is not read here', '')
    """
    found = _format_of(line)
    if found in ("", own):
        return ""
    advice = f': say format="{found}"' if found in formats else ", which is not read here"
    return f"looks like {_CALLED[found]}{advice}"


def suggestion(fields: Sequence[str]) -> str:
    """The options to try when the fields of the records are these.

    >>> suggestion(["timestamp", "device", "temp"])
    "key='device', time='timestamp'"
    """
    time = likely(fields, TIMES)
    key = likely([field for field in fields if field != time], SENSORS)
    return f"key={key or 'FIELD'!r}, time={time or 'FIELD'!r}"


def shown_names(names: Sequence[str]) -> str:
    """Names from outside, as many as a person reads.

    >>> shown_names(["a"]), shown_names([]), shown_names([str(n) for n in range(22)])[-12:]
    ('a', 'none', ', 19, 2 more')
    """
    more = [f"{len(names) - MOST_SHOWN:,} more"] if len(names) > MOST_SHOWN else []
    return ", ".join([*(printable(name, longest=NAME) for name in names[:MOST_SHOWN]), *more]) or "none"


def _roles_hint(fields: Sequence[str], roles: Roles) -> str:
    return (
        f" The key is read from {roles.key!r} and the time from {roles.time!r}; say which fields they are, for example "
        f"{suggestion(fields)}."
    )


def _telegraf_hint(fields: Sequence[str], formats: Sequence[str]) -> str:
    """The same as `format_hint` for records that have been read, by their fields."""
    enough = {"name", "tags", "fields", "timestamp"} <= set(fields) or list(fields) == ["metrics"]
    return (
        ' This looks like Telegraf\'s JSON: say format="telegraf-json".'
        if enough and "telegraf-json" in formats
        else ""
    )


def _format_of(line: str) -> str:
    if len(line) > _LOOKED_AT:
        return ""
    block = line.encode("utf-8", "replace")
    if line.lstrip().startswith("{"):
        return "ndjson" if decode_json_lines(block)[0] else ""
    if InfluxLines().decode(block).rows:
        return "influx"
    return "csv" if any(_are_cells(line.strip().split(separator)) for separator in (",", ";", "\t")) else ""


def _are_cells(cells: Sequence[str]) -> bool:
    """Whether they look like a line of a table, or like its header."""
    if len(cells) < 2 or any("=" in cell for cell in cells):
        return False
    cells = [cell.strip().strip('"') for cell in cells]
    named = len(cells) > 2 and all(map(_NAME, cells)) and likely(cells, (*SENSORS, *TIMES)) is not None
    return named or any(map(_NUMBER, cells))
