"""Sinks that commit rows with their position, driven as the engine drives them."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sinks.test_influx_sink import INFLUX_KITS
from tests.sinks.test_laws import KITS, Kit

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.schema import Schema
from tidemill.sinks.base import Keeping

__all__ = ["KEPT", "OPEN", "Start", "fork", "in_child", "let_go", "same", "visible"]

KEPT = [kit for kit in [*KITS, INFLUX_KITS[0]] if kit.cls.keeps_position]
OPEN = Schema(open=True)
_OPTIONS: dict[str, dict[str, Any]] = {"parquet-folder": {"max_rows": 5}}
"""Parts so small that some are made at every turn."""


def rows_of(position: int) -> list[dict[str, Any]]:
    """What the pipeline makes of the input at ``position``: none, one or two rows; with true duplicates, nulls, a column
    that has its first value late and one that comes late."""
    if position % 4 == 0:
        return []
    row: dict[str, Any] = {"sensor": f"S{position % 3}", "value": (position // 3) / 8, "seldom": None}
    if position % 5 == 0:
        row["seldom"] = f"é{position}"
    if position > 12:
        row["late"] = position % 2 == 0
    return [row] * (2 if position % 7 == 0 else 1)


def rows_up_to(position: int) -> list[dict[str, Any]]:
    return [row for one in range(1, position + 1) for row in rows_of(one)]


def visible(kit: Kit, folder: Path) -> list[dict[str, Any]]:
    """What a reader finds."""
    place = folder / kit.file
    if not place.exists() or (place.is_file() and not place.stat().st_size):
        return []
    if kit.cls is sinks.SQLite and not _has_table(place):
        return []
    return kit.rows(folder)


def _has_table(place: Path) -> bool:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(place)) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'features'").fetchone())


_STARTED: list[Start] = []


def let_go() -> None:
    """No start outlives its test."""
    while _STARTED:
        _STARTED.pop().vanish()


@dataclass
class Start:
    """One start of the engine: it hands the sink what comes after the position that this returned, in order."""

    kit: Kit
    folder: Path
    epoch: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        columns = {"columns": ["sensor", "value", "seldom", "late"]} if not self.kit.grows else {}
        self.sink = self.kit.make(self.folder, **{**_OPTIONS.get(self.kit.name, {}), **columns, **self.options})
        self.handed = self.committed = self.sink.resume(OPEN, Keeping(state, "plant", self.epoch))

        _STARTED.append(self)

    def vanish(self) -> None:
        """What the system does when a process ends: nothing is written any more, and locks are free."""
        if self.sink._fence is not None:
            self.sink._let_go()
            self.sink._fence.release()

    def write(self, inputs: int) -> None:
        rows = [row for _ in range(inputs) for row in rows_of(self._next())]
        if rows:
            self.sink.write(self.sink.chosen(Batch.from_rows(rows)))

    def _next(self) -> int:
        self.handed += 1
        return self.handed

    def commit(self) -> None:
        self.sink.commit(self.handed)
        self.committed = self.handed

    def finish(self, position: int) -> None:
        """All inputs up to ``position``, and an orderly end."""
        self.write(position - self.handed)
        self.commit()
        self.sink.close()

    def expected(self, position: int) -> list[dict[str, Any]]:
        return _with_nulls(self.kit, rows_up_to(position))


def _with_nulls(kit: Kit, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not kit.grows:
        rows = [{name: row.get(name) for name in ("sensor", "value", "seldom", "late")} for row in rows]
    return kit.expected(rows)


def same(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Nulls, which CSV shows as nothing, of columns that were not known yet are like absent ones."""

    def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: item for name, item in row.items() if item not in (None, "")} for row in rows]

    return bare(got) == bare(expected)


def fork() -> int:
    """`os.fork`, in a process with threads of libraries, which the child does not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(
    work: Callable[[Callable[[Any], None]], None], heard: Callable[[str], bool] | None = None
) -> tuple[int, list[str]]:
    """Run ``work(tell)`` in a forked child: how it ended (negative is a signal), and what it told by then.

    ``heard`` returns True when the child is to be killed, at once.
    """
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            work(lambda value: _tell(writer, value))
            code = 0
        except BaseException:  # noqa: BLE001 - the last frame of the child
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    told: list[str] = []
    with os.fdopen(reader) as lines:
        for line in lines:
            told.append(line.strip())
            if heard is not None and heard(told[-1]):
                os.kill(pid, signal.SIGKILL)
                heard = None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _tell(writer: int, value: Any) -> None:
    os.write(writer, f"{value}\n".encode())
