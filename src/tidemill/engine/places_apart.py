"""No file of a run is written that it reads, or that two of its parts write: what one writes the other would lose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill import files
from tidemill.engine.dead_letters import DEFAULT_PATH
from tidemill.engine.pipeline import Pipeline
from tidemill.engine.state import State
from tidemill.errors import InputError
from tidemill.sinks.base import Sink
from tidemill.sources.base import Source
from tidemill.sources.dead_letters import DeadLetters

__all__ = ["Place", "edges_of", "letters_place", "places_of", "require_apart"]

_LETTERS = "the dead letters"


@dataclass(frozen=True)
class Place:
    """A file that a run reads or writes; a folder stands for the Parquet files in it."""

    words: str
    """Who does, for a person."""
    path: Path
    written: bool = False
    who: Any = None
    """The edge that does, where it is one."""

    def may_share(self, other: Place) -> bool:
        """Whether they can have one file: sinks of one kind, whose own places are told apart, such as tables of one
        database; and letters that are replayed, which end where they did when the replay began."""
        if isinstance(self.who, Sink):
            return type(self.who) is type(other.who)
        return isinstance(self.who, DeadLetters) and other.words == _LETTERS


def edges_of(pipeline: Pipeline, *more: Source) -> Iterator[Place]:
    """What its sinks write, and its stages, its sources and ``more`` of them read."""
    for sink in pipeline.sinks:
        if sink.writes is not None:
            yield Place(f"the sink {sink.name}", sink.writes, written=True, who=sink)
    for stage in pipeline.plan.stages:
        if stage.path is not None:
            yield Place(f"the stage {stage.name}", files.absolute(stage.path))
    for source in (*pipeline.sources, *more):
        with contextlib.suppress(InputError):  # of what is not there, which the source itself says
            for path in source.reads:
                yield Place(f"the source {source.name}", path, who=source)


def places_of(
    pipeline: Pipeline, state: State | None, *, letters: str | Path | None, report: str | Path | None
) -> Iterator[Place]:
    """What a run of this pipeline reads and writes."""
    yield from edges_of(pipeline, *([state.warm] if state is not None and state.warm is not None else []))
    yield Place(_LETTERS, files.absolute(letters or letters_place(pipeline, state)), written=True)
    if report is not None:
        yield Place("the report", files.absolute(report), written=True)


def letters_place(pipeline: Pipeline, state: State | None) -> Path:
    """Where dead letters go when nobody says where."""
    return Path(DEFAULT_PATH) if state is None else state.place_of(pipeline.name) / DEFAULT_PATH


def require_apart(places: Iterable[Place]) -> None:
    """Raises `InputError` for two places that are one file, under whatever names, with both."""
    taken: dict[object, Place] = {}
    for place in sorted(places, key=lambda place: not place.written):
        parts = (place.path, place.path.parent) if place.path.suffix == ".parquet" else (place.path,)
        for identity in filter(None, map(files.identity, parts)):
            other = taken.get(identity)
            if other is not None and not place.may_share(other):
                raise InputError(
                    f"{other.words} and {place.words} are one file, {place.path}: what the one writes, the other would lose. "
                    f"Give each a file of its own."
                )
        if place.written and (own := files.identity(place.path)) is not None:
            taken.setdefault(own, place)
