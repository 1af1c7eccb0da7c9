"""What the log says at a run's end of records that are not among its rows: a script that looks at these alone would not see it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tidemill.core.plan import Plan
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.metrics import Report
from tidemill.sources.base import Source
from tidemill.stages.dedup import Dedup

__all__ = ["tell_of_late", "tell_of_letters"]

_log = logging.getLogger("tidemill")


def tell_of_letters(letters: DeadLetterFile, report: Report) -> None:
    """How many records, or rows that stages made, are dead letters, where they are, and why the first of them is."""
    if letters.count:
        first = letters.samples[0]
        entered = "1 record" if report.records_in == 1 else f"{report.records_in} records"
        made = "row that a stage made" if letters.count == 1 else "rows that stages made"
        _log.warning(
            "%d %s %s, in %s; the first of them%s: %s",
            letters.count,
            f"of {entered}" if report.dead_letters else made,
            "is a dead letter" if letters.count == 1 else "are dead letters",
            letters.path,
            f", at {first.stage}" if first.stage and not first.reason.startswith(first.stage) else "",
            first.reason,
            extra={"dead_letters": letters.count},
        )


def tell_of_late(report: Report, plan: Plan, sources: Sequence[Source]) -> None:
    """Where most records are late, the fault is seldom theirs; nor is it where recordings are read side by side."""
    recordings = [source.name for source in sources if not source.push]
    beside = len(recordings) > 1 and report.late > 0
    if 2 * report.late <= report.records_in and not beside:
        return
    whys = []
    if beside:
        whys.append(
            f"{' and '.join(recordings)} are sources of their own, of which records are taken as they come, and how many are "
            "late changes from run to run: give recordings of the same time to one Replay, which merges them by time and whose "
            'path may be a pattern (Replay("part-*.csv"))'
        )
    whys += [
        f'{stage.name} with late="drop" has forgotten what is so far behind its sensor\'s newest time (within=, '
        "max_records=), which a clock that is ahead may have set (a Filter before it passes that over)"
        for stage in plan.stages
        if isinstance(stage, Dedup) and stage.late == "drop"
    ]
    if any(stage.follows_watermark and hasattr(stage, "late") for stage in plan.stages):
        ahead = "a clock that is ahead made them so (Pipeline: a shorter max_ahead= passes it over)"
        if "time_leaps" in report.counters:
            ahead = "eight records in a row that were far ahead made them so, as if a hole in the recording had ended"
        whys.append(f"{ahead}, or they are further out of order than lag= allows")
    told = "%d of %d records came late and are left out: %s"
    _log.warning(told, report.late, report.records_in, ", or ".join(whys), extra={"late": report.late})
