"""Control records: what was decided outside, such as a new table, and its place in input order.

A control record takes a place in the input like any record, and counts as one. A new stage takes effect behind a slab:
every lane works on the slabs up to it with the old, on those behind it with the new. Lanes are told in that order, and a
lane that replaces a dead one is told again what the dead one had been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidemill.errors import EngineError

__all__ = ["Barrier", "CatchUp", "Control", "Controls", "Decided", "End", "NewStage", "NewStages", "Tick"]


@dataclass(frozen=True)
class Tick:
    """No record has come for long: the watermark goes on to ``mark_ns``."""

    mark_ns: int


@dataclass(frozen=True)
class NewStage:
    """Another stage, pickled, takes the place of number ``stage``; it was made of the file that is kept as ``file``."""

    stage: int
    pickled: bytes
    file: str = ""


@dataclass(frozen=True)
class NewStages:
    """A file has changed: all stages that are made of it become others at one place in the input."""

    stages: tuple[NewStage, ...]


@dataclass(frozen=True)
class CatchUp:
    """There are no more records: the watermark goes on to the newest time."""


@dataclass(frozen=True)
class End:
    """There are no more records: everything ends."""


Decided = Tick | NewStages | CatchUp | End
"""A control record."""


@dataclass(frozen=True)
class Control:
    """From behind slab ``after`` on, another stage in the place of number ``stage``."""

    after: int
    stage: int
    pickled: bytes


@dataclass(frozen=True)
class Barrier:
    """Behind slab ``after``, every lane copies its state: checkpoint ``number`` is made of that."""

    after: int
    number: int


class Controls:
    """The controls of a run that a lane may still have to be told.

    >>> controls = Controls()
    >>> _ = controls.add(3, 0, b"new table")
    >>> [step if isinstance(step, int) else step.pickled for step in controls.among([2, 3, 4])]
    [2, 3, b'new table', 4]
    """

    def __init__(self) -> None:
        self._held: list[Control | Barrier] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, after: int, stage: int, pickled: bytes) -> Control:
        """A control that takes effect behind slab ``after``, the last that was handed out."""
        control = Control(after, stage, pickled)
        self._hold(control)
        return control

    def add_barrier(self, after: int, number: int) -> None:
        """A barrier behind slab ``after``, the last that was handed out."""
        self._hold(Barrier(after, number))

    def drop_barrier(self) -> None:
        """All lanes have copied."""
        self._held = [held for held in self._held if isinstance(held, Control)]

    def _hold(self, step: Control | Barrier) -> None:
        if self._held and self._held[-1].after > step.after:
            raise EngineError(f"a control behind slab {step.after} came after one behind slab {self._held[-1].after}")
        self._held.append(step)

    def among(self, slabs: Sequence[int]) -> Iterator[Control | Barrier | int]:
        """What a new process is told: these slabs, in order, with each control where it takes effect.

        Before the first slab come the controls that were in effect then, and behind the last all that are left.
        """
        rest = iter(self._held)
        control = next(rest, None)
        for slab in slabs:
            while control is not None and control.after < slab:
                yield control
                control = next(rest, None)
            yield slab
        while control is not None:
            yield control
            control = next(rest, None)

    def forget(self, open_from: int) -> None:
        """All slabs before ``open_from`` are done: of what took effect before it, only the last of each stage counts."""
        settled = [control for control in self._held if control.after < open_from]
        last = {control.stage: control for control in settled if isinstance(control, Control)}
        kept = [held for held in settled if isinstance(held, Barrier) or last[held.stage] is held]
        self._held = kept + self._held[len(settled) :]
