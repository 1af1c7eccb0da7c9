"""The command line: fast answers, one paragraph for an error, and an exit code.

Rows may go to stdout, so everything said to a person goes to stderr; ``demo``, whose rows go to a database, talks on
stdout. ``--debug`` adds the traceback. The commands themselves are in `tidemill.app.commands`, the exit codes in
`tidemill.app.exit_codes`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NoReturn

from tidemill.app.standard_streams import detach, take_closed_ones, tell, untaken

__all__ = ["main"]

_HELP: Final = frozenset(("--help", "-h"))
"""With one of these, a library writes to stdout."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    take_closed_ones()
    if words == ["--version"]:  # answered before anything is imported: scripts ask for it often
        import tidemill

        sys.exit(_written_out(lambda: print(f"tidemill {tidemill.__version__}"), _say))  # noqa: T201 - this is the answer
    _leave_by_signals()
    sys.exit(answer(words))


def answer(words: list[str]) -> int:
    """The exit code of one command line."""
    if not _asks_for_json(words):
        return _written_out(lambda: _answered(words, _say), _say)
    from tidemill.app.json_stderr import stderr_as_json
    from tidemill.app.logs import json_line

    with stderr_as_json():  # before anything is said: a mistake in the command line is told to a machine too

        def say(said: str) -> None:
            tell(json_line("ERROR", "tidemill", said, {}) + "\n")

        return _written_out(lambda: _answered(words, say), say)


def _written_out(command: Callable[[], int | None], say: Callable[[str], object]) -> int:
    """The exit code of a command. Nothing of stdout or stderr is left for the interpreter to fail on when it exits."""
    try:
        code = command()
        sys.stdout.flush()
    except OSError as error:
        from tidemill.app.exit_codes import ExitCode

        code = ExitCode.OUTSIDE
        detach(sys.stdout)
        if not isinstance(error, BrokenPipeError):  # whoever read our stdout has left (``| head``)
            say(str(untaken(error)))
    try:
        sys.stderr.flush()
    except OSError:
        detach(sys.stderr)
    return code or 0


def _leave_by_signals() -> None:
    """Until a run takes them over there is nothing to finish: a signal leaves at once, and all it leaves is its exit code."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # else it is ignored here, or is somebody else's
            signal.signal(number, _leave)


def _leave(number: int, _frame: object) -> None:
    os._exit(128 + number)


def _asks_for_json(words: Sequence[str]) -> bool:
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def _answered(words: list[str], say: Callable[[str], object]) -> int:
    import cyclopts

    from tidemill.app.commands import application
    from tidemill.app.exit_codes import ExitCode, code_of

    debug = "--debug" in words
    try:
        command, bound, _ = application().parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        say(f"{_one_paragraph(str(error))} See: tidemill {_command_of(words)}--help")
        return ExitCode.USAGE
    if signal.getsignal(signal.SIGINT) is _leave:  # a command may have something to clean up
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = command(*bound.args, **bound.kwargs)
    except KeyboardInterrupt:  # before the run took the signals over, or after it gave them back
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and _HELP.intersection(words)):
            raise  # of stdout
        code = code_of(error)
        if debug:
            from tidemill.printable import lines_printable

            tell(lines_printable(traceback.format_exc()))
        say(_explained(error, code, debug=debug))
    return code if isinstance(code, int) else ExitCode.DONE


# -- errors ------------------------------------------------------------------------------------------------


def _explained(error: Exception, code: int, *, debug: bool) -> str:
    from tidemill.app.exit_codes import ExitCode

    message = _one_paragraph(str(error)) or type(error).__name__
    if debug:
        return message
    if code == ExitCode.FAILED and "\nTraceback" in str(error):
        return f"{message} See its traceback with --debug."
    if code != ExitCode.BUG:
        return message
    return (
        f"{type(error).__name__}: {message} This is a fault of tidemill itself. "
        f"Please report it with the output of the same command with --debug."
    )


def _one_paragraph(message: str) -> str:
    """The message without the remote traceback that may follow it, on one line, with a full stop."""
    text = " ".join(message.partition("\nTraceback")[0].split())
    return text if not text or text.endswith((".", "!", "?", ":")) else f"{text}."


def _command_of(words: list[str]) -> str:
    return next(
        (f"{word} " for word in words if word in ("new", "run", "check", "demo", "status", "checkpoint", "log")), ""
    )


def _say(message: str) -> None:
    from tidemill.printable import printable

    tell(f"tidemill: {printable(message)}\n")
