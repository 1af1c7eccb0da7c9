"""A stage that is made of a new file, opened once before any lane is told of it.

What a file says of itself is read when its stage is made; whether a library can run what is in there, an ONNX model with
operators of a later version, only opening it shows. In a lane that would be too late: the change is in the log by then, and
every lane would fail on it. Whatever opening does, it does in a process that is for nothing else (`lanes=0`: in a thread).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import signal
from typing import Final

from tidemill.engine.lane import NICE
from tidemill.engine.outlets import error_of
from tidemill.errors import EngineError, OutsideError, PlanError
from tidemill.lanes.channel import Exit
from tidemill.lanes.fork_client import NO_ROOM, PATIENCE_S, ForkServer
from tidemill.lanes.framing import Payload
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import Failed, FromLane, OpenStage, Ready
from tidemill.stages.base import Stage

__all__ = ["rehearsed"]

LONGEST_S: Final = 120.0
"""Seconds that opening a stage may take before its file is taken for one that cannot serve."""
_AGAIN_S: Final = 10.0
"""Seconds after which there may be a process to open it in, where none could be had."""
_log = logging.getLogger("tidemill")


async def rehearsed(stage: Stage, pickled: bytes, server: ForkServer | None) -> None:
    """Return when a process of ``server`` has opened what is pickled, a stage in the place of this one.

    Raises what a lane would fail with: `PlanError` of what cannot be opened, also where its process dies of that; `OutsideError`
    where nothing can be said of it, since somebody has killed its process, or it takes too long; with ``after_s`` where there was
    no process to be had, so that it may be tried again.
    Nothing of it is left in this process. Tables, which are opened in no other way than they were read, are passed over.
    """
    if not stage.runs_user_code:
        return
    told = "%s: opening what is made of its new file has taken more than %g s and goes on; the old one stays in use"
    later = asyncio.get_running_loop().call_later(stage.budget_s, _log.warning, told, stage.name, stage.budget_s)
    try:
        async with asyncio.timeout(LONGEST_S):
            await (asyncio.to_thread(_opened, pickled) if server is None else _opened_by(server, stage, pickled))
    except TimeoutError:
        raise OutsideError(f"{stage.name}: opening it took more than {LONGEST_S:g} s.") from None
    finally:
        later.cancel()


def _opened(pickled: bytes) -> None:
    pickle.loads(pickled).opened()  # noqa: S301 - what this process has pickled


async def _opened_by(server: ForkServer, stage: Stage, pickled: bytes) -> None:
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def received(message: FromLane, _: Payload) -> None:
        if opened.done():
            return
        match message:
            case Ready():
                opened.set_result(None)
            case Failed():
                opened.set_exception(error_of(message))
            case _:
                opened.set_exception(EngineError(f"a process that opens a stage sent {message}"))

    def died(how: Exit) -> None:
        if not opened.done():
            opened.set_exception(_of_death(stage, how))

    try:
        with contextlib.closing(
            Shared("rehearsal", 1)
        ) as nothing:  # a lane has its state and a copy of it; this one has none
            channel = server.spawn("lane", [nothing.fd] * 2, received, died, nice=NICE, patience_s=PATIENCE_S)
    except OSError as error:
        raise _no_process(stage, f"cannot be had: {error.strerror}.") from error
    try:
        channel.send(OpenStage(), pickled)
        await opened
    finally:
        channel.kill()
        opened.cancel()
    await channel.gone.wait()  # so that its memory is free before lanes need as much


def _of_death(stage: Stage, how: Exit) -> Exception:
    told = f"{stage.name}: the process that opened it ended ({how})."
    if how.error:
        return _no_process(stage, f"{how}. {NO_ROOM}")
    return OutsideError(told) if how.signal == signal.SIGKILL else PlanError(told)


def _no_process(stage: Stage, why: str) -> OutsideError:
    return OutsideError(f"{stage.name}: a process to open it in {why}", after_s=_AGAIN_S)
