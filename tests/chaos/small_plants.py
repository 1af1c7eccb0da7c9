"""Two small plants in processes of their own, one of a recording and one that listens, and what they must have written.

A plant is a script, so that it can be run under whatever troubles it: another clock, a tracer that makes calls fail, a
patched product. ``changes`` is code of the test in it, before the pipeline is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

import tidemill as tm

__all__ = [
    "Live",
    "Plant",
    "Replayed",
    "golden",
    "lines",
    "patient",
    "record",
    "recording",
    "rows_in",
    "small_disk",
    "wanted",
]

_COMMON = """
import asyncio, json, os, pathlib, signal, sys, time
import tidemill as tm

asked = json.loads(sys.argv[1])
out = pathlib.Path(asked["out"])
Source, Sink = {source}, tm.sinks.SQLite
stages = [tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value")]
{changes}
state = tm.State(asked["state"], **{{"checkpoint_s": 0.05, "log_min_free": 0, **asked["options"]}})
"""

_REPLAYED = (
    _COMMON
    + """
pipeline = tm.Pipeline(Source("in.ndjson", pace=asked["pace"]), tm.Plan(*stages), Sink(out), name="plant")
try:
    tm.run(pipeline, lanes=asked["lanes"], state=state)
except tm.TidemillError as error:
    sys.exit(f"refused: {{error}}")
"""
)

_LIVE = (
    _COMMON
    + """
source = Source()
pipeline = tm.Pipeline(source, tm.Plan(*stages), Sink(out), name="plant")


async def main():
    async with tm.serve(pipeline, lanes=asked["lanes"], state=state, handle_signals=True) as run:
        await source.wait_listening()
        pathlib.Path("port.new").write_text(str(source.port))
        pathlib.Path("port.new").rename("port")
        await run.wait()


try:
    asyncio.run(main())
except tm.TidemillError as error:
    sys.exit(f"refused: {{error}}")
"""
)


class Plant:
    """One start of a plant, with its family of processes."""

    script: str
    source: str

    def __init__(
        self,
        folder: Path,
        lanes: int = 0,
        *,
        state: Path | None = None,
        out: Path | None = None,
        changes: str = "",
        options: dict[str, Any] | None = None,
        under: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        **asked: Any,
    ) -> None:
        self.folder = folder
        self.out = out or folder / "out.db"
        told = {
            "lanes": lanes,
            "state": str(state or folder / "state"),
            "out": str(self.out),
            "options": options or {},
            "pace": "max",
            **asked,
        }
        code = self.script.format(source=self.source, changes=changes)
        self._told = folder / "told.txt"
        with self._told.open("wb") as file:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-c", code, json.dumps(told)],
                cwd=folder,
                stderr=file,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    def told(self) -> str:
        """All that it has said."""
        return self._told.read_text()

    def refusal(self) -> str:
        """What it ended with: one line."""
        assert self.process.returncode == 1, self.told()
        lines = [line for line in self.told().splitlines() if line.startswith("refused: ")]
        assert len(lines) == 1, self.told()
        assert "Traceback" not in self.told(), self.told()
        return lines[0].removeprefix("refused: ")

    def rows(self) -> list[tuple[Any, ...]]:
        return rows_in(self.out)

    def wait_for(self, count: int) -> None:
        """Until so many rows can be seen."""
        for _ in patient():
            if count_in(self.out) >= count:
                return
            assert self.process.poll() is None, self.told()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """As a service is stopped; it must end well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0, self.told()

    def end(self) -> None:
        """It ends by itself, and well."""
        assert self.process.wait() == 0, self.told()

    def family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


class Replayed(Plant):
    """One that works on ``in.ndjson`` in its folder."""

    script, source = _REPLAYED, "tm.sources.Replay"


class Live(Plant):
    """One that listens for `record`s."""

    script, source = _LIVE, "tm.sources.TCP"

    def __init__(self, folder: Path, lanes: int = 0, **asked: Any) -> None:
        (folder / "port").unlink(missing_ok=True)
        super().__init__(folder, lanes, **asked)

    def connected(self) -> socket.socket:
        for _ in patient():
            if (self.folder / "port").exists():
                return socket.create_connection(("127.0.0.1", int((self.folder / "port").read_text())))
            assert self.process.poll() is None, self.told()
        raise AssertionError

    def send(self, start: int, stop: int) -> None:
        """These records, on a connection of their own."""
        with self.connected() as sender:
            sender.sendall(lines(start, stop))


def patient(seconds: float = 60.0) -> Iterator[None]:
    """Turns of a loop that looks for something; so long that only what never comes takes it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.002)
    raise AssertionError("it does not come")


# -- what goes in, what comes out --------------------------------------------------------------------------


def record(n: int, wide: int = 0) -> dict[str, Any]:
    """Every tenth is the one before it once more; ``wide`` adds about so many bytes, others each time."""
    n -= n % 10 == 9
    return {
        "sensor": f"S{n * n % 7}",
        "time": n,
        "value": n % 13,
        **({"note": f"{n:06}" * (wide // 6)} if wide else {}),
    }


def lines(start: int, stop: int, wide: int = 0) -> bytes:
    return b"".join(json.dumps(record(n, wide)).encode() + b"\n" for n in range(start, stop))


def recording(folder: Path, records: int) -> None:
    """``in.ndjson``, in which a line is no record now and then."""
    with (folder / "in.ndjson").open("wb") as file:
        for n in range(records):
            if n % 97 == 5:
                file.write(b"no json\n")
            file.write(lines(n, n + 1))


def plan() -> tm.Plan:
    return tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value"))


def wanted(count: int, wide: int = 0) -> list[tuple[Any, ...]]:
    """The rows of the first ``count`` records, in order, by the plan alone."""
    made = plan().apply([record(n, wide) for n in range(count)])
    return [tuple(None if value != value else value for value in row.values()) for row in made]


def golden(folder: Path) -> tuple[list[tuple[Any, ...]], str]:
    """What a run of ``in.ndjson`` writes that nothing troubles: rows, dead letters."""
    place = folder / "golden"
    place.mkdir()
    pipeline = tm.Pipeline(tm.sources.Replay(folder / "in.ndjson"), plan(), tm.sinks.SQLite(place / "out.db"))
    tm.run(pipeline, lanes=0, state=False, dead_letters=place / "dead.ndjson")
    return rows_in(place / "out.db"), (place / "dead.ndjson").read_text()


def rows_in(path: Path) -> list[tuple[Any, ...]]:
    return asked(path, "SELECT * FROM features ORDER BY rowid")


def count_in(path: Path) -> int:
    """Of which none is ever taken away: to count them all would be to read them all."""
    return sum(row[0] or 0 for row in asked(path, "SELECT MAX(rowid) FROM features"))


def asked(path: Path, query: str) -> list[tuple[Any, ...]]:
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []


# -- a disk of a few megabytes -----------------------------------------------------------------------------


class Disk:
    """A disk that can be filled, and emptied again."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self, plant: Plant | None = None, *, leave: int = 0) -> None:
        """To the last byte, or so many before it; with a plant, again and again until that has ended."""
        with (self.place / "filler").open("ab", buffering=0) as file:
            if leave:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.place).free - leave)
                return
            for _ in patient():
                with contextlib.suppress(OSError):
                    while file.write(bytes(1 << 20)) == 1 << 20:
                        pass
                if plant is None or plant.process.poll() is not None:
                    return

    def empty(self) -> None:
        (self.place / "filler").unlink()


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int = 40) -> Iterator[Disk]:
    """Mounted there."""
    place.mkdir()
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    mount = [*as_root, "mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    try:
        yield Disk(place)
    finally:
        subprocess.run([*as_root, "umount", "--lazy", str(place)], check=True)
