"""However the application ends, no process of the lanes outlives it, and its end is its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(200)
left_by_exit = pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="from Python 3.14 on, no asyncio program can be left in a process forked inside of it",
)

HOLDS = """
    import asyncio, os, sys
    import tidemill as tm

    def hangs(how):
        print(os.getpid(), file=sys.stderr, flush=True)
        if how == "c":
            import collections, itertools
            collections.deque(itertools.repeat(1), maxlen=0)
        if how == "stubborn":
            import signal
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        if how == "child":
            import subprocess
            subprocess.run([sys.executable, "-c", "import signal; signal.pause()"])
        while True:
            pass

    async def main():
        async with tm.Lanes(2) as lanes:
            await lanes.run(abs, -1)
            if sys.argv[1] != "idle":
                calls = [asyncio.ensure_future(lanes.run(hangs, sys.argv[1])) for _ in range(3)]
            while any(lane.pid is None for lane in lanes.statistics().lanes):
                await asyncio.sleep(0)
            print("open", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_a_killed_application_leaves_no_process(program, processes) -> None:
    """SIGKILL to it: idle lanes, lanes in Python, in C code with the GIL, and what they started are gone."""
    apps = [program(HOLDS, how) for how in ("idle", "python", "c", "stubborn", "child")]
    for app in apps:
        assert app.line() == "open"
    families = [processes.family(app.pid) for app in apps]
    assert all(len(family) >= 4 for family in families)
    for app in apps:
        os.kill(app.pid, signal.SIGKILL)
    async with asyncio.timeout(120):
        await processes.gone(*set().union(*families))


async def test_a_killed_application_leaves_no_import(program, processes, tmp_path: Path) -> None:
    """SIGKILL to it while a module of ``preload`` is being imported, in C code with the GIL: all is gone."""
    (tmp_path / "endless.py").write_text(
        "import collections, itertools\nprint('importing', flush=True)\n"
        "collections.deque(itertools.repeat(1), maxlen=0)\n"
    )
    app = program("""
        import asyncio, os
        import tidemill as tm

        async def main():
            async with tm.Lanes(1, preload=["endless"]):
                pass

        os.dup2(1, 2)  # where a module prints
        asyncio.run(main())
    """)
    assert app.line() == "importing"
    family = processes.family(app.pid)
    assert len(family) == 2
    os.kill(app.pid, signal.SIGKILL)
    async with asyncio.timeout(120):
        await processes.gone(*family)


async def test_a_killed_group_leaves_no_process(program, processes) -> None:
    """SIGKILL to all of the application's group at once."""
    app = program(HOLDS, "c")
    assert app.line() == "open"
    family = processes.family(app.pid)
    os.killpg(app.pid, signal.SIGKILL)
    await processes.gone(*family)


async def test_a_killed_fork_server_and_application(program, processes) -> None:
    """First the one, then the other: the lanes end with the first."""
    app = program(HOLDS, "c")
    assert app.line() == "open"
    family = processes.family(app.pid)
    for pid in processes.children(app.pid):
        os.kill(pid, signal.SIGKILL)
    os.kill(app.pid, signal.SIGKILL)
    await processes.gone(*family)


async def test_an_interrupt_of_the_group_is_the_applications(program, processes) -> None:
    """Ctrl-C: one KeyboardInterrupt, in the application; no lane says anything; a second one is not needed."""
    app = program(HOLDS, "python")
    assert app.line() == "open"
    family = processes.family(app.pid)
    os.killpg(app.pid, signal.SIGINT)
    end = app.ended()
    assert end.code in {130, -signal.SIGINT}
    assert end.err.splitlines().count("KeyboardInterrupt") == 1
    assert "forkserver" not in end.err
    await processes.gone(*family)


async def test_an_interrupt_that_the_application_handles(program, processes) -> None:
    """It goes on after a Ctrl-C, and so do its calls: no lane was hit."""
    app = program("""
        import asyncio, os, signal, sys
        import tidemill as tm

        def waits(path):
            while not os.path.exists(path):
                pass
            return os.getpid()

        async def main():
            interrupted = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
            async with tm.Lanes(2) as lanes:
                before = [lane.pid or await lanes.run(os.getpid) for lane in lanes.statistics().lanes]
                call = asyncio.ensure_future(lanes.run(waits, "go"))
                print("open", flush=True)
                await interrupted.wait()
                open("go", "w").close()
                await call
                print(sum(lane.restarts for lane in lanes.statistics().lanes), await lanes.run(abs, -5))

        asyncio.run(main())
    """)
    assert app.line() == "open"
    os.killpg(app.pid, signal.SIGINT)
    end = app.ended()
    assert (end.code, end.out, end.err) == (0, "0 5\n", "")


async def test_a_termination_of_the_group_is_the_applications(program, processes) -> None:
    """SIGTERM, as from a service manager: the application ends as it would without lanes, they end with it."""
    app = program(HOLDS, "stubborn")
    assert app.line() == "open"
    family = processes.family(app.pid)
    os.killpg(app.pid, signal.SIGTERM)
    assert app.ended().code == -signal.SIGTERM
    await processes.gone(*family)


ENDS = {
    "live": "asyncio.run(main())",
    "pending": "calls = 100; asyncio.run(main())",
    "exit": "calls = 3; ends = sys.exit; asyncio.run(main())",
    "raise": "calls = 3\ndef ends(code): raise RuntimeError(code)\nasyncio.run(main())",
    "os_exit": "calls = 3; ends = os._exit; asyncio.run(main())",
    "atexit": "import atexit; atexit.register(lambda: asyncio.run(main())); calls = 3",
    "twice": "asyncio.run(main()); calls = 5; asyncio.run(main())",
    "thread": "import threading; thread = threading.Thread(target=lambda: asyncio.run(main())); thread.start()",
}


@pytest.mark.parametrize("how", ENDS)
async def test_an_interpreter_that_ends_with_open_lanes(program, processes, how: str) -> None:
    """Never closed, with calls under way, from an exit or an error, in atexit, in a second run: it ends, all end."""
    source = f"""
import asyncio, os, sys
import tidemill as tm

calls, ends = 0, lambda code: None
kept = []

def hangs():
    while True:
        pass

async def main():
    lanes = tm.Lanes(2)
    kept.append(lanes)
    await lanes.__aenter__()
    server = await lanes.run(os.getppid)
    kept.extend(asyncio.ensure_future(lanes.run(hangs)) for _ in range(calls))
    await asyncio.sleep(0)
    print(server, flush=True)
    ends(7)

{ENDS[how]}
"""
    app = program(source)
    servers = {int(app.line())}
    if how == "twice":
        servers.add(int(app.line()))
    end = app.ended()
    await processes.gone(*servers)
    assert end.code == {"exit": 7, "raise": 1, "os_exit": 7}.get(how, 0)
    if how != "raise":
        assert end.err == ""


async def test_an_application_without_standard_streams(program, processes) -> None:
    """Started by a service manager with nothing open: lanes work, and what a function prints harms nobody."""
    app = program("""
        import asyncio, os, sys
        for number in (0, 2):
            os.close(number)
        sys.stdin = sys.stderr = None
        import tidemill as tm

        async def main():
            async with tm.Lanes(2) as lanes:
                return await lanes.run(lambda: (print("said"), os.getpid())[0])

        print(asyncio.run(main()))
    """)
    end = app.ended()
    assert (end.code, end.out) == (0, "None\n")


def test_a_server_whose_application_left_before_it_was_ready_says_nothing() -> None:
    """As when a run is stopped twice while it begins."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        command = [sys.executable, "-c", f"from tidemill.lanes.forkserver import main; main({theirs.fileno()})"]
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=50, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


FORKS = """
    import asyncio, os, signal
    import tidemill as tm

    async def main():
        async with tm.Lanes(1) as lanes:
            await lanes.run(abs, -1)
            child = os.fork()
            if not child:
                signal.pause()
            print(child, lanes.statistics().lanes[0].pid, flush=True)
            input()
        print("closed", flush=True)
        input()

    asyncio.run(main())
"""


async def test_lanes_are_closed_though_a_process_that_the_application_forked_lives_on(program) -> None:
    """It has copies of all that was open; neither the block nor the lanes wait for its end."""
    app = program(FORKS, stdin=subprocess.PIPE)
    child, lane = map(int, app.line().split())
    app.tell("leave the block")
    assert app.line() == "closed"
    with pytest.raises(ProcessLookupError):
        os.kill(lane, 0)
    os.kill(child, signal.SIGKILL)


async def test_a_killed_application_leaves_no_lane_to_a_process_that_it_forked(program, processes) -> None:
    """SIGKILL to it: its lanes hear of that, whoever else lives on."""
    app = program(FORKS, stdin=subprocess.PIPE)
    child, lane = map(int, app.line().split())
    os.kill(app.pid, signal.SIGKILL)
    await processes.gone(lane)
    os.kill(child, signal.SIGKILL)


@left_by_exit
async def test_a_process_that_the_application_forked_may_leave_the_block(program) -> None:
    """As it is left by `sys.exit()` there: nothing is said, its exit code is its own, and the application's lanes go on."""
    app = program("""
        import asyncio, os, sys
        import tidemill as tm

        async def main():
            async with tm.Lanes(1) as lanes:
                await lanes.run(abs, -1)
                child = os.fork()
                if child == 0:
                    sys.exit(7)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), await lanes.run(abs, -2))
            child = os.fork()
            if child == 0:
                sys.exit(8)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out, end.err) == (0, "7 2\n8\n", "")


@left_by_exit
async def test_a_process_that_the_application_forked_takes_no_call_with_it(program, tmp_path) -> None:
    """As it leaves, it cancels its copies of the calls: those of the application run on, and those behind them run."""
    app = program("""
        import asyncio, os, sys
        import tidemill as tm

        def cancelled_at_the_end(path):
            with open(path) as file:
                file.read()
            return tm.cancelled()

        def leave():
            child = os.fork()
            if child == 0:
                sys.exit(0)
            os.waitpid(child, 0)

        async def reader(path):
            while True:
                try:
                    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:
                    await asyncio.sleep(0)

        async def main():
            os.mkfifo("running")
            async with tm.Lanes(1) as lanes:
                running = asyncio.ensure_future(lanes.run(cancelled_at_the_end, os.path.abspath("running")))
                end = await reader("running")
                behind = asyncio.ensure_future(lanes.run(abs, -1))
                await asyncio.sleep(0)
                leave()
                os.close(end)
                print(await running, await behind)
            async with tm.Lanes(0) as lanes:
                waiting = asyncio.ensure_future(lanes.run(abs, -2))
                await asyncio.sleep(0)
                leave()
                print(await waiting)

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out, end.err) == (0, "False 1\n2\n", "")


@left_by_exit
async def test_a_process_that_the_application_forked_copies_nothing_into_the_arena(program) -> None:
    """Whatever is under way: large arguments and results of the application's calls are their own, and all of them come. It
    does not judge the copies of their answers that it has, by memory that went on."""
    app = program("""
        import asyncio, os, sys
        import numpy as np
        import tidemill as tm
        from tidemill.lanes import channel

        channel._TURN_S = -1.0  # one answer a turn of the loop

        def negated(values):
            return -values

        async def main():
            async with tm.Lanes(1, arena_bytes=8 << 20) as lanes:
                await lanes.run(abs, -1)
                for turns in range(30):
                    size, count = ((30_000, 10), (100_000, 6))[turns % 2]
                    calls = [
                        asyncio.ensure_future(lanes.run(negated, np.full(size, 10.0 * turns + number)))
                        for number in range(count)
                    ]
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    done, tell_done = os.pipe()
                    child = os.fork()
                    if child == 0:
                        os.close(tell_done)
                        os.read(done, 1)
                        sys.exit(0)
                    for number, result in enumerate(await asyncio.gather(*calls)):
                        assert (result == -10.0 * turns - number).all()
                    os.close(tell_done)
                    os.close(done)
                    os.waitpid(child, 0)
                print(lanes.statistics().lanes[0].restarts)

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out, end.err) == (0, "0\n", "")


async def test_lanes_that_a_forked_process_opens_are_its_own(program) -> None:
    """Though they were made before: it can use and leave them."""
    app = program("""
        import asyncio, os
        import tidemill as tm

        lanes = tm.Lanes(1)
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        async def main():
            async with lanes:
                server = await lanes.run(os.getppid)
                loop = asyncio.get_running_loop()
                print(await loop.run_in_executor(lanes.executor(), abs, -3))
            print(os.path.exists(f"/proc/{server}"), flush=True)

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out, end.err) == (0, "3\nFalse\n", "")
