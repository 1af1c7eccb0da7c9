"""`State`: where a run keeps its state, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.engine.state_folder import default_place
from tidemill.errors import PlanError

if TYPE_CHECKING:
    from tidemill.engine.pipeline import Pipeline
    from tidemill.sources.base import Source

__all__ = ["State", "state_of"]


@dataclass(frozen=True)
class State:
    """State on disk: what a run goes on from after it was stopped, killed, or the machine lost power.

    ``place``               the folder; by default ``.tidemill/NAME``, by the pipeline's name. One pipeline's own
    ``fresh``               start over; the state so far is moved aside, not deleted
    ``checkpoint_s``        seconds between checkpoints, and between the commits of sinks: how long rows wait to be seen.
                            A checkpoint is taken less often when it takes more than a tenth of that
    ``checkpoint_records``  a checkpoint also after so many inputs
    ``log_max_bytes``       what the ingest log may take: how much a source may give while a sink is away, before it waits
    ``log_min_free``        bytes that the log leaves free on the disk
    ``warm``                a source with a history, such as ``Replay("march.parquet")``: it is worked on first, its rows go
                            nowhere, and windows are full when the run's own input begins. Only without a checkpoint yet
    ``drop_state``          stages that are not in the plan any more, by name, whose state may go

    >>> State("state", checkpoint_s=0.5).checkpoint_s
    0.5
    """

    place: str | Path | None = None
    fresh: bool = False
    checkpoint_s: float = 1.0
    checkpoint_records: int | None = None
    log_max_bytes: int = 10 << 30
    log_min_free: int = 1 << 30
    warm: Source | None = None
    drop_state: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.checkpoint_s > 0:
            raise PlanError(f"checkpoint_s={self.checkpoint_s!r} must be more than 0 seconds.")
        if self.checkpoint_records is not None and self.checkpoint_records < 1:
            raise PlanError(f"checkpoint_records={self.checkpoint_records!r} must be 1 or more.")
        if self.log_max_bytes < 1 << 20:
            raise PlanError(f"log_max_bytes={self.log_max_bytes!r} must be a number of bytes, at least a megabyte.")
        if self.log_min_free < 0:
            raise PlanError(f"log_min_free={self.log_min_free!r} must be 0 bytes or more.")

    def place_of(self, pipeline: str) -> Path:
        """The folder for a pipeline of this name."""
        return default_place(pipeline) if self.place is None else Path(self.place)


def state_of(pipeline: Pipeline, asked: bool | str | Path | State | None) -> State | None:
    """What a run of this pipeline keeps; None for nothing. A live pipeline keeps state unless told otherwise."""
    if asked is None:
        asked = not pipeline.finite
    if asked is False:
        for source in pipeline.sources:
            if source.promises:
                raise PlanError(
                    f"the source {source.name} acknowledges what is safe on the disk, and this run keeps no state; leave "
                    "out ack=True, or let the run keep state."
                )
        return None
    if isinstance(asked, State):
        return asked
    return State() if asked is True else State(asked)
