"""W4: kill -9 of everything at half time, the same command again, and what is then wrong with the output; beside Bytewax."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import _streams_peers
from bench._common import Table, Wrong, median, spread
from bench.peers._w4 import Recording, Verdict, rows_of_lines

_JITTER = 0.2
"""The kill comes up to this share of the time that half of the rows took behind it, so that it keeps no step with commits."""
_POLL_S = 0.002
_LIMIT_S = 600.0
_STARTS = 5

PLANT = """
import sys
import tidemill as tm

source, sink, kept = sys.argv[1:]
sink = {
    "lines": lambda: tm.sinks.Lines("out.ndjson", if_exists="append" if kept == "no" else "fail"),
    "sqlite": lambda: tm.sinks.SQLite("out.db"),
}[sink]()
pipeline = tm.Pipeline(tm.sources.Replay(source), tm.Rolling("value", window=50, stats=["mean"]), sink, name="w4")
tm.run(pipeline, state="state" if kept == "yes" else False)
"""


class Output:
    """What a reader of the output sees while it is written."""

    def count(self) -> int:
        """Rows."""
        raise NotImplementedError

    def rows(self) -> Iterable[tuple[int, float] | None]:
        """Number and mean of each; None for one that is torn."""
        raise NotImplementedError


class LinesOutput(Output):
    def __init__(self, folder: Path) -> None:
        self.path = folder / "out.ndjson"
        self._read, self._lines = 0, 0

    def count(self) -> int:
        """Only what is new is read; a file that was cut is counted afresh."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read:
                    self._read, self._lines = 0, 0
                file.seek(self._read)
                while block := file.read(1 << 20):
                    self._read += len(block)
                    self._lines += block.count(b"\n")
        except FileNotFoundError:
            return 0
        return self._lines

    def rows(self) -> Iterable[tuple[int, float] | None]:
        return rows_of_lines(self.path)


class SQLiteOutput(Output):
    def __init__(self, folder: Path) -> None:
        self.path = folder / "out.db"

    def count(self) -> int:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as database:
                return int(database.execute("SELECT max(rowid) FROM features").fetchone()[0] or 0)
        except sqlite3.Error:
            return 0

    def rows(self) -> Iterator[tuple[int, float] | None]:
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            yield from database.execute("SELECT seq, value_mean_50 FROM features")


@dataclass(frozen=True)
class Way:
    """One program that is killed."""

    what: str
    command: Callable[[Path, Path], list[str]]
    """By the recording and the folder that it runs in."""
    output: Callable[[Path], Output] = LinesOutput
    prepare: Callable[[Path], None] = lambda _: None
    exact: bool = True
    """Promises that nothing is lost or doubled; one that does not starts over, behind the rows that are there."""


@dataclass(frozen=True)
class Outcome:
    """One run with its kill."""

    verdict: Verdict
    killed_at: int
    """Rows that were there."""
    first_s: float
    """From the first start to the first row: what every start takes."""
    back_s: float
    """From the kill to the first row that was not there before."""
    seconds: float
    """From the first start to the end of the last."""
    starts: int


def _ours(sink: str, kept: str) -> Callable[[Path, Path], list[str]]:
    return lambda recording, _: [sys.executable, "-c", PLANT, str(recording), sink, kept]


def _bytewax(recording: Path, folder: Path) -> list[str]:
    flow = f"bench.peers.bytewax_w4:flow({str(recording)!r}, {str(folder / 'out.ndjson')!r})"
    return [str(_peer()), "-m", "bytewax.run", flow, "-r", str(folder / "store"), "-s", "1", "-b", "0"]


def _bytewax_store(folder: Path) -> None:
    (folder / "store").mkdir()
    subprocess.run([str(_peer()), "-m", "bytewax.recovery", str(folder / "store"), "1"], check=True)


def _peer() -> Path:
    return _streams_peers.HOME / "bytewax" / "bin" / "python"


WAYS = (
    Way("tidemill, lines, with state", _ours("lines", "yes")),
    Way("tidemill, SQLite, with state", _ours("sqlite", "yes"), SQLiteOutput),
    Way("tidemill, lines, without state, appended", _ours("lines", "no"), exact=False),
    Way("Bytewax, FileSource to FileSink, a snapshot a second", _bytewax, prepare=_bytewax_store),
)


def w4(options: argparse.Namespace, table: Table) -> None:
    """Every way in turn, so that each meets the same machine."""
    chance = random.Random(4)
    outcomes: dict[str, list[Outcome]] = {way.what: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=options.folder) as name:
        recording = Recording.of(Path(name) / "in.ndjson", options.records)
        for _ in range(min(options.runs, 3)):
            for way in WAYS:
                if way.command is _bytewax and not _peer().exists():
                    continue
                outcome = None
                while outcome is None:
                    with tempfile.TemporaryDirectory(dir=name) as folder:
                        outcome = _killed(way, recording, Path(folder), chance.uniform(0, _JITTER))
                outcomes[way.what].append(outcome)
                print(f"{way.what}: {outcome}; load {os.getloadavg()[0]:.1f}", flush=True)
    for way in WAYS:
        _told(table, way, outcomes[way.what], len(recording))


def _told(table: Table, way: Way, outcomes: list[Outcome], records: int) -> None:
    what = f"W4, {records:,} records, {way.what}"
    if not outcomes:
        table.note(what, "Bytewax is not installed: make bench-peers")
        return
    verdicts = [outcome.verdict for outcome in outcomes]
    first, back = [outcome.first_s for outcome in outcomes], [outcome.back_s for outcome in outcomes]
    seconds = [outcome.seconds for outcome in outcomes]
    note = "; ".join(
        (
            f" = lost {_each(verdict.lost for verdict in verdicts)}",
            f"doubled {_each(verdict.surplus for verdict in verdicts)}",
            f"wrong {_each(verdict.wrong for verdict in verdicts)}",
            f"kill with {_each(outcome.killed_at for outcome in outcomes)} rows there",
            f"first new row {median(back):.2f} s later{spread(back)}, and {median(first):.2f} s after the first start{spread(first)}",
            f"in all {median(seconds):.1f} s{spread(seconds, '{:.1f}')}",
        )
    )
    amiss = median([verdict.lost + verdict.surplus + verdict.wrong for verdict in verdicts])
    if way.command is _bytewax or not way.exact:
        table.note(f"{what}: rows amiss", f"{amiss:,.0f}{note}")
    else:
        table.at_most(f"{what}: rows amiss", amiss, 0, unit="rows", note=note)


def _each(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _killed(way: Way, recording: Recording, folder: Path, late: float) -> Outcome | None:
    """Started, killed behind half of the rows, and started again until it says that it is done; None when it was done first."""
    way.prepare(folder)
    output = way.output(folder)
    begun = time.perf_counter()
    running = _started(way, recording, folder)
    _until(lambda: output.count() > 0, running)
    first = time.perf_counter() - begun
    _until(lambda: output.count() >= len(recording) / 2, running)
    time.sleep(late * (time.perf_counter() - begun))
    killed = time.perf_counter()
    _kill(running)
    before = output.count()
    if before == len(recording):
        print(f"{way.what} was done before it was killed; once more", flush=True)
        return None
    starts = 1
    back = None
    while True:
        starts += 1
        running = _started(way, recording, folder)
        if back is None and _until(lambda: output.count() > (before if way.exact else 2 * before), running):
            back = time.perf_counter() - killed
        if running.wait(_LIMIT_S) == 0:
            break
        if starts == _STARTS:
            raise Wrong(f"{way.what} does not start again: {(folder / 'stderr').read_text().splitlines()[-1:]}")
    seconds = time.perf_counter() - begun
    verdict = recording.judge(output.rows())
    return Outcome(verdict, before, first, back if back is not None else seconds, seconds, starts)


def _started(way: Way, recording: Recording, folder: Path) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[1])
    search = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with (folder / "stderr").open("ab") as told:
        return subprocess.Popen(
            way.command(recording.path, folder),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            stderr=told,
        )


def _kill(running: subprocess.Popen[bytes]) -> None:
    """kill -9 of the program and of every process that came from it, until none runs: one in the middle of a write ends it first."""
    family = _family(running.pid)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.wait()
    while any(_runs(pid) for pid in family):
        time.sleep(_POLL_S)


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text(encoding="utf-8").split())
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # it has gone
        return False


def _until(happened: Callable[[], bool], running: subprocess.Popen[bytes]) -> bool:
    """Wait for it; False when the program ended first."""
    until = time.perf_counter() + _LIMIT_S
    while not happened():
        if running.poll() is not None:
            return happened()
        if time.perf_counter() > until:
            _kill(running)
            raise Wrong("no row in ten minutes")
        time.sleep(_POLL_S)
    return True
