"""Performing a run for a person at a terminal: watch it, report it, name how it ended."""

from __future__ import annotations

import sys
from pathlib import Path

from tidemill import files
from tidemill.app.exit_codes import ExitCode
from tidemill.app.logs import logging_to_stderr
from tidemill.app.run_options import Ends, Tells
from tidemill.app.standard_streams import tell
from tidemill.app.status import summary, summary_json, watching
from tidemill.engine.entrance import run
from tidemill.engine.metrics import Report
from tidemill.engine.pipeline import Pipeline
from tidemill.engine.places_apart import Place, letters_place, places_of, require_apart
from tidemill.engine.state import State, state_of
from tidemill.errors import InputError

__all__ = ["ended", "perform"]


def perform(
    pipeline: Pipeline, *, file: Path, lanes: int | None, state: State | bool | None, ends: Ends, tells: Tells
) -> ExitCode:
    """Run to the end what was found in ``file``, showing how it goes on stderr; rows may be on stdout.

    Raises `InputError` at once when there is no folder for the report or the dead letters: a run of a week must not end
    in that discovery.
    """
    for option, path in (("--report", tells.report), ("--dead-letters", tells.dead_letters)):
        if path is not None and not files.absolute(path).parent.is_dir():
            raise InputError(f"{option} {files.absolute(path)} has no folder to be written to; make it first.")
    places = places_of(pipeline, state_of(pipeline, state), letters=tells.dead_letters, report=tells.report)
    require_apart([*places, Place("the plan", file)])
    reports: list[Report] = []
    try:
        form = tells.log_format
        with (
            watching(sys.stderr, title=pipeline.name, log_format=form, quiet=tells.quiet) as watch,
            logging_to_stderr(form),
        ):
            run(
                pipeline,
                lanes=lanes,
                seconds=ends.seconds,
                report=tells.report,
                dead_letters=tells.dead_letters,
                grace=ends.grace,
                on_statistics=watch,
                state=state,
                metrics=False if tells.no_metrics else tells.metrics,
                metrics_exposed=tells.metrics_exposed,
                stall_after=ends.stall_after,
                silent_after=ends.silent_after,
                max_dead=ends.max_dead,
                notify=True,
                ends_process=True,
                told=reports.append,
            )
    finally:  # also where the report could not be written
        for made in reports:
            _tell(made, pipeline, state, tells)
    return ended(reports[0])


def _tell(made: Report, pipeline: Pipeline, state: State | bool | None, tells: Tells) -> None:
    place = (tells.dead_letters or letters_place(pipeline, state_of(pipeline, state))) if made.dead_letters else None
    if tells.log_format == "json":
        in_file = "" if place is None else str(place)
        tell(summary_json(made, pipeline=pipeline.name, dead_letters_in=in_file) + "\n")
        return
    tell(summary(made))
    if place is not None:
        tell(f"The dead letters are in {place}; tm.sources.DeadLetters reads them after a fix.\n")


def ended(report: Report) -> ExitCode:
    """How a run that raised nothing ended."""
    return ExitCode.UNFINISHED if report.in_flight or report.gave_up else ExitCode.DONE
