"""The ways into a run: `run` from a script or a notebook, `run_async` and `serve` inside a running loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, TypedDict, Unpack

from tidemill import files
from tidemill.clock import Clock, SystemClock
from tidemill.core.batching import Limits
from tidemill.engine.first_error import first_error
from tidemill.engine.loading import stop_if_loading
from tidemill.engine.metrics import Report, Statistics
from tidemill.engine.pipeline import Pipeline
from tidemill.engine.run import Run
from tidemill.engine.state import State
from tidemill.errors import InputError, MissingExtra, PlanError, RunEnded
from tidemill.lanes.fork_client import signals_held
from tidemill.lanes.forkserver import HELD
from tidemill.stages.raised_in import came_by_user_code

__all__ = ["run", "run_async", "serve"]

_MAY_HANDLE: Final = hasattr(signal, "pthread_sigmask")
"""Not on Windows, where an interrupt is raised like any other."""
_SAME_NS: Final = 200_000_000
"""Signals so close are one: ``timeout``, and other wrappers, send the process its own and then that of its group."""
_log = logging.getLogger("tidemill")


class Options(TypedDict, total=False):
    """The options of `run`, as `run_async` and `serve` take them too."""

    lanes: int | None
    seconds: float | None
    dead_letters: str | Path | None
    grace: float
    limits: Limits | None
    clock: Clock | None
    on_statistics: Callable[[Statistics], None] | None
    state: bool | str | Path | State | None
    metrics: bool | str
    metrics_exposed: bool
    stall_after: float | None
    silent_after: float | None
    max_dead: str | None
    notify: bool


async def run_async(
    pipeline: Pipeline,
    *,
    report: str | Path | None = None,
    handle_signals: bool = False,
    **options: Unpack[Options],
) -> Report:
    """Run a pipeline to its end inside a running loop; the options are those of `run`."""
    _check(pipeline)
    stop_if_loading(pipeline)
    return await _executed(Run(pipeline, **options), report, handle_signals)


def run(
    pipeline: Pipeline,
    *,
    lanes: int | None = None,
    seconds: float | None = None,
    report: str | Path | None = None,
    dead_letters: str | Path | None = None,
    grace: float = 10.0,
    limits: Limits | None = None,
    clock: Clock | None = None,
    on_statistics: Callable[[Statistics], None] | None = None,
    handle_signals: bool = True,
    state: bool | str | Path | State | None = None,
    metrics: bool | str | None = None,
    metrics_exposed: bool = False,
    stall_after: float | None = None,
    silent_after: float | None = None,
    max_dead: str | None = None,
    notify: bool = False,
    ends_process: bool = False,
    told: Callable[[Report], None] | None = None,
) -> Report:
    """Run a pipeline to its end and return its `Report`.

    ``lanes``         worker processes; by default what the machine or the container allows, 0 runs inline
    ``seconds``       stop after this long, from when lanes and sinks are ready, or one of them could not be made so; by
                      default when the sources end
    ``report``        a file to write the report to, as JSON
    ``dead_letters``  a file for the records that could not go on (default ``dead_letters.ndjson``, made by the first; where
                      what is read cannot be read again, it must be possible from the start)
    ``limits``        bounds of a batch, a `Limits`; batches are sized by themselves, and tests may want them small
    ``on_statistics``  a function that is called on the loop with `Statistics`, as `Run.statistics` gives them, about once a second
    ``handle_signals``  whether SIGINT and SIGTERM stop the run as told below; in another thread than the main one never
    ``clock``         another `Clock` than the system's, as tests have them
    ``grace``         seconds that a stop may take: sources end, what is in flight is finished, sinks flush and close

    ``state``         the folder where state is kept, so that the next run goes on where this one was stopped, however it was:
                      True for ``.tidemill/NAME`` of the pipeline's name, False for none, or a `State` that also says how.
                      By default a live pipeline, one whose source does not end by itself, keeps it

    ``metrics``       show /metrics, /healthz and /readyz over HTTP: at ``"HOST:PORT"``, or with True at 127.0.0.1:9464,
                      where a port that is taken is a warning and no error; with False nowhere. By default `run` shows a live
                      pipeline as with True, and `run_async` and `serve`, whose application has pages of its own, show none
    ``metrics_exposed``  where other machines reach that address: says that they may, as in a network of the plant's own. The
                      pages ask for no password, and encrypt nothing
    ``stall_after``   end the run with `Stalled` when it has not progressed for so many seconds, though there is something to
                      do; /healthz names the culprit then, and after 300 seconds where none are given. A source that
                      can is connected anew first, and has as long again
    ``silent_after``  the same for a source that is connected and gives nothing for so many seconds
    ``max_dead``      end the run with `TooManyDead` when more of the last records became dead letters: a share as ``"50%/60s"``,
                      or a number as ``"100/60s"``
    ``notify``        tell the service manager that has started this process, such as systemd, when the run is ready, that
                      it is alive while it progresses, and when it stops; without one it does nothing
    ``ends_process``  nothing comes after the run in this process: a first SIGINT or SIGTERM that comes when it has ended is too
                      late to change anything, and a second one leaves at once as before
    ``told``          a function that is given the report before it is written, which may fail

    Works from a script without a ``__main__`` guard, from a notebook cell, and inside a running loop (then in a thread
    of its own). SIGINT and SIGTERM stop reading, finish what is in flight, flush and return; a second one leaves at
    once. So does an interrupt of a notebook's cell, which is raised once the run has stopped. SIGHUP has the files of tables
    and models looked at now (`Run.look_at_files`), and nothing else read again. Raises a `TidemillError`: `PlanError` and `InputError` before anything has run, `OutsideError` when the world
    refuses, `StageError` under ``on_error="stop"``.
    """
    _check(pipeline)
    stop_if_loading(pipeline)
    execution = Run(
        pipeline,
        lanes=lanes,
        seconds=seconds,
        dead_letters=dead_letters,
        grace=grace,
        limits=limits,
        clock=clock,
        on_statistics=on_statistics,
        state=state,
        metrics=not pipeline.finite if metrics is None else metrics,
        metrics_exposed=metrics_exposed,
        stall_after=stall_after,
        silent_after=silent_after,
        max_dead=max_dead,
        notify=notify,
    )
    try:
        if _in_loop():
            return _in_thread(execution, report, told)
        handle_signals = handle_signals and threading.current_thread() is threading.main_thread()
        return asyncio.run(_executed(execution, report, handle_signals, ends_process=ends_process, told=told))
    except (PlanError, InputError, MissingExtra) as error:
        if not came_by_user_code(error):
            error.__traceback__ = None  # a sentence for the user, to which thirty frames of ours add nothing
        raise


@contextlib.asynccontextmanager
async def serve(
    pipeline: Pipeline,
    *,
    report: str | Path | None = None,
    handle_signals: bool = False,
    **options: Unpack[Options],
) -> AsyncIterator[Run]:
    """Run a pipeline inside an application: ``async with tm.serve(pipeline) as run: ...``.

    ``run.statistics()`` reads it, ``await run.stop()`` ends it; leaving the block stops it and waits. An error of the
    run is raised at the end of the block; ``run.report`` is set at a good end, and where the run was asked to stop or ended
    itself, and is written to the file ``report``. A wait in the block for what the run did not come to, such as
    ``await source.wait_listening()``, ends the block when the run ends.
    Signals are the application's own, unless ``handle_signals`` asks for what `run` does. Other options as in `run`.
    """
    _check(pipeline)
    stop_if_loading(pipeline)
    execution = Run(pipeline, **options)
    try:
        async with asyncio.TaskGroup() as group:  # a run that fails cancels the block, which might wait for ever
            execution._task = task = group.create_task(_executed(execution, report, handle_signals))
            started = group.create_task(execution.started.wait())
            try:
                await asyncio.wait([started, task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                started.cancel()
            with contextlib.suppress(RunEnded):  # the block has waited for what the run will not do any more
                try:
                    yield execution
                finally:  # in order, whatever ended the block: what was read is worth its rows
                    execution.stop_soon()
                    await asyncio.wait([task])
    except BaseExceptionGroup as errors:
        first = first_error(errors)
        raise first from first.__cause__


async def _executed(
    execution: Run,
    path: str | Path | None,
    handle_signals: bool,
    *,
    ends_process: bool = False,
    told: Callable[[Report], None] | None = None,
) -> Report:
    execution.require_places_apart(path)
    if path is not None and (why := files.why_not_whole(path)):
        raise InputError(f"the report cannot be written to {files.absolute(path)}: {why}. Name another file.")
    try:
        with _signals(execution, ends_process) if handle_signals and _MAY_HANDLE else contextlib.nullcontext():
            return await execution.execute()
    finally:  # also of a run that ended itself, or was stopped while a sink was away
        if (report := execution.report) is not None:
            if told is not None:
                told(report)
            if path is not None:
                await asyncio.to_thread(files.write_whole, path, report.to_json().encode() + b"\n")


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_thread(execution: Run, path: str | Path | None, told: Callable[[Report], None] | None) -> Report:
    """``asyncio.run`` in a thread of its own, for a caller whose loop is running (a notebook cell).

    An interrupt of the caller stops the run in order and is raised then; a second one is raised at once, and the run
    is cancelled behind it.
    """
    loop = asyncio.new_event_loop()
    result: concurrent.futures.Future[Report] = concurrent.futures.Future()

    def target() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                report = runner.run(_executed(execution, path, handle_signals=False, told=told))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            result.set_exception(error)
        else:
            result.set_result(report)

    thread = threading.Thread(target=target, name="tidemill-run", daemon=True)
    try:
        thread.start()
        concurrent.futures.wait([result])  # an interrupted join would take the thread for ended
    except KeyboardInterrupt:
        _log.info("interrupted: stopping; once more to leave at once")
        _call(loop, execution.stop_soon)
        try:
            concurrent.futures.wait([result])
        except KeyboardInterrupt:
            _call(loop, lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
            raise
        thread.join()
        raise
    thread.join()
    return result.result()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """On the loop of another thread, if it has not ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


@contextlib.contextmanager
def _signals(execution: Run, ends_process: bool) -> Iterator[None]:
    """First SIGINT or SIGTERM: stop in order. Second, unless it comes with the first: leave at once, also while the user's code
    holds the loop; the children end with this process. SIGHUP: look at the files of tables and models, unless it tells that the
    terminal is gone in which the run was started: then stop in order.

    Afterwards they do what they did before, without a moment in between."""
    before = {number: signal.getsignal(number) for number in HELD}
    loop, clock = asyncio.get_running_loop(), SystemClock()
    terminals = [standard for standard in (0, 1, 2) if os.isatty(standard)]
    seen = first_ns = 0

    def heard(number: int, _frame: object) -> None:
        nonlocal seen, first_ns
        now_ns = clock.monotonic_ns()
        if seen and now_ns - first_ns < _SAME_NS:
            return
        seen += 1
        if seen > 1:
            os._exit(128 + number)
        first_ns = now_ns
        loop.call_soon_threadsafe(stop, number)

    def stop(number: int) -> None:
        name = signal.Signals(number).name
        _log.info("%s: stopping; once more to leave at once", name, extra={"signal": name})
        execution.stop_soon()

    def hung_up() -> None:
        if terminals and not any(map(os.isatty, terminals)):
            _log.info("the terminal is gone: stopping", extra={"signal": "SIGHUP"})
            execution.stop_soon()
        else:
            _log.info("SIGHUP: looking at the files of tables and models", extra={"signal": "SIGHUP"})
            execution.look_at_files()

    def late(number: int, _frame: object) -> None:
        nonlocal seen
        seen += number != signal.SIGHUP
        if seen > 1:
            os._exit(128 + number)

    with signals_held():
        for number in (signal.SIGINT, signal.SIGTERM):
            # The loop wakes up, whichever thread the signal comes to; then, or between two steps of the code that holds the loop,
            # it is heard.
            loop.add_signal_handler(number, lambda: None)
            signal.signal(number, heard)
        loop.add_signal_handler(signal.SIGHUP, hung_up)
    try:
        yield
    finally:
        with signals_held():
            for number in HELD:
                loop.remove_signal_handler(number)
                signal.signal(number, late if ends_process else before[number] or signal.SIG_DFL)


def _check(pipeline: object) -> None:
    if not isinstance(pipeline, Pipeline):
        raise PlanError(
            f"what runs is a Pipeline(source, plan, sink), and this is a {type(pipeline).__name__}; a file with one in it runs with "
            f"`tidemill run FILE`."
        )
