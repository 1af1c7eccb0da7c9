"""What the command line says of state."""

from __future__ import annotations

from pathlib import Path

from tidemill.engine.pipeline import Pipeline
from tidemill.engine.state import State
from tidemill.errors import InputError

__all__ = ["state_asked_for"]


def state_asked_for(
    pipeline: Pipeline,
    place: Path | None,
    no_state: bool,
    fresh: bool,
    checkpoint_s: float,
    drop_state: tuple[str, ...],
) -> State | bool:
    """The state that a run keeps; False for none. Raises `InputError` for options that contradict each other."""
    if no_state and (place is not None or fresh or drop_state):
        raise InputError("--no-state keeps nothing, so it does not go with --state, --fresh or --drop-state.")
    if no_state or (place is None and pipeline.finite):
        if fresh or drop_state:
            raise InputError("a recording keeps no state by itself; name the folder with --state DIR.")
        return False
    return State(place, fresh=fresh, checkpoint_s=checkpoint_s, drop_state=drop_state)
