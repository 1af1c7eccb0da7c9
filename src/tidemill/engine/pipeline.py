"""`Pipeline`: sources, a plan, sinks; and what can be known of it before it runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

from tidemill.core import plan as core
from tidemill.core.watermark import Watermark
from tidemill.durations import duration_ns
from tidemill.engine.plan import FROM_DISK, Plan
from tidemill.errors import OutsideError, PlanError
from tidemill.formats.key_template import KeyTemplate
from tidemill.formats.roles import DEFAULT_KEY, DEFAULT_TIME
from tidemill.schema import Asked, Field, Schema
from tidemill.sinks.base import Sink
from tidemill.sources.base import Source
from tidemill.stages.base import Load, Stage

__all__ = ["Checked", "Pipeline"]


UNNAMED: Final = "pipeline"


@dataclass(frozen=True)
class Checked:
    """A pipeline that may start."""

    plan: core.Plan
    """With its tables and models loaded."""
    schemas: tuple[Schema, ...]
    """What enters the first stage, then what leaves each stage."""
    asked: Mapping[str, Asked]
    """What columns have to be that may come with records."""
    place_by: str | None = None
    """The column by whose device sensors are placed; None where each is placed by its own name."""


class Pipeline:
    """Where records come from, what is computed, where rows go.

    ``source`` and ``sink`` are one or a list each. With several sources the records are taken as they come, those of
    recordings too: two of the same time belong into one `Replay`, which merges them by time. Their columns are put
    together by name. Several of one kind without a ``name=`` are numbered: ``lines``, ``lines_2``.

    ``name``        names the folder where it keeps its state, and it in the log. By default that of the file given to ``tidemill run``,
                    or of the script, if it is a ``.py``; else ``pipeline``: give one in an application that others start, and to each
                    of several in one process
    ``max_keys``    the most sensors of a run; records of further ones are dead letters. Where sensors are placed by their
                    device, each device counts as one too
    ``place_by``    the column that names the device of a sensor: all records of one device go to one lane, and a sensor
                    is told by its device and its name. Taken from the plan where a stage groups by one (`Align`)
    ``lag``         how much later than the newest event time a record may come without being late, for stages that
                    work in event time: the watermark is the newest time less this
    ``max_ahead``   a record whose time is further than this ahead, of its arrival or (in a recording) of all before it,
                    does not move the watermark, and is counted (``time_ahead``, in any plan); by default an hour and
                    thirty days. In a recording eight in a row end a hole, and move it all the same (``time_leaps``).
                    Times thirty days behind the newest, and more than ``lag``, are counted too (``time_behind``)
    ``idle_after``  without any record for so long, the watermark of a live run goes on with the clock

    >>> import tidemill as tm
    >>> tm.Pipeline(tm.sources.Records([]), tm.Plan(), tm.sinks.Latest())
    Pipeline(records -> latest)
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        plan: core.Plan | Stage | Iterable[Stage],
        sink: Sink | Sequence[Sink],
        *,
        name: str | None = None,
        max_keys: int = 1_000_000,
        place_by: str | None = None,
        lag: str | float = "5s",
        max_ahead: str | float | None = None,
        idle_after: str | float = "10s",
    ) -> None:
        self._put_between(source, sink)
        self.plan = plan if isinstance(plan, core.Plan) else Plan(plan)
        self.name = name or UNNAMED
        if max_keys < 1:
            raise PlanError(f"max_keys={max_keys!r} must be at least 1.")
        self.max_keys = max_keys
        self.place_by = place_by
        self.plan.placing(place_by)
        self.lag_ns = duration_ns(lag, name="Pipeline: lag", zero=True)
        self.max_ahead_ns = None if max_ahead is None else duration_ns(max_ahead, name="Pipeline: max_ahead")
        self.idle_ns = duration_ns(idle_after, name="Pipeline: idle_after")

    def _put_between(self, source: Source | Sequence[Source], sink: Sink | Sequence[Sink]) -> None:
        self.sources: tuple[Source, ...] = _all_of(source, Source, "source", "tm.sources.Replay(...)")
        self.sinks: tuple[Sink, ...] = _all_of(sink, Sink, "sink", "tm.sinks.SQLite(...)")
        for word, edges in (("source", self.sources), ("sink", self.sinks)):
            _name_apart(word, edges)
        _require_places_apart(self.sinks)

    def __repr__(self) -> str:
        ways = [*(source.name for source in self.sources)], [*(sink.name for sink in self.sinks)]
        middle = [stage.name for stage in self.plan.stages]
        return f"Pipeline({' -> '.join([', '.join(ways[0]), *middle, ', '.join(ways[1])])})"

    @property
    def finite(self) -> bool:
        """It ends by itself: every source does."""
        return all(source.finite for source in self.sources)

    def called(self, name: str) -> Pipeline:
        """The same pipeline by this name, if it was not given one of its own."""
        if self.name != UNNAMED:
            return self
        made = copy.copy(self)
        made.name = name
        return made

    def between(self, source: Source | Sequence[Source], sink: Sink | Sequence[Sink]) -> Pipeline:
        """The same pipeline with other edges."""
        made = copy.copy(self)
        made._put_between(source, sink)
        return made

    def watermark(self) -> Watermark:
        """A new run's."""
        return Watermark(lag_ns=self.lag_ns, max_ahead_ns=self.max_ahead_ns, idle_ns=self.idle_ns)

    def check(
        self, *, edges: bool = True, resumes: bool = False, waits: bool = False, load: Load = FROM_DISK
    ) -> Checked:
        """Refuse what cannot run, with the name of the culprit: a missing file, an unknown column, a bad table.

        ``edges=False`` leaves the outside alone: what exists at a sink's place does not matter yet. One that ``resumes``
        leaves that to those sinks that know their own output. One that ``waits`` for sinks that are away is told of them as
        it opens them, and its sources listen by then. Tables and models come from ``load``.
        """
        if edges:
            for source in self.sources:
                source.check()
            for sink in self.sinks:
                if not (resumes and sink.keeps_position):
                    with contextlib.suppress(OutsideError) if waits else contextlib.nullcontext():
                        sink.check()
        plan = self.plan.prepared(load)
        entering = _together([(source.name, source.peek()) for source in self.sources])
        entering.key = _key_field(self.sources)
        schemas = (entering, *plan.bind(entering))
        place_by = plan.placed_by(entering, _key_itself(self.sources), asked=self.place_by)
        asked = plan.asks(entering)
        declared = {
            name: Asked((kind,), "as it is declared")
            for source in self.sources
            for name, kind in source.columns.items()
        }
        needed = {name for stage in plan.stages for name in stage.reads() or ()}
        for source in self.sources:
            source.ask({**asked, **declared}, needed)
        plan = plan.settled(entering)
        for sink in self.sinks:
            sink.bind(schemas[-1])
            sink.roles = tuple(dict.fromkeys(name for source in self.sources for name in _roles(source)))
        return Checked(plan, schemas, asked, place_by)


def _together(sources: Sequence[tuple[str, Schema]]) -> Schema:
    """The columns of all sources; a column has one kind for the whole run."""
    fields: dict[str, tuple[str, Field]] = {}
    for source, schema in sources:
        for field in schema:
            first, known = fields.setdefault(field.name, (source, field))
            if known.kind is None:
                fields[field.name] = (source, field)
            elif field.kind is not None and field.kind is not known.kind:
                raise PlanError(
                    f"column {field.name!r} is {known.kind.value} in source {first} and {field.kind.value} in source "
                    f"{source}; a column has one kind in all sources. Declare it with columns={{{field.name!r}: ...}} "
                    f"in both, or run them as two pipelines."
                )
    came = (replace(field, came=True) for _, field in fields.values())
    return Schema(came, open=any(schema.open for _, schema in sources))


def _roles(source: Source) -> tuple[str, ...]:
    """The names of the fields from which records have their key and their time."""
    return (*KeyTemplate(source.key or DEFAULT_KEY).names, source.time or DEFAULT_TIME)


def _key_field(sources: Sequence[Source]) -> str:
    """The column that names the sensor in rows that have no record of their own: the records' own, if all have it."""
    return _key_itself(sources) or DEFAULT_KEY


def _key_itself(sources: Sequence[Source]) -> str | None:
    """The column that is the key as it stands, in all sources; None if there is none."""
    names = {source.key or DEFAULT_KEY for source in sources}
    name = names.pop()
    return None if names or "{" in name else name


def _name_apart(word: str, edges: Sequence[Source | Sink]) -> None:
    """Number those that have only the name of their kind; refuse what could not be told apart in a report."""
    taken: set[str] = set()
    for edge in edges:
        if edge.named and edge.name in taken:
            raise PlanError(f"two {word}s are called {edge.name!r}; give each a name= of its own.")
        if sum(edge is other for other in edges) > 1:
            raise PlanError(f"the {word} {edge.name} stands twice in one pipeline; make two of it.")
        if edge.named:
            taken.add(edge.name)
    for edge in edges:
        for number in count(1):
            edge.number(number)
            if edge.named or edge.name not in taken:
                break
        taken.add(edge.name)


def _require_places_apart(sinks: Sequence[Sink]) -> None:
    """Two sinks in one file would write over each other."""
    first: dict[str, Sink] = {}
    for sink in sinks:
        if sink.place is not None and (other := first.setdefault(sink.place, sink)) is not sink:
            raise PlanError(f"the sinks {other.name} and {sink.name} both write to {sink.place}; give each its own.")


def _all_of(given: Any, kind: type[Any], word: str, example: str) -> tuple[Any, ...]:
    several = isinstance(given, Iterable) and not isinstance(given, (kind, str, bytes))
    members = tuple(given) if several else (given,)
    for member in members:
        if not isinstance(member, kind):
            raise PlanError(f"{member!r} is not a {word}; give one such as {example}, or a list of them.")
    if not members:
        raise PlanError(f"a pipeline needs at least one {word}, such as {example}.")
    return members
