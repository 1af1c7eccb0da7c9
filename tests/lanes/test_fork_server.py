"""The process that forks lanes, in its first moments and its last."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidemill.errors import EngineError, OutsideError
from tidemill.lanes import fork_client
from tidemill.lanes.fork_client import ForkServer
from tidemill.lanes.platform import activity


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_to_the_whole_group_ends_no_server_that_is_not_ready_yet(number: signal.Signals) -> None:
    """A Ctrl-C just after the start reaches it at whatever it imports: it is the application's to stop, and it goes on."""
    server = ForkServer()
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    assert server._process is not None
    while not starting.done():
        os.kill(server._process.pid, number)
        await asyncio.sleep(0)
    await starting
    assert server._process.poll() is None
    await server.aclose()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM} == set()


async def test_the_end_of_one_that_nobody_waits_for_is_no_error_of_the_loop() -> None:
    """Killed before it was ready: who asks it for something is told, and nothing else is."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    server = ForkServer()
    server.begin()
    preloading = asyncio.ensure_future(server.preload(b""))
    await asyncio.sleep(0)
    assert server._process is not None
    server._process.kill()
    with pytest.raises(OutsideError, match="was killed by SIGKILL"):
        await preloading
    await server.aclose()
    del server, preloading
    gc.collect()
    assert not told


@pytest.mark.parametrize("pickled", [b"", b"." * 100_000])
async def test_one_that_is_killed_while_it_loads_leaves_no_memory_here(pickled: bytes) -> None:
    """What it was to load is let go of once it is sent, whoever keeps the error."""

    def held() -> tuple[int, int]:
        files = 0
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # that of the listing itself
                files += "/memfd:tidemill-preload" in str(file.readlink())
        return Path("/proc/self/maps").read_text().count("/memfd:tidemill-preload"), files

    server = ForkServer()
    await server.start()
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)
    preloading = asyncio.ensure_future(server.preload(pickled))
    await asyncio.sleep(0)
    assert held() == (0, 0)
    server._process.kill()
    with pytest.raises(OutsideError, match="while it loaded"):
        await preloading
    with pytest.raises(OutsideError, match="killed by SIGKILL"):
        await server.preload(pickled)
    assert held() == (0, 0)
    await server.aclose()


@pytest.mark.parametrize("ends", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
async def test_one_that_ends_says_how(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is somebody else's doing, the system's where memory is out; an end of its own is a fault of ours."""
    monkeypatch.setattr(fork_client, "_CODE", f"import os, signal; {ends}; {{path}}, {{fd}}")
    server = ForkServer()
    kind, how = (OutsideError, "was killed by SIGKILL") if "kill" in ends else (EngineError, "exit code 3")
    with pytest.raises(kind, match=how):
        await server.start()
    with pytest.raises(kind, match=how):
        server.spawn("lane", [], lambda *_: None, lambda _: None)
    await server.aclose()


async def test_it_is_left_though_the_applications_threads_are_all_busy() -> None:
    """Its end is awaited on the loop: the default executor may be as small, and as full, as the application likes."""
    release = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        busy = loop.run_in_executor(None, release.wait)
        server = ForkServer()
        await server.start()
        await server.aclose()
        assert not busy.done()
        release.set()
        await busy


async def test_one_that_does_not_leave_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a grace, though it is stopped."""
    monkeypatch.setattr(fork_client, "_GRACE_S", 0.01)
    server = ForkServer()
    await server.start()
    process = server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    await server.aclose()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("state", "at_work"), [("R", True), ("D", True), ("t", True), ("S", False), ("T", False)])
def test_who_is_held_by_a_debugger_is_not_idle(monkeypatch: pytest.MonkeyPatch, state: str, at_work: bool) -> None:
    """Nor who waits for a processor or a disk; who sleeps, or was stopped by a signal, is."""
    stat = f"7 (a) name) {state} 1 7 7 0 -1 0 0 0 0 0 30 12 0 0 20 0".encode()
    monkeypatch.setattr("tidemill.files.read_bytes", lambda path: stat)
    assert activity(7) == (at_work, 42)
