"""What users' code returns is taken as it is then: dicts, lists and buffers that it goes on with change no row."""

from __future__ import annotations

import copy
import pickle
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tidemill as tm
from tidemill.column import Column
from tidemill.core.apply import with_roles
from tidemill.core.trial import Trial, cut_at, keys_of, marks_of
from tidemill.stages import own_values, windows
from tidemill.testing import ListSink

ROWS = [{"sensor": f"S{n % 2}", "time": n, "value": float(n), "tags": [n]} for n in range(12)]


def in_batches(stage: Any, *cuts: int, rows: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """As a lane works on them: columns alone, in batches that are read when all of them have been worked on."""
    batch = with_roles(copy.deepcopy(ROWS) if rows is None else rows, "sensor", "time", "UTC")
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


# -- buffers of its own ------------------------------------------------------------------------------------

MOST = 64  # rows at once


class Buffer:
    """Doubles what it is given, in memory of its own, which it gives out each time anew; some values are too much."""

    def __init__(self) -> None:
        self.floats = np.zeros(MOST)
        self.bools = np.zeros(MOST, np.bool_)
        self.integers = np.zeros(MOST, np.int64)
        self.pairs = np.zeros((MOST, 2))

    def __call__(self, batch: tm.Batch) -> Any:
        values = batch["value"]
        if (values == 7).any():
            raise ValueError("as told")
        rows = len(values)
        np.multiply(values, 2, out=self.floats[:rows])
        np.greater(values, 5, out=self.bools[:rows])
        self.integers[:rows] = values
        self.pairs[:rows, 1] = values
        return {
            "double": self.floats[:rows],
            "high": self.bools[:rows],
            "whole": self.integers[:rows],
            "pair": list(self.pairs[:rows]),
        }


class BufferAlone(Buffer):
    """One array, for ``into="double"``."""

    def __call__(self, batch: tm.Batch) -> Any:
        return super().__call__(batch)["double"]


class BufferInABatch(Buffer):
    def __call__(self, batch: tm.Batch) -> Any:
        return batch.with_columns({"double": Column(tm.Kind.FLOAT, super().__call__(batch)["double"])})


class BufferInAFrame(Buffer):
    def __call__(self, batch: tm.Batch) -> Any:
        return pd.DataFrame({"double": super().__call__(batch)["double"]}, copy=False)


class BufferByFrame(Buffer):
    """For `MapFrame`."""

    def __call__(self, frame: pd.DataFrame) -> Any:
        return pd.DataFrame({"double": super().__call__(frame)["double"]}, copy=False)  # type: ignore[arg-type]


class BufferByRow(Buffer):
    """For `MapRows`: one array for each of the places in its list."""

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        if any(row["value"] == 7 for row in rows):
            raise ValueError("as told")
        for pair, row in zip(self.pairs, rows, strict=False):
            pair[1] = row["value"]
            row["pair"], row["double"] = pair, row["value"] * 2
        return rows


class BufferOfMany(Buffer):
    """For `Keyed`: all objects share the memory."""

    shared = Buffer()

    def update_many(self, batch: tm.Batch) -> Any:
        return self.shared(batch)


@pytest.mark.parametrize("cuts", [(), (1, 4, 5)])
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(tm.Map(Buffer), id="Map"),
        pytest.param(tm.Map(Buffer, adds={"double": float, "high": bool, "whole": int, "pair": object}), id="declared"),
        pytest.param(tm.Map(BufferAlone, into="double"), id="into"),
        pytest.param(tm.Map(BufferInABatch), id="Batch"),
        pytest.param(tm.Map(BufferInAFrame), id="DataFrame"),
        pytest.param(tm.MapFrame(BufferByFrame), id="MapFrame"),
        pytest.param(tm.MapRows(BufferByRow), id="MapRows"),
        pytest.param(tm.Keyed(BufferOfMany), id="update_many"),
    ],
)
def test_a_function_may_return_its_own_buffer(stage: Any, cuts: tuple[int, ...]) -> None:
    """Each call's result is taken when it returns: the function is called again with parts, and with the next batch."""
    made = listed(in_batches(stage, *cuts))
    assert [row["double"] for row in made] == [2.0 * n for n in range(12) if n != 7]
    if "pair" in made[0]:
        assert [row["pair"] for row in made] == [[0, n] for n in range(12) if n != 7]
    if "high" in made[0]:
        assert [row["high"] for row in made] == [n > 5 for n in range(12) if n != 7]
        assert [row["whole"] for row in made] == [n for n in range(12) if n != 7]


def test_a_tile_may_be_a_buffer_of_its_own() -> None:
    """A fixed number of rows is what people set memory aside for."""

    class Tiled:
        def __init__(self) -> None:
            self.out = np.zeros(4)

        def __call__(self, batch: tm.Batch) -> Any:
            np.multiply(batch["value"], 2, out=self.out)
            return {"double": self.out}

    assert [row["double"] for row in in_batches(tm.Map(Tiled, tile=4))] == [2.0 * n for n in range(12)]


def test_two_stages_may_share_a_buffer() -> None:
    """What the first made of the batch is still there when the second has used the memory."""
    shared = np.zeros(MOST)

    def times(factor: float, name: str) -> Any:
        def work(batch: tm.Batch) -> Any:
            return {name: np.multiply(batch["value"], factor, out=shared[: len(batch)])}

        return work

    rows = tm.Plan(tm.Map(times(2, "double"), name="two"), tm.Map(times(3, "triple"), name="three")).apply(ROWS)
    assert [(row["double"], row["triple"]) for row in rows] == [(2.0 * n, 3.0 * n) for n in range(12)]


@pytest.mark.parametrize("together", [True, False])
def test_functions_over_windows_may_return_their_own_buffer(monkeypatch: Any, together: bool) -> None:
    """They are called several times for a batch of long windows, and one after another for one column."""
    if not together:
        monkeypatch.setattr(windows, "_CELLS_AT_ONCE", 20)
    shared = np.zeros(MOST)

    def last(arrays: Any) -> Any:
        return np.add(arrays[:, -1], 0, out=shared[: len(arrays)])

    def first(arrays: Any) -> Any:
        return np.add(arrays[:, 0], 0, out=shared[: len(arrays)])

    rows = in_batches(tm.Rolling("value", 3, [last, first], min_periods=3))
    assert [(row["value_last_3"], row["value_first_3"]) for row in rows[4:]] == [(n, n - 4) for n in range(4, 12)]
    made = in_batches(tm.MapWindows(last, "value", 3, into="last"))
    assert [row["last"] for row in made] == list(range(12))


# -- nested values of records ------------------------------------------------------------------------------


def nesting(batch: Any) -> Any:
    """Changes what it was given before it fails."""
    for tags in batch["tags"]:
        tags.append(-1)
    if (batch["value"] == 7).any():
        raise ValueError("as told")
    return batch


class Nesting:
    def update_many(self, batch: tm.Batch) -> Any:
        return {"tags": nesting(batch)["tags"]}


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        pytest.param(tm.Map(lambda batch: {"tags": nesting(batch)["tags"]}), True, id="Map"),
        pytest.param(tm.Map(lambda batch: {"n": nesting(batch)["value"]}), False, id="Map of others"),
        pytest.param(tm.MapFrame(nesting), True, id="MapFrame"),
        pytest.param(tm.Filter(lambda batch: nesting(batch)["value"] >= 0), False, id="Filter"),
        pytest.param(tm.Keyed(Nesting), True, id="update_many"),
    ],
)
def test_nested_values_are_the_functions_own(stage: Any, changed: bool) -> None:
    """It may change them, and fail: what is called again gets them as they came, and what is not returned stays."""
    rows = copy.deepcopy(ROWS)
    made = in_batches(stage, rows=rows)
    more = [-1] if changed else []
    assert [row["tags"] for row in made] == [[n, *more] for n in range(12) if n != 7]
    assert rows == ROWS, "the caller's own are left alone"


# -- what is copied of nested values -----------------------------------------------------------------------


class Counted:
    """A value that a record can hold, and that counts how often it was copied."""

    copies = 0

    def __init__(self, n: int) -> None:
        self.n = n

    def __deepcopy__(self, memo: Any) -> Counted:
        Counted.copies += 1
        return Counted(self.n)


class DoublesMany:
    def update_many(self, batch: tm.Batch) -> Any:
        return {"double": batch["value"] * 2}


class GivesBackMany:
    def update_many(self, batch: tm.Batch) -> Any:
        return {"tags": batch.column("tags"), "double": batch["value"] * 2}


def first_half_doubled(batch: tm.Batch) -> Any:
    half = batch.take(np.arange(len(batch) // 2))
    return {"double": np.append(half["value"] * 2, batch.slice(len(half), len(batch))["value"] * 2)}


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(tm.Map(lambda batch: {"double": batch["value"] * 2}), id="Map"),
        pytest.param(tm.Map(lambda batch: {"double": batch["value"] * 2}, tile=5), id="tile"),
        pytest.param(tm.Map(lambda batch: batch), id="the batch"),
        pytest.param(tm.Map(lambda batch: {"tags": batch.column("tags")}), id="the column"),
        pytest.param(tm.Map(lambda batch: {"other": batch.column("tags")}), id="under another name"),
        pytest.param(tm.Map(first_half_doubled), id="parts"),
        pytest.param(tm.Filter(lambda batch: batch["value"] >= 0), id="Filter"),
        pytest.param(tm.Keyed(DoublesMany), id="update_many"),
        pytest.param(tm.Keyed(GivesBackMany), id="the column of update_many"),
    ],
)
def test_what_no_function_looks_at_is_not_copied(stage: Any) -> None:
    """A record's nested field costs a function that works on its numbers nothing, and goes on as the very object it was."""
    tags = [Counted(n) for n in range(12)]
    Counted.copies = 0
    batch = with_roles([{**row, "tags": item} for row, item in zip(ROWS, tags, strict=True)], "sensor", "time", "UTC")
    batch.origin = None
    made = Trial(stage, keys_of(batch), records=len(batch), marks=marks_of(batch)).feed_all([batch]).batch.to_rows()
    assert Counted.copies == 0
    assert all(row["tags"] is item for row, item in zip(made, tags, strict=True))


class Yielding(Counted):
    """Lets another thread run while it is copied."""

    def __deepcopy__(self, memo: Any) -> Counted:
        time.sleep(0)
        return super().__deepcopy__(memo)


@pytest.mark.parametrize("part", [lambda batch: batch, lambda batch: batch.slice(1, 99)], ids=["whole", "part"])
def test_threads_of_a_function_change_the_same_nested_values(part: Any) -> None:
    """Both look first, at the same moment; each changes half of the values, and what is returned has all changes."""

    def halves(batch: tm.Batch) -> Any:
        both = Barrier(2)

        def negate(rows: slice) -> None:
            both.wait()
            for item in part(batch)["x"][rows]:
                item.n = -item.n

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(negate, [slice(0, None, 2), slice(1, None, 2)]))
        return {"x": batch["x"]}

    rows = 200
    Counted.copies = 0
    batch = tm.Batch.from_rows([{"x": Yielding(n)} for n in range(rows)])
    made = [row["x"].n for row in tm.Map(halves).opened().step(batch, None).to_rows()]  # type: ignore[arg-type]
    changed = part(batch)["x"].tolist()
    assert made == [-item.n if item in changed else item.n for item in batch["x"].tolist()]
    assert Counted.copies == 2 * rows, "once for the function, and once as they are returned"


def test_a_copys_own_code_may_look_at_the_column() -> None:
    """It sees what the function sees then, and waits for nobody."""
    seen: list[Any] = []

    class Looking(Counted):
        batch: tm.Batch | None = None

        def __deepcopy__(self, memo: Any) -> Counted:
            batch, Looking.batch = Looking.batch, None
            if batch is not None:
                seen.extend(batch["x"])
            return super().__deepcopy__(memo)

    def looks(batch: tm.Batch) -> Any:
        Looking.batch = batch
        assert all(item is its for item, its in zip(batch["x"], seen, strict=True))
        return {}

    tm.Map(looks).opened().step(tm.Batch.from_rows([{"x": Looking(n)} for n in range(3)]), None)  # type: ignore[arg-type]
    assert len(seen) == 3


def test_a_lent_batch_can_be_sent_and_copied() -> None:
    """Functions send batches to processes of their own; what they get holds the values."""
    seen = []

    def sends(batch: tm.Batch) -> Any:
        seen.extend([copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))])
        return {}

    in_batches(tm.Map(sends))
    assert [[row["tags"] for row in batch.to_rows()] for batch in seen] == [[[n] for n in range(12)]] * 2


def test_parts_of_a_lent_batch_hold_what_the_whole_does() -> None:
    """A part that is returned shows what the function has changed in the whole, looked at or not."""

    def changes(batch: tm.Batch) -> Any:
        part = batch.take(np.arange(len(batch)))
        for tags in batch["tags"]:
            tags.append(-1)
        return {"tags": part.column("tags"), "other": batch.slice(0, len(batch)).column("tags")}

    made = in_batches(tm.Map(changes))
    assert [row["tags"] for row in made] == [[n, -1] for n in range(12)]
    assert [row["other"] for row in made] == [[n, -1] for n in range(12)]


@pytest.mark.parametrize("rows", [np.zeros(2, np.intp), [0, 0], pd.Series([0, 0])], ids=["array", "list", "Series"])
def test_a_function_may_use_its_array_of_rows_again(rows: Any) -> None:
    """What it has taken are the rows that the array held then, nested values as well as others."""

    def in_parts(batch: tm.Batch) -> Any:
        parts = [batch.take([])]  # type: ignore[arg-type] # lists are rows, too
        for start in range(0, len(batch), 2):
            rows[:] = start, start + 1
            parts.append(batch.take(rows))
        rows[:] = 0, 0
        return tm.Batch.concat(parts)

    assert in_batches(tm.Map(in_parts)) == ROWS


def keeping(give: Any) -> Any:
    """A class of functions that keep the nested values which they were given, and change them in their next call."""

    class Keeping:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def __call__(self, given: Any) -> Any:
            for tags in self.kept:
                tags.append("later")
            self.kept = list(given["tags"])
            if any(tags[0] == 7 for tags in self.kept):
                raise ValueError("as told")
            return give(given)

        def update_many(self, batch: tm.Batch) -> Any:
            return self(batch)

    return Keeping


@pytest.mark.parametrize("cuts", [(), (1, 4, 5)])
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(tm.Map(keeping(lambda batch: batch)), id="the batch"),
        pytest.param(tm.Map(keeping(lambda batch: batch), tile=1), id="tile"),
        pytest.param(tm.Map(keeping(lambda batch: {"tags": batch.column("tags")})), id="the column"),
        pytest.param(tm.Map(keeping(lambda batch: {"tags": batch["tags"]})), id="the array"),
        pytest.param(tm.Map(keeping(lambda batch: {"tags": list(batch["tags"])})), id="a list"),
        pytest.param(tm.Map(keeping(lambda batch: {"tags": batch["tags"]}), adds={"tags": object}), id="declared"),
        pytest.param(tm.MapFrame(keeping(lambda frame: frame), frame="pandas"), id="MapFrame"),
        pytest.param(tm.MapFrame(keeping(lambda frame: frame.copy()), frame="pandas"), id="a frame's copy"),
        pytest.param(tm.Keyed(keeping(lambda batch: {"tags": batch.column("tags")})), id="update_many"),
        pytest.param(tm.Keyed(keeping(lambda batch: {"tags": list(batch["tags"])})), id="a list of update_many"),
    ],
)
def test_a_function_may_keep_the_nested_values_that_it_returns(stage: Any, cuts: tuple[int, ...]) -> None:
    """It was given them, and changes them when it is called again: what it has returned goes on as it was then."""
    tags = [row["tags"] for row in in_batches(stage, *cuts)]
    assert tags == [[n] for n in range(12) if n != 7]


def nested(levels: int) -> list[Any]:
    value: list[Any] = [1.0]
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        pytest.param({"site": {"name": "n", "at": [1.0, 2.0]}, "tags": ["a", None], "of": [[1], [2]]}, 0, id="JSON"),
        pytest.param([{"at": (1, 2.0)}, [np.arange(3)], {1: [b""]}], 0, id="plain Python"),
        pytest.param(nested(31), 0, id="deep"),
        pytest.param(nested(40), 1, id="too deep"),
        pytest.param([{"n": OrderedDict(a=[1])}, {(1, 2): [3]}, ([1],)], 3, id="others"),
    ],
)
def test_nested_values_of_plain_types_need_no_deepcopy(monkeypatch: Any, value: Any, calls: int) -> None:
    """Which looks up each value in two tables; it gets what is of other types, or nested very deep."""
    called = []

    def counted(item: Any, memo: Any) -> Any:
        called.append(item)
        return copy.deepcopy(item, memo)

    monkeypatch.setattr(own_values, "copy", SimpleNamespace(deepcopy=counted))
    own = own_values.own_value(value)
    assert repr(own) == repr(value)
    assert own is not value
    assert all(mine is not its for mine, its in zip(changeable(own), changeable(value), strict=True))
    assert len(called) == calls


def changeable(value: Any) -> list[Any]:
    """All lists, dicts and arrays in it."""
    if isinstance(value, np.ndarray):
        return [value]
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    own = [value] if isinstance(value, list | dict) else []
    return own + [one for each in inside for one in changeable(each)]


def test_values_that_lead_back_to_themselves_are_copied_once() -> None:
    """And those that are there many times, of which there are billions when each is copied anew."""
    ring: list[Any] = [[1.0]]
    ring.append({"back": ring})
    own = own_values.own_value(ring)
    assert own is not ring
    assert own[1]["back"] is own
    doubled: list[Any] = [[1.0]]
    for _ in range(30):
        doubled = [doubled, doubled]
    own = own_values.own_value(doubled)
    assert own[0] is own[1] is not doubled[0]


@pytest.mark.parametrize(
    "part",
    [
        pytest.param([1.0], id="list"),
        pytest.param([[1.0]], id="list of lists"),
        pytest.param({"a": 1.0}, id="dict"),
        pytest.param({"a": [1.0]}, id="dict of lists"),
        pytest.param(np.zeros(3), id="array"),
        pytest.param(([1.0],), id="tuple"),
        pytest.param(Counted(1), id="object"),
    ],
)
def test_a_part_that_is_there_many_times_is_copied_once(part: Any) -> None:
    """As large as the value is, not as often as its parts are named: they are one object still, at every depth."""
    own = own_values.own_value(
        {"list": [part, part], "dict": {"a": part}, "tuple": (part, [2.0]), "deep": [[{"b": part}]]}
    )
    places = [*own["list"], own["dict"]["a"], own["tuple"][0], own["deep"][0][0]["b"]]
    assert places[0] is not part
    assert all(place is places[0] for place in places)
