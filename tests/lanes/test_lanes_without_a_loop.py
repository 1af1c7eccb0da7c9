"""`tm.LanesExecutor`: an executor of the standard library's kind for programs without an event loop."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied, LanesFull

pytestmark = pytest.mark.slow

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def square(x: int) -> int:
    return x * x


def until_told(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.002)
    return "told"


def io_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tidemill-lanes"]


@pytest.fixture(scope="module")
def pool() -> Iterator[tm.LanesExecutor]:
    with tm.LanesExecutor(2) as made:
        yield made


def test_the_interface_of_the_standard_library(pool: tm.LanesExecutor) -> None:
    """submit, result, exception, callbacks, as_completed, wait, and errors with the lane's traceback."""
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool.submit(square, 7).result(120) == 49
    assert pool.submit(dict, a=1).result(120) == {"a": 1}
    error = pool.submit(int, "x").exception(120)
    assert isinstance(error, ValueError)
    assert "invalid literal" in str(error.__cause__)
    futures = {pool.submit(square, x): x for x in range(100)}
    for future in concurrent.futures.as_completed(futures, timeout=120):
        assert future.result() == futures[future] ** 2
    assert isinstance(pool.submit(os._exit, 3).exception(120), LaneDied)
    assert sum(lane.restarts for lane in pool.statistics().lanes) == 1
    with pytest.raises(CallError, match="argument 0, a lock"):
        pool.submit(print, threading.Lock())


def test_the_number_of_lanes_has_its_name() -> None:
    """As in `tidemill.Lanes`, whose options it takes."""
    with tm.LanesExecutor(lanes=0, grace=0.1) as inline:
        assert inline.submit(square, 3).result(120) == 9


@pytest.mark.parametrize(("option", "said"), [("max_workers", "lanes="), ("max_tasks_per_child", "recycle_after=")])
def test_an_option_of_process_pools_is_told_by_its_name_here(option: str, said: str) -> None:
    """Who changes one line of a program has it with its options."""
    with pytest.raises(TypeError, match=f"has no {option}=.*{said}"):
        tm.LanesExecutor(**{option: 2})


def test_a_future_whose_result_somebody_sets(tmp_path: Path) -> None:
    """It is what they have set; the call ends all the same, and to shut down waits for no more than that."""
    with tm.LanesExecutor(1) as made:
        told = tmp_path / "told"
        futures = [made.submit(until_told, str(told)), *(made.submit(square, number) for number in range(3))]
        futures[0].set_result("set")
        futures[2].set_exception(KeyError("set"))
        told.touch()
        assert [futures[1].result(120), futures[3].result(120)] == [0, 4]
    assert futures[0].result() == "set"
    assert isinstance(futures[2].exception(), KeyError)


def test_map_is_in_order_and_bounded(pool: tm.LanesExecutor, tmp_path: Path) -> None:
    """Look-ahead, chunks, a timeout for all, the first error at its place, and a stop when it is left."""
    assert list(pool.map(square, range(300), chunksize=7)) == [x * x for x in range(300)]
    assert list(pool.map(divmod, [7, 9, 1], [2, 4])) == [(3, 1), (2, 1)]
    taken: list[int] = []

    def source() -> Iterator[int]:
        for x in range(20):
            taken.append(x)
            yield x

    results = pool.map(square, source(), buffersize=4)
    assert len(taken) == 4
    assert next(results) == 0
    assert len(taken) == 5
    assert list(results) == [x * x for x in range(1, 20)]
    with pytest.raises(TimeoutError):
        list(pool.map(until_told, [str(tmp_path / "never")], timeout=0.05))
    values = pool.map(int, ["1", "x", "3"])
    assert next(values) == 1
    with pytest.raises(ValueError, match="'x'"):
        next(values)
    for options in ({"chunksize": 0}, {"buffersize": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            pool.map(square, [1], **options)


def test_cancelling_a_future_stops_its_work(pool: tm.LanesExecutor, tmp_path: Path) -> None:
    """Also of one that runs; the other calls have their results."""
    stuck = [pool.submit(until_told, str(tmp_path / "never")) for _ in range(4)]
    fine = pool.submit(square, 3)
    assert all(future.cancel() for future in stuck)
    assert fine.result(120) == 9


def test_a_callback_may_submit_and_must_not_wait(pool: tm.LanesExecutor, tmp_path: Path) -> None:
    """It runs on the I/O thread: to wait there is refused at once."""
    outcomes: list[object] = []
    done = threading.Event()

    def callback(_: object) -> None:
        again = pool.submit(square, 5)
        try:
            again.result()
        except CallError as error:
            outcomes.append(error)
        again.add_done_callback(lambda future: (outcomes.append(future.result()), done.set()))

    future = pool.submit(until_told, str(tmp_path / "go"))
    future.add_done_callback(callback)
    (tmp_path / "go").touch()
    assert done.wait(120)
    assert "would wait for ever" in str(outcomes[0])
    assert outcomes[1] == 25


def test_a_submitter_waits_when_enough_waits(tmp_path: Path) -> None:
    """A thread that submits is held back; with "reject" it is told."""
    go = tmp_path / "go"
    with tm.LanesExecutor(1, max_waiting=3) as pool:
        submitted = []

        def thread() -> None:
            for _ in range(12):
                submitted.append(pool.submit(until_told, str(go)))

        submitter = threading.Thread(target=thread)
        submitter.start()
        while pool.statistics().blocked == 0:
            pass
        assert pool.statistics().waiting <= 4
        assert len(submitted) < 12
        go.touch()
        submitter.join(120)
        assert [future.result(120) for future in submitted] == ["told"] * 12
    go.unlink()
    with tm.LanesExecutor(1, max_waiting=2, when_full="reject") as pool:
        submitted = [pool.submit(until_told, str(go)) for _ in range(4)]  # two in the lane, two wait
        with pytest.raises(LanesFull, match="max_waiting=2"):
            pool.submit(until_told, str(go))
        go.touch()
        assert {future.result(120) for future in submitted} == {"told"}


def test_a_submitter_that_is_interrupted_in_line_has_called_nothing(tmp_path: Path) -> None:
    """It has no future for it, so the call is not made."""
    go, ran = tmp_path / "go", tmp_path / "ran"
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with tm.LanesExecutor(1, max_waiting=1) as pool:
            submitted = [pool.submit(until_told, str(go)) for _ in range(3)]  # two in the lane, one waits

            def interrupt() -> None:
                while pool.statistics().blocked == 0:
                    pass
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                pool.submit(ran.touch)
            go.touch()
            assert [future.result(120) for future in submitted] == ["told"] * 3
            assert pool.submit(square, 3).result(120) == 9
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not ran.exists()


def test_shutdown_finishes_or_cancels(tmp_path: Path) -> None:
    """Without waiting, calls still end; the thread and the processes go; later calls are refused."""
    go = tmp_path / "go"
    pool = tm.LanesExecutor(1)
    futures = [pool.submit(until_told, str(go)) for _ in range(3)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(square, 1)
    go.touch()
    assert [future.result(120) for future in futures] == ["told"] * 3
    pool.shutdown()
    pool.shutdown()
    other = tm.LanesExecutor(1)
    futures = [other.submit(until_told, str(tmp_path / "never")) for _ in range(3)]
    other.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    with pytest.raises(CallError, match="shut down"):
        other.statistics()


def test_one_that_is_forgotten_ends(pool: tm.LanesExecutor) -> None:
    """After its last call; its thread and processes are gone."""
    before = io_threads()
    forgotten = tm.LanesExecutor(1)
    (thread,) = set(io_threads()) - set(before)
    future = forgotten.submit(square, 4)
    del forgotten
    gc.collect()
    assert future.result(120) == 16
    thread.join(120)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # that is what it is about
def test_a_forked_copy_is_refused(pool: tm.LanesExecutor) -> None:
    """It would wait for a thread that is not there; the original is not troubled."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pool.submit(square, 1)
        except CallError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert "was forked from" in told.read()
    os.waitpid(child, 0)
    assert pool.submit(square, 3).result(120) == 9


def test_what_fails_at_the_start_is_raised_here() -> None:
    """No thread is left behind."""
    before = io_threads()
    with pytest.raises(CallError, match="preload: the module"):
        tm.LanesExecutor(1, preload=["nothing_here"])
    for thread in set(io_threads()) - set(before):
        thread.join(120)
    with pytest.raises(CallError, match="grace=-1"):
        tm.LanesExecutor(1, grace=-1)
    assert set(io_threads()) <= set(before)


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"], ids=["end", "exit"])
def test_the_end_of_the_interpreter_finishes_what_is_pending(tmp_path: Path, end: str) -> None:
    """An executor that nobody shut down; nothing is printed that is not the program's own, no process is left. Calls that come later
    are told so."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent(f"""
            import atexit
            import os
            import tidemill as tm

            def work(x):
                with open("log", "a") as file:
                    file.write(f"{{os.getppid()}}\\n")
                return x

            pool = tm.LanesExecutor(2)
            futures = [pool.submit(work, x) for x in range(40)]
            futures[-1].add_done_callback(lambda future: print(future.result()))

            def too_late():
                try:
                    pool.submit(work, 41)
                except RuntimeError as error:
                    print(error)

            atexit.register(too_late)
            {end}
        """)
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    refused = "This LanesExecutor was shut down, or ended with the program: it takes no more calls."
    assert (done.returncode, done.stdout, done.stderr) == (0, f"39\n{refused}\n", "")
    servers = (tmp_path / "log").read_text().split()
    assert len(servers) == 40
    assert not any(Path(f"/proc/{server}").exists() for server in set(servers))
