"""Crashes inside the start and the commit of every sink that commits rows with their position."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
from tests.durability.kept_sinks import KEPT, OPEN, Start, fork, in_child, let_go, same, visible
from tests.durability.recording_files import replaced_in_files
from tests.sinks.test_laws import Kit

from tidemill import sinks
from tidemill.errors import OutsideError
from tidemill.sinks.base import Keeping

INPUTS = 18
CRASHED = 9
KILLS = 15

LINES_AND_PARQUET = [kit for kit in KEPT if kit.cls is not sinks.SQLite]


@pytest.fixture(params=KEPT, ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest) -> Kit:
    return request.param


@pytest.fixture(autouse=True)
def _starts_end() -> Iterator[None]:
    yield
    let_go()


# -- crash points --------------------------------------------------------------------------------------------


class Doors:
    """Every call that changes the disk is a point: before it, or in the middle of a write, the process may end."""

    CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "replace", "unlink")

    def __init__(self, reached: Callable[[str, Callable[[], None]], None]) -> None:
        self._reached = reached

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """For `tidemill.files`, and for SQLite each statement."""
        reached = self._reached

        class Os:
            def __getattr__(self, name: str) -> Any:
                real = getattr(os, name)
                if name not in Doors.CALLS:
                    return real

                def call(*args: Any, **options: Any) -> Any:
                    reached(
                        name,
                        lambda: real(args[0], args[1][: len(args[1]) // 2], *args[2:]) if "write" in name else None,
                    )
                    return real(*args, **options)

                return call

        class RawFile(io.FileIO):
            def write(self, data: Any, /) -> int:
                reached("write", lambda: super(RawFile, self).write(memoryview(data)[: len(data) // 2]))
                return super().write(data)

            def truncate(self, size: int | None = None, /) -> int:
                reached("truncate", lambda: None)
                return super().truncate(size)

        class Io:
            FileIO = RawFile

            def __getattr__(self, name: str) -> Any:
                return getattr(io, name)

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> Any:
                reached("execute", lambda: None)
                return super().execute(*args)

            def executemany(self, *args: Any) -> Any:
                reached("executemany", lambda: None)
                return super().executemany(*args)

        real_connect = sqlite3.connect

        def connect(*args: Any, **options: Any) -> sqlite3.Connection:
            return real_connect(*args, **options, factory=Connection)

        with replaced_in_files(os=Os(), io=Io()), mock.patch.object(sqlite3, "connect", connect):
            yield


class Point:
    """Ends the process at the given point; counts them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0

    def __call__(self, name: str, half: Callable[[], Any]) -> None:
        if self.count == self.number:
            half()
            os._exit(CRASHED)
        self.count += 1


def three_commits(kit: Kit, folder: Path, epoch: int, point: int, tell: Callable[[Any], None]) -> None:
    """One start: it begins, writes and commits three times, and ends in order."""
    crash = Point(point)
    with Doors(crash).installed():
        start = Start(kit, folder, epoch)
        for _ in range(3):
            start.write(min(5, INPUTS - start.handed))
            start.commit()
            tell(start.committed)
        start.sink.close()
    tell(f"points {crash.count}")


def test_a_crash_at_every_point_of_three_commits(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the rows are on disk, between them and the position, after both, in the middle of a write, and again inside
    the next start: what was committed is there, and the end is that of an uninterrupted run."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what a process wrote outlives it without
    monkeypatch.setattr(os, "fdatasync", lambda handle: None)
    whole = tmp_path / "whole"
    whole.mkdir()
    code, told = in_child(partial(three_commits, kit, whole, 1, -1))
    assert code == 0
    points = int(told[-1].split()[1])
    assert points > 20
    dice = Random(5)
    reached = set()
    for point in range(points):
        folder = tmp_path / f"{point}"
        folder.mkdir()
        code, told = in_child(partial(three_commits, kit, folder, 1, point))
        assert code == CRASHED, f"point {point}"
        acknowledged = int(told[-1]) if told else 0
        again, told_again = in_child(partial(three_commits, kit, folder, 2, dice.randrange(points)))
        assert again in (0, CRASHED)
        acknowledged = max([acknowledged, *(int(one) for one in told_again if one.isdigit())])
        start = Start(kit, folder, 3)
        assert acknowledged <= start.handed <= INPUTS
        reached.add(start.handed)
        start.finish(INPUTS)
        assert same(visible(kit, folder), start.expected(INPUTS)), f"point {point}"
    assert len(reached) > 3


def test_a_kill_at_any_time(kit: Kit, tmp_path: Path) -> None:
    """SIGKILL from outside, while rows are written and committed all the time."""
    dice = Random(11)

    def work(epoch: int, tell: Callable[[Any], None]) -> None:
        start = Start(kit, tmp_path, epoch)
        tell(start.handed)
        while True:
            start.write(1 + start.handed % 3)
            start.commit()
            tell(start.committed)

    acknowledged = 0
    for epoch in range(1, KILLS + 1):
        after = dice.randrange(12)
        count = iter(range(1000))
        code, told = in_child(lambda tell, e=epoch: work(e, tell), lambda _, n=count, a=after: next(n) >= a)
        assert code == -signal.SIGKILL
        assert int(told[0]) >= acknowledged
        acknowledged = int(told[-1])
    start = Start(kit, tmp_path, KILLS + 1)
    assert start.handed >= acknowledged
    last = start.handed + 5
    start.finish(last)
    assert same(visible(kit, tmp_path), start.expected(last))


# -- the disk refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kit", LINES_AND_PARQUET, ids=lambda kit: kit.name)
def test_an_error_of_fsync_is_never_tried_again(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each fsync of a commit: the sink stops, syncs nothing more, and the next start has all rows once."""
    real = os.fsync
    failing = 0
    while True:
        folder = tmp_path / f"{failing}"
        folder.mkdir()
        start = Start(kit, folder)
        start.write(6)
        start.commit()
        start.write(6)
        calls: list[int] = []

        def fsync(handle: int, calls: list[int] = calls, failing: int = failing) -> None:
            calls.append(handle)
            if len(calls) == failing + 1:
                raise OSError(errno.EIO, "Input/output error")
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "fdatasync", fsync)
        if failing:
            with contextlib.suppress(OutsideError):
                start.commit()
                start.commit()  # by which a Parquet file that the first has begun is there
        else:
            with pytest.raises(OutsideError, match="Input/output error"):
                start.commit()
        reached = len(calls)
        if reached <= failing:
            monkeypatch.undo()
            break
        for again in (partial(start.write, 3), start.commit, start.commit):
            with pytest.raises(OutsideError):
                again()
        start.sink.close()
        assert len(calls) == reached
        monkeypatch.undo()
        start = Start(kit, folder, 2)
        assert start.handed in (6, 12)
        start.finish(20)
        assert same(visible(kit, folder), start.expected(20))
        failing += 1
    assert failing >= 3  # the rows, the note, its folder


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_failed_commit_of_sqlite_leaves_it_to_the_next_start(tmp_path: Path, done: bool) -> None:
    """Whether the transaction is there is not known; the next start reads it from the database."""
    kit = KEPT[0]
    failing = False

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> Any:
            if failing and sql == "COMMIT":
                if done:
                    super().execute(sql, *args)
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *args)

    real = sqlite3.connect
    with mock.patch.object(sqlite3, "connect", lambda *args, **options: real(*args, **options, factory=Connection)):
        start = Start(kit, tmp_path)
        start.write(6)
        start.commit()
        start.write(6)
        failing = True
        with pytest.raises(OutsideError, match="disk I/O error"):
            start.commit()
        failing = False
        for again in (lambda: start.write(3), start.commit):
            with pytest.raises(OutsideError):
                again()
        start.sink.close()
    start = Start(kit, tmp_path, 2)
    assert start.handed == (12 if done else 6)
    start.finish(20)
    assert same(visible(kit, tmp_path), start.expected(20))


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(kit: Kit, tmp_path: Path) -> None:
    """Nothing is committed after it; the next start, with room, has all rows once."""

    large = {"max_rows": 1 << 20} if kit.name == "parquet-folder" else {}

    def work(tell: Callable[[Any], None]) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        start = Start(kit, tmp_path, 1, large)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
        try:
            while True:
                start.write(400)
                start.commit()
                tell(start.committed)
        except OutsideError as error:
            tell(str(error))
        try:
            start.commit()
        except OutsideError as error:
            tell(str(error))
        start.sink.close()

    code, told = in_child(work)
    assert code == 0
    acknowledged = max([0, *map(int, filter(str.isdigit, told))])
    first, second = [one for one in told if not one.isdigit()]
    assert str(tmp_path) in first
    assert str(tmp_path) in second
    start = Start(kit, tmp_path, 2)
    assert start.handed >= acknowledged
    start.finish(start.handed + 10)
    assert same(visible(kit, tmp_path), start.expected(start.handed))


# -- those who wake up -----------------------------------------------------------------------------------------


def stopped(kit: Kit, folder: Path, name: str = "") -> int:
    """A process that has written and not committed, and was stopped: its number."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            if name:
                Path("/proc/self/comm").write_text(name)
            start = Start(kit, folder)
            start.write(6)
            start.commit()
            start.write(6)
            os.write(writer, b"x")
            os.kill(os.getpid(), signal.SIGSTOP)
            start.commit()
            os._exit(0)
        finally:
            os._exit(CRASHED)
    os.close(writer)
    with os.fdopen(reader, "rb") as line:
        assert line.read(1) == b"x"
        os.waitpid(pid, os.WUNTRACED)
    return pid


def test_a_stopped_process_of_an_earlier_start_keeps_the_next_from_writing(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is ended, by whoever is asked to; had it been woken, it would have written alone."""
    monkeypatch.setattr("tidemill.sinks.fence.WAIT_S", 0.2)
    monkeypatch.setattr("tidemill.sinks.fence.PATIENCE_S", 0.0)
    pid = stopped(kit, tmp_path)
    with pytest.raises(OutsideError, match=f"Process {pid} of an earlier start"):
        Start(kit, tmp_path, 2)
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0
    start = Start(kit, tmp_path, 3)
    assert start.handed == 12
    start.finish(20)
    assert same(visible(kit, tmp_path), start.expected(20))


def test_a_stopped_sink_process_is_killed_by_the_next_start(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does nothing else; what it had not committed comes again."""
    monkeypatch.setattr("tidemill.sinks.fence.PATIENCE_S", 0.0)
    pid = stopped(kit, tmp_path, "tidemill-sink")
    start = Start(kit, tmp_path, 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert start.handed == 6
    start.finish(20)
    assert same(visible(kit, tmp_path), start.expected(20))


def test_a_copy_of_the_state_cannot_write_to_the_same_database_twice(tmp_path: Path) -> None:
    """What fences in SQLite is in the transaction: a later epoch, or a position that another has moved."""
    kit = KEPT[0]
    start = Start(kit, tmp_path)
    start.write(3)
    start.commit()
    start.write(3)
    start.commit()
    start.sink.close()
    for epochs in ((2, 3), (4, 4)):
        one = Start(kit, tmp_path, epochs[0])
        other = Start.__new__(Start)
        other.__dict__.update(one.__dict__)
        folder = tmp_path / f"copy {epochs[0]}"
        (folder / "state").mkdir(parents=True)
        for note in (tmp_path / "state").iterdir():
            (folder / "state" / note.name).write_bytes(note.read_bytes())
        other.sink = kit.make(tmp_path)
        other.handed = other.sink.resume(OPEN, Keeping(folder / "state", "plant", epochs[1]))
        other.write(3)
        other.commit()
        one.write(3)
        with pytest.raises(OutsideError, match="another start"):
            one.commit()
        one.sink.close()
        other.sink.close()
        assert same(visible(kit, tmp_path), start.expected(other.handed))
