"""One case, for some seconds, with what a call takes of the CPU on each side: for those who make it less."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tidemill as tm
from bench import _bridge
from bench import _bridge_work as work
from bench._bridge_calls import _loopers, _predict
from bench._bridge_passes import Pass, checked, looping, streaming

_IN_FLIGHT = 16


@dataclass(frozen=True)
class Case:
    """A function and its items; ``door`` is the way in."""

    function: Callable[[Any], Any]
    items: Callable[[], Sequence[Any]]
    door: str = "run"
    in_flight: int = _IN_FLIGHT


def _columns(size: int) -> Callable[[], list[work.Columns]]:
    return lambda: [work.columns_of(size, seed) for seed in range(32)]


def _parts(records: list[Any], size: int) -> list[Any]:
    return [records[start : start + size] for start in range(0, len(records), size)]


def _sizes(
    prefix: str, case: Callable[[int], Case], sizes: Sequence[int] = (20, 200, 2_000, 20_000)
) -> dict[str, Case]:
    return {f"{prefix}{size}": case(size) for size in sizes}


CASES: dict[str, Case | None] = {
    "same": Case(work.same, lambda: list(range(32))),
    "alone": Case(work.same, lambda: list(range(32)), in_flight=1),
    **_sizes("light", lambda size: Case(work.light, _columns(size))),
    **_sizes("stream", lambda size: Case(work.light, _columns(size), "stream")),
    **_sizes("batch", lambda size: Case(work.light, lambda: [work.batch_of(each) for each in _columns(size)()])),
    **_sizes(
        "object", lambda size: Case(work.light_object, lambda: [work.object_of(each) for each in _columns(size)()])
    ),
    "executor20": Case(_bridge.features, lambda: _parts(_bridge.records_of(640), 20), "executor"),
    **_sizes(
        "tuples",
        lambda size: Case(work.tuples, lambda: _parts(work.points_of(32 * size), size), "stream", 64),
        (20, 200, 2_000),
    ),
    **_sizes(
        "dicts",
        lambda size: Case(work.dicts, lambda: _parts(work.records_of(32 * size), size), "stream", 64),
        (20, 200, 2_000),
    ),
    "out10mb": Case(work.ends, lambda: [work.large(seed) for seed in range(4)], in_flight=4),
    "back10mb": Case(work.large, lambda: list(range(4)), in_flight=4),
    "batched": None,
}
"""``batched`` has a shape of its own: a thousand callers that await one record at a time."""


def profile(options: argparse.Namespace) -> None:
    if options.profile not in CASES:
        raise SystemExit(f"there is no case {options.profile!r}; there are: {', '.join(CASES)}")
    seconds = max(options.seconds, 3.0)
    made = asyncio.run(_profiled(CASES[options.profile], options.lanes, seconds))
    wall = made.seconds / made.calls * 1e6
    print(
        f"{options.profile}: {made.calls:,} calls in {made.seconds:.1f} s, {made.rate:,.0f}/s, {wall:.1f} us a call\n"
        f"CPU us a call, parent + workers: {made.cpu()}; parent {made.parent_s / made.seconds:.2f} of a core, "
        f"workers {made.workers_s / made.seconds:.2f}"
    )


async def _profiled(case: Case | None, count: int, seconds: float) -> Pass:
    async with tm.Lanes(count) as lanes:
        await lanes.run(work.same, 0)  # the lanes have processes now
        print(f"pids of the lanes: {' '.join(str(lane.pid) for lane in lanes.statistics().lanes)}", flush=True)
        if case is None:
            predict, armed = _predict(lanes)
            print(f"timeouts armed: {armed}")
            return await _loopers(predict, 1_000, seconds)
        items = case.items()
        expected = [case.function(item) for item in items]
        call = _door(lanes, case)
        await checked(call, items, expected, "profile")
        if case.door == "stream":
            return await streaming(
                lambda source: lanes.stream(case.function, source, window=case.in_flight),
                items,
                expected,
                seconds=seconds,
                what="profile",
            )
        return await looping(call, items, expected, in_flight=case.in_flight, seconds=seconds, what="profile")


def _door(lanes: tm.Lanes, case: Case) -> Callable[[Any], Awaitable[Any]]:
    if case.door != "executor":
        return lambda item: lanes.run(case.function, item)
    loop, pool = asyncio.get_running_loop(), lanes.executor()
    return lambda item: loop.run_in_executor(pool, case.function, item)
