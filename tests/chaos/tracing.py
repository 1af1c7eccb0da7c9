"""System calls as the places where things go wrong: strace kills at one of them, or makes it fail."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Final

from tests.chaos.family import Family, wait_for
from tests.chaos.plant import Plant

CALLS: Final = ("fsync", "fdatasync", "rename", "write", "pwrite64", "ftruncate", "fallocate", "unlink", "mkdir")
"""What changes a disk. A call that this machine has under another name is left out by strace's ``?``."""
_LINE: Final = re.compile(r"(\d+) +(\w+)\((?:(\d+)<([^>]*)>|\"([^\"]*)\")?")
_RESUMED: Final = re.compile(r"\d+ +<\.\.\. \w+ resumed>(.*)")
HELD_S: Final = 5.0
TRACE: Final = "trace.txt"


@dataclass(frozen=True)
class Call:
    """One system call, as strace has written it down."""

    pid: int
    name: str
    path: str
    line: str

    @property
    def injected(self) -> bool:
        return "(INJECTED)" in self.line


def traced(plant: Plant, *injections: str, calls: tuple[str, ...] = CALLS) -> Family:
    """A start of the plant under strace; an injection is ``"fsync:error=EIO:when=3"``, counted thread by thread."""
    asked = "trace=" + ",".join(f"?{name}" for name in calls)
    more = [part for one in injections for part in ("-e", f"inject={one}")]
    command = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-o", TRACE, "-e", asked, *more, *plant.command()]
    return Family(command, plant.folder, plant.environment())


def killed_at(plant: Plant, call: str, when: int) -> bool:
    """A start that is killed, all of it at once, before a thread's so many-th call is done; False when it had ended before.

    strace's own signals come with a filter for the calls (``--seccomp-bpf``) too late, and without it the run is ten times
    as slow. So strace holds the call up, and the kill comes when a thread is seen to hang in it.
    """
    family = traced(plant, f"{call}:delay_enter={round(HELD_S * 1e6)}:when={when}")
    try:
        held = _Held(family)
        wait_for("a call is held up, or the run ends", lambda: not family.alive or held(), each_s=0.01)
        if family.alive:
            for pid, name in family.members().items():
                if name != "strace":  # whose death would let the others go on
                    family.send(pid, SIGKILL)
            family.end()
            return True
        code = family.finish()
        assert code == 0, f"exit code {code}: {family.told()[-2000:]}"
        return False
    finally:
        family.end()


class _Held:
    """Whether a thread of the family has stood in one call for a while."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._before: dict[str, int] = {}

    def __call__(self) -> bool:
        standing = {}
        for pid, name in self._family.members().items():
            if name == "strace":
                continue
            with contextlib.suppress(OSError):  # it has ended since
                for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
                    stat = (task / "stat").read_text()
                    if stat[stat.rindex(")") + 2] == "t":
                        standing[f"{task} {(task / 'syscall').read_text()}"] = 1
        self._before = {which: self._before.get(which, 0) + 1 for which in standing}
        return any(times >= 5 for times in self._before.values())


def calls_in(plant: Plant) -> Iterator[Call]:
    """What the last traced start did, in the order in which it was done."""
    begun: dict[str, str] = {}
    for written in (plant.folder / TRACE).read_text(errors="replace").splitlines():
        pid = written.split(" ", 1)[0]
        if written.endswith("<unfinished ...>"):
            begun[pid] = written.removesuffix("<unfinished ...>")
            continue
        resumed = _RESUMED.match(written)
        line = written if resumed is None else begun.pop(pid, "") + resumed.group(1)
        if (found := _LINE.match(line)) is not None:
            pid, name, _, path, named = found.groups()
            yield Call(int(pid), name, path or named or "", line)


def is_disk(call: Call, folder: Path) -> bool:
    """Whether it was about the plant's own files, not a socket or the screen."""
    return call.path.startswith(str(folder)) and not call.path.endswith("output.txt")


def points(plant: Plant, cycles: int = 3) -> list[tuple[str, int]]:
    """Each (call, when) that kills at another place of the last traced start, up to so many checkpoints."""
    counts: Counter[tuple[int, str]] = Counter()
    found: set[tuple[str, int]] = set()
    published = 0
    for call in calls_in(plant):
        counts[call.pid, call.name] += 1
        if is_disk(call, plant.folder) or call.name in ("rename", "unlink"):
            found.add((call.name, counts[call.pid, call.name]))
        published += call.name == "rename" and ".checkpoint" in call.line
        if published > cycles:
            break
    return sorted(found)


def retried(plant: Plant) -> str:
    """Empty when no sync of a file was tried again after it had failed; else what was.

    SQLite's own log does not count: the connection is given up, and closing it syncs that log once more for what was
    committed before. The commit that failed is in none or all of its parts, position and rows together.
    """
    failed: set[tuple[int, str]] = set()
    for call in calls_in(plant):
        if call.name == "openat":
            opened = re.search(r"= \d+<([^>]*)>", call.line)
            failed -= {one for one in failed if opened is not None and one[1] == opened.group(1)}
        elif call.name in ("fsync", "fdatasync"):
            if call.injected and not call.path.endswith("-wal"):
                failed.add((call.pid, call.path))
            elif any(path == call.path for _, path in failed):
                return call.line
    return ""
