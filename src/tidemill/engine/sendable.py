"""Stages and sinks as bytes for the processes that they run in; what in them cannot be sent is refused by name.

By value as the records' own objects are, so that a class of the user's is one class there, to functions and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidemill.by_value import PicklerByValue, dumps_by_value
from tidemill.errors import PlanError
from tidemill.lanes.culprits import describe, first_culprit
from tidemill.sinks.base import Sink
from tidemill.stages.base import Stage

__all__ = ["sent_sink", "sent_stage", "sent_stages"]


def sent_stages(stages: Sequence[Stage], layout: Any = None) -> bytes:
    """Raises `PlanError`, naming the stage."""
    try:
        return dumps_by_value((stages, layout))
    except BaseException as error:
        raise _unsendable(error, {stage.name: stage for stage in stages}, "a lane") from error


def sent_stage(stage: Stage) -> bytes:
    """The same of one stage, for a thread beside the loop: a model is written in one piece, which is then copied without holding
    the interpreter's lock, as a pickle that grows in memory would for as long as it takes."""
    parts = _Parts()
    try:
        PicklerByValue(parts, 5).dump(stage)
    except BaseException as error:
        raise _unsendable(error, {stage.name: stage}, "a lane") from error
    return b"".join(parts)


class _Parts(list[bytes]):
    """A file of a pickler's: what is large is handed over as it is."""

    def write(self, part: bytes) -> None:
        self.append(part)


def sent_sink(sink: Sink) -> bytes:
    """Raises `PlanError`, naming the sink."""
    try:
        return dumps_by_value(sink)
    except BaseException as error:
        raise _unsendable(error, {f"sink {sink.name}": sink}, "the process of the sink") from error


def _unsendable(error: BaseException, where: dict[str, Any], to: str) -> PlanError:
    told = describe(error)
    path = first_culprit(where, "the plan", dumps_by_value)
    return PlanError(
        f"{path} cannot be sent to {to} ({told}). Make it inside the function that uses it, or in a module that this "
        "function imports."
    )
