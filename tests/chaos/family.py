"""A run and its processes, in a session of its own: what they do, seen from outside, and signals to them alone."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

LONGEST_S = 60.0
"""No wait for anything takes longer: it is a failure then."""
LOOK_S = 0.0005
UNHURRIED_S = 0.005
"""Between two looks for what need not be seen at once, so that looking leaves the processors to the run."""

_SLEEPING = {"x86_64": {"35", "230"}, "aarch64": {"101", "115"}}.get(platform.machine(), {"35", "230"})
"""nanosleep and clock_nanosleep: a lane in the plant's ``labour``."""

T = TypeVar("T")


class Late(AssertionError):
    """Something did not come about in time."""


def wait_for(what: str, look: Callable[[], T | None], within_s: float = LONGEST_S, each_s: float = LOOK_S) -> T:
    """The first answer that is not None or False. Raises `Late` naming ``what``."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Late(f"{what}: not within {within_s:g} s")
        time.sleep(each_s)
    return found


class Family:
    """The engine that was started, its lanes, its sinks' processes, and the server that forks them."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path | None = None
    ) -> None:
        self.output = output or folder / "output.txt"
        with self.output.open("ab") as file:
            self.begins_at = file.tell()
            self.engine = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.session = self.engine.pid

    # -- who there is ------------------------------------------------------------------------------------

    def members(self) -> dict[int, str]:
        """Process ids and names of all that live in the session."""
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):  # noqa: PTH208 - many times a second
            if self._has(pid) and (stat := _stat(pid)) is not None:
                name, state, session = stat
                if session == self.session and state not in "ZX":
                    found[pid] = name
        return found

    def _has(self, pid: int) -> bool:
        """Whether it is of the session: much cheaper to ask than its name."""
        with contextlib.suppress(OSError):
            return os.getsid(pid) == self.session
        return False

    def lanes(self) -> list[int]:
        return self.named("tidemill-lane")

    def writers(self) -> list[int]:
        """Processes of sinks."""
        return self.named("tidemill-sink")

    def named(self, name: str) -> list[int]:
        """Those whose names begin so; the server that forks the others is ``tidemill-server``."""
        return sorted(pid for pid, own in self.members().items() if own.startswith(name))

    @property
    def alive(self) -> bool:
        return self.engine.poll() is None

    def told(self) -> str:
        """What this start has said so far."""
        with self.output.open("rb") as file:
            file.seek(self.begins_at)
            return file.read().decode(errors="replace")

    # -- what is done to it ------------------------------------------------------------------------------

    def kill_all(self) -> None:
        """kill -9 of every process, the engine first."""
        self.send(self.engine.pid, signal.SIGKILL)
        self._end_rest()

    def kill_engine(self) -> None:
        """kill -9 of the engine alone: the others are to end by themselves. Raises `Late` when they do not."""
        self.send(self.engine.pid, signal.SIGKILL)
        self.engine.wait(LONGEST_S)
        try:
            wait_for("the processes of a dead engine end", lambda: not self.members(), 30.0, 0.01)
        finally:
            self._end_rest()

    def send(self, pid: int, what: signal.Signals) -> bool:
        """A signal to one of the session; False when it has ended meanwhile."""
        stat = _stat(pid)
        if stat is None or stat[2] != self.session:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
            return True
        return False

    def end(self) -> None:
        """Whatever happened: nothing of it is left."""
        if self.alive or self.members():
            self.kill_all()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.engine.wait(LONGEST_S)

    def _end_rest(self) -> None:
        def gone() -> bool:
            left = self.members()
            for pid in left:
                self.send(pid, signal.SIGKILL)
            return not left

        self.engine.wait(LONGEST_S)
        wait_for("killed processes end", gone, 30.0, 0.005)

    def finish(self, within_s: float = 2 * LONGEST_S) -> int:
        """Wait until it has ended by itself; its exit code."""
        try:
            code = self.engine.wait(within_s)
        except subprocess.TimeoutExpired:
            told = self.told()[-2000:]
            self.end()
            raise Late(f"the run did not end within {within_s:g} s; it said: {told}") from None
        wait_for("all processes end with the run", lambda: not self.members(), 30.0, 0.005)
        return code


def is_working(pid: int) -> bool:
    """Whether a lane is inside a function of the plant, or computing."""
    try:
        call = Path(f"/proc/{pid}/syscall").read_text().split()
    except (OSError, UnicodeDecodeError):
        return False
    return bool(call) and (call[0] == "running" or call[0] in _SLEEPING)


def _stat(pid: int) -> tuple[str, str, int] | None:
    """Name, state and session; None when there is no such process."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    name, rest = data[data.index("(") + 1 : data.rindex(")")], data[data.rindex(")") + 2 :].split()
    return name, rest[0], int(rest[3])
