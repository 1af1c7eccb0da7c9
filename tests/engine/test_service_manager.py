"""A service manager, which is a socket of datagrams, is told how a run is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.engine import oversight
from tidemill.engine.service_manager import service_manager
from tidemill.testing import ManualClock


class Manager:
    """Stands for systemd."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.settimeout(120)

    def told(self) -> list[str]:
        """The lines of the next message."""
        return self.socket.recv(4096).decode().split("\n")

    def all_told(self) -> list[str]:
        """All lines that have come so far."""
        lines: list[str] = []
        self.socket.setblocking(False)
        while True:
            try:
                lines += self.told()
            except BlockingIOError:
                self.socket.settimeout(120)
                return lines

    def told_until(self, line: str) -> list[str]:
        """All lines up to the message with this one."""
        lines: list[str] = []
        while line not in lines:
            lines += self.told()
        return lines


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "file" else f"@tidemill-test-{os.getpid()}")
    yield made
    made.socket.close()


LIVE = """
import tidemill as tm

pipeline = tm.Pipeline(tm.sources.TCP(), tm.Plan(), tm.sinks.Lines("rows.ndjson"), name="plant")
"""


@pytest.mark.parametrize("manager", ["abstract"], indirect=True)
def test_a_run_of_the_command_line_is_ready_alive_and_then_stops(tmp_path: Path, manager: Manager) -> None:
    """A real process, asked to stop as a service is."""
    (tmp_path / "plant.py").write_text(LIVE)
    command = [sys.executable, "-m", "tidemill", "run", "plant.py", "--lanes", "0", "--no-metrics"]
    environment = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as run:
        told = manager.told_until("READY=1")
        assert not any(line.startswith("STOPPING") for line in told)
        for _ in range(3):
            told += manager.told_until("WATCHDOG=1")
        run.send_signal(signal.SIGTERM)
        told += manager.told_until("STOPPING=1")
        run.communicate(timeout=120)
    assert run.returncode == 0
    told += manager.all_told()
    assert told.count("READY=1") == told.count("STOPPING=1") == 1
    assert {line.partition("=")[0] for line in told} == {"READY", "STATUS", "STOPPING", "WATCHDOG"}


async def test_a_run_that_stalls_gives_no_more_signs_of_life_until_it_goes_on(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status names the culprit, and the manager may restart it."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")

    async def unwatched(_: oversight.Oversight) -> None:
        """It is looked at by hand."""
        await asyncio.Event().wait()

    monkeypatch.setattr(oversight.Oversight, "watch", unwatched)
    clock, source, going = ManualClock(), tm.sources.TCP(), asyncio.Event()

    async def take(_: tm.Batch) -> None:
        await going.wait()

    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Callback(take, name="screen"))
    async with tm.serve(pipeline, lanes=0, state=False, clock=clock, grace=0.1, notify=True) as run:

        def looked_at(times: int) -> list[str]:
            told: list[str] = []
            for _ in range(times):
                clock.advance(10.0)
                run._oversight.look()
                told += manager.all_told()  # a socket has room for ten
            return told

        assert looked_at(3).count("WATCHDOG=1") == 3
        await source.wait_listening()
        _, writer = await asyncio.open_connection(*source.address)
        writer.write(b'{"sensor": "a", "value": 1}\n')
        while not run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        assert looked_at(30).count("WATCHDOG=1") == 30
        stalled = looked_at(30)
        assert "WATCHDOG=1" not in stalled
        assert stalled[0].startswith("STATUS=sink screen: 1 batch waits, the oldest for 310 s")
        going.set()
        while run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - rows are written without a word
            await asyncio.sleep(0)
        assert looked_at(2).count("WATCHDOG=1") == 2
        writer.close()


def test_whoever_is_not_watched_gives_no_signs_of_life() -> None:
    """The watchdog may be meant for another process, or be none."""
    named = {"NOTIFY_SOCKET": "@nobody"}
    cases: list[tuple[dict[str, str], float | None]] = [
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({}, None),
    ]
    for environment, watchdog_s in cases:
        made = service_manager({**named, **environment})
        assert made is not None
        made.close()
        assert made.watchdog_s == watchdog_s


def test_a_manager_of_another_machine_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """Said once; the run goes on."""
    assert service_manager({"NOTIFY_SOCKET": "vsock:2:1234"}) is None
    assert "is no socket of this machine" in caplog.text


def test_a_manager_that_is_away_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run must not end for that."""
    made = service_manager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert made is not None
    for _ in range(3):
        made.tell("READY=1")
    made.close()
    assert caplog.text.count("the service manager cannot be told how the run is: No such file or directory") == 1


def test_what_there_is_no_room_for_is_told_before_what_comes_next(tmp_path: Path) -> None:
    """A service that never became ready would be ended; a sign of life that is late is none."""
    manager = Manager(str(tmp_path / "notify"))
    made: Any = service_manager({"NOTIFY_SOCKET": manager.address})
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            filler.sendto(b"x", manager.address)
    filler.close()
    made.tell("READY=1\nWATCHDOG=1\nSTATUS=well")
    made.tell("")
    manager.all_told()
    made.tell("WATCHDOG=1")
    assert manager.told() == ["READY=1", "WATCHDOG=1"]
    made.close()
    manager.socket.close()
