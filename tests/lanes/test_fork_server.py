"""The process that forks lanes, in its first moments."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tidemill.lanes.fork_client import ForkServer


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
