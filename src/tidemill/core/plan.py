"""The chain of stages: what a lane runs, and what a notebook applies. Users have it as `tidemill.engine.plan.Plan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tidemill.errors import PlanError
from tidemill.schema import Schema
from tidemill.stages.base import Load, Stage
from tidemill.stages.state import StateField, StateLayout

__all__ = ["Plan"]


class Plan:
    """A chain of stages, checked as far as it can be before anything runs.

    ``Plan(stage, stage, ...)``; a list of stages counts as its stages, and a plan inside a plan as its stages.
    """

    def __init__(self, *stages: Stage | Plan | Iterable[Stage]) -> None:
        self.stages: tuple[Stage, ...] = tuple(_flattened(stages))

    def __repr__(self) -> str:
        return f"Plan({', '.join(map(repr, self.stages))})"

    def __len__(self) -> int:
        return len(self.stages)

    def prepared(self, load: Load) -> Plan:
        """The plan with its tables and models loaded; raises `InputError` or `PlanError` for one that cannot serve."""
        return Plan(*(stage.prepared(load) for stage in self.stages))

    def bind(self, schema: Schema) -> list[Schema]:
        """The schema after each stage; raises `PlanError` naming the stage, the column, and what there is."""
        schemas = []
        for stage in self.stages:
            schema = stage.bind(schema)
            schemas.append(schema)
        return schemas

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

    @property
    def learns(self) -> bool:
        """Whether some columns are known only once a user's function has returned its first batch."""
        return any(
            stage.runs_user_code and stage.changes_columns and not stage.follows_watermark for stage in self.stages
        )

    @property
    def follows_watermark(self) -> bool:
        """Whether a stage needs event times and the watermark."""
        return any(stage.follows_watermark for stage in self.stages)

    @property
    def absorbs(self) -> bool:
        """Whether no record comes out: only rows that a stage makes of them."""
        return any(stage.absorbs for stage in self.stages)

    @property
    def uses_kernels(self) -> bool:
        """Whether a stage needs the compiled kernels."""
        return any(stage.uses_kernels for stage in self.stages)

    def layout(self, max_keys: int, max_records: int) -> StateLayout:
        """The layout of the state memory of one lane."""
        fields: tuple[Mapping[str, StateField], ...] = tuple(dict(stage.state_fields()) for stage in self.stages)
        return StateLayout(fields, max_keys, max_records)


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
