"""`Keyed` and `scan` against a plain loop: one object a sensor, wherever batches end and whatever records fail."""

from __future__ import annotations

import copy
import functools
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.apply import with_roles
from tidemill.core.trial import Made, Trial, cut_at, keys_of, marks_of
from tidemill.stages.objects import Objects

LOCK = type(threading.Lock())
"""It can go to no other process."""
SENSORS = ["S1", "S2", "S3"]


def acted(values: list[float], record: dict[str, Any]) -> Any:
    """Takes the record in, then does what it says."""
    values.append(record["value"])
    deed = record["do"]
    record["value"] = None  # its dict is its own
    if deed == "raise":
        raise ValueError("as told")
    if deed == "exit":
        raise SystemExit(3)
    if deed == "list":
        return [len(values)]
    if deed == "lock":
        return {"n": len(values), "sum": sum(values), "thing": threading.Lock()}
    if deed == "name":
        return {"n": len(values), 5: "five"}
    if deed == "text":
        return {"n": "many", "sum": sum(values)}
    if deed == "few":
        return {"sum": sum(values)}
    if deed == "thing":
        return {"thing": {"all": list(values)}, "n": len(values)}
    if deed == "own":
        return {"do": "done", "n": len(values)}
    if deed == "own wrong":
        return {"do": 5.0, "n": len(values)}
    return {"n": len(values), "sum": sum(values)}


class Acting:
    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, record: dict[str, Any]) -> Any:
        return acted(self.values, record)


class ActingTogether:
    """The same for all records of a batch, with those columns that every deed has."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update_many(self, batch: tm.Batch) -> Any:
        rows = batch.to_rows()
        made = [acted(self.values, dict(record)) for record in rows]
        if not all(isinstance(one, dict) for one in made):
            return made
        names = dict.fromkeys(name for one in made for name in one)
        return {name: [one.get(name, row.get(name)) for one, row in zip(made, rows, strict=True)] for name in names}


class Asking(Acting):
    """Says itself what is to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.unpicklable = (n for n in ())

    def snapshot(self) -> tuple[float, ...]:
        return tuple(self.values)

    def restore(self, snapshot: tuple[float, ...]) -> None:
        self.values = list(snapshot)


def carried(values: list[float], record: dict[str, Any]) -> Any:
    """Changes its state in place, and fails thereafter."""
    returned = acted(values, record)
    return values, returned


@dataclass
class Loop:
    """What the documentation says, said in another way."""

    ttl: float | None = None
    max_keys: int | None = None
    objects: dict[str, tuple[Acting, float]] = field(default_factory=dict)
    kinds: dict[Any, type] = field(default_factory=lambda: {"do": str})

    def rows(self, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[int, str]]:
        made, dead = [], {}
        for place, record in enumerate(records):
            try:
                made.append({**record, **self._taken(record)})
            except LookupError:
                dead[place] = "too_many_keys"
            except TypeError:
                dead[place] = "wrong_type"
            except (ValueError, SystemExit):
                dead[place] = "raised"
        return made, dead

    def _taken(self, record: dict[str, Any]) -> dict[str, Any]:
        sensor, time = record["sensor"], record["time"]
        here, newest = self.objects.get(sensor, (None, time))
        if here is None:
            self._make_room(time)
        expired = self.ttl is not None and time - newest > self.ttl
        mine = Acting() if here is None or expired else copy.deepcopy(here)
        returned = mine.update(dict(record))
        if not isinstance(returned, dict):
            raise TypeError
        kinds = {name: self._kind(value) for name, value in returned.items()}
        if any(type(name) is not str or self.kinds.get(name, kind) is not kind for name, kind in kinds.items()):
            raise TypeError
        self.kinds.update(kinds)
        self.objects[sensor] = mine, max(time, newest)
        return returned

    def _kind(self, value: Any) -> type:
        if isinstance(value, LOCK):
            raise TypeError
        return {int: float}.get(type(value), type(value))

    def _make_room(self, time: float) -> None:
        if self.max_keys is None or len(self.objects) < self.max_keys:
            return
        if self.ttl is not None:
            self.objects = {k: kept for k, kept in self.objects.items() if time - kept[1] <= self.ttl}
        if len(self.objects) >= self.max_keys:
            raise LookupError


def worked(stage: Any, records: list[dict[str, Any]], cuts: list[int]) -> Made:
    batch = with_roles(records, "sensor", "time", "UTC")
    batch.origin = None  # as a lane sees them: columns alone
    trial = Trial(stage, keys_of(batch), records=max(len(records), 1), marks=marks_of(batch))
    return trial.feed_all(cut_at(batch, sorted(min(cut, len(records)) for cut in cuts)))


def filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without fields that have no value."""
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


DEEDS = ["", "", "", "raise", "exit", "list", "lock", "name", "text", "few", "thing", "own", "own wrong"]


@st.composite
def records(draw: Any, deeds: list[str] = DEEDS) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 25))
    return [
        {
            "sensor": draw(st.sampled_from(SENSORS)),
            "time": draw(st.integers(0, 100)),
            "value": float(draw(st.integers(0, 9))),
            "do": draw(st.sampled_from(deeds)),
        }
        for _ in range(count)
    ]


CUTS = st.lists(st.integers(0, 25), max_size=4)


@settings(max_examples=100)
@given(records(), CUTS, st.sampled_from([None, 5, 40]), st.sampled_from([None, 1, 2]))
def test_it_is_what_a_plain_loop_gives(
    rows: list[dict[str, Any]], cuts: list[int], ttl: int | None, max_keys: int | None
) -> None:
    """Records that raise, exit, return nonsense or find no room are rejected alone, and no object has seen them."""
    expected, dead = Loop(ttl, max_keys).rows(rows)
    for stage in (
        tm.Keyed(Acting, ttl=ttl, max_keys=max_keys),
        tm.Keyed(Asking, ttl=ttl, max_keys=max_keys),
        tm.scan(carried, list, ttl=ttl, max_keys=max_keys),
        tm.scan(carried, [], ttl=ttl, max_keys=max_keys),
    ):
        made = worked(stage, rows, cuts)
        assert {letter.row: letter.reason_code for letter in made.dead} == dead
        assert filled(made.batch.to_rows()) == expected


@settings(max_examples=100)
@given(records(), CUTS, st.sampled_from([None, 5, 40]), st.sampled_from([None, 1, 2]))
def test_all_records_of_a_sensor_at_once_are_one_after_the_other(
    rows: list[dict[str, Any]], cuts: list[int], ttl: int | None, max_keys: int | None
) -> None:
    """`update_many` gives what `update` gives, and as few records are lost."""
    expected, dead = Loop(ttl, max_keys).rows(rows)
    made = worked(tm.Keyed(ActingTogether, ttl=ttl, max_keys=max_keys), rows, cuts)
    assert {letter.row: letter.reason_code for letter in made.dead} == dead
    assert filled(made.batch.to_rows()) == expected


@given(records(["", "few", "raise", "thing"]), CUTS)
def test_a_failing_record_may_go_on_without_the_new_fields(rows: list[dict[str, Any]], cuts: list[int]) -> None:
    """With on_error="nan", the object has not seen it all the same."""
    expected, dead = Loop().rows(rows)
    made = worked(tm.Keyed(Acting, on_error="nan"), rows, cuts)
    assert not made.dead
    came = filled(made.batch.to_rows())
    assert [row for place, row in enumerate(came) if place not in dead] == expected
    assert all(came[place] == rows[place] for place in dead)


@given(records(["", "few", "own"]), CUTS)
def test_fields_come_in_the_order_in_which_they_were_returned(rows: list[dict[str, Any]], cuts: list[int]) -> None:
    """Behind the record's own, for each record as its object returned them."""

    class Turning(Acting):
        def update(self, record: dict[str, Any]) -> Any:
            returned = super().update(record)
            return dict(reversed(returned.items())) if len(self.values) % 2 else returned

    loop: dict[str, Turning] = {}
    expected = [{**row, **loop.setdefault(row["sensor"], Turning()).update(dict(row))} for row in rows]
    came = worked(tm.Keyed(Turning), rows, cuts).batch.to_rows()
    assert [list(row.items()) for row in came] == [list(row.items()) for row in expected]


# -- what it is given, and what it is not ------------------------------------------------------------------


ROWS = [{"sensor": f"S{n % 2}", "time": float(n), "value": float(n), "unit": "C"} for n in range(8)]


def test_it_sees_the_columns_that_it_asks_for() -> None:
    """And nothing else; the record keeps all its fields."""
    seen: list[Any] = []

    class Looking:
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            seen.append(tuple(record))
            return {}

    assert tm.Plan(tm.Keyed(Looking, columns=["unit", "value"])).apply(ROWS) == ROWS
    assert set(seen) == {("unit", "value")}
    with pytest.raises(tm.PlanError, match=r"Keyed\(Looking\) needs a column 'level'; the columns there are: sensor"):
        tm.Plan(tm.Keyed(Looking, columns=["level"])).apply(ROWS)


def test_the_kind_of_a_column_may_be_declared() -> None:
    """As for other functions."""
    plan = tm.Plan(tm.Keyed(Acting, adds={"n": int}))
    rows = plan.apply([{**row, "do": ""} for row in ROWS])
    assert [row["n"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert plan.bind(tm.Schema())[-1]["n"].kind is tm.Kind.INT


def test_a_silence_is_one_by_the_newest_time_so_far() -> None:
    """A record out of order does not make it longer, and a ttl of exactly the silence is none."""
    times = [0, 10, 3, 20, 31, 30]
    rows = [{"sensor": "S", "time": float(time), "value": 1.0, "do": ""} for time in times]
    made = tm.Plan(tm.Keyed(Acting, ttl="10s")).apply(rows)
    assert [row["n"] for row in made] == [1, 2, 3, 4, 1, 2]
    with pytest.raises(tm.PlanError, match=r"Keyed\(Acting\) works in event time"):
        tm.Plan(tm.Keyed(Acting, ttl=10)).apply([{"sensor": "S", "value": 1.0, "do": ""}])


def test_a_record_of_a_sensor_without_room_is_told() -> None:
    """With the number of objects that there are."""
    made = worked(tm.Keyed(Acting, max_keys=1), [{**row, "do": ""} for row in ROWS[:2]], [])
    (letter,) = made.dead
    assert "Keyed(Acting) holds the objects of 1 sensor in this lane" in letter.reason


def test_arrays_and_single_values_are_columns() -> None:
    """Of the sensor's records of the batch, as for `Map`."""

    class Steps:
        last = np.nan

        def update_many(self, batch: tm.Batch) -> dict[str, Any]:
            values = np.concatenate([[self.last], batch["value"]])
            self.last = float(values[-1])
            return {"step": np.diff(values), "name": "steps", "when": batch["time"]}

    rows = tm.Plan(tm.Keyed(Steps)).apply(ROWS)
    assert [row["step"] for row in rows[2:]] == [2.0] * 6
    assert {row["name"] for row in rows} == {"steps"}
    assert [row["when"] for row in rows] == [row["time"] for row in ROWS]


@pytest.mark.parametrize("cuts", [[], [3]])
def test_an_array_without_dimensions_is_the_value_in_it(cuts: list[int]) -> None:
    """As for `Map`: what NumPy makes of a reading is often one."""

    class Reduced:
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            value = np.array(record["value"])
            return {
                "same": value,
                "high": np.array(record["value"] > 3),
                "name": np.array("x"),
                "pair": value.repeat(2),
            }

    def over_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, **Reduced().update(row)} for row in rows]

    for stage in (tm.Keyed(Reduced), tm.MapRows(over_rows)):
        made = worked(stage, ROWS, cuts).batch
        kinds = [made.columns[name].kind for name in ("same", "high", "name", "pair")]
        assert kinds == [tm.Kind.FLOAT, tm.Kind.BOOL, tm.Kind.TEXT, tm.Kind.OBJECT]
        assert made["same"].tolist() == [row["value"] for row in ROWS]


class Selfish:
    """It leads back to itself, and holds what another of its class holds."""

    def __init__(self) -> None:
        self.own = self
        self.friend: Selfish | None = None
        self.count = 0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.own.count += 1
        if record["value"] == 4:
            raise ValueError
        return {"n": self.count, "same": self.own is self}


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        if record["value"] == 4:
            raise ValueError
        return {"n": self.count}


class Listing(list[int]):
    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.append(1)
        if record["value"] == 4:
            raise ValueError
        return {"n": len(self)}


class Counting(dict[str, int]):
    def update(self, record: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        self["n"] = self.get("n", 0) + 1
        if record["value"] == 4:
            raise ValueError
        return dict(self)


class Stated:
    count = 0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        if record["value"] == 4:
            raise ValueError
        return {"n": self.count}

    def __getstate__(self) -> int:
        return self.count

    def __setstate__(self, count: int) -> None:
        self.count = count


class Arguing(Stated):
    def __getnewargs__(self) -> tuple[int]:
        return (5,)

    def __new__(cls, _: int = 0) -> Self:
        return super().__new__(cls)


class Closing:
    """Holds what only cloudpickle can send."""

    def __init__(self) -> None:
        counts = [0]
        self.count = lambda: counts.__setitem__(0, counts[0] + 1) or counts[0]

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        n = self.count()
        if record["value"] == 4:
            raise ValueError
        return {"n": n}


@pytest.mark.parametrize("factory", [Selfish, Slotted, Listing, Counting, Stated, Arguing, Closing])
@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 3, 4, 5, 6, 7]])
def test_objects_of_any_make_are_put_back(factory: Any, cuts: list[int]) -> None:
    """However their classes say that they are pickled."""
    made = worked(tm.Keyed(factory), ROWS, cuts)
    assert [letter.row for letter in made.dead] == [4]
    assert [row["n"] for row in made.batch.to_rows()] == [1, 1, 2, 2, 3, 3, 4]
    assert all(row.get("same", True) for row in made.batch.to_rows())


# -- refusals ------------------------------------------------------------------------------------------------


class Fileish:
    def __init__(self) -> None:
        self.stream = (n for n in ())

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        return {}


class Halfway(Acting):
    def snapshot(self) -> int:
        return 5


def test_an_object_that_cannot_be_kept_is_told_at_its_first_batch(lanes: int) -> None:
    """In one sentence, in a notebook as in a run; it costs no record."""
    with pytest.raises(
        tm.StageError, match=r"Keyed\(Fileish\): the object of a sensor, a Fileish, cannot be kept .* Give"
    ):
        tm.Plan(tm.Keyed(Fileish)).apply(ROWS)
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Keyed(Fileish), tm.testing.ListSink())
    with pytest.raises(tm.StageError, match="cannot be kept for the case that its lane dies"):
        tm.run(pipeline, lanes=lanes)
    with pytest.raises(tm.StageError, match="a Halfway has only one of snapshot"):
        tm.Plan(tm.Keyed(Halfway)).apply([{**row, "do": ""} for row in ROWS])


class Window(deque[float]):
    """Can be pickled, and its pickle not be read: it is called with what it holds."""

    def __init__(self) -> None:
        super().__init__(maxlen=3)

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        return {}


class Forgetful(Acting):
    """Cannot take back what it gave."""

    def snapshot(self) -> int:
        return 5

    def restore(self) -> None:
        pass


def windowed(state: Any, record: dict[str, Any]) -> Any:
    """Its first state is nothing, its second a window."""
    return (None, {}) if record["value"] < 4 else (Window(), {})


class Turns:
    """A factory of two classes."""

    made = 0

    def __call__(self) -> Any:
        self.made += 1
        return Stated() if self.made % 2 else Slotted()


@pytest.mark.parametrize(
    ("make_stage", "told"),
    [
        (
            lambda: tm.Keyed(Window),
            r"Keyed\(Window\): .* a Window, .*not .* made again .*TypeError: .*Give its class snap",
        ),
        (lambda: tm.Keyed(Forgetful), r"a Forgetful, .* made again .*TypeError: Forgetful.restore\(\) takes"),
        (lambda: tm.scan(windowed), r"scan\(windowed\): .* made again .*TypeError: Window"),
        (lambda: tm.Keyed(Turns()), r"its factory makes objects of several classes"),
    ],
)
def test_an_object_that_cannot_be_made_again_is_told_at_its_first_batch(make_stage: Any, told: str) -> None:
    """And not when its lane dies, hours later: the first state of each class is tried."""
    rows = [{**row, "do": ""} for row in ROWS]
    with pytest.raises(tm.StageError, match=told):
        tm.Plan(make_stage()).apply(rows)


def test_each_class_is_tried_once() -> None:
    """The factory is asked for one object more, for a snapshot to be put into; one that fails then is not asked again."""
    asked: list[int] = []

    def factory() -> Asking:
        asked.append(1)
        if len(asked) == 3:
            raise OSError("not now")
        return Asking()

    rows = worked(tm.Keyed(factory), [{**row, "do": ""} for row in ROWS], [2, 4, 6]).batch.to_rows()
    assert [row["n"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(asked) == 3


def test_a_factory_is_asked_for_no_more_objects_than_there_are_sensors() -> None:
    """Such as one that opens a connection for each, or has just so many: attributes are tried on an object of their class."""
    asked: list[int] = []

    def factory() -> Acting:
        asked.append(1)
        return Acting()

    rows = worked(tm.Keyed(factory), [{**row, "do": ""} for row in ROWS], [2, 4, 6]).batch.to_rows()
    assert [row["n"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(asked) == 2


def test_a_new_lane_asks_the_factory_for_no_object_that_no_sensor_gets() -> None:
    """What a lane that died has kept is put into objects of the class that was seen at the first, which the next sensor gets."""
    asked: list[int] = []

    def factory() -> Acting:
        asked.append(1)
        return Acting()

    dead, lane = Objects("Keyed", factory), Objects("Keyed", factory)
    dead.look()
    for slot in (0, 1):
        dead.ready(slot, slot, 0).value.values.append(float(slot))
    dead.keep([0, 1])
    kept = dead.changed()
    assert kept is not None
    asked.clear()
    lane.look()
    lane.hold(kept)
    assert [lane.ready(slot, slot, 0).value.values for slot in (0, 1, 2)] == [[0.0], [1.0], []]
    assert len(asked) == 1


class Later:
    async def update(self, record: dict[str, Any]) -> dict[str, Any]:
        return record


class ManyLater:
    async def update_many(self, batch: Any) -> dict[str, Any]:
        return {}


async def make() -> Acting:
    return Acting()


@pytest.mark.parametrize(
    ("make_stage", "told"),
    [
        (
            lambda: tm.Keyed(Acting()),
            "Keyed needs a class, or a function .* given .*Acting; give the class itself, Acting",
        ),
        (lambda: tm.Keyed(5), "it was given int"),
        (lambda: tm.Keyed(dict), "the class dict"),
        (lambda: tm.Keyed(object), "the class object has neither update"),
        (lambda: tm.Keyed(make), "make is async"),
        (lambda: tm.Keyed(Later), r"Keyed\(Later\) needs plain methods; Later.update is async"),
        (lambda: tm.Keyed(ManyLater), "ManyLater.update_many is async"),
        (lambda: tm.Keyed(Acting, ttl="soon"), r"Keyed\(Acting\): ttl='soon' is not a duration"),
        (lambda: tm.Keyed(Acting, max_keys=0), "max_keys=0 must be a number of sensors"),
        (lambda: tm.scan(5), "scan needs a function; it was given int"),
        (lambda: tm.scan(carried, make), "make is async"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(make_stage: Any, told: str) -> None:
    """By name, with what to do."""
    if "dict" in told:
        make_stage()  # it has an update of its own, and who would know
        return
    with pytest.raises(tm.PlanError, match=told):
        make_stage()


def test_a_factory_of_the_wrong_objects_is_told_at_the_first_batch() -> None:
    """Since nobody can know before it was called."""
    with pytest.raises(tm.StageError, match=r"a int, has no method update; it needs update\(record\) or update_many"):
        tm.Plan(tm.Keyed(lambda: 5)).apply(ROWS)


def test_a_factory_that_fails_costs_the_records_that_it_was_asked_for() -> None:
    """And is asked again for the next."""
    asked: list[int] = []

    def moody() -> Acting:
        asked.append(1)
        if len(asked) < 4:
            raise OSError("not now")
        return Acting()

    made = worked(tm.Keyed(moody), [{**row, "do": ""} for row in ROWS], [1])
    assert [letter.row for letter in made.dead] == [0, 1, 2]
    assert [row["n"] for row in made.batch.to_rows()] == [1, 1, 2, 2, 3]


def test_a_function_without_a_state_to_return_is_told() -> None:
    """A dict alone is what one forgets."""
    plan = tm.Plan(tm.scan(lambda state, record: None, name="forgotten"))
    with pytest.raises(tm.StageError, match=r"forgotten: <lambda> returned None; \(state, dict\) is needed"):
        plan.apply(ROWS)


def test_what_cannot_be_repeated_is_told() -> None:
    """An object that takes a record, and then refuses it, cannot be put back."""
    calls: list[int] = []

    class Fickle:
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            calls.append(1)
            if len(calls) > 2:
                raise ValueError("enough")
            return {}

    with pytest.raises(tm.StageError, match=r"Keyed\(Fickle\): a record that it took was refused when it was given"):
        tm.Plan(tm.Keyed(Fickle)).apply([{**row, "sensor": "S"} for row in ROWS])


def test_an_object_whose_method_is_async_stops_the_run() -> None:
    """Which class a factory makes is seen at its first object; none of the records can be worked on."""
    plan = tm.Plan(tm.Keyed(functools.partial(Later)))
    with pytest.raises(tm.StageError, match=r"needs plain methods; Later\.update is async"):
        plan.apply([{"sensor": "S1", "value": 1.0}])
