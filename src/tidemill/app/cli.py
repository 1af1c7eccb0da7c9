"""The command line: ``tidemill run``, ``check`` and ``demo``.

Rows may go to stdout, so everything said to a person goes to stderr; ``demo``, whose rows go to a database, talks on
stdout. An error is one readable paragraph; ``--debug`` adds the traceback. Exit codes: `tidemill.app.exit_codes`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

if TYPE_CHECKING:
    import cyclopts

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:  # answered before anything is imported: scripts ask for it often
        import tidemill

        print(f"tidemill {tidemill.__version__}")  # noqa: T201 - this is the answer
        sys.exit(0)
    sys.exit(answer(words))


def answer(words: list[str]) -> int:
    """The exit code of one command line."""
    import cyclopts

    from tidemill.app.exit_codes import ExitCode, code_of

    debug = "--debug" in words
    try:
        command, bound, _ = _app().parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        _say(f"{_one_paragraph(str(error))} See: tidemill {_command_of(words)}--help")
        return ExitCode.USAGE
    try:
        code = command(*bound.args, **bound.kwargs)
    except KeyboardInterrupt:  # before the run took the signals over, or after it gave them back
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # whoever read our stdout has left (``| head``)
        _detach_stdout()
        return ExitCode.OUTSIDE
    except Exception as error:
        if debug:
            raise
        code = code_of(error)
        _say(_explained(error, code))
    return code if isinstance(code, int) else ExitCode.DONE


# -- commands ----------------------------------------------------------------------------------------------


def _app() -> cyclopts.App:
    import cyclopts

    app = cyclopts.App(
        name="tidemill",
        help="Real-time sensor pipelines: readings come in on asyncio, heavy work is ground in processes.",
        version=_version,
        help_format="plaintext",
    )
    app.command(_run, name="run")
    app.command(_check, name="check")
    app.command(_demo, name="demo")
    return app


def _version() -> str:
    import tidemill

    return f"tidemill {tidemill.__version__}"


def _run(
    file: str,
    /,
    *,
    input: str | None = None,  # noqa: A002 - the option's word
    output: str | None = None,
    key: str | None = None,
    time: str | None = None,
    tz: str | None = None,
    lanes: int | None = None,
    seconds: float | None = None,
    report: Path | None = None,
    dead_letters: Path | None = None,
    grace: float = 10.0,
    if_exists: Literal["fail", "append", "replace"] = "fail",
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Run the pipeline in a Python file.

    Parameters
    ----------
    file
        FILE.py, or FILE.py:NAME when it holds several pipelines.
    input
        Read this instead of the pipeline's own source: a file, a folder or a pattern; - for stdin.
    output
        Write here instead of the pipeline's own sink; the suffix says the format; - for stdout.
    key
        The field that names the sensor, for --input; by default as in the file.
    time
        The field that holds the time, for --input; by default as in the file.
    tz
        The zone of times without one, for --input; by default as in the file, else UTC.
    lanes
        Worker processes; 0 runs everything in this process. By default, what the machine may use.
    seconds
        Stop reading after this long.
    report
        Write the report of the run here, as JSON.
    dead_letters
        Write rejected records here, with their reasons.
    grace
        Seconds to finish what is in flight once asked to stop.
    if_exists
        What to do when the output of --output is there already.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.load import load
    from tidemill.app.replace import Edges, replaced
    from tidemill.app.running import perform

    pipeline = replaced(load(file), Edges(input, output, key, time, tz, if_exists))
    return perform(
        pipeline,
        lanes=lanes,
        seconds=seconds,
        report=report,
        dead_letters=dead_letters,
        grace=grace,
    )


def _check(
    file: str,
    /,
    *,
    input: str | None = None,  # noqa: A002 - the option's word
    output: str | None = None,
    key: str | None = None,
    time: str | None = None,
    tz: str | None = None,
    lanes: int | None = None,
    if_exists: Literal["fail", "append", "replace"] = "fail",
    debug: bool = False,  # noqa: ARG001 - `answer` reads it, for errors in the other words too
) -> int:
    """Compile the pipeline in a Python file and print it, without running it.

    Parameters
    ----------
    file
        FILE.py, or FILE.py:NAME when it holds several pipelines.
    input
        Check against this file, folder or pattern instead of the pipeline's own source.
    output
        Check this instead of the pipeline's own sink.
    key
        The field that names the sensor, for --input.
    time
        The field that holds the time, for --input.
    tz
        The zone of times without one, for --input.
    lanes
        Worker processes to plan for.
    if_exists
        What a run would do when the output of --output is there already.
    debug
        Show the traceback of an error.
    """
    from tidemill.app.check import checked, described
    from tidemill.app.load import load
    from tidemill.app.replace import Edges, replaced

    pipeline = replaced(load(file), Edges(input, output, key, time, tz, if_exists))
    sys.stdout.write(described(pipeline, checked(pipeline), lanes=lanes))
    for sink in pipeline.sinks:  # last: what is in their way does not keep the plan from being read
        sink.check()
    return 0


def _demo(
    *,
    seconds: float | None = None,
    rate: Annotated[float, "records a second"] = 20_000,
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


# -- errors ------------------------------------------------------------------------------------------------


def _explained(error: Exception, code: int) -> str:
    from tidemill.app.exit_codes import ExitCode

    message = _one_paragraph(str(error)) or type(error).__name__
    if code == ExitCode.FAILED:
        return f"{message} See its traceback with --debug."
    if code != ExitCode.BUG:
        return message
    return (
        f"{type(error).__name__}: {message} This is a fault of tidemill itself. "
        f"Please report it with the output of the same command with --debug."
    )


def _one_paragraph(message: str) -> str:
    """The message without the remote traceback that may follow it, on one line."""
    return " ".join(message.partition("\nTraceback")[0].split())


def _command_of(words: list[str]) -> str:
    return next((f"{word} " for word in words if word in ("run", "check", "demo")), "")


def _say(message: str) -> None:
    sys.stderr.write(f"tidemill: {message}\n")


def _detach_stdout() -> None:
    """Keep the interpreter from complaining, while it exits, about a stdout that nobody reads."""
    import os

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
