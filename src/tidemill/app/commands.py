"""The commands and their options. Their docstrings are the help that ``--help`` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from tidemill.app.run_options import Edges, Ends, Keeps, Place, Tells
from tidemill.app.standard_streams import write_out

__all__ = ["application"]

_EDGES, _KEEPS, _ENDS, _TELLS = Edges(), Keeps(), Ends(), Tells()


def application() -> cyclopts.App:
    """The commands and their options, as the argument parser knows them."""
    app = cyclopts.App(
        name="tidemill",
        help="Real-time sensor pipelines: readings come in on asyncio, heavy work is ground in processes.",
        version=_version,
        help_format="plaintext",
        default_parameter=cyclopts.Parameter(negative=()),
    )
    app.command(_new, name="new")
    app.command(_run, name="run")
    app.command(_check, name="check")
    app.command(_demo, name="demo")
    app.command(_status, name="status")
    app.command(_checkpoint, name="checkpoint")
    app.command(_log, name="log")
    return app


def _version() -> str:
    import tidemill

    return f"tidemill {tidemill.__version__}"


def _new(
    file: str,
    /,
    *,
    recording: Annotated[str | None, cyclopts.Parameter(name="--from")] = None,
    mqtt: str | None = None,
    topic: str = "#",
    seconds: float = 10.0,
    key: str | None = None,
    time: str | None = None,
    tz: str | None = None,
    value: str | None = None,
    force: bool = False,
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Look at a recording, or listen to a broker, and write a plan, a calibration, and a test of the plan against pandas.

    Parameters
    ----------
    file
        The plan to write, PLAN.py; calibration.csv and test_PLAN.py come beside it.
    recording
        A recording to look at: CSV or NDJSON, also with .gz.
    mqtt
        A broker to listen to: mqtt://HOST:PORT, or mqtt://USER@HOST with the password in MQTT_PASSWORD. What was heard is
        kept as heard.ndjson, beside the plan.
    topic
        What to listen to there; by default, everything.
    seconds
        How long.
    key
        The field that names the sensor, when it cannot be guessed: a field, or "{line}/{machine}", or "{stem}" for the
        file's own name.
    time
        The field that holds the time, when it cannot be guessed.
    tz
        The zone of times without one.
    value
        The field that holds the reading; inside of other fields as data.temp; in messages, inside of
        a list as 'metrics[*].value', which makes a record of each item.
    force
        Write over files that are there.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.new.command import new
    from tidemill.app.new.live_command import new_live
    from tidemill.app.new.roles import Given
    from tidemill.errors import InputError

    given = Given(key, time, tz, value)
    if mqtt is not None and recording is None:
        return new_live(file, mqtt, topic, seconds, given, force=force)
    if recording is None or mqtt is not None:
        raise InputError("new looks at one thing: give --from RECORDING, or --mqtt URL.")
    return new(file, recording, given, force=force)


def _run(
    file: str,
    /,
    *,
    edges: Edges = _EDGES,
    keeps: Keeps = _KEEPS,
    lanes: int | None = None,
    ends: Ends = _ENDS,
    tells: Tells = _TELLS,
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Run the pipeline in a Python file.

    Parameters
    ----------
    file
        FILE.py, or FILE.py:NAME when it holds several pipelines.
    lanes
        Worker processes; 0 runs everything in this process. By default, what the machine may use.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.keeping import state_asked_for
    from tidemill.app.load import load
    from tidemill.app.replace import replaced, said_as_options, source_of
    from tidemill.app.running import perform
    from tidemill.errors import InputError

    if tells.no_metrics and tells.metrics is not None:
        raise InputError(f"--no-metrics shows nothing, so it does not go with --metrics {tells.metrics}.")
    found = load(file)
    with said_as_options(edges, keeps.warm):
        pipeline = replaced(found, edges)
        warm = None if keeps.warm is None else source_of(keeps.warm, pipeline)
        state = state_asked_for(pipeline, keeps, warm)
        return perform(pipeline, file=found.path, lanes=lanes, state=state, ends=ends, tells=tells)


def _check(
    file: str,
    /,
    *,
    input: Place | None = None,  # noqa: A002 - the option's word
    output: Place | None = None,
    key: str | None = None,
    time: str | None = None,
    tz: str | None = None,
    records: int = 10_000,
    expect: str | None = None,
    tolerance: float = 1e-9,
    state: Path | None = None,
    drop_state: Annotated[list[str], cyclopts.Parameter(consume_multiple=False)] | None = None,
    lanes: int | None = None,
    if_exists: Literal["fail", "append", "replace"] = "fail",
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Compile the pipeline in a Python file and print it; with a recording, try every stage on it. Writes nothing.

    Parameters
    ----------
    file
        FILE.py, or FILE.py:NAME when it holds several pipelines.
    input
        A file, folder or pattern in place of the pipeline's own source. Its first records go through every stage, and
        every function gets them whole, in halves and one by one, which shows whether it looks at its neighbours.
    output
        Check this instead of the pipeline's own sink.
    key
        The field that names the sensor, for --input.
    time
        The field that holds the time, for --input.
    tz
        The zone of times without one, for --input.
    records
        So many records of --input go through the stages.
    expect
        A table (.csv, .ndjson, .parquet) that the plan should make of the whole recording; the first difference is named.
    tolerance
        How far numbers may be from those of --expect, relative, or absolute below 1.
    state
        A state folder: say which stages would go on with it. Ends with 3, 4 or 5 when a start would refuse it, as that would.
        Changes nothing.
    drop_state
        A stage that is not in the plan any more, and whose state may go.
    lanes
        Worker processes to plan for.
    if_exists
        What a run would do when the output of --output is there already.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.check import checked, described, warn_of_outputs
    from tidemill.app.keeping import resumption
    from tidemill.app.load import load
    from tidemill.app.replace import replaced, said_as_options
    from tidemill.app.verdict import Questions, answer
    from tidemill.engine.places_apart import Place, edges_of, require_apart

    edges = Edges(input, output, key, time, tz, if_exists)
    questions = Questions(input, records, expect, tolerance, lanes)
    questions.check()
    found = load(file)
    with said_as_options(edges):
        pipeline = replaced(found, edges, sinkless=True)
        compiled = checked(pipeline, lanes)
    write_out(described(pipeline, compiled, lanes=lanes, keeps=state is not None or not pipeline.finite))
    if state is not None:
        resumption(state, pipeline, compiled, tuple(drop_state or ()))
    code = answer(questions, pipeline, compiled)
    require_apart([*edges_of(pipeline), Place("the plan", found.path)])
    warn_of_outputs(
        pipeline, edges, resumes=state is not None
    )  # last: what is in their way does not keep the plan from being read
    return code


def _demo(
    *,
    seconds: float | None = None,
    rate: float = 20_000,
    lanes: int | None = None,
    output: Path = Path("tidemill-demo.db"),
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """1,000 synthetic sensors and this machine's own, calibrated, with rolling statistics, into SQLite.

    Parameters
    ----------
    seconds
        Stop after this long; by default on Ctrl-C, or when the database reaches 1 GB.
    rate
        Synthetic records a second.
    lanes
        Worker processes; by default, what the machine may use.
    output
        The database; it is replaced if a demo made it.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.demo import demo

    return demo(seconds=seconds, rate=rate, lanes=lanes, output=output)


def _status(
    url: str = "http://127.0.0.1:9464",
    /,
    *,
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Ask a live run how it is. Ends with 0 while it progresses, with 1 when it does not, with 5 when nobody answers.

    Parameters
    ----------
    url
        Where it shows its metrics, as it says at its start: http://HOST:PORT, or HOST:PORT.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.status_command import status

    return status(url)


def _checkpoint(
    folder: Path,
    /,
    *,
    verify: bool = False,
    prune: int | None = None,
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """List the checkpoints of a state folder. Ends with 4 when one of them cannot be used.

    Parameters
    ----------
    folder
        A state folder, such as .tidemill/NAME, or the folder checkpoints in it. A run may be writing there.
    verify
        Read every byte of every checkpoint, not just starts and ends.
    prune
        Before that, remove all but the last so many.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.checkpoint_command import checkpoint

    return checkpoint(folder, verify=verify, prune=prune)


def _log(
    folder: Path,
    /,
    *,
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Say what an ingest log holds, and whether it is whole. Changes nothing; ends with 4 when it is damaged.

    Parameters
    ----------
    folder
        The state folder of a pipeline, or the folder of its log.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.exit_codes import ExitCode
    from tidemill.app.log_command import survey, told
    from tidemill.printable import lines_printable

    found = survey(folder)
    write_out(lines_printable(told(found)))
    return ExitCode.DONE if found.is_whole else ExitCode.BAD_INPUT
