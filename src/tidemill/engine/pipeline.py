"""`Pipeline`: sources, a plan, sinks; and what can be known of it before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from tidemill.core import plan as core
from tidemill.engine.plan import FROM_DISK, Plan
from tidemill.errors import PlanError
from tidemill.schema import Field, Schema
from tidemill.sinks.base import Sink
from tidemill.sources.base import Source
from tidemill.stages.base import Stage

__all__ = ["Checked", "Pipeline"]


@dataclass(frozen=True)
class Checked:
    """A pipeline that may start."""

    plan: core.Plan
    """With its tables and models loaded."""
    schemas: tuple[Schema, ...]
    """What enters the first stage, then what leaves each stage."""


class Pipeline:
    """Where records come from, what is computed, where rows go.

    ``source`` and ``sink`` are one or a list each. With several sources the records are taken as they come; their
    columns are put together by name. Several of one kind without a ``name=`` are numbered: ``lines``, ``lines_2``.

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
    ) -> None:
        self.sources: tuple[Source, ...] = _all_of(source, Source, "source", "tm.sources.Replay(...)")
        self.sinks: tuple[Sink, ...] = _all_of(sink, Sink, "sink", "tm.sinks.SQLite(...)")
        for word, edges in (("source", self.sources), ("sink", self.sinks)):
            _name_apart(word, edges)
        _require_places_apart(self.sinks)
        self.plan = plan if isinstance(plan, core.Plan) else Plan(plan)
        self.name = name or "pipeline"
        if max_keys < 1:
            raise PlanError(f"max_keys={max_keys!r} must be at least 1.")
        self.max_keys = max_keys

    def __repr__(self) -> str:
        ways = [*(source.name for source in self.sources)], [*(sink.name for sink in self.sinks)]
        middle = [stage.name for stage in self.plan.stages]
        return f"Pipeline({' -> '.join([', '.join(ways[0]), *middle, ', '.join(ways[1])])})"

    @property
    def finite(self) -> bool:
        """It ends by itself: every source does."""
        return all(source.finite for source in self.sources)

    def check(self, *, edges: bool = True) -> Checked:
        """Refuse what cannot run, with the name of the culprit: a missing file, an unknown column, a bad table.

        ``edges=False`` leaves the outside alone: what exists at a sink's place does not matter yet.
        """
        if edges:
            for source in self.sources:
                source.check()
            for sink in self.sinks:
                sink.check()
        plan = self.plan.prepared(FROM_DISK)
        entering = _together([(source.name, source.peek()) for source in self.sources])
        schemas = (entering, *plan.bind(entering))
        for sink in self.sinks:
            sink.bind(schemas[-1])
        return Checked(plan, schemas)


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
    return Schema((field for _, field in fields.values()), open=any(schema.open for _, schema in sources))


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
    members = (given,) if isinstance(given, kind) else tuple(given) if isinstance(given, Iterable) else (given,)
    for member in members:
        if not isinstance(member, kind):
            raise PlanError(f"{member!r} is not a {word}; give one such as {example}, or a list of them.")
    if not members:
        raise PlanError(f"a pipeline needs at least one {word}, such as {example}.")
    return members
