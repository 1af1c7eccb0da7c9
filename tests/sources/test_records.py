"""Records, Frame and DeadLetters: what is in memory, and what was rejected before."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.engine.dead_letters import _encoded
from tidemill.engine.plan import Plan
from tidemill.errors import InputError, PlanError, StageError
from tidemill.formats import unfit
from tidemill.schema import Kind
from tidemill.sources import DeadLetters, Frame, Records, SourceContext
from tidemill.sources.nested_values import nested_in

ROWS = [{"sensor": f"S{n % 5}", "time": float(n), "value": n, "unit": None, "tags": ["a", n]} for n in range(2_500)]


class UserRow(dict[str, Any]):
    """A dict of somebody's own class."""


async def later(items: list[Any], pause_every: int = 0) -> AsyncIterator[Any]:
    for place, item in enumerate(items):
        if pause_every and place % pause_every == 0:
            await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("make", [list, iter, later, lambda rows: later(rows, 7)])
async def test_every_iterable_gives_its_records_unchanged(drain: Any, make: Any) -> None:
    """List, generator and asynchronous generator: the same records in order, in bounded batches."""
    drained = await drain(Records(make(ROWS)))
    assert drained.rows == ROWS
    assert len(drained.batches[0]) <= 1_000
    assert max(map(len, drained.batches)) <= 4_000
    assert drained.keys == [row["sensor"] for row in ROWS]


@pytest.mark.parametrize("kind", [dict, UserRow])
@pytest.mark.parametrize("make", [iter, later])
async def test_a_generator_may_yield_one_dict_again_and_again(drain: Any, make: Any, kind: Any) -> None:
    """Each record is what it was when it was given, its nested values too."""

    def readings() -> Iterator[Any]:
        row = kind(sensor="S1", tags=[])
        for n in range(50):
            row["time"], row["value"] = float(n), n
            row["tags"].append(n)
            yield row

    async def waited() -> AsyncIterator[Any]:
        for row in readings():
            yield row

    drained = await drain(Records(readings() if make is iter else waited()))
    assert [(row["value"], row["tags"]) for row in drained.rows] == [(n, list(range(n + 1))) for n in range(50)]


async def test_the_loop_is_shared_with_a_long_iterator(drain: Any) -> None:
    """While a synchronous iterator is pulled, other tasks get a turn after every slice."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    drained = await drain(Records(iter(ROWS)))
    task.cancel()
    assert turns >= len(drained.batches)


async def test_batches_pass_whole_and_get_roles(drain: Any) -> None:
    """A batch with roles passes in slices of at most 32,768; one without gets them; dicts between keep their place."""
    big = Batch.from_rows([{"sensor": "a", "time": 0, "value": 1.5}] * 40_000)
    drained = await drain(Records([{"sensor": "x", "time": 1}, big, {"sensor": "y", "time": 2}]))
    assert [len(batch) for batch in drained.batches] == [1, 32_768, 7_232, 1]
    assert (drained.keys[0], drained.keys[1], drained.keys[-1]) == ("x", "a", "y")
    ready = drained.batches[1]
    again = await drain(Records([ready]))
    assert again.batches[0].key_column is ready.key_column


async def test_a_lone_record_does_not_wait_for_others() -> None:
    """What an asynchronous iterable has given is handed on while it waits for more; stopping ends the wait."""
    gate = asyncio.Event()

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield {"sensor": "a", "value": 1}
        await gate.wait()
        yield {"sensor": "a", "value": 2}

    context = SourceContext(SystemClock(), lambda _: None)
    stream = Records(source()).stream(context)
    assert (await anext(stream)).to_rows() == [{"sensor": "a", "value": 1}]
    context.stopping.set()
    assert [batch async for batch in stream] == []


async def test_a_fast_iterable_is_not_read_far_ahead() -> None:
    """Not pulling stops the user's iterator at a bounded distance."""
    given = 0

    async def source() -> AsyncIterator[dict[str, Any]]:
        nonlocal given
        while True:
            given += 1
            yield {"sensor": "a", "value": given}

    stream = Records(source()).stream(SourceContext(SystemClock(), lambda _: None))
    await anext(stream)
    for _ in range(500):
        await asyncio.sleep(0)
    assert given <= 40_000
    before = given
    for _ in range(50):
        await asyncio.sleep(0)
    assert given == before
    await stream.aclose()


@pytest.mark.parametrize(("tick_ns", "later"), [(20_000_000, 100), (1_000_000, 1_000), (1, 4_000)])
async def test_a_list_is_read_in_slices_that_take_one_time(drain: Any, tick_ns: int, later: int) -> None:
    """As many dicts become one batch as take a millisecond, at least 100 and at most 4,000, in their order.

    The first 4,000 hold the 1,000 of the first look, and what is left of them."""

    class Ticking(SystemClock):
        now_ns = 0

        def monotonic_ns(self) -> int:
            self.now_ns += tick_ns
            return self.now_ns

    drained = await drain(Records([{"sensor": "a", "n": n} for n in range(10_000)]), clock=Ticking())
    sizes = [len(batch) for batch in drained.batches]
    assert sizes[0] == 1_000
    assert set(sizes[2:-1]) == {later}
    assert [row["n"] for row in drained.rows] == list(range(10_000))


class Panic(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, SystemExit, Panic, GeneratorExit, asyncio.CancelledError])
async def test_what_the_iterable_raises_names_the_source(drain: Any, error: type[BaseException]) -> None:
    """Whatever it is: it does not end the program, nor pass for the end of the input."""

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield {"sensor": "a"}
        raise error("broken")

    def plain() -> Iterator[dict[str, Any]]:
        yield {"sensor": "a"}
        raise error("broken")

    for records in (source(), plain()):
        with pytest.raises(
            StageError, match=rf"source readings: .* raised {error.__name__}: broken \((source|plain), "
        ) as caught:
            await drain(Records(records, name="readings"))
        assert isinstance(caught.value.__cause__, error)


def test_a_table_is_refused_by_name() -> None:
    """A DataFrame in Records, dicts in Frame: the error names the other one."""
    frame = pd.DataFrame({"sensor": ["a"], "time": [0]})
    for table in (frame, pl.from_pandas(frame), pl.from_pandas(frame).to_arrow()):
        with pytest.raises(PlanError, match=r"sources\.Frame"):
            Records(table)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"sources\.Records"):
        Frame([{"a": 1}])
    for nonsense in ({"sensor": "a"}, "text", 3):
        with pytest.raises(PlanError, match="iterable of dicts"):
            Records(nonsense)  # type: ignore[arg-type]


def test_only_an_asynchronous_iterable_can_be_live() -> None:
    """Another cannot wait for its next record; by default all are recordings."""

    async def readings() -> AsyncIterator[dict[str, object]]:
        yield {"value": 1}

    assert Records(readings()).finite
    assert not Records(readings(), live=True).finite
    with pytest.raises(PlanError, match="live=True of Records is for an asynchronous iterable"):
        Records([{"value": 1}], live=True)


def test_a_list_is_looked_at() -> None:
    """The columns of a list are known before the run; of an iterator only what is declared."""
    assert Records(ROWS).peek().names == ("sensor", "time", "value", "unit", "tags")
    schema = Records(iter(ROWS), columns={"n": int}).peek()
    assert (schema.names, schema.open, schema["n"].kind) == (("n",), True, Kind.INT)


async def test_bad_records_go_alone(drain: Any) -> None:
    """Rejected records are letters with the record itself."""
    source = Records([*ROWS[:3], {"time": 1}, "text", *ROWS[3:5]])
    drained = await drain(source)
    assert drained.rows == ROWS[:5]
    assert [letter.raw for letter in drained.letters] == [{"time": 1}, "text"]
    assert "sensor" in source.explain()


@pytest.mark.parametrize("make", [lambda f: f, pl.from_pandas, lambda f: pl.from_pandas(f).to_arrow()])
async def test_frames(drain: Any, make: Any) -> None:
    """pandas, polars and Arrow: every row in order, in batches of at most 8,192."""
    frame = pd.DataFrame(
        {
            "id": [f"S{n % 3}" for n in range(20_000)],
            "when": pd.date_range("2024", periods=20_000, freq="s"),
            "value": np.arange(20_000.0),
        }
    )
    source = Frame(make(frame), key="id", time="when", tz="Europe/Berlin")
    source.check()
    drained = await drain(source)
    assert np.concatenate([batch["value"] for batch in drained.batches]).tolist() == frame["value"].tolist()
    assert drained.keys == frame["id"].tolist()
    assert drained.times[0] == pd.Timestamp("2024", tz="Europe/Berlin").value
    assert max(map(len, drained.batches)) <= 8_192
    with pytest.raises(InputError, match=r"'time'.*id, when, value.*key='id', time='when'"):
        Frame(make(frame)).check()


async def test_dead_letters_are_replayed(drain: Any, tmp_path: Path) -> None:
    """Raw records and raw lines come again; what is still bad is rejected again; other lines are told."""
    path = tmp_path / "dead.ndjson"
    letters = [
        {"reason_code": "no_key", "raw": {"sensor": "a", "time": 1, "value": 1.0}},
        {"reason_code": "malformed", "raw": '{"sensor":"b","time":2,"value":2.0}'},
        {"reason_code": "malformed", "raw": '{"sensor":'},
        {"reason_code": "no_key", "raw": {"time": 3}},
        {"something": "else"},
    ]
    path.write_text("".join(json.dumps(letter) + "\n" for letter in letters))
    source = DeadLetters(path)
    source.check()
    drained = await drain(source)
    assert drained.keys == ["a", "b"]
    assert [letter.reason_code for letter in drained.letters] == ["malformed", "malformed", "no_key"]
    with pytest.raises(InputError, match=str(tmp_path / "none")):
        DeadLetters(tmp_path / "none").check()


async def test_the_time_of_a_letter_is_not_that_of_an_arrival(drain: Any, tmp_path: Path) -> None:
    """Nobody is told to name a field where the letter says the time; of a letter that has none, it is as in any source."""
    record = {"sensor": "a", "ts": 1_700_000_002, "value": 1.0}
    told = []
    for time in ({"time": "2023-11-14T22:13:22Z"}, {}):
        path = tmp_path / f"dead{len(told)}.ndjson"
        path.write_text(json.dumps({"reason_code": "raised", "key": "a", **time, "raw": record}) + "\n")
        source = DeadLetters(path)
        drained = await drain(source)
        assert (drained.times == [1_700_000_002 * 10**9]) is bool(time)
        (batch,) = drained.batches
        told.append(source.doubt(batch))
    assert told[0] == ""
    assert "time='ts'" in told[1]


class _NoOffset(dt.tzinfo):
    """A zone that does not say how far it is from UTC."""

    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta | None:
        return None


class _RaisingZone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta | None:
        raise RuntimeError("no offset")


class _Mute:
    """A value of which no text can be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class _Closed(dict[str, Any]):
    """A mapping that gives no fields."""

    def __iter__(self) -> Any:
        raise RuntimeError("no fields")

    def keys(self) -> Any:
        raise RuntimeError("no fields")

    def get(self, *_: Any) -> Any:
        raise RuntimeError("no fields")

    def items(self) -> Any:
        raise RuntimeError("no fields")


START = dt.datetime(2024, 1, 1)  # noqa: DTZ001 - zones are put in below
SOUND = {"sensor": 1j, "time": START, "value": 1.5}
BROKEN = [
    ({"time": pd.NaT}, "bad_time", "the record has nothing in field 'time', which holds its time"),
    ({"time": np.datetime64("NaT", "ns")}, "bad_time", "the record has nothing in field 'time', which holds its time"),
    ({"time": START.replace(tzinfo=_NoOffset())}, "bad_time", "is not ISO 8601 or an epoch number"),
    ({"time": START.replace(tzinfo=_RaisingZone())}, "bad_time", "is not ISO 8601 or an epoch number"),
    ({"time": _Mute()}, "bad_time", "the time a _Mute that cannot be shown in field 'time' is not ISO 8601"),
    ({"sensor": np.array([1, 2])}, "no_key", "field 'sensor', which names the sensor, is nested"),
    ({"sensor": (_ for _ in ())}, "wrong_type", "cannot be sent to another process"),
    ({"sensor": pd.NA}, "no_key", "field 'sensor', which names the sensor, is missing or null"),
    ({"sensor": pd.NaT}, "no_key", "field 'sensor', which names the sensor, is missing or null"),
    ({"sensor": np.datetime64("NaT", "ns")}, "no_key", "field 'sensor', which names the sensor, is missing or null"),
    (
        {"sensor": _Mute()},
        "no_key",
        "field 'sensor', which names the sensor, is a _Mute whose text cannot be had: RuntimeError",
    ),
    (_Closed(SOUND), "malformed", "the record cannot be read: its _Closed raised RuntimeError"),
]


@pytest.mark.parametrize(("broken", "code", "why"), BROKEN)
@pytest.mark.parametrize("make", [list, iter, later])
async def test_what_a_record_raises_while_it_is_read_is_its_own_fault(
    drain: Any, make: Any, broken: dict[str, Any], code: str, why: str
) -> None:
    """Whatever a key, a time or the mapping itself raises, that record alone is a dead letter that can be written."""
    bad = broken if isinstance(broken, _Closed) else {**SOUND, **broken}
    drained = await drain(Records(make([SOUND, SOUND, bad, SOUND])))
    assert drained.rows == [SOUND] * 3
    [letter] = drained.letters
    assert letter.reason_code == code
    assert why in letter.reason
    assert json.loads(_encoded(letter))["reason_code"] == code


async def test_a_long_double_is_a_number_of_seconds_too(drain: Any) -> None:
    """NumPy makes no Python number of it; its time is the nearest float's."""
    drained = await drain(Records([SOUND, {**SOUND, "time": np.longdouble(1.5)}]))
    assert drained.batches[0].time.tolist()[1] == 1_500_000_000


@pytest.mark.parametrize("time", [pd.NaT, _Mute(), START.replace(tzinfo=_RaisingZone())])
def test_apply_says_which_record_has_no_time(time: Any) -> None:
    """In a notebook such a record is an `InputError` that shows it, whatever its values raise."""
    with pytest.raises(InputError, match=r"field 'time'.*, in the record .*; 1 such records in all"):
        Plan().apply([SOUND, {**SOUND, "time": time}], time="time")


HEAVY = [{"sensor": "S1", "time": float(n), "value": n, "spectrum": [0.5] * 20_000} for n in range(40)]
LIGHT = [{"sensor": "S1", "time": float(n), "value": n, "spectrum": [n]} for n in range(3_000)]


@pytest.mark.parametrize("make", [list, iter, later])
async def test_large_nested_values_are_few_in_one_turn(drain: Any, make: Any) -> None:
    """However few the records are, no batch holds more in their lists than one turn of the loop may take, and none is lost."""
    rows = [*LIGHT, *HEAVY, *LIGHT]
    drained = await drain(Records(make(rows)))
    assert drained.rows == rows
    for batch in drained.batches:
        assert sum(map(len, batch["spectrum"])) <= 1 << 16
    assert len(drained.batches) < 60


async def test_nested_values_of_classes_of_the_users_are_bounded_too(drain: Any) -> None:
    """Rows that are other mappings, and one in whose columns lists come late."""
    rows = [UserRow(row) for row in HEAVY]
    assert max(map(len, (await drain(Records(rows))).batches)) == 3
    late = [{"sensor": "S1", "time": float(n), "value": n} for n in range(1_500)] + HEAVY
    drained = await drain(Records(late))
    assert drained.rows == late
    assert max(len(batch) for batch in drained.batches if "spectrum" in batch.columns) <= 1_500


def test_a_look_ahead_does_not_write_nested_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they can be sent to a lane is asked when they are read, in turns, not before the run begins."""
    monkeypatch.setattr(unfit, "_why_unsendable", lambda _: pytest.fail("a value was pickled"))
    assert Records(HEAVY).peek()["spectrum"].kind is Kind.OBJECT


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ([[0.5] * 1_000] * 4, 4_004),
        ({"a": {"b": [1, 2, 3]}}, 5),
        (np.zeros(1_000), 1_000),
        ("x" * 8_000, 1_000),
        ({1, 2}, 2),
        (_Mute(), 0),
    ],
)
def test_what_lies_in_a_value_is_counted(item: Any, found: int) -> None:
    """In lists, dicts, sets and arrays, and in long texts; classes of the user's are not asked."""
    assert nested_in(item, 1 << 20) == found


def test_a_list_in_itself_is_not_gone_through_for_ever() -> None:
    """Counting ends at the most that is asked for."""
    endless: list[Any] = [1, 2]
    endless.append(endless)
    assert nested_in(endless, 100) > 100
