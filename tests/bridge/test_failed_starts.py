"""Processes that cannot be made: a fork that fails, a preloaded module that ends its process, an initializer that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied
from tidemill.lanes import fork_client

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

MakeModule = Callable[[str, str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeModule:
    """Write a module that can be preloaded: ``module(name, source)``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return make


# -- forks ---------------------------------------------------------------------------------------------------

NO_FORKS = """
import errno, os
fork = os.fork
def refused():
    if os.path.exists({path!r}):
        raise OSError(errno.{reason}, os.strerror(errno.{reason}))
    return fork()
os.fork = refused
"""
"""Imported by the fork server: while the file is there, it can fork nothing."""


@pytest.mark.parametrize("reason", ["EAGAIN", "ENOMEM"])
async def test_forks_that_fail_for_a_while(module: MakeModule, tmp_path: Path, telephone, home, reason: str) -> None:
    """A limit on processes or memory costs no lane that lives; the vacant ones are filled once it is lifted."""
    full = tmp_path / "full"
    name = module(f"no_forks_{reason.lower()}", NO_FORKS.format(path=str(full), reason=reason))
    async with tm.Lanes(2, preload=[name]) as lanes:
        while lanes._crew is None or lanes._crew.staff.spare is None:
            await lanes.run(abs, -1)
        innocent = asyncio.create_task(lanes.run(home, telephone.port, "innocent"))
        await telephone.hear("innocent")
        pid = await lanes.run(os.getpid)
        full.touch()
        for _ in range(2):  # the spare takes the place of the first
            (end,) = await asyncio.gather(lanes.run(os._exit, 1), return_exceptions=True)
            assert isinstance(end, LaneDied)
            assert (end.signal, end.code) == (None, 1)
        (end,) = await asyncio.gather(lanes.run(os.getpid, timeout=0.05), return_exceptions=True)
        assert isinstance(end, (TimeoutError, CallError))
        full.unlink()
        await telephone.tell("innocent")
        assert await innocent == "done"
        while isinstance((await asyncio.gather(lanes.run(abs, -1), return_exceptions=True))[0], CallError):
            pass
        while any(lane.pid is None for lane in lanes.statistics().lanes):
            await lanes.run(abs, -1)
        assert pid not in {lane.pid for lane in lanes.statistics().lanes}


async def test_forks_that_always_fail(module: MakeModule, tmp_path: Path, processes) -> None:
    """One error that says what the system said; nothing is left."""
    (tmp_path / "full").touch()
    name = module("no_forks_at_all", NO_FORKS.format(path=str(tmp_path / "full"), reason="EAGAIN"))
    files = processes.open_files()
    with pytest.raises(CallError, match=r"could not be forked \(Resource temporarily unavailable\), in each of"):
        async with tm.Lanes(2, preload=[name]):
            pass
    assert processes.open_files() <= files  # what an earlier test has left may have gone meanwhile


# -- the opening ---------------------------------------------------------------------------------------------

LIMITS = {
    "descriptors": (
        "tm.Lanes(60)",
        "RLIMIT_NOFILE",
        "100",
        ["Too many open files", "takes 5 descriptors", "ulimit -n"],
    ),
    "memory": (
        "tm.Lanes(2, arena_bytes=1 << 36)",
        "RLIMIT_AS",
        "1 << 35",
        ["Cannot allocate memory", "65536 MB", "arena_bytes", "ulimit -v"],
    ),
    "sizes of files": ("tm.Lanes(2)", "RLIMIT_FSIZE", "0", ["ulimit -f"]),
}


@pytest.mark.parametrize("what", LIMITS)
async def test_a_limit_is_told_at_the_opening(program, what: str) -> None:
    """With what to change; without the limit, lanes are opened as if nothing had been."""
    lanes, limit, least, told = LIMITS[what]
    app = program(f"""
        import asyncio, resource
        import tidemill as tm

        async def main():
            async with tm.Lanes(1) as lanes:  # what is imported at the first opening is there
                await lanes.run(abs, -1)
            soft, hard = resource.getrlimit(resource.{limit})
            resource.setrlimit(resource.{limit}, ({least}, hard))
            try:
                async with {lanes}:
                    pass
            except tm.CallError as error:
                print(error)
            resource.setrlimit(resource.{limit}, (soft, hard))
            async with tm.Lanes(1) as lanes:
                print(await lanes.run(abs, -5))

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.err, end.out[-2:]) == (0, "", "5\n")
    assert all(words in end.out for words in told), end.out


NO_PYTHON = {
    "none": (None, "No such file or directory"),
    "no program": ("", "Permission denied"),
    "ends": ("#!/bin/sh\nexit 0\n", "exit code 0"),
    "says nothing": ("#!/bin/sh\nkill -STOP $$\n", "did not say that it had started"),
}


@pytest.mark.parametrize("what", NO_PYTHON)
async def test_an_interpreter_that_is_none_is_told_at_the_opening(
    tmp_path: Path, processes, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is named, and nothing is left; one that says nothing is not waited for without end."""
    script, told = NO_PYTHON[what]
    path = tmp_path / "python"
    if script is not None:
        path.write_text(script)
        path.chmod(0o755 if script else 0o644)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(fork_client, "_FIRST_LOOK_S", 0.01)
    files = processes.open_files()
    with pytest.raises(CallError, match=rf"{told}.*sys\.executable.*{path}"):
        async with tm.Lanes(1):
            pass
    assert processes.open_files() <= files
    assert [pid for pid in processes.children(os.getpid()) if processes.lives(pid)] == []


# -- preload -------------------------------------------------------------------------------------------------

ENDS = {
    "leaves": ("import sys; sys.exit(3)", "SystemExit"),
    "leaves_at_once": ("import os; os._exit(3)", "ended"),
    "kills": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended"),
    "raises": ("raise ValueError('no licence')", "ValueError: no licence"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("initializer", [None, abs], ids=["", "with_initializer"])
async def test_a_module_that_ends_the_process_is_named(module: MakeModule, how: str, initializer: object) -> None:
    """Whatever it does at its import, and whether or not an initializer would have run after it."""
    source, told = ENDS[how]
    good, bad = module(f"good_{how}", ""), module(f"preload_{how}", source)
    with pytest.raises(CallError, match=rf"preload: .*'{bad}'.*{told}"):
        async with tm.Lanes(1, preload=[good, bad], initializer=initializer, initargs=(1,)):  # type: ignore[arg-type]
            pass


async def test_what_a_module_prints_is_not_the_applications(program) -> None:
    """At its import, in the fork server, from Python and from C: on stderr, and the application's stdout is its own."""
    app = program("""
        import asyncio
        import tidemill as tm

        with open("prints.py", "w") as file:
            file.write("import os; print('from python'); os.write(1, b'from c\\\\n')")

        async def main():
            async with tm.Lanes(1, preload=["prints"]) as lanes:
                print(await lanes.run(abs, -1))

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out) == (0, "1\n")
    assert sorted(end.err.splitlines()) == ["from c", "from python"]


async def test_a_module_that_hangs_can_be_left(module: MakeModule, doorbell, processes) -> None:
    """The caller gives up while it is imported; every process is gone."""
    hangs = module(
        "hangs_at_its_import",
        "import socket, threading\n"
        f"socket.create_connection(('127.0.0.1', {doorbell.port})).close()\n"
        "threading.Event().wait()\n",
    )

    async def opened() -> None:
        async with tm.Lanes(1, preload=[hangs]):
            pass

    task = asyncio.create_task(opened())
    await doorbell.rung.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [pid for pid in processes.children(os.getpid()) if processes.lives(pid)] == []


# -- initializers that hang ----------------------------------------------------------------------------------


async def test_an_initializer_that_hangs_is_one_clear_failure(processes) -> None:
    """Tried a few times, as one that raises; then the error names it and the option, and nothing is left."""

    def hangs() -> None:
        import threading

        threading.Event().wait()

    files = processes.open_files()
    with pytest.raises(CallError, match=r"initializer .*hangs.*initializer_timeout=0\.05.*in each of"):
        async with tm.Lanes(2, initializer=hangs, initializer_timeout=0.05):
            pass
    assert processes.open_files() <= files  # what an earlier test has left may have gone meanwhile
    assert [pid for pid in processes.children(os.getpid()) if processes.lives(pid)] == []


async def test_a_replacement_that_hangs_leaves_no_lane_empty(tmp_path: Path) -> None:
    """It and the spare hang in the initializer: they are killed, and the next that do not hang serve the calls."""
    hangs = tmp_path / "hangs"
    path = str(hangs)

    def hangs_while_there() -> None:
        import threading

        if Path(path).exists():
            threading.Event().wait()

    async with tm.Lanes(1, initializer=hangs_while_there, initializer_timeout=1.0) as lanes:
        await asyncio.to_thread(hangs.touch)
        for _ in range(2):
            with pytest.raises((LaneDied, CallError)):
                await lanes.run(os._exit, 1)
        await asyncio.to_thread(hangs.unlink)
        value = 0
        while not value:
            with contextlib.suppress(CallError):  # those that hang already are still to be killed
                value = await lanes.run(abs, -3)
        assert value == 3


# -- how often, and when -------------------------------------------------------------------------------------


async def test_attempts_are_few_and_ever_farther_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken initializer is no storm of processes: the delays, as the loop was told them, at least double."""
    log, delays = str(tmp_path / "log"), []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def recorded(delay: float, callback: Callable[..., object], *args: object, **options: object) -> object:
        if getattr(callback, "__name__", "") == "_hire_now":
            delays.append(delay)
        return call_later(delay, callback, *args, **options)  # type: ignore[arg-type]

    def breaks() -> None:
        with Path(log).open("ab", buffering=0) as file:
            file.write(b"tried\n")
        raise OSError("no model")

    monkeypatch.setattr(loop, "call_later", recorded)
    with pytest.raises(CallError, match="in each of 4 attempts"):
        async with tm.Lanes(1, initializer=breaks):
            pass
    # The second process of a round may fail when the next round has begun: it is replaced after the delay of that round, and one
    # that fails meanwhile leaves its own delay out.
    different = list(dict.fromkeys(delays))
    assert len(different) >= 2
    assert all(later >= 2 * sooner for sooner, later in pairwise(different))
    tried = (await asyncio.to_thread(Path(log).read_text)).split()
    assert 4 <= len(tried) <= 4 * 2  # in each round the lane's process, and the spare's
