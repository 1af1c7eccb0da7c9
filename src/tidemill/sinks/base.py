"""What every sink is."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.configured import Configured
from tidemill.errors import BadResult, PlanError, StageError
from tidemill.named import Named
from tidemill.schema import Kind, Schema
from tidemill.stages.expressions import Expression
from tidemill.stages.functions import as_mask

__all__ = ["IfExists", "Keeping", "LoopSink", "ProcessSink", "Sink", "SinkStatistics", "Where"]

IfExists = Literal["fail", "append", "replace"]
Where = Callable[[Batch], NDArray[np.bool_]]


@dataclass(frozen=True)
class SinkStatistics:
    """How a sink is."""

    name: str
    rows: int
    """Rows written so far."""
    bytes: int = 0
    """Bytes written so far, where the sink knows."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Values that the sink has no place for, by their field: a CSV file's header is written once."""
    deleted: int = 0
    """Rows that it has deleted so far, since they are older than they are to be kept."""


@dataclass(frozen=True)
class Keeping:
    """What a sink is told by a run that keeps state."""

    folder: Path
    """This sink's own folder inside the state folder: it is there, and private."""
    pipeline: str
    """Names the pipeline's state, and no other's, where the sink notes its position outside of ``folder``."""
    epoch: int
    """The number of this start; greater than that of every start before."""


class Sink(Named, Configured, abc.ABC):
    """Where rows go.

    ``where``      a function Batch -> boolean mask of the rows wanted here, or an expression over columns as `Filter`
                   has it: ``"value > 80"``; anything but bools ends the run
    ``columns``    the columns wanted here, in this order; all by default
    ``if_exists``  what to do with what is there already: ``"fail"`` (default), ``"append"`` or ``"replace"``
    """

    def __init__(
        self,
        *,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if if_exists not in ("fail", "append", "replace"):
            raise PlanError(f'if_exists={if_exists!r} is not one of "fail", "append", "replace".')
        if where is not None and not isinstance(where, str) and not callable(where):
            raise PlanError(f"where={where!r} must be a function of a batch, or an expression such as 'value > 80'.")
        self.where: Where | None = Expression(where) if isinstance(where, str) else where
        self.columns = tuple(columns) if columns is not None else None
        self.if_exists: IfExists = if_exists

    roles: tuple[str, ...] = ()
    """The records' fields that name the sensor, and those that hold the time; the pipeline says which these are."""
    keeps_position: bool = False
    """Whether it commits rows and their position together (`ProcessSink.resume`, `commit`): then each row is there
    exactly once. One sink of a class may not, when what it writes to cannot be taken back: standard output."""
    numbered: bool = False
    """Whether it wants ``batch.sequence`` and ``batch.epoch``, with which its reader can leave out what comes twice; a run
    that keeps state gives them."""
    delivery: str = "at-least-once"
    """The guarantee without state on disk, for the report."""
    delivery_with_state: str = "at-least-once"
    """The guarantee of a run that keeps state."""

    @property
    def asks_for(self) -> tuple[str, ...]:
        """The columns that its options name."""
        return self.columns or ()

    @property
    def place(self) -> str | None:
        """What it writes to, when that can take the rows of one sink only: a file's real path."""
        return None

    @property
    def writes(self) -> Path | None:
        """The file that it writes, or the folder of Parquet files, where it is one."""
        return None

    def check(self) -> None:
        """Refuse at start what cannot work: a file that exists, a folder that does not. An `OutsideError`, such as of a
        server that is away, does not end a live run with state: it finds out as it opens, and waits."""

    def require_same_output(self, folder: Path) -> None:
        """Refuse to go on elsewhere than where the rows of earlier starts are, as `ProcessSink.resume` does; ``folder`` is that of
        its `Keeping`, or would be. Changes nothing: a run may be writing."""

    def bind(self, schema: Schema) -> None:
        """Refuse at start a column that the plan does not give."""
        self._require(schema, self.asks_for)

    def _require(self, schema: Schema, columns: Sequence[str]) -> None:
        """These must be there, and those that ``where`` reads."""
        read = sorted(self.where.names) if isinstance(self.where, Expression) else ()
        for column in dict.fromkeys((*read, *columns)):
            schema.require(column, stage=f"sink {self.name}")

    def why_left_out(self, name: str) -> str:
        """What a person is told, once, when the first values under ``name`` appear in `SinkStatistics.left_out`."""
        return f"some values of field {name!r} could not be written as they are; the report counts them"

    def whys_left_out(self, names: Sequence[str]) -> Mapping[str, str]:
        """The same for all that appear at once: each with its sentence, or several with one, under the first of them."""
        return {name: self.why_left_out(name) for name in names}

    def chosen(self, batch: Batch) -> Batch:
        """The rows and columns of ``batch`` that are wanted here."""
        if self.where is not None and len(batch):
            batch = batch.take(np.flatnonzero(self._mask(batch, self.where)))
        if self.columns is not None:
            for column in self.columns:
                if column not in batch:  # a field that these records happen to lack
                    batch = batch.with_columns({column: Column.missing(Kind.OBJECT, len(batch))})
            batch = batch.select({column: column for column in self.columns})
        return batch

    def _mask(self, batch: Batch, where: Where) -> NDArray[np.bool_]:
        try:
            made = where(batch)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise StageError(f"where= of sink {self.name} raised {type(error).__name__}: {error}") from error
        try:
            return as_mask(made, len(batch), f"where= of sink {self.name}")
        except BadResult as error:
            raise StageError(f"{error}.") from None


class ProcessSink(Sink):
    """A sink of blocking calls. It runs in a process of its own, so that neither its waits nor the GIL it holds can
    touch the event loop; with ``lanes=0`` it runs in a thread."""

    tried: Callable[[str], None] = staticmethod(lambda _: None)
    """For a sink that tries again by itself: it says why a try has failed, and nothing, ``""``, once one goes well. Called from
    the thread that all else is called from; whoever opens the sink listens."""

    @abc.abstractmethod
    def open(self, schema: Schema) -> None:
        """Called once, in the sink's process, before the first `write`."""

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        """The same for a run that keeps state: continue this pipeline's own output, and return the position up to which
        it is committed (0 when there is none); what was written beyond is taken back. With no position known, what
        exists is treated as ``if_exists`` says. Rows of earlier starts that come late, of a process that was stopped and
        wakes up, must change nothing from here on (``keeping.epoch``).

        This default is for sinks that only know at least once: nothing is known to be committed but by the checkpoint.
        """
        self.open(schema)
        return 0

    def commit(self, position: int) -> None:
        """Make everything written so far durable, and with it that it reaches up to ``position``: both or neither.

        Positions grow. Called instead of `flush` in a run that keeps state, also when no row was written since the last.
        """
        self.flush()

    @abc.abstractmethod
    def write(self, batch: Batch) -> None:
        """Take these rows, after `chosen`; they may become visible only at the next `flush`. A batch may have columns
        that earlier ones lacked (a field that came later): older rows read null there."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Make everything written so far visible to readers."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flush and let go. Called also after an error; must not raise when there is nothing to close."""

    def give_up(self) -> None:
        """Called from another thread, with ``lanes=0``, when nobody waits for it any longer: what blocks in it should end soon, with
        an error. A process is killed instead."""

    @abc.abstractmethod
    def statistics(self) -> SinkStatistics:
        """A frozen reading."""


class LoopSink(Sink):
    """A sink inside the application: it runs on the event loop, and its time there is reported apart."""

    async def open(self, schema: Schema) -> None:
        """Called once before the first `write`."""

    @abc.abstractmethod
    async def write(self, batch: Batch) -> None:
        """Take these rows, after `chosen`. The arrays are valid until it returns."""

    async def close(self) -> None:
        """Called once, after the last `write`."""

    @abc.abstractmethod
    def statistics(self) -> SinkStatistics:
        """A frozen reading."""
