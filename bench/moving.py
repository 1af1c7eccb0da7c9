"""How long a lane takes to copy its state for a checkpoint, and how long a restart takes to put it into other lanes.

    python bench/moving.py [--keys 100000]

Only ratios within one run mean anything on a machine that others use too. "first" is into memory that nobody has touched.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import tidemill as tm
from tidemill.core.keys import KeyTable
from tidemill.core.moving import Saved, placed, restore, saved_arrays
from tidemill.lanes.memory import Shared, write_at
from tidemill.stages.state import StateLayout, StateMemory
from tidemill.stages.state_copy import copy_used, used_parts

STAGE = tm.Rolling("value", window=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    keys = parser.parse_args().keys
    layout = tm.Plan(STAGE).layout(keys, 32_768)
    memory = filled(layout, keys)
    for how in ("mapped", "written", "mapped", "written"):
        target = Shared("target", layout.total_bytes)
        times = [timed(lambda way=how, to=target: copy(way, memory, to, keys)) for _ in range(6)]
        print(
            f"copy of {keys:,} sensors, {how}: first {times[0]:.1f} ms, then {min(times[1:]):.1f} to {max(times[1:]):.1f} ms"
        )
        target.close()
    names = [f"plant/line{n % 97}/sensor{n}" for n in range(keys)]
    for before, now in ((2, 2), (2, 3), (3, 1)):
        move(layout, names, before, now)


def copy(how: str, memory: StateMemory, target: Shared, keys: int) -> None:
    if how == "mapped":
        copy_used(memory, target.buffer, keys)
        return
    for at, part in used_parts(memory, keys):
        write_at(target.fd, at, part)


def move(layout: StateLayout, names: list[str], before: int, now: int) -> None:
    table = KeyTable(before, len(names))
    table.enter(names)
    counts = table.statistics().by_lane
    memories = [filled(layout, count) for count in counts]
    arrays = {}
    for lane, (memory, count) in enumerate(zip(memories, counts, strict=True)):
        arrays.update(saved_arrays(lane, memory, count))
    saved = Saved(before, layout.stages, names, arrays)
    into = [StateMemory(layout, Shared("lane", layout.total_bytes).buffer) for _ in range(now)]
    start = time.perf_counter()
    places = placed(before, names, KeyTable(now, len(names)), now)
    between = time.perf_counter()
    restore(saved, places, [STAGE], into, [0])
    end = time.perf_counter()
    print(f"{before} lanes to {now}: keys {1e3 * (between - start):.0f} ms, rows {1e3 * (end - between):.0f} ms")


def filled(layout: StateLayout, keys: int) -> StateMemory:
    memory = StateMemory(layout, Shared("state", layout.total_bytes).buffer)
    for name in layout.stages[0]:
        memory.stages[0][name][:keys] = 1
    return memory


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
