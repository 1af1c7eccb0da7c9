"""The columns that the user's functions make: fit to leave the process, and of one kind for the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import BadResult
from tidemill.formats.unfit import check_sendable
from tidemill.kinds import Kinds
from tidemill.letters import WRONG_TYPE
from tidemill.schema import Kind, Schema
from tidemill.stages.base import Stage, Step
from tidemill.stages.narrowing import encodable

__all__ = ["MadeColumns"]

_NONE: Final[Mapping[str, Kind]] = {}


class MadeColumns:
    """What a chain knows of the columns that its stages of user code make."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.kinds: dict[int, dict[str, Kind]] = {}
        """Per stage of user code, the kinds of the columns it adds, once known; fixed for the run. Under ``~stage``, for
        a stage that fixes the kinds of those that came to it too (`Stage.fixes_kinds`), theirs."""
        self._names: set[str] = set()  # found fit to be sent
        self._declared = [_declared(stage) for stage in stages]

    def known(self, index: int) -> Mapping[str, Kind]:
        """The kinds of a stage's columns as the run knows them so far."""
        return {**self.kinds.get(index, {}), **self.kinds.get(~index, {})}

    def added(self, index: int, stage: Stage, part: Batch) -> dict[str, Kind]:
        """The columns that the stage adds to records such as these."""
        added = {**self._declared[index], **self.kinds.get(index, {})}
        if stage.fixes_kinds:  # it is given whole records and may change any field: what they came with stays
            own = {*part.columns, *self.kinds.get(~index, {})}
            added = {name: kind for name, kind in added.items() if name not in own}
        return added

    def fill(self, index: int, step: Step) -> None:
        """Put in every column that the stage is known to make, absent in all records: which of them a batch's records happen to
        have must not decide what the stages behind find. One that nobody has seen nor declared is not known yet."""
        there = step.batch.columns.keys()
        declared, added, own = self._declared[index], self.kinds.get(index, _NONE), self.kinds.get(~index, _NONE)
        if declared.keys() <= there and added.keys() <= there and own.keys() <= there:
            return
        kinds = {name: kind for name, kind in {**declared, **added, **own}.items() if name not in there}
        rows = len(step.batch)
        step.batch = step.batch.with_columns({name: Column.missing(kind, rows) for name, kind in kinds.items()})

    def check(self, index: int, stage: Stage, before: Batch, step: Step) -> None:
        """Raise `BadResult` for what cannot go on, and turn into its column's kind what can be."""
        made = {name: column for name, column in step.batch.columns.items() if column is not before.columns.get(name)}
        self._check_sendable(stage, before, made)
        self._check_kinds(index, stage, before, step, made)

    def _check_sendable(self, stage: Stage, before: Batch, made: Mapping[str, Column]) -> None:
        """What a function makes must be able to leave the process; also where it need not, so that all runs agree."""
        for name, column in made.items():
            if name not in before.columns and name not in self._names:
                if encodable(name) != name:
                    message = f"{stage.name} returned the field {name!r}, whose name has half of a surrogate pair"
                    raise BadResult(WRONG_TYPE, message)
                self._names.add(name)
            if column.kind is Kind.OBJECT:
                try:
                    check_sendable(column.values.tolist())
                except Exception as error:
                    message = f"{stage.name} returned a value of {name!r} that cannot be sent to another process: "
                    raise BadResult(WRONG_TYPE, message + encodable(str(error))) from error

    def _check_kinds(self, index: int, stage: Stage, before: Batch, step: Step, made: Mapping[str, Column]) -> None:
        """A column that a function adds has one kind for the whole run: the first that it was seen with."""
        added = self.kinds.setdefault(index, {})
        own = self.kinds.setdefault(~index, {}) if stage.fixes_kinds else added
        recast = {}
        for name, column in (step.batch.columns if stage.fixes_kinds else made).items():
            if name not in made:
                if name not in own and column.has_values:
                    own[name] = column.kind
                continue
            kind = own.get(name) or added.get(name)
            if kind is None:
                if not column.is_missing:
                    (own if name in before.columns else added)[name] = column.kind
            elif kind is Kind.OBJECT and column.kind is not kind:
                recast[name] = column.as_objects()
            elif column.is_missing and column.kind is not kind:
                recast[name] = Column.missing(kind, len(column))
                recast[name].tags = column.tags
            elif column.kind is Kind.OBJECT and (fitting := _as_kind(name, column, kind)) is not None:
                recast[name] = fitting
            elif column.kind is not kind:
                message = f"{stage.name} returned {name!r} as {column.kind.value}; it has been {kind.value} so far"
                raise BadResult(WRONG_TYPE, message)
        if recast:
            step.batch = step.batch.with_columns(recast)


def _declared(stage: Stage) -> dict[str, Kind]:
    """The kinds of the columns that a stage of user code says it adds."""
    if not stage.runs_user_code or not stage.changes_columns:
        return {}
    return {field.name: field.kind for field in stage.bind(Schema(open=True)) if field.kind is not None}


def _as_kind(name: str, column: Column, kind: Kind) -> Column | None:
    """A column of objects as one of this kind, if all its values are."""
    made, rejects = Kinds({name: kind}).column(name, column.to_list())
    return None if rejects else made
