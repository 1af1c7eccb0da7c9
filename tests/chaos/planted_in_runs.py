"""R29: bugs planted in whole runs, one at a time, each of which a small campaign must find: else the harness is blind.

A bug is a patch of the product's functions, made when the interpreter starts (`planting/sitecustomize.py`), in the engine, its
lanes and its sinks. The product has no switch for it. ``python -m tests.chaos.planted_in_runs`` prints the table. Bugs that one
test in one process finds are in `tests.chaos.planted`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Planted:
    """A bug, the campaign that finds it, and within how many strikes."""

    plant: Callable[[], None]
    caught_by: str
    strikes: int


def drop_when_full() -> None:
    from tidemill.engine.intake import Intake

    real = Intake.put

    async def put(self: Any, batch: Any, *more: Any) -> int:
        if self.waiting > 1_000:
            self.entered += len(batch)
            return 0
        return await real(self, batch, *more)

    Intake.put = put  # type: ignore[method-assign]


def position_after_rows() -> None:
    from tidemill.sinks.sqlite import SQLite

    def commit(self: Any, position: int) -> None:
        with self._mine(), self._refusals():
            connection = self._opened()
            if connection.in_transaction:
                connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            self._kept.move(connection, position)
            connection.execute("COMMIT")

    SQLite.commit = commit  # type: ignore[method-assign]


def undo_nothing() -> None:
    from tidemill.stages.state import StateMemory

    StateMemory.roll_back = lambda self: False  # type: ignore[method-assign]


def know_rows_by_epoch() -> None:
    from tidemill.engine.outflow import Outflow

    real = Outflow.emit

    def emit(self: Any, finished: Any, *, learned: bool) -> None:
        for outlet in self.outlets:  # a new epoch has rows of its own
            outlet.resumed_at = 0
        real(self, finished, learned=learned)

    Outflow.emit = emit  # type: ignore[method-assign]


def forget_objects() -> None:
    from tidemill.engine import saved_state
    from tidemill.stages.object_states import ObjectStates

    saved_state._states = lambda found, lane, stage: ObjectStates.of({})


def end_too_early() -> None:
    from tidemill.engine.saving import Saving

    real = Saving._raise_barrier

    def raise_barrier(self: Any, now: int) -> None:
        real(self, now)
        if self._at_barrier is not None:
            self._at_barrier.facts["ended"] = self._attempt.has_ended

    Saving._raise_barrier = raise_barrier  # type: ignore[method-assign]


def keep_letters() -> None:
    from tidemill.engine.dead_letters import DeadLetterFile

    real = DeadLetterFile.__init__

    def init(self: Any, *arguments: Any, keep_bytes: int | None = None, **more: Any) -> None:
        real(self, *arguments, **more)

    DeadLetterFile.__init__ = init  # type: ignore[method-assign]


def let_anyone_write() -> None:
    from tidemill.sinks import postgres_position

    postgres_position._MOVE = "UPDATE {table} SET position = %s WHERE pipeline = %s AND sink = %s AND %s > 0"  # type: ignore[misc]


def position_in_a_transaction_of_its_own() -> None:
    from tidemill.sinks.postgres import BEGIN_KEPT, PostgreSQL

    def commit(self: Any, position: int) -> None:
        with self._refusals():
            connection, _ = self._opened()
            if self._began:
                self._commit(connection)
            connection.execute(BEGIN_KEPT)
            self._position.move(connection, position)
            self._commit(connection)

    PostgreSQL.commit = commit  # type: ignore[method-assign]


PLANTED: Final = {
    "what finds no room is dropped": Planted(drop_when_full, "small-lanes", 2),
    "a lane's successor does not take back what is half done": Planted(undo_nothing, "small-lanes", 12),
    "what objects hold is forgotten": Planted(forget_objects, "small-engines", 6),
    "rows are known by their epoch, not by position": Planted(know_rows_by_epoch, "small-engines", 6),
    "the position is committed after the rows": Planted(position_after_rows, "small-crash-points", 60),
    "an input has ended when it is read": Planted(end_too_early, "small-engines", 8),
    "letters behind the checkpoint stay": Planted(keep_letters, "small-engines", 6),
    "a database lets earlier starts write": Planted(let_anyone_write, "postgres", 12),
    "a database has the position in a transaction of its own": Planted(
        position_in_a_transaction_of_its_own, "postgres", 12
    ),
}


def outcome(name: str, folder: Path) -> tuple[bool, str]:
    """Whether the bug was caught by what has to catch it; and what that said."""
    planted = PLANTED[name]
    folder.chmod(0o755)  # PostgreSQL has an account of its own, and its server is in there
    path = [str(ROOT / "tests" / "chaos" / "planting"), str(ROOT / "src"), str(ROOT)]
    environment = {
        **os.environ,
        "TIDEMILL_PLANTED_IN_RUNS": name,
        "PYTHONPATH": os.pathsep.join(path),
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "tests.chaos", planted.caught_by, "--strikes", str(planted.strikes)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = ran.stdout + ran.stderr
    return ran.returncode == 1 and "FAILED with seed" in said, said


def table(caught: dict[str, bool]) -> str:
    """For ``docs/reliability.md``."""
    lines = ["| Planted in a run | Found by |", "|---|---|"]
    for name, found in caught.items():
        by = f"`{PLANTED[name].caught_by}`, within {PLANTED[name].strikes} strikes" if found else "**nobody**"
        lines.append(f"| {name} | {by} |")
    return "\n".join(lines)


if __name__ == "__main__":
    import tempfile

    found = {}
    for one in sys.argv[1:] or PLANTED:
        with tempfile.TemporaryDirectory() as place:
            found[one], told = outcome(one, Path(place))
        sys.stderr.write(f"{one}: {'found' if found[one] else 'NOT FOUND: ' + told[-3000:]}\n")
    sys.stdout.write(f"{table(found)}\n")
    sys.exit(not all(found.values()))
