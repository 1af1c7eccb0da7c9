"""Objects of `Keyed` in lanes that die: nothing of it can be seen in the output."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.core.batching import Limits
from tidemill.testing import ListSink

pytestmark = pytest.mark.slow

ROWS = [{"sensor": f"S{n % 7}", "time": 1.7e9 + n, "value": float(n * 37 % 101)} for n in range(400)]
FEW = Limits(max_records=30)


class Welford:
    """Mean and squared deviations of all readings so far."""

    count, mean, squares = 0, 0.0, 0.0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        step = record["value"] - self.mean
        self.mean += step / self.count
        self.squares += step * (record["value"] - self.mean)
        return {"mean": self.mean, "squares": self.squares}


def smoothed(state: float, record: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    state = 0.9 * state + 0.1 * record["mean"]
    return state, {"smoothed": state}


def letters_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(plan: Any, tmp_path: Path, lanes: int, rows: list[dict[str, Any]] = ROWS, **options: Any) -> Any:
    sink, letters = ListSink(), tmp_path / f"dead-{lanes}.ndjson"
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), plan, sink), lanes=lanes, dead_letters=letters, **options)
    assert report.in_flight == 0
    return sink.rows, letters_of(letters), report


def restarts(report: tm.Report) -> int:
    return sum(lane.restarts for lane in report.lanes)


def once(mark: Path) -> bool:
    """Whether this is the first time, in all processes."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("where", ["before", "after", "snapshot", "restore"])
def test_a_lane_killed_in_the_middle_of_an_object_changes_nothing(tmp_path: Path, where: str) -> None:
    """In its update, before and after it has changed; while it says what it is; while it is made again."""
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    parent = os.getpid()

    def die(place: str, number: int) -> None:
        if place == where and number % 13 == 1 and os.getpid() != parent and once(deaths / f"{number}"):
            os.kill(os.getpid(), 9)

    class Mortal:
        def __init__(self) -> None:
            self.seen = 0
            self.total = 0.0

        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            die("before", int(record["value"]))
            self.seen += 1
            self.total += record["value"]
            if (
                where == "restore"
                and int(record["value"]) in (20, 70)
                and os.getpid() != parent
                and once(deaths / "first")
            ):
                os.kill(os.getpid(), 9)
            die("after", int(record["value"]))
            return {"seen": self.seen, "total": self.total}

        def snapshot(self) -> tuple[int, float]:
            die("snapshot", self.seen)
            return self.seen, self.total

        def restore(self, snapshot: tuple[int, float]) -> None:
            die("restore", 1)
            self.seen, self.total = snapshot

    plan = tm.Plan(tm.Rolling("value", 5, ["mean"]), tm.Keyed(Mortal), tm.Keyed(Welford), tm.scan(smoothed, 0.0))
    expected, _, _ = run(plan, tmp_path, 0)
    rows, letters, report = run(plan, tmp_path, 2, limits=FEW)
    assert len(list(deaths.iterdir())) > 1
    assert restarts(report) >= len(list(deaths.iterdir()))
    assert rows == expected
    assert letters == []


DYING_AT_COMMITS = """
import os
from tidemill.stages.state import StateMemory

commit = StateMemory.commit

def dying(memory, slab):
    if slab in AFTER:
        commit(memory, slab)
    if slab in BEFORE | AFTER:
        try:
            os.close(os.open(f"{MARKS}/{slab}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), 9)
    commit(memory, slab)

if os.getpid() != APPLICATION:
    StateMemory.commit = dying

class Sums:
    total = 0.0
    def update(self, record):
        self.total += record["value"]
        return {"total": self.total}
"""


def test_a_lane_killed_around_its_commits_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before one, when its result was sent and must not hold; and just after one, when it must."""
    marks = tmp_path / "marks"
    marks.mkdir()
    constants = f"APPLICATION, MARKS = {os.getpid()}, {str(marks)!r}\nBEFORE, AFTER = {{3, 8, 13}}, {{5, 8, 11}}\n"
    (tmp_path / "dying_at_commits.py").write_text(constants + DYING_AT_COMMITS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import dying_at_commits

    plan = tm.Plan(tm.Keyed(dying_at_commits.Sums), tm.Keyed(Welford))
    rows, letters, report = run(plan, tmp_path, 1, limits=FEW)
    assert restarts(report) == len(list(marks.iterdir())) == 5
    totals: dict[str, float] = {}
    for row, came in zip(ROWS, rows, strict=True):
        totals[row["sensor"]] = totals.get(row["sensor"], 0.0) + row["value"]
        assert came["total"] == totals[row["sensor"]]
    assert letters == []


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_lanes_killed_from_outside_change_no_byte(tmp_path: Path, seed: int) -> None:
    """At ten random instants, with work in flight; sensors start anew after a silence, and objects are released."""
    draw = random.Random(seed)
    rows = [
        {"sensor": f"S{draw.randrange(200)}", "time": n * 0.01 + draw.random(), "value": draw.gauss(20, 5)}
        for n in range(30_000)
    ]
    plan = tm.Plan(tm.Keyed(Welford, ttl="8s"), tm.scan(smoothed, 0.0))

    async def written(name: str, killed: int) -> bytes:
        pids: set[int] = set()
        places = sorted(draw.sample(range(1_000, 25_000), killed))
        came = [0]

        def kill(batch: tm.Batch) -> None:
            came[0] += len(batch)
            if places and came[0] >= places[0]:
                busy = [
                    lane.pid for lane in run.statistics().lanes if lane.in_flight and lane.pid and lane.pid not in pids
                ]
                if busy:
                    places.pop(0)
                    os.kill(busy[0], 9)
                    pids.add(busy[0])

        sinks = [tm.sinks.Lines(tmp_path / name), tm.sinks.Callback(kill)]
        pipeline = tm.Pipeline(tm.sources.Records(rows), plan, sinks)
        async with tm.serve(pipeline, lanes=2, limits=Limits(max_records=256)) as run:
            await run.wait()
        assert restarts(run.report) == len(pids) == killed
        assert run.report.memory["objects"] > 0
        return (tmp_path / name).read_bytes()

    assert await written("killed.ndjson", 10) == await written("whole.ndjson", 0)


def test_a_record_that_kills_its_lane_is_not_in_its_object(tmp_path: Path) -> None:
    """It is set aside alone, and its sensor goes on as if it had never come."""
    deadly = {13.0, 70.0}

    class Deadly(Welford):
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            made = super().update(record)
            if record["value"] in deadly and os.getpid() != parent:
                os._exit(3)
            return made

    parent = os.getpid()
    rows, letters, _ = run(tm.Keyed(Deadly), tmp_path, 2)
    expected, _, _ = run(tm.Keyed(Welford), tmp_path, 0, [row for row in ROWS if row["value"] not in deadly])
    assert rows == expected
    assert {(letter["reason_code"], letter["raw"]["value"]) for letter in letters} == {
        ("killed_lane", value) for value in deadly
    }


def test_a_record_that_hangs_is_not_in_its_object(tmp_path: Path, hangs: Any) -> None:
    """It is stopped at its deadline."""

    class Hanging(Welford):
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            made = super().update(record)
            if record["time"] == ROWS[13]["time"] and os.getpid() != parent:
                hangs()
            return made

    parent = os.getpid()
    rows, letters, _ = run(tm.Keyed(Hanging, deadline_s=60), tmp_path, 2)
    expected, _, _ = run(tm.Keyed(Welford), tmp_path, 0, [row for row in ROWS if row is not ROWS[13]])
    assert rows == expected
    assert [(letter["reason_code"], letter["position"]) for letter in letters] == [("deadline", 13)]


@pytest.mark.parametrize("many", [False, True])
def test_a_deadline_is_that_of_one_call(tmp_path: Path, many: bool) -> None:
    """A batch of calls may take longer."""

    def wait() -> None:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass

    class Slow:
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            wait()
            return {"x": 1.0}

    class SlowTogether:
        def update_many(self, batch: tm.Batch) -> dict[str, Any]:
            wait()
            return {"x": 1.0}

    rows = [{"sensor": f"S{n}", "time": n, "value": 1.0} for n in range(150)]
    made, _, report = run(tm.Keyed(SlowTogether if many else Slow, deadline_s=1.5), tmp_path, 1, rows)
    assert len(made) == 150
    assert restarts(report) == 0


def test_on_error_stop_names_the_stage(tmp_path: Path) -> None:
    """And what was raised."""

    class Failing(Welford):
        def update(self, record: dict[str, Any]) -> dict[str, Any]:
            raise ValueError("no such value")

    with pytest.raises(tm.StageError, match=r"Keyed\(Failing\) failed: ValueError: no such value"):
        run(tm.Keyed(Failing, on_error="stop"), tmp_path, 2)


def test_what_is_kept_is_in_the_report(tmp_path: Path) -> None:
    """In bytes; where no lane can be lost, nothing is."""
    assert run(tm.Keyed(Welford), tmp_path, 2)[2].memory["objects"] > 7 * 50
    assert run(tm.Keyed(Welford), tmp_path, 0)[2].memory["objects"] == 0
    assert run(tm.Rolling("value", 5), tmp_path, 2)[2].memory["objects"] == 0
