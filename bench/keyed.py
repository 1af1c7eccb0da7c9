"""Objects of one's own, one per sensor: what `Keyed` and `scan` cost beside the same loop written out in plain Python.

The loop has ready dicts and a dict of objects, and keeps a list of what they return: no columns, no dead letters, nothing
that survives its process. Ours is a lane's chain over ready columns, the states of the objects that changed included. How
much these weigh follows from the records that a sensor has in a batch: four at 1,000 sensors and 4,096 records, one at
100,000 sensors, the worst there is. Measured is CPU time, once every sensor has its object, with the collector set as in
a lane. What comes out is checked against the loop.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tidemill as tm
from bench import _common
from bench._common import Table, median, spread
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.chain import Chain
from tidemill.engine.kept_objects import KeptObjects
from tidemill.lanes.lane_main import YOUNG_OBJECTS
from tidemill.lanes.object_states import sent_states
from tidemill.schema import Kind
from tidemill.stages.state import StateMemory


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU time, and what the function returned."""
    start = time.process_time()
    made = function()
    return time.process_time() - start, made


class Welford:
    """Mean and deviation of all readings so far."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        value = record["value"]
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)
        return {"mean": self.mean, "score": step / (1.0 + self.squares / self.count) ** 0.5}


class Many(Welford):
    """The same for a batch; it costs the loop inside."""

    update = None  # type: ignore[assignment]

    def update_many(self, batch: tm.Batch) -> dict[str, Any]:
        means, scores = [], []
        for value in batch["value"].tolist():
            self.count += 1
            step = value - self.mean
            self.mean += step / self.count
            self.squares += step * (value - self.mean)
            means.append(self.mean)
            scores.append(step / (1.0 + self.squares / self.count) ** 0.5)
        return {"mean": means, "score": scores}


class Window:
    """A thousand readings: a state of nine kilobytes."""

    def __init__(self) -> None:
        self.values = np.zeros(1_000)
        self.at = 0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.values[self.at % 1_000] = record["value"]
        self.at += 1
        return {"mean": self.at * 1.0, "score": 0.0}


def welford(state: tuple[int, float, float], record: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    count, mean, squares = state
    value = record["value"]
    count += 1
    step = value - mean
    mean += step / count
    squares += step * (value - mean)
    return (count, mean, squares), {"mean": mean, "score": step / (1.0 + squares / count) ** 0.5}


def measure(options: argparse.Namespace, table: Table) -> None:
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    for sensors, size in ((1_000, 4_096), (1_000, 32_768), (100_000, 4_096)):
        rng = np.random.default_rng(5)
        warm = -(-sensors // size) * size  # one record of each sensor
        first = np.resize(rng.permutation(sensors), warm)
        slots = np.concatenate([first, rng.integers(0, sensors, options.records)]).astype(np.int32)
        values = rng.normal(20, 3, len(slots))
        each = f"{sensors:,} sensors, {size:,} a batch"
        cases = {
            "Keyed(update)": (tm.Keyed(Welford), _loop_of_objects(Welford)),
            "Keyed(update), columns=['value']": (tm.Keyed(Welford, columns=["value"]), _loop_of_objects(Welford)),
            "scan": (tm.scan(welford, (0, 0.0, 0.0)), _loop_of_states),
            "scan, columns=['value']": (tm.scan(welford, (0, 0.0, 0.0), columns=["value"]), _loop_of_states),
        }
        if sensors <= 1_000:
            cases["Keyed(update_many)"] = (tm.Keyed(Many), _loop_of_objects(Welford))
        if sensors <= 1_000 and size == 4_096:
            cases["Keyed(update) of 8 kB"] = (tm.Keyed(Window), _loop_of_objects(Window))
        for what, (stage, loop) in cases.items():
            ratios, costs = [], []
            for _ in range(options.runs):
                lane = _Lane(stage, sensors, size, slots, values)
                bare, expected = loop(slots, values, warm)
                ours = lane.seconds(expected, warm // size)
                ratios.append(ours / bare)
                costs.append([seconds / options.records * 1e9 for seconds in (ours, bare, lane.kept_s)])
            own, bare, kept = (median(side) for side in zip(*costs, strict=True))
            note = f"{spread(ratios)}; {own:,.0f} and {bare:,.0f} ns/record, and {kept:,.0f} in the parent"
            table.note(f"{what} / the loop, {each}", f"{median(ratios):.1f}x{note}")
            print(table.rows[-1].what, table.rows[-1].measured, sep=": ", flush=True)


class _Lane:
    """A lane's chain over ready batches, and the parent that keeps the states."""

    def __init__(self, stage: Any, sensors: int, size: int, slots: Any, values: Any) -> None:
        plan = tm.Plan(stage)
        layout = plan.layout(sensors, size)
        self._memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
        self._chain = Chain(plan.stages, self._memory, lambda: 0)
        self._chain.admit([f"S{slot}" for slot in range(sensors)], 0)
        self._kept = KeptObjects()
        self.kept_s = 0.0
        self._batches = []
        texts = self._chain.key_texts
        for at in range(0, len(values), size):
            part = slice(at, at + size)
            sensor = Column(Kind.TEXT, slots[part], texts=texts)
            columns = {
                "sensor": sensor,
                "time": Column(Kind.FLOAT, 1.7e9 + np.arange(at, at + len(slots[part])) * 1e-3),
                "value": Column(Kind.FLOAT, values[part]),
                "unit": Column(Kind.TEXT, np.zeros(len(slots[part]), np.int32), texts=np.array(["C"], object)),
            }
            self._batches.append((Batch(columns, key=sensor), slots[part]))

    def seconds(self, expected: list[dict[str, Any]], warm: int) -> float:
        self._run(self._batches[:warm])
        self.kept_s = 0.0
        seconds, outcomes = timed(lambda: self._run(self._batches[warm:]))
        made = np.concatenate([outcome.batch["mean"] for outcome in outcomes])
        if made.tolist() != [row["mean"] for row in expected]:
            raise SystemExit("what the objects returned is not what the loop has")
        return seconds - self.kept_s

    def _run(self, batches: list[Any]) -> list[Any]:
        outcomes = []
        for batch, slots in batches:
            self._memory.begin(self._memory.committed + 1)
            outcomes.append(self._chain.run(batch, slots))
            changed = [sent_states(stage, states) for stage, states in self._chain.changed_objects().items()]
            self._memory.commit(self._memory.committed + 1)
            self.kept_s += timed(lambda changed=changed: self._kept.committed(changed))[0]
        return outcomes


def _records(slots: Any, values: Any) -> list[dict[str, Any]]:
    return [
        {"sensor": f"S{slot}", "time": 1.7e9 + at * 1e-3, "value": value, "unit": "C"}
        for at, (slot, value) in enumerate(zip(slots.tolist(), values.tolist(), strict=True))
    ]


def _loop_of_objects(factory: Callable[[], Any]) -> Callable[[Any, Any, int], tuple[float, list[dict[str, Any]]]]:
    def loop(slots: Any, values: Any, warm: int) -> tuple[float, list[dict[str, Any]]]:
        objects: dict[str, Any] = {}

        def run(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
            made = []
            for record in records:
                sensor = record["sensor"]
                if (one := objects.get(sensor)) is None:
                    one = objects[sensor] = factory()
                made.append(one.update(record))
            return made

        records = _records(slots, values)
        run(records[:warm])
        return timed(lambda: run(records[warm:]))

    return loop


def _loop_of_states(slots: Any, values: Any, warm: int) -> tuple[float, list[dict[str, Any]]]:
    states: dict[str, Any] = {}

    def run(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        made = []
        for record in records:
            sensor = record["sensor"]
            states[sensor], returned = welford(states.get(sensor, (0, 0.0, 0.0)), record)
            made.append(returned)
        return made

    records = _records(slots, values)
    run(records[:warm])
    return timed(lambda: run(records[warm:]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    _common.main(measure, parser, runs=3)
