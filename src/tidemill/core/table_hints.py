"""What to type where a table of pandas has its sensors or times in another place than columns: for the end of a message."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from tidemill.interchange import kind_of_table

__all__ = ["table_hint"]

_NUMBERS: Final = "iuf"
"""The kinds of dtypes that readings have."""


def table_hint(data: Any, *, key_fields: Collection[str], time: str, needs_time: bool) -> str:
    """A sentence, after a blank, where the names of the sensors or the times are not among the columns and it is sure enough where
    they are; else empty."""
    if kind_of_table(data) != "pandas":
        return ""
    columns = {str(name) for name in data.columns}
    absent = [name for name in key_fields if name not in columns]
    levels = [str(name) for name in data.index.names if name is not None]
    times = type(data.index).__name__ == "DatetimeIndex"
    in_index = levels[0] if levels else "index"  # as it would be called
    if absent == list(key_fields) and len(absent) == 1 and absent[0] not in levels:
        own = in_index if times else time
        if _are_readings(data, but=own):
            table, ids = (
                ("data.reset_index()" if times else "data"),
                (f"id_vars={own!r}, " if times or own in columns else ""),
            )
            return (
                f" If each column is a sensor: {table}.melt({ids}var_name={absent[0]!r}, value_name='value'). If all columns are of "
                f"one: data.assign({absent[0]}='...')."
            )
    if needs_time and time not in columns:
        absent.append(time)
    if found := [name for name in absent if name in levels]:
        return f" The index holds {' and '.join(map(repr, found))}: give data.reset_index()."
    if time in absent and times:
        return f" The index holds times: give data.reset_index() and time={in_index!r}."
    return ""


def _are_readings(data: Any, but: str) -> bool:
    """Whether all columns but one, and at least two, hold numbers."""
    others = [name for name in data.columns if str(name) != but]
    return len(others) > 1 and len(set(others)) == len(others) and all(_is_of_numbers(data[name]) for name in others)


def _is_of_numbers(column: Any) -> bool:
    return getattr(column, "ndim", 0) == 1 and getattr(column.dtype, "kind", "") in _NUMBERS
