"""What a checkpoint says beside its arrays: checked before anything is done with it, since a check sum is no signature."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tidemill.core.resume import StageIdentity
from tidemill.engine.checkpoint_store import Checkpoint
from tidemill.errors import OutsideError

__all__ = ["SavedFacts", "facts_of"]

_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
_Moment = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class _Watermark(msgspec.Struct, frozen=True):
    newest: _Moment
    leaping: Annotated[list[_Moment], Meta(max_length=64)]
    mark: _Moment
    ahead: _Count
    first: Annotated[list[_Moment], Meta(max_length=64)] = []
    leaps: _Count = 0
    behind: _Count = 0


class SavedFacts(msgspec.Struct, frozen=True):
    """Of the run that wrote the checkpoint, at its barrier."""

    lanes: Annotated[int, Meta(ge=1, le=4_096)]
    stages: list[StageIdentity]
    sinks: list[str]
    """Those that keep their position with their rows."""
    position: _Count
    """Up to where in the input all is in it."""
    place: dict[str, Any]
    """Where the inflow begins again, and that place's own position."""
    place_position: _Count
    watermark: _Watermark
    kinds: dict[str, str]
    ended: bool
    """Whether that was the whole input."""
    files: dict[str, list[str]]
    """In effect, by path."""
    rows: _Count
    learned: dict[str, dict[str, str]]
    results: dict[str, Any]
    probing: bool
    letters: str | None
    letters_bytes: _Count
    by_turns: bool = False
    """Whether lanes had their sensors by turns (decision 55)."""
    epoch: Annotated[int, Meta(ge=0, lt=1 << 62)] = 0
    written_ns: int | None = None
    empty: dict[str, str] = {}
    """Columns that came, and held no value; as what they were."""


def facts_of(found: Checkpoint) -> SavedFacts:
    """Raises `OutsideError` for a checkpoint that says what no run can have written."""
    try:
        facts = msgspec.convert(found.facts, SavedFacts)
    except msgspec.ValidationError as error:
        raise refused(found, str(error)) from None
    if facts.place_position > facts.position:
        raise refused(found, "its place is behind its position")
    return facts


def refused(found: Checkpoint, why: str) -> OutsideError:
    """What to say of a checkpoint whose bytes are whole, and which no run can have written."""
    return OutsideError(
        f"checkpoint {found.number} in {found.folder} was not written by a run: {why}. Restore the state from a copy, or "
        "start over with --fresh."
    )
