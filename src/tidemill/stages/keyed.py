"""`Keyed`: an object of the user's for each sensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.durations import duration_ns
from tidemill.errors import PlanError, StageError
from tidemill.letters import Reject
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import OnError, Stage, Step
from tidemill.stages.functions import is_async, own_name, shown_type
from tidemill.stages.keyed_calls import BatchCalls, Calls, RecordCalls
from tidemill.stages.narrowing import rejected
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.objects import Objects, async_method
from tidemill.stages.options import declared_kinds, names_of, whole_number
from tidemill.stages.state import StageState

__all__ = ["Keyed"]


class Keyed(Stage):
    """An object of your own for each sensor, which sees that sensor's records in order; one row out per record in.

    ``factory``   called without arguments for each sensor, in a lane: a class, or a function that makes the object. The
                  object has ``update(record)``, which gets a dict of the record's fields and returns a dict of fields to
                  add; or ``update_many(batch)``, which gets a `Batch` of its sensor's next records, in order and at
                  least one, and returns a dict of columns (arrays or lists of ``len(batch)``, or single values)
    ``columns``   the fields that it gets to see; all by default, and the fewer the quicker
    ``adds``      kinds of fields it adds, such as ``{"score": float}``; learned from the first value when not given;
                  functions behind find them from the start, or once a record has shown them, also where a batch has none
    ``ttl``       a sensor that was silent for longer starts with a new object: ``"1h"``, or seconds. By the records'
                  own times: decided when it speaks again, by the newest time that it has had. None for never
    ``max_keys``  the most objects that each lane holds. Beyond it a new sensor takes the place of those silent for longer
                  than ``ttl``; where there is none, its records go to the dead letters (``too_many_keys``)

    What an object returns depends on its sensor's records alone, wherever batches end and whatever happens to lanes.
    Give it no clock and no random numbers, and ``update_many`` no memory of where a batch ended. Only beyond ``max_keys``
    does it matter what other sensors of the lane do. What it returns is taken as it is then: it may return the very dict,
    list or array that it goes on changing.

    A field that the record has is replaced, and keeps its kind. A record on which ``update`` raises, or for which it
    returns something that is no dict or of another kind than before, is rejected alone, and its object has not seen it:
    the object is made again from what was kept of it, and is given the step's good records again.

    **What survives.** When a lane dies, its objects are made again as they were. For that, what an object is made of is
    kept after each batch that it has seen: its attributes, pickled, or what ``snapshot()`` returns, which ``restore(...)``
    then puts into a new object. That costs 2 to 4 us for each object and batch, plus what its
    size takes. An object that cannot be pickled and has no ``snapshot``, or cannot be made again from either, raises
    `StageError` at its first batch.

    Cost, beside that: 1.4 us a record and ``update`` itself (to make a dict of four fields, and columns of what is
    returned), and 0.3 us more for a list of numbers in it, 2 to 3 for a dict of some dicts, which are copied;
    ``update_many`` 45 us a sensor and batch, and next to nothing for a record: nested values are copied when it looks at them.

    >>> class Baseline:
    ...     count, mean = 0, 0.0
    ...
    ...     def update(self, record):
    ...         self.count += 1
    ...         self.mean += (record["value"] - self.mean) / self.count
    ...         return {"above": record["value"] - self.mean}
    >>> from tidemill.engine.plan import Plan
    >>> rows = [{"sensor": "S1", "value": 20.0}, {"sensor": "S2", "value": 5.0}, {"sensor": "S1", "value": 22.0}]
    >>> [row["above"] for row in Plan(Keyed(Baseline)).apply(rows)]
    [0.0, 0.0, 1.0]
    """

    runs_user_code: ClassVar[bool] = True
    narrows_itself: ClassVar[bool] = True
    keeps_objects: ClassVar[bool] = True
    fixes_kinds: ClassVar[bool] = True
    may_lose_columns: ClassVar[bool] = True

    def __init__(
        self,
        factory: Callable[[], Any],
        *,
        columns: Sequence[str] | None = None,
        adds: Mapping[str, object] | None = None,
        ttl: str | float | timedelta | None = None,
        max_keys: int | None = None,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error, deadline_s=deadline_s)
        self.factory = factory
        self._check_factory()
        self.columns = None if columns is None else names_of(columns, name=f"{self.name}: columns")
        self.adds = declared_kinds({} if adds is None else adds, name=f"{self.name}: adds")
        self.ttl_ns = None if ttl is None else duration_ns(ttl, name=f"{self.name}: ttl")
        if max_keys is not None:
            must = "be a number of sensors, 1 or more"
            max_keys = whole_number(max_keys, name=f"{self.name}: max_keys", must=must, least=1)
        self.max_keys = max_keys
        self._known: Mapping[str, Kind] = {}
        self._objects: Objects | None = None

    def describe(self) -> str:
        return f"{type(self).__name__}({own_name(self.factory)})"

    def _check_factory(self) -> None:
        factory = self.factory
        if not callable(factory):
            hint = f"; give the class itself, {type(factory).__name__}" if _methods(type(factory)) else ""
            raise PlanError(
                f"{type(self).__name__} needs a class, or a function that makes one object per sensor; it was given "
                f"{shown_type(factory)}{hint}."
            )
        if is_async(factory):
            raise PlanError(f"{self.name} needs a plain function; {own_name(factory)} is async.")
        if isinstance(factory, type) and not _methods(factory):
            raise PlanError(
                f"{self.name}: the class {factory.__qualname__} has neither update(record) nor update_many(batch)."
            )
        if isinstance(factory, type) and (method := async_method(factory)) is not None:
            raise PlanError(f"{self.name} needs plain methods; {method} is async.")

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns or ():
            schema.require(column, stage=self.name)
        return schema.adding(Field(name, kind) for name, kind in self.adds.items()).opened()

    @property
    def needs_times(self) -> bool:
        return self.ttl_ns is not None

    def reads(self) -> frozenset[str] | None:
        return None if self.columns is None else frozenset(self.columns)

    def known_by(self) -> Mapping[str, object]:
        return {"factory": self.factory, "columns": self.columns, "ttl_ns": self.ttl_ns}

    # -- in a lane -------------------------------------------------------------------------------------------

    def opened(self) -> Self:
        lane = super().opened()
        lane._objects = Objects(self.name, self.factory, ttl_ns=self.ttl_ns, max_keys=self.max_keys)
        return lane

    def know(self, kinds: Mapping[str, Kind]) -> None:
        self._known = kinds

    def changed_objects(self) -> ObjectStates | None:
        assert self._objects is not None
        return self._objects.changed()

    def hold_objects(self, states: ObjectStates) -> None:
        assert self._objects is not None
        self._objects.hold(states)

    def step(self, batch: Batch, state: StageState) -> Step:
        objects = self._objects
        assert objects is not None
        objects.sensors = state.keys
        refused: list[Reject] = []
        while not objects.method and len(refused) < len(batch):
            try:
                objects.look()
            except (StageError, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - whatever the factory raises costs this record
                refused.append(rejected(self, error, len(refused)))
        first = len(refused)
        calls = self._calls(objects, batch.slice(first, len(batch)), state.slots[first:], state)
        made, kept = calls.made()
        rejects = [Reject(first + row, r.reason_code, r.reason) for row, r in sorted(calls.rejects.items())]
        if not first:
            return Step(made, kept, rejects)
        kept = np.arange(len(made)) if kept is None else kept
        return Step(made, first + kept, [*refused, *rejects])

    def _calls(self, objects: Objects, batch: Batch, slots: NDArray[np.int32], state: StageState) -> Calls:
        seen = batch if self.columns is None else batch.select({c: c for c in self.columns if c in batch})
        way = BatchCalls if objects.method == "update_many" else RecordCalls
        return way(
            self,
            objects,
            batch,
            seen,
            slots,
            kinds=self._known,
            adds=self.adds,
            timed=self.ttl_ns is not None,
            calling=state.calling if self.deadline_s is not None else None,
        )


def _methods(kind: type) -> bool:
    return callable(getattr(kind, "update", None)) or callable(getattr(kind, "update_many", None))
