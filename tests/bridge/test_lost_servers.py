"""A fork server that is killed while lanes are open: another takes its place, and nothing of it stays."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied
from tidemill.lanes import fork_client

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


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
        while lanes._crew is None or lanes._crew.staff.spare is None:  # noqa: ASYNC110 - what it takes is a turn of the loop
            await lanes.run(abs, -1)
        before = processes.open_files(), processes.maps()
        for _ in range(4):
            os.kill(server, signal.SIGKILL)
            server = await server_of(lanes, other_than=server)
        while lanes._crew.staff.spare is None or processes.children(os.getpid()) != [server]:
            await lanes.run(abs, -1)
        assert (processes.open_files(), processes.maps()) == before
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
