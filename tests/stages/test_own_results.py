"""What users' code returns is taken as it is then: dicts, lists and buffers that it goes on with change no row."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import tidemill as tm
from tidemill.core.apply import with_roles
from tidemill.core.trial import Trial, cut_at, keys_of, marks_of
from tidemill.testing import ListSink

ROWS = [{"sensor": f"S{n % 2}", "time": n, "value": float(n), "tags": [n]} for n in range(12)]


def in_batches(stage: Any, *cuts: int, rows: list[dict[str, Any]] = ROWS) -> list[dict[str, Any]]:
    """As a lane works on them: columns alone, in batches that are read when all of them have been worked on."""
    batch = with_roles(copy.deepcopy(rows), "sensor", "time", "UTC")
    batch.origin = None
    trial = Trial(stage, keys_of(batch), records=len(batch), marks=marks_of(batch))
    return trial.feed_all(cut_at(batch, list(cuts))).batch.to_rows()


class Returning:
    """Each returns something that it goes on changing, beside how many records it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def update(self, record: dict[str, Any]) -> Any:
        self.seen += 1
        return self.returned(record)

    def returned(self, record: dict[str, Any]) -> Any:
        raise NotImplementedError


class OwnDict(Returning):
    def __init__(self) -> None:
        super().__init__()
        self.out: dict[str, Any] = {}

    def returned(self, record: dict[str, Any]) -> Any:
        self.out["made"] = self.seen
        return self.out


class OwnOrderedDict(OwnDict):
    def __init__(self) -> None:
        super().__init__()
        self.out = OrderedDict()


class OnceItsOwn(OwnDict):
    """Its own dict once, and fresh ones while it changes that."""

    def returned(self, record: dict[str, Any]) -> Any:
        return super().returned(record) if self.seen == 1 else dict(super().returned(record))


class OwnList(Returning):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def returned(self, record: dict[str, Any]) -> Any:
        self.values.append(record["value"])
        return {"made": self.values}


class OwnNested(OwnList):
    def returned(self, record: dict[str, Any]) -> Any:
        super().returned(record)
        return {"made": {"all": [self.values]}}


class OwnArray(Returning):
    def __init__(self) -> None:
        super().__init__()
        self.array = np.zeros(2)

    def returned(self, record: dict[str, Any]) -> Any:
        self.array[0] = self.seen
        return {"made": self.array}


class TheRecordsList(Returning):
    """A list of an earlier record's, which went on as it was, is changed with the next."""

    last: list[int] | None = None

    def returned(self, record: dict[str, Any]) -> Any:
        if self.last is not None:
            self.last.append(-1)
            record["tags"] = [*record["tags"], "more"]
        self.last = record["tags"]
        return record


class TheRecordsOwn(Returning):
    def returned(self, record: dict[str, Any]) -> Any:
        record["tags"].append(self.seen)
        return record


class SometimesTags(Returning):
    """Changes the record's list, and returns a list of its own for some."""

    def returned(self, record: dict[str, Any]) -> Any:
        record["tags"].append(self.seen)
        return {} if self.seen % 2 else {"tags": [-1]}


KINDS = [
    *(OwnDict, OwnOrderedDict, OnceItsOwn, OwnList, OwnNested, OwnArray),
    *(TheRecordsList, TheRecordsOwn, SometimesTags),
]


def looped(kind: type[Returning]) -> list[dict[str, Any]]:
    """A plain loop, which copies what it is given and what it gets."""
    objects: dict[str, Returning] = {}
    made = []
    for row in ROWS:
        mine = objects.setdefault(row["sensor"], kind())
        made.append({**copy.deepcopy(row), **copy.deepcopy(mine.update(copy.deepcopy(row)))})
    return made


def listed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without arrays, which cannot be compared."""
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("cuts", [(), (1, 4, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_what_its_own_call_returned(kind: type[Returning], cuts: tuple[int, ...]) -> None:
    """Not what the object made of that dict, list or array with later records."""
    assert listed(in_batches(tm.Keyed(kind), *cuts)) == listed(looped(kind))


def test_a_scan_may_return_its_state_as_fields() -> None:
    """In `plan.apply` and in a run; ``return state, state`` is what is natural to write."""

    def count(state: dict[str, int], record: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
        state["count"] += 1
        return state, state

    plan = tm.Plan(tm.scan(count, init={"count": 0}))
    counts = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [row["count"] for row in plan.apply(ROWS)] == counts
    sink = ListSink()
    tm.run(tm.Pipeline(tm.sources.Records(ROWS), plan, sink), lanes=0)
    assert [row["count"] for row in sink.rows] == counts
