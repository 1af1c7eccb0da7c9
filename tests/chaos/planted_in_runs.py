"""R29: bugs that the product must not have, planted one at a time, and the test that catches each.

A bug is a patch of the product's functions, made when the interpreter starts (`planting/sitecustomize.py`) in the run and in
its lanes and sinks. The product has no switch for it. ``python -m tests.chaos.planted`` prints the table.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Planted:
    """A bug."""

    told: str
    plant: Callable[[], None]
    caught_by: str
    """A test's id, or the name of a small campaign and how many strikes it has."""

    @property
    def is_campaign(self) -> bool:
        return not self.caught_by.startswith("tests/")


def acknowledge_early() -> None:
    from tidemill.engine.journal import Journal

    real = Journal.put

    async def put(self: Any, batch: Any, source: str) -> None:
        self._acknowledge(source, self._given.get(source, 0) + 1)
        await real(self, batch, source)

    Journal.put = put  # type: ignore[method-assign]


def sync_no_folder() -> None:
    from tidemill import files

    files.sync_folder = lambda folder: None


def sync_again() -> None:
    from tidemill import files

    def again(real: Callable[[Any], None]) -> Callable[[Any], None]:
        def sync(handle: Any) -> None:
            try:
                real(handle)
            except OSError:
                real(handle)

        return sync

    files.sync = again(files.sync)
    files.PlacedFile.sync = again(files.PlacedFile.sync)  # type: ignore[method-assign]


def fence_nobody() -> None:
    from tidemill.sinks.fence import Fence

    @contextlib.contextmanager
    def passed(self: Any) -> Iterator[None]:
        yield

    Fence.passed = passed  # type: ignore[method-assign]
    Fence._shut_out = lambda self: self._lock.release()  # type: ignore[method-assign]


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
    from tidemill.engine.attempt import Attempt

    real = Attempt._deliver

    def deliver(self: Any, finished: Any) -> None:
        for outlet in self.outlets:  # a new epoch has rows of its own
            outlet.resumed_at = 0
        real(self, finished)

    Attempt._deliver = deliver  # type: ignore[method-assign]


def publish_before_sinks() -> None:
    from tidemill.core.epochs import Epochs

    def writable(self: Any) -> bool:
        barrier = self._barrier
        return barrier is not None and not barrier.writing and barrier.passed and not barrier.lanes

    Epochs.writable = property(writable)  # type: ignore[assignment]


def publish_before_lanes() -> None:
    from tidemill.core.epochs import Epochs

    def writable(self: Any) -> bool:
        barrier = self._barrier
        done = barrier is not None and all(position >= barrier.position for position in self._sinks)
        return done and not barrier.writing and barrier.passed

    Epochs.writable = property(writable)  # type: ignore[assignment]


def leave_the_tail() -> None:
    from tidemill.engine import log_segments

    log_segments.is_blank = lambda file, place: True


def end_too_early() -> None:
    from tidemill.engine.keeper import Saving

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


def believe_bytes() -> None:
    from tidemill.engine import checkpoint_store

    checkpoint_store._check = lambda file, sections: None


WINDOWS: Final = "tests/durability/test_commit_windows.py"
PLANTED: Final = {
    "ack-early": Planted(
        "a record is acknowledged before it is on the disk",
        acknowledge_early,
        "tests/chaos/test_faults_disk.py::test_what_was_acknowledged_before_the_log_found_the_disk_full_is_there[inline]",
    ),
    "no-folder-sync": Planted(
        "a new name is not synced with its folder",
        sync_no_folder,
        "tests/durability/test_checkpoint_store.py::test_a_power_failure_leaves_the_old_or_the_new_one_whole",
    ),
    "sync-again": Planted(
        "a sync that failed is tried again",
        sync_again,
        f"{WINDOWS}::test_an_error_of_fsync_is_never_tried_again",
    ),
    "no-epoch-check": Planted(
        "a writer of an earlier start is not shut out",
        fence_nobody,
        "tests/durability/test_exactly_once.py::test_rows_are_those_of_an_uninterrupted_run_however_often_it_ends",
    ),
    "drop-when-full": Planted("what finds no room is dropped", drop_when_full, "small-lanes 1"),
    "position-after-rows": Planted(
        "the position is committed after the rows, not with them",
        position_after_rows,
        f"{WINDOWS}::test_a_crash_at_every_point_of_three_commits",
    ),
    "no-undo": Planted("a lane's successor does not take back the open slab", undo_nothing, "small-lanes 12"),
    "by-epoch": Planted(
        "replayed rows are known by their epoch, not by position", know_rows_by_epoch, "small-engines 4"
    ),
    "publish-before-sinks": Planted(
        "a checkpoint is published before the sinks have committed",
        publish_before_sinks,
        "tests/chaos/test_simulation.py",
    ),
    "publish-before-lanes": Planted(
        "a checkpoint is published before every lane has copied its state",
        publish_before_lanes,
        "tests/chaos/test_simulation.py",
    ),
    "tail-stays": Planted(
        "the log's torn tail is not cut off",
        leave_the_tail,
        "tests/durability/test_log_power_loss.py::test_power_may_fail_at_any_moment",
    ),
    "ended-too-early": Planted(
        "an input counts as worked on when it has been read (this one was found by the harness)",
        end_too_early,
        "small-engines 6",
    ),
    "letters-stay": Planted("dead letters behind the checkpoint are not cut off", keep_letters, "small-engines 6"),
    "no-checksum": Planted(
        "a checkpoint's bytes are believed",
        believe_bytes,
        "tests/durability/test_checkpoint_store.py::test_every_flipped_bit_is_found",
    ),
}


def outcome(name: str, folder: Path) -> tuple[bool, str]:
    """Whether the bug was caught by what has to catch it; and what that said."""
    planted = PLANTED[name]
    path = [str(ROOT / "tests" / "chaos" / "planting"), str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "TIDEMILL_PLANTED": name, "PYTHONPATH": os.pathsep.join(path), "TMPDIR": str(folder)}
    if planted.is_campaign:
        campaign, strikes = planted.caught_by.split()
        command = [sys.executable, "-m", "tests.chaos", campaign, "--strikes", strikes]
    else:
        options = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", f"--basetemp={folder / 'tests'}"]
        command = [sys.executable, "-m", "pytest", *options, planted.caught_by]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = ran.stdout + ran.stderr
    return ran.returncode == 1 and ("FAILED with seed" in said or " failed" in said), said


def table(caught: dict[str, bool]) -> str:
    """For ``docs/reliability.md``."""
    lines = ["| planted | caught by | |", "|---|---|---|"]
    for name, found in caught.items():
        by = PLANTED[name].caught_by
        test = (
            f"campaign {by.split()[0]}" if PLANTED[name].is_campaign else by.removeprefix("tests/").replace("::", ": ")
        )
        lines.append(f"| {PLANTED[name].told} | `{test}` | {'yes' if found else '**no**'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    import tempfile

    found = {}
    for one in sys.argv[1:] or PLANTED:
        with tempfile.TemporaryDirectory() as place:
            found[one], told = outcome(one, Path(place))
        if not found[one]:
            sys.stderr.write(f"{one} was NOT caught; the test said: {told[-3000:]}\n")
    sys.stdout.write(f"{table(found)}\n")
