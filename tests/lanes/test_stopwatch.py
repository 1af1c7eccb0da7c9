"""How long a batch took a lane, on a machine that others keep busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.lanes.platform import ProcessorQueue
from tidemill.lanes.worker import _Stopwatch

TELLS = Path("/proc/thread-self/schedstat")


@contextlib.contextmanager
def beside_another() -> Iterator[None]:
    """On a processor that somebody else keeps busy."""
    allowed = os.sched_getaffinity(0)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for process in (0, other.pid):
            os.sched_setaffinity(process, {min(allowed)})
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        other.kill()
        other.wait()


@pytest.mark.skipif(not TELLS.exists(), reason="the kernel does not count")
def test_a_thread_is_told_how_long_it_waited_for_a_processor() -> None:
    """Which another has most of the time, so that a millisecond comes together by itself."""
    queue = ProcessorQueue()
    before = queue.waited_ns()
    with beside_another():
        while queue.waited_ns() < before + 1_000_000:
            pass


@pytest.mark.parametrize(("waited", "busy"), [((7, 7), 1_000), ((7, 307), 700), ((7, 1_008), 0)])
def test_what_others_had_of_the_processor_does_not_count(
    monkeypatch: pytest.MonkeyPatch, waited: tuple[int, int], busy: int
) -> None:
    """All else does, such as a function that waits for something. It is never less than nothing, whatever the clocks say."""
    monkeypatch.setattr("tidemill.lanes.worker.time.perf_counter_ns", iter([100, 1_100]).__next__)
    queue = ProcessorQueue()
    monkeypatch.setattr(queue, "waited_ns", iter(waited).__next__)
    assert _Stopwatch(queue).busy_ns() == busy


@pytest.mark.parametrize("told", [None, b"0 0 0\n"])
def test_a_system_that_does_not_tell_leaves_the_clock(monkeypatch: pytest.MonkeyPatch, told: bytes | None) -> None:
    """Where the file is missing, or the kernel was made not to count."""
    read, write = os.pipe()
    os.close(write)

    def opened(path: str, flags: int) -> int:
        if told is None:
            raise FileNotFoundError(path)
        return read

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        patched.setattr(os, "pread", lambda fd, size, at: told[at : at + size])
        queue = ProcessorQueue()
        assert queue.waited_ns() == 0
    if told is None:
        os.close(read)
    del queue  # which lets the file go
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)
