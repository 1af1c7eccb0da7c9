"""A fork server that is killed, or does not respond, while lanes are open: another takes its place, and nothing of it stays."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from pathlib import Path

import cloudpickle
import pytest

import tidemill as tm
from tidemill.engine import staff
from tidemill.errors import LaneDied, OutsideError
from tidemill.lanes import fork_client
from tidemill.lanes.forkserver import inside_lane
from tidemill.lanes.server_watch import ServerWatch

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


async def server_of(lanes: tm.Lanes, other_than: int = 0) -> int:
    """The server that the lanes' processes come from, once it is another."""
    while True:
        (server,) = await asyncio.gather(lanes.run(os.getppid), return_exceptions=True)
        if isinstance(server, int) and server != other_than:
            return server
        assert isinstance(server, (int, LaneDied))


async def test_nothing_of_servers_that_were_killed_stays(processes) -> None:
    """Again and again, while the lanes are open: no zombie, no descriptor and no map is left but the living one's."""
    async with tm.Lanes(1) as lanes:
        server = await server_of(lanes)
        for _ in range(2):  # what is imported for the first loss stays mapped
            while lanes._crew is None or lanes._crew.staff.spare is None:
                await lanes.run(abs, -1)
            gc.collect()  # what earlier tests left must not be closed in between
            files, maps = processes.open_files(), processes.maps()
            os.kill(server, signal.SIGKILL)
            server = await server_of(lanes, other_than=server)
        for _ in range(3):
            os.kill(server, signal.SIGKILL)
            server = await server_of(lanes, other_than=server)
        while processes.children(os.getpid()) != [server] or processes.open_files() > files or processes.maps() > maps:
            await lanes.run(abs, -1)  # what the last one had started is heard of in its time
    assert processes.children(os.getpid()) == []


async def test_another_is_started_though_there_were_no_descriptors_for_it_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start that fails is tried again, as a process that fails is."""
    message_pair, fails = fork_client.message_pair, [True, True]

    def none_at_first() -> object:
        if fails:
            fails.pop()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return message_pair()

    async with tm.Lanes(1) as lanes:
        server = await server_of(lanes)
        monkeypatch.setattr(fork_client, "message_pair", none_at_first)
        os.kill(server, signal.SIGKILL)
        await server_of(lanes, other_than=server)
        assert await lanes.run(abs, -3) == 3
    assert not fails


# -- servers that do not respond -----------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience is short."""
    monkeypatch.setattr(fork_client, "_LOOK_S", 0.01)


async def stopped_server(lanes: tm.Lanes) -> int:
    """It was stopped, and stays so."""
    server = await server_of(lanes)
    os.kill(server, signal.SIGSTOP)
    return server


@pytest.mark.usefixtures("soon")
async def test_a_death_that_a_stopped_server_does_not_tell_of(caplog: pytest.LogCaptureFixture) -> None:
    """The call gets its error, which says why no more is known; the log says it, and later calls run under another server."""
    async with tm.Lanes(1) as lanes:
        server = await stopped_server(lanes)
        with caplog.at_level(logging.ERROR, "tidemill"), pytest.raises(LaneDied, match="did not respond") as told:
            await lanes.run(os._exit, 3)
        assert "exit" in str(told.value)
        assert await lanes.run(abs, -2) == 2
        assert await server_of(lanes, other_than=server)
    assert f"the process that forks lanes and sinks ({server}) did not respond" in caplog.text


@pytest.mark.usefixtures("soon")
async def test_a_call_that_a_stopped_server_does_not_kill(telephone, home, time_passes) -> None:
    """A function that goes on after its timeout and the grace ends with the server, and the lane is another's."""
    async with tm.Lanes(1, grace=0.0) as lanes:
        server = await stopped_server(lanes)
        call = asyncio.ensure_future(lanes.run(home, telephone.port, "goes on", timeout=1000))
        await telephone.hear("goes on")
        time_passes(lanes)
        with pytest.raises(TimeoutError):
            await call
        assert await server_of(lanes, other_than=server)


@pytest.mark.usefixtures("soon")
async def test_lanes_whose_server_is_stopped_can_be_left(processes) -> None:
    """Its end is not waited for without end, and nothing of it stays."""
    async with tm.Lanes(2) as lanes:
        family = processes.family(await stopped_server(lanes))
    await processes.gone(*family)
    assert processes.children(os.getpid()) == []


async def test_lanes_whose_processes_are_not_told_of_can_be_left(processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whatever reason: closing has a time limit of its own."""
    monkeypatch.setattr(staff, "_GONE_S", 0.01)
    monkeypatch.setattr(fork_client, "_GRACE_S", 0.01)
    monkeypatch.setattr(fork_client, "_LOOKS", 1_000_000)
    files = processes.open_files()
    async with tm.Lanes(2) as lanes:
        family = processes.family(await stopped_server(lanes))
    await processes.gone(*family)
    assert processes.open_files() <= files


@pytest.mark.usefixtures("soon")
async def test_a_server_that_answers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function closes its process's files, which looks like a death, and goes on for ever so long: it is waited for."""
    answered, go = asyncio.Semaphore(0), tmp_path / "go"
    heard = ServerWatch.heard

    def counted(watch: ServerWatch) -> None:
        answered.release()
        heard(watch)

    def closes_all(path: str) -> None:
        os.closerange(3, 1000)
        while not os.path.exists(path):  # noqa: PTH110 - nothing is imported any more
            pass

    async with tm.Lanes(1) as lanes:
        server = await server_of(lanes)
        monkeypatch.setattr(ServerWatch, "heard", counted)
        call = asyncio.ensure_future(lanes.run(closes_all, str(go)))
        for _ in range(3 * fork_client._LOOKS):
            await answered.acquire()
        assert not call.done()
        go.touch()
        (end,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(end, LaneDied)
        assert end.code == 70
        assert await server_of(lanes) == server


async def test_a_process_that_a_function_left_behind_hides_no_death_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds the lane's socket open; the end of the server, and of the lane with it, is seen all the same."""
    monkeypatch.setattr(fork_client, "_LAST_S", 0.01)

    def leaves_a_child() -> tuple[int, int]:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        return os.getppid(), child

    async with tm.Lanes(1) as lanes:
        server, child = await lanes.run(leaves_a_child)
        try:
            os.kill(server, signal.SIGKILL)
            assert await server_of(lanes, other_than=server)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.usefixtures("soon")
async def test_a_run_whose_server_is_stopped_ends() -> None:
    """A pipeline learns nothing of its lane's death either: the run ends with the reason."""

    def stops_its_server(batch: object) -> dict[str, object]:
        if inside_lane():
            os.kill(os.getppid(), signal.SIGSTOP)
            os._exit(3)
        return {"w": 0.0}

    rows = [{"sensor": "a", "time": number, "v": 1.0} for number in range(3)]
    pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Map(stops_its_server), tm.sinks.Latest())
    with pytest.raises(OutsideError, match="did not respond"):
        await tm.run_async(pipeline, lanes=1)
