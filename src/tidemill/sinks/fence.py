"""One start of a pipeline writes to a sink's output, and no other."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Final
from weakref import WeakValueDictionary

from tidemill import files
from tidemill.errors import OutsideError
from tidemill.sinks.base import Keeping

__all__ = ["Fence", "another_start"]

WAIT_S: Final = 10.0
"""Seconds that a writer of an earlier start gets to let go."""
PATIENCE_S: Final = 1.0
"""Seconds of these after which a sink's process that outlived its engine is killed."""
POLL_S: Final = 0.02
_SINK_PROCESS: Final = "tidemill-sink"
"""The name of a process that does nothing but write for a sink."""


class Fence:
    """Held from `take` to `release` by the one sink object that may write.

    Guarantees:
    - Between processes: a lock on a file of the state folder, which the system takes back when its holder ends, however
      it ends. Nobody writes before holding it, so a process that was stopped (SIGSTOP) and holds it cannot wake up
      beside another writer: the new start waits for it, kills it when it is nothing but a sink's process (the holder
      notes who it is), and refuses to start when it still lives after `WAIT_S` seconds.
    - Within a process: a newer `take` shuts the gate of the older, which lets go of what it holds; all it tries from
      then on raises `OutsideError`.
    """

    _held: ClassVar[WeakValueDictionary[Path, Fence]] = WeakValueDictionary()

    def __init__(self, place: Path, let_go: Callable[[], None], lock: files.Lock) -> None:
        self._place = place
        self._let_go = let_go
        self._lock = lock
        self._gate = threading.Lock()
        self._shut = False

    @classmethod
    def take(cls, keeping: Keeping, let_go: Callable[[], None]) -> Fence:
        """Wait for writers of earlier starts to end, and shut them out. ``let_go`` drops, without writing anything, what
        the taker has open; it is called when another takes over. Raises `OutsideError`."""
        place = keeping.folder / "writer"
        before = cls._held.get(place)
        if before is not None:
            before._shut_out()
        deadline = time.monotonic() + WAIT_S
        while (lock := _locked(place)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise OutsideError(
                    f"{_holder(place)} of an earlier start of this pipeline still writes here, by {place}; end that "
                    f"process, then start again."
                )
            if left < WAIT_S - PATIENCE_S:
                _kill(place)
            time.sleep(POLL_S)
        _note_holder(place, lock)
        fence = cls._held[place] = cls(place, let_go, lock)
        return fence

    @property
    def shut(self) -> bool:
        """Whether another has taken over, or this one was released."""
        return self._shut

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        """Nobody takes over in here. Raises `OutsideError` when somebody has."""
        with self._gate:
            if self._shut:
                raise another_start()
            yield

    def release(self) -> None:
        """Let others write; once more changes nothing."""
        with self._gate:
            self._shut = True
            self._lock.release()
            if self._held.get(self._place) is self:
                del self._held[self._place]

    def _shut_out(self) -> None:
        if not self._gate.acquire(timeout=WAIT_S):
            raise OutsideError(
                f"An earlier start of this pipeline in this process still writes here, by {self._place}, and does not "
                f"come back from it; end the process, then start again."
            )
        try:
            self._shut = True
            self._let_go()
            self._lock.release()
        finally:
            self._gate.release()


def another_start() -> OutsideError:
    """Somebody newer writes."""
    return OutsideError(
        "another start of this pipeline has taken over this sink's output; nothing more is written by this one."
    )


def _locked(place: Path) -> files.Lock | None:
    try:
        return files.lock(place)
    except OSError as error:
        raise OutsideError(f"{place} cannot be locked: {error.strerror or error}.") from error


def _note_holder(place: Path, lock: files.Lock) -> None:
    try:
        with files.open_write(place) as handle:
            handle.write(f"{os.getpid()} {_started(os.getpid())}\n".encode())
    except OSError as error:
        lock.release()
        raise OutsideError(f"{place} cannot be written: {error.strerror or error}.") from error


def _noted(place: Path) -> tuple[int, int] | None:
    """Process id of the holder and when that was started; None when it has not said so."""
    words = (files.read_bytes(place) or b"").split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(map(bytes.isdigit, words)) else None


def _holder(place: Path) -> str:
    noted = _noted(place)
    return f"Process {noted[0]}" if noted else "A process"


def _kill(place: Path) -> None:
    """End a sink's process that outlived its engine: it is stopped, or hangs in a write. No other process, whatever its
    number; the application itself may hold the lock, where sinks run in its threads."""
    noted = _noted(place)
    if noted is None or noted[0] == os.getpid() or not hasattr(os, "pidfd_open"):
        return
    pid, started = noted
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)  # from here on the number is not given to another
        try:
            name = (files.read_bytes(f"/proc/{pid}/comm") or b"").decode(errors="replace").strip()
            if started and started == _started(pid) and name == _SINK_PROCESS:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _started(pid: int) -> int:
    """When the process was started, in ticks of the system since it booted; 0 when that cannot be known."""
    fields = (files.read_bytes(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0
