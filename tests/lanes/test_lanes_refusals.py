"""What `tidemill.Lanes` refuses at once, in one sentence that names the culprit: senseless options, no interpreter."""

from __future__ import annotations

import functools
import io
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from math import inf, nan
from typing import Any, NoReturn

import pytest

import tidemill as tm
from tidemill.errors import CallError, OutsideError, PlanError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def pipeline() -> tm.Pipeline:
    return tm.Pipeline(tm.sources.Records([]), tm.Plan(), tm.sinks.Latest())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lanes": -1}, "lanes=-1 must be 0"),
        ({"lanes": "2"}, "lanes='2' must be 0"),
        ({"lanes": True}, "lanes=True must be 0"),
        ({"nice": "x"}, "nice='x' must be a whole number"),
        ({"nice": 1.5}, "nice=1.5 must be a whole number"),
        ({"nice": True}, "nice=True must be a whole number"),
        ({"nice": 1 << 70}, f"nice={1 << 70} must be a whole number"),
        ({"initializer": 3}, "initializer=3 is not a function"),
        ({"initargs": 5}, "initargs=5 must be a tuple"),
        ({"initargs": "model"}, "initargs='model' must be a tuple"),
        ({"initializer": print, "initargs": ((x for x in ()),)}, r"initargs\[0\], a generator"),
        ({"initializer_timeout": 0}, "initializer_timeout=0 must be more than 0"),
        ({"initializer_timeout": nan}, "initializer_timeout=nan must be more than 0"),
        ({"initializer_timeout": "1"}, "initializer_timeout='1' must be more than 0"),
        ({"preload": "numpy"}, "preload='numpy' must be a list of names"),
        ({"preload": 5}, "preload=5 must be a list of names"),
        ({"preload": [3]}, r"preload=\[3\] must be a list of names"),
        ({"preload": [""]}, r"preload=\[''\] must be a list of names"),
        ({"recycle_after": 0}, "recycle_after=0 must be a whole number"),
        ({"recycle_after": True}, "recycle_after=True must be a whole number"),
        ({"recycle_rss": -1}, "recycle_rss=-1 must be a whole number"),
        (
            {"arena_bytes": 1 << 50},
            r"arena_bytes=\d+ must be a whole number, at least 1048576 and at most 1099511627776\.",
        ),
        ({"arena_bytes": 1}, r"arena_bytes=1 must be a whole number, at least 1048576 and at most"),
        ({"grace": -0.1}, "grace=-0.1 must be a number of seconds"),
        ({"grace": nan}, "grace=nan must be a number of seconds"),
        ({"grace": inf}, "grace=inf must be a number of seconds"),
        ({"grace": "x"}, "grace='x' must be a number of seconds"),
        ({"grace": None}, "grace=None must be a number of seconds"),
        ({"max_waiting": 0}, "max_waiting=0 must be a whole number"),
        ({"max_waiting": nan}, "max_waiting=nan must be a whole number"),
        ({"max_waiting_bytes": 1.5}, "max_waiting_bytes=1.5 must be a whole number"),
        ({"when_full": "drop"}, "when_full='drop' must be one of 'block'"),
        ({"when_full": ["block"]}, r"when_full=\['block'\] must be one of 'block'"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),
)
async def test_options_that_make_no_sense(options: dict, told: str) -> None:
    """When the lanes are made, before anything is started; of an executor too."""
    with pytest.raises(CallError, match=told):
        tm.Lanes(**{"lanes": 1, **options})
    count = options.pop("lanes", 1)
    with pytest.raises(CallError, match=told):
        tm.LanesExecutor(count, **options)


@pytest.mark.parametrize("value", [0, -1, 2.5, nan, inf, "x", True, None], ids=str)
async def test_sizes_that_make_no_sense(one: tm.Lanes, value: object) -> None:
    """Of a stream, of batches, of what is kept: refused before anything is read or sent, and the loop goes on."""
    told = "must be a whole number, at least 1"
    with pytest.raises(CallError, match=f"window={value!r} {told}"):
        one.stream(abs, [1, 2, 3], window=value)  # type: ignore[arg-type]
    for name in ("max_batch", "max_batch_bytes", "max_waiting", "max_waiting_bytes"):
        with pytest.raises(CallError, match=f"{name}={value!r} {told}"):
            one.batched(list, **{name: value})  # type: ignore[arg-type]
    for name in ("max_keys", "max_bytes"):
        with pytest.raises(CallError, match=f"{name}={value!r} {told}"):
            one.keyed(list, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(CallError, match="when_full='wait' must be one of 'block', 'reject', 'drop_oldest'"):
        one.batched(list, when_full="wait")  # type: ignore[arg-type]
    assert await one.run(abs, -1) == 1


@pytest.mark.parametrize("value", [0, -1, nan, -inf, "x", [1]], ids=str)
async def test_timeouts_that_make_no_sense(one: tm.Lanes, value: object) -> None:
    """Whatever door they come to."""
    with pytest.raises(CallError, match="must be more than 0 seconds"):
        await one.run(abs, -1, timeout=value)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="must be more than 0 seconds"):
        one.stream(abs, [1], timeout=value)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="must be more than 0 seconds"):
        one.batched(list, timeout=value)  # type: ignore[arg-type]
    assert await one.run(abs, -1) == 1


async def test_seconds_that_no_float_holds(one: tm.Lanes) -> None:
    """Refused as others that make no sense, and not as an overflow."""
    told = "is a number of seconds that no float holds"
    with pytest.raises(CallError, match=f"timeout {told}"):
        await one.run(abs, -1, timeout=10**400)
    with pytest.raises(CallError, match=f"timeout {told}"):
        one.stream(abs, [1], timeout=10**400)
    with pytest.raises(CallError, match=f"timeout {told}"):
        one.batched(list, timeout=10**400)
    with pytest.raises(CallError, match=f"initializer_timeout {told}"):
        tm.Lanes(1, initializer=print, initializer_timeout=10**400)
    with pytest.raises(CallError, match=f"grace {told}"):
        tm.Lanes(1, grace=10**400)
    assert await one.run(abs, -1) == 1


async def test_sources_that_are_none(one: tm.Lanes) -> None:
    """At the call, as options are; whatever can be read, one after the other, is one."""

    class Old:
        def __getitem__(self, number: int) -> int:
            if number > 2:
                raise IndexError
            return -number

    async def later() -> AsyncIterator[int]:
        yield -3

    for source in (5, None, later, abs):
        with pytest.raises(CallError, match=r"is not a source of values; write lanes\.stream"):
            one.stream(abs, source)  # type: ignore[arg-type]
    assert [value async for value in one.stream(abs, Old())] == [0, 1, 2]  # type: ignore[arg-type]
    assert [value async for value in one.stream(abs, later())] == [3]


async def test_a_timeout_that_is_a_timedelta(one: tm.Lanes) -> None:
    """The message says what to write."""
    with pytest.raises(CallError, match=r"must be a number of seconds; give timeout=1\.5"):
        await one.run(abs, -1, timeout=timedelta(seconds=1.5))  # type: ignore[arg-type]
    assert await one.run(functools.partial(dict, timeout=timedelta(1), key=1)) == {"timeout": timedelta(1), "key": 1}


class Locked:
    def __init__(self) -> None:
        self.kept = {"lock": threading.Lock()}

    def method(self) -> None: ...


class Refusing:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("one of a kind")


async def test_what_cannot_be_sent_is_named(one: tm.Lanes) -> None:
    """The variable that a function closes over, the part of a method's object, a partial's argument, an open file."""
    numbers, locked, file = (x for x in ()), Locked(), io.TextIOWrapper(io.BytesIO())
    for told, call in {
        "closes over numbers, a generator ": lambda: one.run(lambda: list(numbers)),
        "closes over file, a TextIOWrapper ": lambda: one.run(lambda: file.read() + ""),
        r"the function\.__self__\.kept\['lock'\], a lock,": lambda: one.run(locked.method),
        r"the function\.args\[0\], a generator,": lambda: one.run(functools.partial(list, numbers)),
        r"argument 0\[0\], a Refusing, .*RuntimeError: one of a kind": lambda: one.run(len, [Refusing()]),
        r"argument 0, a Lanes, .*Lanes stay in the process": lambda: one.run(print, one),
        r"argument 0\[1\], a TextIOWrapper,.*an open file stays in its process": lambda: one.run(len, [1, file]),
    }.items():
        with pytest.raises(CallError, match=told):
            await call()


class Client:
    async def fetch(self, x: int) -> int:
        return x

    async def __call__(self, x: int) -> int:
        return x


async def fetch(x: int) -> int:
    return x


async def readings(x: int) -> AsyncIterator[int]:
    yield x


ASYNC = {
    "fetch": fetch,
    "readings": readings,
    "partial": functools.partial(functools.partial(fetch), 1),
    "Client.fetch": Client().fetch,
    "Client": Client(),
}


@pytest.mark.parametrize("name", ASYNC)
@pytest.mark.parametrize("door", ["run", "stream", "batched", "executor", "map", "keyed", "initializer"])
async def test_async_functions(one: tm.Lanes, name: str, door: str) -> None:
    """At the call, whatever the door: nothing is run, and no coroutine is left that nobody awaits."""
    doors: dict[str, Callable[[Any], Any]] = {
        "run": lambda fn: one.run(fn, 1).send(None),
        "stream": lambda fn: one.stream(fn, [1]),
        "batched": one.batched,
        "executor": lambda fn: one.executor().submit(fn, 1),
        "map": lambda fn: next(one.executor().map(fn, [1])),
        "keyed": one.keyed,
        "initializer": lambda fn: tm.Lanes(1, initializer=fn),
    }
    told = f"{'fetch' if name == 'partial' else name} is async, and a lane runs plain functions"
    with pytest.raises(CallError, match=told):
        doors[door](ASYNC[name])


async def test_a_number_of_lanes_that_makes_no_sense_for_a_pipeline() -> None:
    """It is the plan that is wrong there."""
    with pytest.raises(PlanError, match="lanes=-1"):
        await tm.run_async(pipeline(), lanes=-1)


NO_INTERPRETER = {
    "empty": ("executable", "", "''"),
    "none": ("executable", None, "None"),
    "frozen": ("frozen", True, ""),
}


@pytest.mark.parametrize("how", NO_INTERPRETER)
async def test_an_application_without_an_interpreter(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen or embedded Python: one sentence with the way out, nothing is started; inline lanes run."""
    name, value, told = NO_INTERPRETER[how]
    monkeypatch.setattr(sys, name, value, raising=False)
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: started.append(1))
    with pytest.raises(CallError, match=rf"Python interpreter.*{told}.*tm\.Lanes\(0\)"):
        async with tm.Lanes(1):
            pass
    with pytest.raises(OutsideError, match=r"Python interpreter.*lanes=0"):
        await tm.run_async(pipeline(), lanes=1)
    assert started == []
    async with tm.Lanes(0) as lanes:
        assert await lanes.run(abs, -1) == 1
