"""What ``tidemill check`` finds out by running something: the stages on a recording, and its output against a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tidemill import files
from tidemill.app.check import aligned, state_of
from tidemill.app.exit_codes import ExitCode
from tidemill.app.replace import STANDARD_STREAM
from tidemill.app.standard_streams import write_out
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.errors import PlanError
from tidemill.printable import counted

__all__ = ["Questions", "answer"]


@dataclass(frozen=True)
class Questions:
    """What the command line asks beyond the plan."""

    input: str | None
    records: int
    expect: str | None
    tolerance: float
    lanes: int | None

    def check(self) -> None:
        """Raises `PlanError` for what makes no sense, `InputError` for a table that is not there, before anything runs."""
        if self.records < 1:
            raise PlanError(f"--records {self.records} must be 1 or more.")
        if self.expect is not None and self.input is None:
            raise PlanError(
                "--expect compares what the plan makes of the recording that --input names: add --input PATH."
            )
        if self.expect is not None and self.input == STANDARD_STREAM:
            raise PlanError("--expect reads the recording a second time, which standard input cannot be; give a file.")
        if self.expect is not None:
            from tidemill.app.expect import check_tolerance
            from tidemill.app.expected_table import check_format

            check_tolerance(self.tolerance)
            check_format(files.absolute(self.expect))
            files.open_read(self.expect).close()


def answer(questions: Questions, pipeline: Pipeline, compiled: Checked) -> ExitCode:
    """Print what was found out on stdout; ``DIFFERS`` when something speaks against the pipeline."""
    if questions.input is None:
        return ExitCode.DONE
    fine = _try(questions, pipeline, compiled)
    if questions.expect is not None:
        fine = _compare(questions, questions.expect, pipeline) and fine
    return ExitCode.DONE if fine else ExitCode.DIFFERS


def _try(questions: Questions, pipeline: Pipeline, compiled: Checked) -> bool:
    from tidemill.app.recording import read_first
    from tidemill.app.trying import table_of, told, try_stages

    recording = read_first(pipeline.sources[0], questions.records)
    sensors = len(set(recording.batch.key.tolist()))
    _say([("", ""), ("tried on", f"{recording}; {state_of(compiled, sensors)}")])
    _say(("", sentence) for sentence in recording.rejected.told)
    _say(("", f"  {line}") for line in table_of(recording.batch))
    stages, lanes = compiled.plan.stages, questions.lanes
    tried = try_stages(stages, recording.batch, lanes=lanes, tell=lambda number, one: _say(told(number, one)))
    return all(one.passed for one in tried)


def _compare(questions: Questions, table: str, pipeline: Pipeline) -> bool:
    from tidemill.app.expect import compare

    found = compare(pipeline, table, lanes=questions.lanes, tolerance=questions.tolerance)
    columns = f"{counted(found.rows, 'row')} of {', '.join(found.columns)}"
    verdict = f"THE OUTPUT DIFFERS: {found.difference}" if found.difference else "the output is the same"
    _say([("expect", f"{table}: {verdict}"), ("", f"compared: {columns}, within {questions.tolerance:g}")])
    if found.left:
        _say([("", f"not in the table: {', '.join(found.left)}")])
    return not found.difference


def _say(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> None:
    write_out(aligned(rows))
