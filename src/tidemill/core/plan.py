"""The chain of stages: what a lane runs, and what a notebook applies. Users have it as `tidemill.engine.plan.Plan`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any, Final

from tidemill.errors import InputError, PlanError
from tidemill.schema import NAMING, Asked, Field, Kind, Schema
from tidemill.stages.base import Load, Stage
from tidemill.stages.state import StateField, StateLayout

__all__ = ["Plan"]

_STRANGER: Final = Field("\0stranger", Kind.FLOAT)
"""A column that no stage knows."""


class Plan:
    """A chain of stages, checked as far as it can be before anything runs.

    ``Plan(stage, stage, ...)``; a list of stages counts as its stages, and a plan inside a plan as its stages.
    """

    def __init__(self, *stages: Stage | Plan | Iterable[Stage]) -> None:
        self.stages: tuple[Stage, ...] = tuple(_flattened(stages))
        grouping = {stage.groups_by: stage.name for stage in self.stages if stage.groups_by is not None}
        if len(grouping) > 1:
            (one, first), (other, second) = list(grouping.items())[:2]
            raise PlanError(
                f"{first} groups sensors by {one!r} and {second} by {other!r}; all stages of a plan group by one column, "
                "since its records are in the lane of its device. Run them as two pipelines."
            )

    def __repr__(self) -> str:
        return f"Plan({', '.join(map(repr, self.stages))})"

    def __len__(self) -> int:
        return len(self.stages)

    def prepared(self, load: Load) -> Plan:
        """The plan with its tables and models loaded; raises `InputError` or `PlanError` for one that cannot serve."""
        return Plan(*(_prepared(stage, load) for stage in self.stages))

    def bind(self, schema: Schema) -> list[Schema]:
        """The schema after each stage; raises `PlanError` naming the stage, the column, and what there is."""
        schemas = []
        for stage in self.stages:
            schema = stage.bind(schema)
            schemas.append(schema)
        return schemas

    def asks(self, entering: Schema) -> dict[str, Asked]:
        """What stages require of columns that may come with a record: a first value of another kind is then a fault of its record,
        and not what the column is."""
        asked: dict[str, Asked] = {}
        schema = Schema(entering, open=entering.open, key=entering.key, asked=asked)
        for stage in self.stages:
            schema = copy.copy(stage).bind(schema)
        return asked

    def settled(self, schema: Schema) -> Plan:
        """The plan whose stages know what enters them."""
        stages = []
        for stage in self.stages:
            stages.append(stage.settled(schema))
            schema = stage.bind(schema)
        return type(self)(*stages)

    def reads(self) -> frozenset[str] | None:
        """The columns its stages look at; None when a user's function may look at any."""
        names: frozenset[str] = frozenset()
        for stage in self.stages:
            read = stage.reads()
            if read is None:
                return None
            names |= read
        return names

    def awaited(self, schemas: Sequence[Schema], there: Collection[str]) -> list[tuple[str, str]]:
        """Stage and column, of columns that a stage reads and that the first records did not have.

        ``schemas``  what enters the first stage, then what leaves each
        ``there``    the columns of the first rows that came out; where a stage may have dropped one, nothing is said of it
        """
        found = []
        for place, stage in enumerate(self.stages):
            entering = schemas[place]
            absent = [name for name in sorted(stage.reads() or ()) if name not in entering and name not in there]
            if absent and entering.open and all(map(_carries, self.stages[place:], schemas[place:])):
                found += [(stage.name, name) for name in absent]
        return found

    @property
    def learns(self) -> bool:
        """Whether some columns are known only once a user's function has returned its first batch."""
        return any(
            stage.runs_user_code and stage.changes_columns and not stage.follows_watermark for stage in self.stages
        )

    @property
    def longest_call_s(self) -> float:
        """Seconds that one call of a stage may take before it is stopped, or told of: the least of all stages; infinite without."""
        limits = [limit for stage in self.stages for limit in (stage.deadline_s, stage.budget_s) if limit is not None]
        return min(limits, default=inf)

    @property
    def follows_watermark(self) -> bool:
        """Whether a stage needs event times and the watermark."""
        return any(stage.follows_watermark for stage in self.stages)

    @property
    def groups_by(self) -> str | None:
        """The column that names what several sensors share, where a stage works on that."""
        return next((stage.groups_by for stage in self.stages if stage.groups_by is not None), None)

    def placing(self, asked: str | None) -> str | None:
        """The same, or what the user ``asked`` for; raises `PlanError` when the two differ."""
        own = self.groups_by
        if asked is not None and (not isinstance(asked, str) or not asked):
            raise PlanError(f"place_by={asked!r} must be the name of a column.")
        if asked is not None and own is not None and asked != own:
            raise PlanError(f"place_by={asked!r}, and the plan groups sensors by {own!r}; leave place_by= out.")
        return asked or own

    def placed_by(self, entering: Schema, key: str | None, *, asked: str | None = None) -> str | None:
        """The column by whose device each sensor must be placed; None where each can be placed by its own name.

        ``key`` is the column that is the key as it stands, if one is; ``asked`` what the user said. Raises `PlanError` for
        a column that is not there, or cannot name a device, and for a stage whose rows would not say their device.
        """
        by = self.placing(asked)
        if by is None or by == key:
            return None
        who = "place_by" if asked else next(stage.name for stage in self.stages if stage.groups_by)
        entering.require(by, stage=who, kinds=NAMING)
        for stage in self.stages:
            if stage.groups_by is not None:
                break  # what comes out of it are rows of devices
            if stage.follows_watermark:
                raise PlanError(
                    f"{who}: sensors are grouped by {by!r}, and the rows of {stage.name} do not say their {by!r}; put it "
                    f'behind the stage that groups, or let {by!r} be the key itself: key="{by}".'
                )
        return by

    @property
    def absorbs(self) -> bool:
        """Whether no record comes out: only rows that a stage makes of them."""
        return any(stage.absorbs for stage in self.stages)

    @property
    def uses_kernels(self) -> bool:
        """Whether a stage needs the compiled kernels."""
        return any(stage.uses_kernels for stage in self.stages)

    def layout(self, max_keys: int, max_records: int, *, undone: bool = True) -> StateLayout:
        """The layout of the state memory of one lane; see `StateLayout`."""
        fields: tuple[Mapping[str, StateField], ...] = tuple(dict(stage.state_fields()) for stage in self.stages)
        return StateLayout(fields, max_keys, max_records, makes_rows=self.follows_watermark, undone=undone)


def _carries(stage: Stage, entering: Schema) -> bool:
    """Whether columns that a stage does not know come out of it."""
    if stage.may_lose_columns or stage.absorbs:
        return False
    return _STRANGER.name in copy.copy(stage).bind(entering.adding([_STRANGER]))


def _flattened(stages: Iterable[Any]) -> Iterable[Stage]:
    for stage in stages:
        if isinstance(stage, Stage):
            yield stage
        elif isinstance(stage, Plan):
            yield from stage.stages
        elif isinstance(stage, Iterable) and not isinstance(stage, str | bytes | Mapping):
            yield from _flattened(stage)
        elif callable(stage):
            name = getattr(stage, "__name__", type(stage).__name__)
            raise PlanError(
                f"{name} is a function, not a stage; write tm.Map({name}) for columns, tm.MapRows({name}) for dicts."
            )
        else:
            raise PlanError(
                f"{stage!r} is not a stage; a Plan takes stages such as tm.Rolling(...) or tm.Map(function)."
            )


def _prepared(stage: Stage, load: Load) -> Stage:
    """The stage with its table or model; whatever is wrong with that is told with the stage's name."""
    try:
        return stage.prepared(load)
    except InputError as error:
        if str(error).startswith(stage.name):
            raise
        raise InputError(f"{stage.name}: {error}") from None
