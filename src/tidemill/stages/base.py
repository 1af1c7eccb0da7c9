"""What every stage is: a description that can be checked and sent, and one step over a batch."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.letters import Reject
from tidemill.schema import Kind, Schema
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.places import Places
from tidemill.stages.state import StageState, StateField

__all__ = ["GONE", "Emitted", "Entered", "Load", "OnError", "Stage", "Step", "Table"]

OnError = Literal["dead_letter", "nan", "stop"]

GONE: Final = ("absorbed", "deduplicated", "dropped", "late")
"""What a record that does not go on may be counted as, if not as filtered."""

_OF_EVERY: Final = ("on_error", "deadline_s", "budget_s", "runs_user_code", "adds")
"""Attributes of stages that no state depends on."""

Table = Mapping[str, Sequence[Any]]
"""A loaded table: column name -> values (str where it came from CSV)."""


class Load(Protocol):
    """Reads for stages what they were given by path, and says which absolute path it tried.

    It comes from the floor that may touch the disk. Raises `InputError` for what is not there or cannot be read.
    """

    def table(self, path: str) -> tuple[str, Table]:
        """A CSV table."""
        ...

    def file(self, path: str) -> tuple[str, bytes]:
        """A file as it is, such as a model."""
        ...


@dataclass(frozen=True)
class Emitted:
    """Rows without a record of their own: a window that ended, a sensor that fell silent.

    Each comes out where the watermark crossed what it waited for; those of one place in the order of ``ends``, then of
    their sensors' names as bytes. One sensor's rows are in that order already.
    """

    batch: Batch
    """The rows, with their event times."""
    slots: NDArray[np.int32]
    """Key slot of each row."""
    places: NDArray[np.int32]
    """Place in the slab of the record with which the watermark crossed; 0 in a slab without records."""
    ends: NDArray[np.int64]
    """What orders the rows of one place, in nanoseconds: a window's end."""
    rejects: Sequence[Reject] = ()
    """Positions among these rows of those that are dead letters instead."""


@dataclass
class Step:
    """What a stage made of a batch when not simply one row per record."""

    batch: Batch
    """The records that go on."""
    kept: NDArray[np.intp] | None = None
    """Positions in the stage's input of the records that go on, ascending; None when all do."""
    rejects: list[Reject] = field(default_factory=list)
    """Positions in the stage's input that go to the dead letters. They must not be in ``kept``."""
    gone: dict[str, int] = field(default_factory=dict)
    """How many of the records that are neither kept nor rejected count as what, by names of `GONE`; the rest of them
    was filtered."""
    before: Batch | None = None
    """The records that go on as they came, where some do not and columns are added to the others: a column of ``batch``
    that is this one's was left alone, and needs no way back from the lane."""
    unshown: frozenset[str] = frozenset()
    """Columns that go on though no record has them here, and none has shown yet that the user's function would not leave them
    out. Stages behind find them; they come out of the plan only if something has put a value there."""
    emitted: Emitted | None = None
    """Rows beside those of the records that go on."""


@dataclass(frozen=True)
class Entered:
    """Consecutive records of a batch that are in a stage's state, and what works on any part of them."""

    start: int
    stop: int
    work: Callable[[Batch, int], Batch | Step]
    """``work(part, at)`` of ``batch.slice(at, at + len(part))``, somewhere in ``start`` to ``stop``: what the stage makes
    of it. It may be called again, on other parts, until the next records enter."""

    def beginning(self, first: int) -> Entered:
        """The same as records of a batch of which its own begins with the record ``first``."""
        if not first:
            return self
        return Entered(self.start + first, self.stop + first, lambda part, at: self.work(part, at - first))


_LONGEST_S: Final = 1e9


def _is_seconds(value: object) -> bool:
    """Up to 30 years, which can still be counted in nanoseconds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) <= _LONGEST_S
    except OverflowError:  # an integer beyond all floats
        return False


class Stage(abc.ABC):
    """A pure step over batches, with keyed state or none.

    A stage object describes: it is checked against the schema in the parent (`bind`), pickled once, and `opened` in
    each lane; the opened copy runs. It must not hold open files, arrays of state or threads.

    ``name``        shown in errors and reports; by default the class and its main argument
    ``on_error``    what happens to a record on which the user's function fails: ``"dead_letter"``, ``"nan"`` (the
                    columns this stage adds are missing for it) or ``"stop"`` (the run ends with a `StageError`). A record
                    that ends the lane's process, or passes ``deadline_s``, is set aside before the stage: it is a dead
                    letter with ``"nan"`` too
    ``deadline_s``  seconds one call of the user's function may take before its lane is replaced; None for no limit. With
                    ``lanes=0`` and in `Plan.apply` there is no lane to replace: nothing can stop a function there. Making
                    the object of a class, or loading a model, has none: another lane would only begin with it again, and there is
                    no record to go on without
    """

    changes_columns: ClassVar[bool] = True
    """False for a stage that only drops rows: every column that comes out is what went in."""

    may_lose_columns: ClassVar[bool] = False
    """Whether a user's function may leave out columns that came in."""

    drops: ClassVar[bool] = False
    """Whether it leaves records out by its own judgement; of any other, each record goes on or is rejected."""

    keeps_objects: ClassVar[bool] = False
    """Whether it has state that is no array (`changed_objects`)."""

    uses_kernels: ClassVar[bool] = False
    """Whether it needs the compiled kernels, which are then loaded before the lanes are forked."""

    runs_user_code: ClassVar[bool] = False
    """Whether `step` calls functions of the user's, which may raise, hang, or kill the process."""

    follows_watermark: ClassVar[bool] = False
    """Whether it needs event times and the watermark (`StageState.marks`), and may make rows without a record."""

    groups_by: str | None = None
    """The column that names what several sensors share, their device, where the stage works on that: all records of a
    device then go to one lane, and `StageState.devices` has its key slot. Such a stage follows the watermark."""

    delay_ns: int = 0
    """How much later than the watermark the rows that it makes may come out: for the stages behind it, the watermark is
    held back so far, and they are not late."""

    absorbs: ClassVar[bool] = False
    """Whether no record goes on: only rows that it makes (`Emitted`)."""

    fixes_kinds: ClassVar[bool] = False
    """Whether the columns that it leaves alone have their kind fixed too, as those that it adds have."""

    narrows_itself: ClassVar[bool] = False
    """Whether `step` finds itself on which records the user's function fails, because it cannot be repeated (the function
    has a state of its own). It is then called once for each record, with a batch or, after a crash, with each record
    alone, and returns a `Step` whose ``rejects`` are the records that failed; see `tidemill.stages.narrowing`."""

    budget_s = 10.0
    """Seconds one call of the user's function may take before the run tells of it; see `within`."""

    _shown: str | None = None
    """What `describe` says, of one that runs."""

    path: str | None = None
    """The file that it is made of, if any: a live run watches it (`tidemill.engine.file_watch`)."""

    def __init__(
        self, *, name: str | None = None, on_error: OnError = "dead_letter", deadline_s: float | None = None
    ) -> None:
        if on_error not in ("dead_letter", "nan", "stop"):
            raise PlanError(f'on_error={on_error!r} is not one of "dead_letter", "nan", "stop".')
        if deadline_s is not None and not _is_seconds(deadline_s):
            raise PlanError(
                f"{name or type(self).__name__}: deadline_s={deadline_s!r} must be a number of seconds, more than 0 and at most "
                f"{_LONGEST_S:g}; leave it out for no deadline."
            )
        self._name = name
        self.on_error: OnError = on_error
        self.deadline_s = deadline_s

    @property
    def name(self) -> str:
        return self._name or self._shown or self.describe()

    @property
    def given_name(self) -> str | None:
        """The ``name`` that it was given."""
        return self._name

    def within(self, budget_s: float) -> Self:
        """This stage with another time budget, in seconds (10 by default): a call that takes longer is told of, while it goes
        on, and counted as ``over_budget``, and so is making the object of a class in a lane, or loading a model; neither with
        ``lanes=0``, where it holds the run itself. To have a call stopped,
        and its record in the dead letters, there is ``deadline_s``.

        Raises `PlanError` unless it is more than 0 seconds.
        """
        if not _is_seconds(budget_s):
            raise PlanError(
                f"{self.name}: within({budget_s!r}) must be a number of seconds, more than 0 and at most {_LONGEST_S:g}."
            )
        made = copy.copy(self)
        made.budget_s = budget_s
        return made

    def describe(self) -> str:
        """The stage as a user would write it, short: ``Rolling('normalized', 50)``."""
        return type(self).__name__

    def __repr__(self) -> str:
        return self.name

    @property
    def needs_times(self) -> bool:
        """Whether it works with the records' own times, which `Plan.apply` must then be told where to find."""
        return self.follows_watermark

    # -- in the parent, before anything runs -------------------------------------------------------------

    def prepared(self, load: Load) -> Stage:
        """This stage with its tables and models loaded by ``load``; raises `InputError` or `PlanError` when they cannot serve."""
        return self

    @abc.abstractmethod
    def bind(self, schema: Schema) -> Schema:
        """The schema after this stage; raises `PlanError` naming the stage, the column, and what there is."""

    def settled(self, schema: Schema) -> Stage:
        """This stage, knowing what enters it; what it needs of that it must not look for in its first batch."""
        return self

    def reads(self) -> frozenset[str] | None:
        """The columns it needs to see; None for all (a user's function may look at any)."""
        return None

    def state_fields(self) -> Mapping[str, StateField]:
        """Its arrays in state memory; none by default."""
        return {}

    def known_by(self) -> Mapping[str, object]:
        """What its state depends on: a run that finds another stage of this class, with the same here, among the stages of
        the run before goes on with its state. By default all of its public attributes but those of every stage.

        Numbers, text, functions (of which the name counts), and lists, dicts and dataclasses of them.
        """
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name not in _OF_EVERY}

    def hint(self, what: str) -> str | None:
        """What the user should do where the stage counts this (`StageState.count`); None where all is well with it. Told once."""
        return None

    def doubt(self, states: Sequence[StageState], slots: Sequence[int]) -> str | None:
        """What looks like a mistake once there were records and they have ended, from what it kept in each lane, which was told of
        so many key slots; None where nothing does. The stage is not opened."""
        return None

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], places: Places) -> Sequence[Mapping[str, NDArray[Any]]]:
        """What it keeps for whole lanes, for another number of them: needed where a field is ``per_lane``.

        ``old[lane]`` has those fields as they were in that lane, the used part alone where they have a ``region``, and
        ``places`` says where sensors' slots have gone. Returns the same for each new lane; what is left out stays zero.
        The stage is not opened. What is kept of each sensor is moved without it.
        """
        raise PlanError(f"{self.name} does not say what becomes of its state with another number of lanes.")

    # -- in a lane -------------------------------------------------------------------------------------

    def opened(self) -> Self:
        """The copy that runs in one lane; what is expensive or cannot be pickled is built here."""
        lane = copy.copy(self)
        lane._shown = self.name  # put together once, and not for each batch
        return lane

    def know(self, kinds: Mapping[str, Kind]) -> None:
        """The kinds of its columns as the run knows them so far; told to a stage of user code before each step."""

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        """New sensors: ``keys[i]`` has slot ``first_slot + i``. Called before their first record, and again, from
        slot 0 on, in a lane that replaces a dead one."""

    def changed_objects(self) -> ObjectStates | None:
        """What is kept in state that is no array: the objects that changed since this was last asked, as bytes.

        What is given here with a slab that is committed is held again, by `hold_objects`, in a lane that replaces a dead
        one.
        """
        return None

    def hold_objects(self, states: ObjectStates) -> None:
        """Go on with these objects; later states take the place of earlier ones."""

    @abc.abstractmethod
    def step(self, batch: Batch, state: StageState) -> Batch | Step:
        """Work on a batch; a plain `Batch` means one row per record, in order.

        A value may depend on the record, its key's earlier records in order, and nothing else: not on where one
        batch ends and the next begins. Before state is overwritten it is saved and sealed (see `StageState`).
        """

    def enter(self, batch: Batch, state: StageState) -> Iterator[Entered]:
        """`step` in two halves, for a stage with both a state and a function of the user's.

        The first half takes records into the state, each once, whatever their function makes of them; the second,
        `Entered.work`, only reads it. So a call that fails is repeated on fewer records without any of them entering
        twice. By default there is nothing to enter, and the work is `step`.
        """
        slots = state.slots

        def work(part: Batch, at: int) -> Batch | Step:
            state.slots = slots[at : at + len(part)]
            return self.step(part, state)

        yield Entered(0, len(batch), work)
