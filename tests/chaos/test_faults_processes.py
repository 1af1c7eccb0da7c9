"""No process and no thread is left for a run (R18): it says so, spins nowhere, and goes on when there is room."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.chaos.small_plants import Live, Replayed, lines, patient, recording, wanted
from tests.web import asked

FIRST_USER = 61_000
"""Nobody's: the processes and threads of each user are counted together."""
LIMIT = 40
BUSY = 0.2
"""Share of a CPU that a run may use while it waits for a process."""
NO_KERNELS = "stages = stages[1:]"
PAGES = """
serve = tm.serve


def seen(*arguments, **options):
    made = serve(*arguments, metrics="127.0.0.1:0", **options)

    class Telling:
        async def __aenter__(self):
            run = await made.__aenter__()
            pathlib.Path("pages").write_text(run.metrics_url)
            return run

        async def __aexit__(self, *how):
            return await made.__aexit__(*how)

    return Telling()


tm.serve = seen
"""


def by_root(test: Callable[[Path], None]) -> Callable[..., None]:
    """Only root may be another user: for whoever is not, root runs the test."""

    def run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
        if os.geteuid() == 0:
            test(tmp_path)
            return
        there = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
        command = ["sudo", "-n", "env", there, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(  # noqa: PLW1510 - it is looked at below
            [*command, request.node.nodeid], cwd=request.config.rootpath, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def limited(user: int, most: int) -> list[str]:
    """What follows runs as a user who may have so many processes and threads; it may still read what root may. Root itself, and
    who may lift limits, is not held to any."""
    account = ["setpriv", "--ruid", str(user), "--bounding-set", "-sys_resource,-sys_admin"]
    return [*account, "prlimit", f"--nproc={most}:{most}", "env", "OPENBLAS_NUM_THREADS=1"]


@contextlib.contextmanager
def others(user: int, count: int) -> Iterator[None]:
    """So many other processes of the user."""
    command = ["setpriv", "--ruid", str(user), "sleep", "infinity"]
    sleepers = [subprocess.Popen(command) for _ in range(count)]
    try:
        for sleeper in sleepers:  # until then it is the test's own
            for _ in patient():
                if psutil.Process(sleeper.pid).name() == "sleep":
                    break
        yield
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


@by_root
def test_a_run_that_gets_no_process_or_thread_says_so_in_one_sentence(tmp_path: Path) -> None:
    """Whatever it is that it does not get: the process that forks, a thread, a lane, its sink's."""
    plants = {}
    for most in (1, 3, 5):  # it needs six
        folder = tmp_path / str(most)
        folder.mkdir()
        recording(folder, 100)
        plants[most] = Replayed(folder, lanes=2, changes=NO_KERNELS, under=limited(FIRST_USER + most, most))
    for most, plant in plants.items():
        with plant:
            plant.process.wait(60)
            said = plant.refusal()
            assert re.fullmatch(
                r"(the process (that forks lanes|of (lane \d|sink sqlite)) could not be forked \(Resource temporarily unavailable\)"
                r"|no thread could be started)\. Its user, [^.]* \(ulimit -u, pids\.max, TasksMax\), [^.]*\.",
                said,
            ), said
            assert most > 1 or said.startswith("the process that forks lanes ")


def page(folder: Path, name: str) -> tuple[int, str]:
    return asked((folder / "pages").read_text() + name)


def cpu_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


@by_root
def test_a_run_that_loses_a_lane_while_there_is_no_process_to_be_had_goes_on_when_there_is(tmp_path: Path) -> None:
    """What comes meanwhile is kept, its pages name the lane (or what it asked for before that, when a checkpoint was just due),
    and it waits instead of trying all the time."""
    with Live(tmp_path, lanes=1, changes=PAGES, under=limited(FIRST_USER, LIMIT)) as plant, plant.connected() as sender:
        sender.sendall(lines(0, 100))
        plant.wait_for(100)
        page(tmp_path, "/healthz")
        names = {process.name(): process.pid for process in plant.family()}
        with others(FIRST_USER, LIMIT):
            staying = [plant.process.pid, names["tidemill-server"]]
            used, began = cpu_s(staying), time.monotonic()
            os.kill(names["tidemill-lane"], signal.SIGKILL)
            sender.sendall(lines(100, 200))
            for _ in patient():
                if re.search(r"the process of (lane 0|sink sqlite) could not be forked", plant.told()):
                    break
            took_s = time.monotonic() - began
            assert cpu_s(staying) - used < BUSY * took_s
            assert 0 < plant.told().count("a process could not be forked") < 10
            status, text = page(tmp_path, "/healthz")
            assert status == page(tmp_path, "/readyz")[0] == 503
            named = r"(lane 0|sink sqlite|checkpoint): [1-9]\d* tr(y|ies), (the process of (lane 0|sink sqlite)|no thread) could "
            assert re.match(named, text), text
            assert re.search(r"^tidemill_tries [1-9]", page(tmp_path, "/metrics")[1], re.MULTILINE)
        plant.wait_for(200)
        for _ in patient():
            if page(tmp_path, "/healthz")[0] == 200:
                break
        plant.stop()
    assert plant.rows() == wanted(200)
    assert "Traceback" not in plant.told()
