"""What the hard tests of `tidemill.Lanes` share: a view of processes, whole programs, the ways to end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied, RemoteError
from tidemill.lanes.fork_client import ended

cloudpickle.register_pickle_by_value(sys.modules[__name__])

_SERVERS = {"mosquitto", "postgres"}


class Processes:
    """What the kernel says of processes."""

    @staticmethod
    def lives(pid: int) -> bool:
        """Whether it runs; a zombie does not."""
        return Processes._state(pid) not in {"Z", "X", ""}

    @staticmethod
    def is_zombie(pid: int) -> bool:
        """Whether it has ended and nobody has reaped it."""
        return Processes._state(pid) == "Z"

    @staticmethod
    def _state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    @staticmethod
    def children(pid: int) -> list[int]:
        """Its children, zombies too, but for the servers that other tests of this process have started."""
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        except OSError:
            return []
        return [child for child in children if Processes._name(child) not in _SERVERS]

    @staticmethod
    def _name(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return ""

    def family(self, pid: int) -> set[int]:
        """It and all that descends from it."""
        return {pid}.union(*map(self.family, self.children(pid)))

    @staticmethod
    async def gone(*pids: int) -> None:
        """Return when all of them have ended; the test's own time limit bounds this."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                await ended(pid)

    @staticmethod
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    @staticmethod
    def maps() -> int:
        """Memory maps of memory files: what lanes share with this process."""
        return Path("/proc/self/maps").read_text().count("/memfd:")


@pytest.fixture
def processes() -> Processes:
    return Processes()


@dataclass
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


class Program:
    """A whole program, as a script of its own, in a group of its own."""

    def __init__(self, path: Path, *arguments: str, **options: Any) -> None:
        command = [sys.executable, str(path), *arguments]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=path.parent,
            start_new_session=True,
            **options,
        )
        self.pid = self._process.pid

    def line(self) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def tell(self, line: str) -> None:
        """Write a line to its input, which is a pipe."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def ended(self) -> Ended:
        """Wait for its end."""
        out, err = self._process.communicate(timeout=120)
        return Ended(self._process.returncode, out, err)

    def close(self) -> None:
        """Leave nothing of it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=120)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start a program: ``program(source, *arguments)``; nothing of it outlives the test."""
    started: list[Program] = []

    def start(source: str, *arguments: str, **options: Any) -> Program:
        path = tmp_path / f"program_{len(started)}.py"
        path.write_text(textwrap.dedent(source))
        started.append(Program(path, *arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


# -- the ways to end -----------------------------------------------------------------------------------------


def error() -> None:
    raise ZeroDivisionError("of the test")


def leave() -> None:
    sys.exit(4)


def leave_at_once() -> None:
    os._exit(5)


def segfault() -> None:
    ctypes.string_at(0)


def suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Way:
    """A way for the user's code to end, and what the caller is told of it."""

    act: Callable[[], None]
    kills: bool
    signal: int | None = None
    code: int | None = None
    told: str = ""

    def check(self, raised: object) -> None:
        """It is the error that tells of this way."""
        if self.act is error:
            assert isinstance(raised, ZeroDivisionError)
            assert "in error" in str(raised.__cause__)
        elif self.act is leave:
            assert isinstance(raised, RemoteError)
            assert raised.type_name == "SystemExit"
        else:
            assert isinstance(raised, LaneDied)
            assert (raised.signal, raised.code) == (self.signal, self.code)
            assert self.told in str(raised)


WAYS = {
    "error": Way(error, kills=False),
    "exit": Way(leave, kills=False),
    "os_exit": Way(leave_at_once, kills=True, code=5, told="exit code 5"),
    "segfault": Way(segfault, kills=True, signal=11, told="SIGSEGV"),
    "sigkill": Way(suicide, kills=True, signal=9, told="SIGKILL"),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Each of the five ways to end, in turn."""
    return WAYS[request.param]


@pytest.fixture
def unharmed() -> Callable[[tm.Lanes], contextlib.AbstractAsyncContextManager[None]]:
    """``async with unharmed(lanes):`` calls before, beside and after what happens in there have their results."""

    @contextlib.asynccontextmanager
    async def watching(lanes: tm.Lanes) -> AsyncIterator[None]:
        before = [asyncio.create_task(lanes.run(abs, -x)) for x in range(8)]
        await asyncio.sleep(0)
        yield
        beside = [asyncio.create_task(lanes.run(abs, -x)) for x in range(8)]
        assert await asyncio.gather(*before, *beside) == [*range(8), *range(8)]
        assert await lanes.run(abs, -12) == 12

    return watching
