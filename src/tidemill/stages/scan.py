"""`scan`: a function that carries a state from one record of a sensor to the next."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from tidemill.errors import BadResult, PlanError
from tidemill.letters import WRONG_TYPE
from tidemill.stages.base import OnError
from tidemill.stages.functions import check_function, is_async, own_name, shown_type
from tidemill.stages.keyed import Keyed

__all__ = ["Scan", "scan"]


def scan(
    fn: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]],
    init: Any = None,
    *,
    columns: Sequence[str] | None = None,
    adds: Mapping[str, object] | None = None,
    ttl: str | float | timedelta | None = None,
    max_keys: int | None = None,
    name: str | None = None,
    on_error: OnError = "dead_letter",
    deadline_s: float | None = None,
) -> Scan:
    """A stage that carries a state from one record of a sensor to the next: `Keyed` in its shortest form.

    ``fn``    gets the sensor's state and a dict of the record's fields, and returns the new state and a dict of fields to
              add: ``(state, dict)``
    ``init``  the state of a sensor that speaks for the first time; each has its own copy. Or a function or class, which
              is called for each sensor and returns it

    All else is as in `Keyed`. The state is pickled after each batch, for the case that its lane dies: numbers, tuples of
    them, lists and dicts are what it is quick with. A ``fn`` that raises costs its record, and the state is what it was,
    also where ``fn`` had changed it in place.

    Cost: as of `Keyed` with ``update``. Raises `PlanError` for a ``fn`` that is no plain function, and for options as
    `Keyed` does; what is not ``(state, dict)`` costs its record (`BadResult`).

    >>> from tidemill.engine.plan import Plan
    >>> def rise(last, record):
    ...     value = record["value"]
    ...     return value, {"rise": 0.0 if last is None else value - last}
    >>> rows = [{"sensor": "S1", "value": 20.0}, {"sensor": "S2", "value": 5.0}, {"sensor": "S1", "value": 22.0}]
    >>> [row["rise"] for row in Plan(scan(rise)).apply(rows)]
    [0.0, 0.0, 2.0]
    """
    check_function(fn, "scan")
    if is_async(init):
        raise PlanError(f"scan({own_name(fn)}) needs a plain function for init; {own_name(init)} is async.")
    return Scan(
        _Starting(fn, init),
        columns=columns,
        adds=adds,
        ttl=ttl,
        max_keys=max_keys,
        name=name,
        on_error=on_error,
        deadline_s=deadline_s,
    )


class Scan(Keyed):
    """What `scan` makes."""

    factory: _Starting

    def describe(self) -> str:
        return f"scan({own_name(self.factory.fn)})"

    def known_by(self) -> Mapping[str, object]:
        return {**super().known_by(), "factory": self.factory.fn}


class _Starting:
    """The factory of a `scan`."""

    def __init__(self, fn: Callable[[Any, dict[str, Any]], Any], init: Any) -> None:
        self.fn = fn
        self._init = init

    def __call__(self) -> _Carried:
        return _Carried(self.fn, self._init() if callable(self._init) else copy.deepcopy(self._init))


class _Carried:
    """The object of one sensor: a function and its state."""

    __slots__ = ("_fn", "_state")

    def __init__(self, fn: Callable[[Any, dict[str, Any]], Any], state: Any) -> None:
        self._fn = fn
        self._state = state

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        returned = self._fn(self._state, record)
        try:
            self._state, fields = returned
        except (TypeError, ValueError):
            told = f"{own_name(self._fn)} returned {shown_type(returned)}; (state, dict) is needed"
            raise BadResult(WRONG_TYPE, told) from None
        return fields  # type: ignore[no-any-return] # looked at with the others

    def snapshot(self) -> Any:
        return self._state

    def restore(self, state: Any) -> None:
        self._state = state
