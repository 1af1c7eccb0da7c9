"""Which stages of a changed plan go on with the state that a run before has left (decision 43).

A stage is known by its class, by what its state depends on (`Stage.known_by`), and by its place among the others; its name
counts where it was given one. Functions are known by their names: a run goes on with another version of a function.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from itertools import accumulate
from typing import Any, Final

import numpy as np

from tidemill.core.plan import Plan
from tidemill.durations import shown as shown_duration
from tidemill.errors import PlanError
from tidemill.stages.base import Stage
from tidemill.stages.state import StateField

__all__ = ["Matching", "StageIdentity", "check_resume", "described", "identify", "matched"]

_LONGEST: Final = 10_000
"""Of a longer list or table of a stage, its length alone is looked at: only stages without state have such."""
_MOST_OPTIONS: Final = 5
"""That a message names."""
_LONGEST_VALUE: Final = 60
"""Characters of an option's value there."""


@dataclass(frozen=True)
class StageIdentity:
    """What a stage is known by; msgspec makes builtin values of it, as JSON has them, and the reverse."""

    kind: str
    """Its class."""
    shown: str
    """What it is called in messages (`Stage.name`)."""
    name: str | None
    """The name that it was given, if any."""
    known_by: dict[str, Any]
    """Values of JSON."""
    fields: dict[str, StateField]
    """Its arrays in state memory."""
    objects: bool
    """Whether it keeps objects of the user's."""
    placed_by: str | None
    """The column by whose device sensors are placed, and told apart; of no matter to a stage without state."""
    behind_ns: int
    """Of a stage that follows the watermark, how far that is held back by the stages before it. It must not fall under
    state: a window would end twice."""

    @property
    def has_state(self) -> bool:
        return self.objects or bool(self.fields)

    def is_same(self, other: StageIdentity) -> bool:
        """Whether one can go on with the state of the other."""
        if self.kind != other.kind or self.known_by != other.known_by or self.objects != other.objects:
            return False
        if None not in (self.name, other.name) and self.name != other.name:
            return False
        if self.has_state and (self.placed_by, self.behind_ns) != (other.placed_by, other.behind_ns):
            return False
        return _arrays(self.fields) == _arrays(other.fields)


def identify(plan: Plan, placed_by: str | None = None) -> list[StageIdentity]:
    """What the stages of a plan are known by; ``placed_by`` is what `Plan.placed_by` gave for the run.

    >>> from tidemill.stages.rolling import Rolling
    >>> identify(Plan(Rolling("value", 50)))[0].known_by
    {'columns': ['value'], 'window': 50, 'max_gap_s': None}
    """
    before = accumulate((stage.delay_ns for stage in plan.stages), initial=0)
    return [_identity(stage, placed_by, behind_ns) for stage, behind_ns in zip(plan.stages, before, strict=False)]


@dataclass(frozen=True)
class Matching:
    """Which stage goes on with the state of which."""

    old: Sequence[StageIdentity]
    new: Sequence[StageIdentity]
    sources: tuple[int | None, ...]
    """Of each new stage, the place of the old one that it is; None where it is none of them."""

    @property
    def keeps(self) -> bool:
        """Whether any state is kept; if none is, sensors begin anew too."""
        return any(source is not None and self.old[source].has_state for source in self.sources)

    @property
    def same(self) -> bool:
        """Whether the plan is the one that the state is of, with its sensors placed as they were."""
        pairs = zip(self.old, self.new, strict=False)
        return self.sources == tuple(range(len(self.old))) and all(a.placed_by == b.placed_by for a, b in pairs)

    @property
    def keeps_keys(self) -> bool:
        """Whether sensors are those of the state; else they begin anew too: they may be told apart otherwise."""
        return self.keeps or self.same

    @property
    def lost(self) -> list[StageIdentity]:
        """The old stages whose state no new one goes on with."""
        return [one for place, one in enumerate(self.old) if one.has_state and place not in self.sources]


def matched(old: Sequence[StageIdentity], new: Sequence[StageIdentity]) -> Matching:
    """Stages of one given name are the same if they can be, wherever they stand. The others keep their order: as many
    stages with state as can be are kept, then as many in all, of those equally good the earliest.
    """
    sources: list[int | None] = [None] * len(new)
    for place, one in enumerate(new):
        if one.name is not None:
            taken = (
                n for n, other in enumerate(old) if other.name == one.name and n not in sources and one.is_same(other)
            )
            sources[place] = next(taken, None)
    rest_old = [n for n in range(len(old)) if n not in sources]
    rest_new = [n for n, source in enumerate(sources) if source is None]
    for place, source in _in_order([old[n] for n in rest_old], [new[n] for n in rest_new]):
        sources[rest_new[place]] = rest_old[source]
    return Matching(old, new, tuple(sources))


def check_resume(matching: Matching, drop_state: Collection[str] = ()) -> None:
    """Raise `PlanError` where the new plan would lose state that is not named in ``drop_state``.

    Names of other stages do no harm there: a command line may stay as it is once the state is gone.
    """
    lost = [one for one in matching.lost if one.shown not in drop_state]
    if not lost:
        return
    changes = _changes(matching, lost)
    options = " ".join(f"--drop-state {_quoted(name)}" for name in dict.fromkeys(one.shown for one in lost))
    if all(source is None for source in matching.sources):
        raise PlanError(
            f"the state is of {_plan(matching.old)}, and no stage of {_plan(matching.new)} can go on with it{changes}; run the "
            f"plan that it is of, go on where the input stands with empty stages, {options}, or start over with --fresh."
        )
    what = "stages that are" if len(lost) > 1 else "a stage that is"
    raise PlanError(
        f"the state holds that of {', '.join(one.shown for one in lost)}, {what} not in the plan any more or changed{changes}; to "
        f"go on without it, give {options}."
    )


def described(matching: Matching) -> str:
    """What becomes of every stage, in one line.

    >>> from tidemill.stages.map import Map
    >>> from tidemill.stages.rolling import Rolling
    >>> def halved(batch):
    ...     return {"half": batch["value"] / 2}
    >>> old = identify(Plan(Rolling("value", 20), Rolling("value", 50)))
    >>> print(described(matched(old, identify(Plan(Map(halved), Rolling("value", 50), Rolling("value", 100))))))
    resume: Map(halved) is new, Rolling('value', 50) keeps, Rolling('value', 100) starts empty, Rolling('value', 20) is dropped
    """
    told = []
    for one, source in zip(matching.new, matching.sources, strict=True):
        told.append(f"{one.shown} {'keeps' if source is not None else 'starts empty' if one.has_state else 'is new'}")
    told += [f"{one.shown} is dropped" for one in matching.lost]
    return f"resume: {', '.join(told) or 'no stages'}"


# -- what a stage is known by ----------------------------------------------------------------------------------


def _identity(stage: Stage, placed_by: str | None, behind_ns: int) -> StageIdentity:
    return StageIdentity(
        kind=type(stage).__qualname__,
        shown=stage.name,
        name=stage.given_name,
        known_by={name: _fact(value) for name, value in stage.known_by().items()},
        fields=dict(stage.state_fields()),
        objects=stage.keeps_objects,
        placed_by=placed_by,
        behind_ns=behind_ns if stage.follows_watermark else 0,
    )


def _fact(value: Any) -> Any:
    """A value as JSON has it, so that equal ones are equal after they were written and read."""
    if value is None or isinstance(value, bool | int | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value if np.isfinite(value) else repr(value)
    if isinstance(value, Enum):
        return _fact(value.value)
    if isinstance(value, np.ndarray):
        return _fact(value.tolist()) if value.size <= _LONGEST else [str(value.dtype), list(value.shape)]
    if isinstance(value, bytes):
        return {"bytes": len(value), "crc32": zlib.crc32(value)}
    if isinstance(value, Mapping):
        many = len(value) > _LONGEST
        return {"entries": len(value)} if many else {str(name): _fact(own) for name, own in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return {"entries": len(value)} if len(value) > _LONGEST else [_fact(item) for item in items]
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__qualname__: {own.name: _fact(getattr(value, own.name)) for own in fields(value)}}
    if isinstance(value, np.generic):
        return _fact(value.item())
    return _called(value)


def _called(value: Any) -> str:
    """The name of a function or class; of any other object, that of its class."""
    own = getattr(value, "__qualname__", None) or getattr(getattr(value, "func", None), "__qualname__", None)
    return own if isinstance(own, str) else type(value).__qualname__


def _arrays(fields: Mapping[str, StateField]) -> dict[str, tuple[object, ...]]:
    """What must be the same of the fields: not how much room there is for what waits in a lane."""
    return {
        name: (field.dtype, field.shape if field.region is None else field.shape[1:], field.per_lane, field.region)
        for name, field in fields.items()
    }


# -- matching ----------------------------------------------------------------------------------------------------

_Worth = tuple[int, int]
"""Stages with state, and stages in all."""


def _in_order(old: Sequence[StageIdentity], new: Sequence[StageIdentity]) -> list[tuple[int, int]]:
    """Places in ``new`` and ``old`` of the stages that are the same, both ascending."""
    best: list[list[_Worth]] = [[(0, 0)] * (len(old) + 1) for _ in range(len(new) + 1)]

    def with_pair(place: int, source: int) -> _Worth:
        state, stages = best[place + 1][source + 1]
        return state + old[source].has_state, stages + 1

    for place in reversed(range(len(new))):
        for source in reversed(range(len(old))):
            worth = max(best[place + 1][source], best[place][source + 1])
            if new[place].is_same(old[source]):
                worth = max(worth, with_pair(place, source))
            best[place][source] = worth
    pairs: list[tuple[int, int]] = []
    first = 0
    for place, one in enumerate(new):
        good = (n for n in range(first, len(old)) if one.is_same(old[n]) and with_pair(place, n) == best[place][first])
        for source in good:
            pairs.append((place, source))
            first = source + 1
            break
    return pairs


def _changes(matching: Matching, lost: Sequence[StageIdentity]) -> str:
    """In what the stages of the new plan differ that have taken the place of these; in brackets, or nothing."""
    fresh = [one for one, source in zip(matching.new, matching.sources, strict=True) if source is None]
    told = []
    for one in lost:
        alike = sorted((other for other in fresh if other.kind == one.kind), key=lambda other: other.shown != one.shown)
        if alike:
            fresh.remove(alike[0])
            told.append(f"{one.shown}: {_differences(one, alike[0])}")
    return f" ({'; '.join(told)})" if told else ""


def _differences(old: StageIdentity, new: StageIdentity) -> str:
    before, after = (dict(_options(one.known_by)) | {"place_by": repr(one.placed_by)} for one in (old, new))
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    told = [f"{name}={before.get(name)}, and now {after.get(name)}" for name in names[:_MOST_OPTIONS]]
    if None not in (old.name, new.name) and old.name != new.name:
        told.append(f"name={old.name!r}, and now {new.name!r}")
    if old.behind_ns != new.behind_ns:
        told.append(f"rows come to it {_duration(old.behind_ns)} late, and now {_duration(new.behind_ns)}")
    if not told and new.is_same(old):
        return "it is the same, and has changed places with another; without a name= stages keep their state in their order alone"
    return "; ".join(told) or "what it keeps of each sensor is laid out otherwise, as its other options need it"


def _options(known: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Options by name, as they may have been given: durations are kept in nanoseconds."""
    for name, value in known.items():
        if isinstance(value, Mapping) and value:
            yield from _options(value, f"{within}{name}.")
            continue
        own = name.removesuffix("_ns")
        told = _duration(value) if own != name and isinstance(value, int) else repr(value)
        if isinstance(value, str) and value.endswith("ns") and value[:-2].isdigit():
            told = _duration(int(value[:-2]))
        yield within + own, told if len(told) <= _LONGEST_VALUE else told[:_LONGEST_VALUE] + "..."


def _duration(ns: int) -> str:
    return repr(shown_duration(ns))


def _plan(stages: Sequence[StageIdentity]) -> str:
    return f"Plan({', '.join(one.shown for one in stages)})"


def _quoted(name: str) -> str:
    """For a shell; in double quotes where that will do, since names of stages have single ones in them."""
    return shlex.quote(name) if any(character in name for character in '"$`\\!') else f'"{name}"'
