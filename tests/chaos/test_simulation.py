"""The engine's decisions about state, simulated: a virtual clock, seeded dice, no I/O.

`Epochs`, `Ledger` and `Controls` are the product's; what surrounds them is a model of the least that they rely on: lanes that
work in order, sinks that commit rows with their position, a log, a folder of checkpoints. The dice decide what happens next:
input comes, a slab is handed out, a lane works or dies, a sink writes, a checkpoint is published, everything crashes, the
newest checkpoint is damaged. After every step all invariants are looked at, and at the end each sink must have each input once.

A seed makes the same run each time: ``python -m tests.chaos.test_simulation 17`` tells its steps.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Final

import pytest

from tidemill.core.controls import Barrier, Controls
from tidemill.core.epochs import Epochs
from tidemill.core.ledger import Ledger
from tidemill.errors import EngineError

KEPT: Final = 3
SEEDS: Final = int(os.environ.get("TIDEMILL_SEEDS", "2000"))
_PARTS: Final = 8


@dataclass
class Disk:
    """What survives a crash."""

    log_from: int = 0
    """Inputs before it are forgotten."""
    log_to: int = 0
    """Inputs before it are durable, and acknowledged."""
    checkpoints: list[Saved] = field(default_factory=list)
    sinks: list[list[int]] = field(default_factory=list)
    """The inputs whose rows each sink has committed, in its order."""
    positions: list[int] = field(default_factory=list)
    newest_ever: int = 0


@dataclass
class Saved:
    """A checkpoint."""

    number: int
    position: int
    states: list[int]
    """Of each input's part, up to where it was applied."""
    damaged: bool = False


@dataclass
class Slab:
    start: int
    end: int


@dataclass
class Lane:
    queue: deque[int | Barrier] = field(default_factory=deque)
    done_to: int = 0
    """The number of the last slab that it has committed in its memory, which outlives the process."""


@dataclass
class Sink:
    resumed_at: int
    queue: deque[Slab | int] = field(default_factory=deque)
    waiting: list[int] = field(default_factory=list)
    """Inputs written and not committed."""


class Wrong(AssertionError):
    """An invariant does not hold."""


class Simulation:
    """One seed's run."""

    def __init__(self, seed: int, *, tell: bool = False) -> None:
        self.dice = Random(seed)
        self.tell = tell
        self.now = 0
        self.lanes = self.dice.randint(1, 3)
        sinks = self.dice.randint(1, 3)
        self.inputs = self.dice.randint(20, 120)
        self.interval = self.dice.choice([1, 10, 100])
        self.log_room = self.dice.choice([10, 40, 10_000])
        self.troubles = self.dice.choice([0.0, 0.02, 0.1])
        self.disk = Disk(sinks=[[] for _ in range(sinks)], positions=[0] * sinks)
        self.seen: list[str] = []
        self.start()

    # -- an attempt, from the newest whole checkpoint --------------------------------------------------------

    def start(self) -> None:
        disk = self.disk
        whole = [saved for saved in disk.checkpoints if not saved.damaged]
        if disk.checkpoints and not whole:
            raise Wrong("no checkpoint is whole")
        disk.checkpoints = whole
        newest = whole[-1] if whole else Saved(0, 0, [])
        self.states = list(newest.states) or [0] * _PARTS
        self.taken = newest.position
        if disk.log_from > newest.position:
            raise Wrong(
                f"the log was forgotten up to {disk.log_from}, and the checkpoint needs it from {newest.position}"
            )
        self.lane_of = [Lane() for _ in range(self.lanes)]
        self.sinks = [Sink(position) for position in disk.positions]
        self.cuts = sorted(set(disk.positions))
        self.ledger, self.controls = Ledger(self.lanes), Controls()
        self.slabs: dict[int, Slab] = {}
        self.barrier: Barrier | None = None
        self.barrier_at = 0
        self.copied: dict[int, list[int]] = {}
        self.emitted = 0
        self.out = newest.position
        self.writing: Saved | None = None
        self.epochs = Epochs(
            lanes=self.lanes,
            sinks=len(self.sinks),
            interval_ns=self.interval,
            number=newest.number,
            position=newest.position,
            now_ns=self.now,
            records=self.dice.choice([None, 5, 50]),
        )
        for number, sink in enumerate(self.sinks):
            self.epochs.committed(number, sink.resumed_at)

    # -- what may happen ---------------------------------------------------------------------------------------

    def step(self) -> None:
        doings = [
            self.input,
            self.hand_out,
            self.work,
            self.work,
            self.sink,
            self.sink,
            self.turn,
            self.time,
            self.publish,
        ]
        if self.dice.random() < self.troubles:
            doings = [self.lane_dies, self.crash, self.sink_fails, self.damage]
        doing = self.dice.choice(doings)
        self.seen.append(doing.__name__)
        if self.tell:
            sys.stdout.write(f"{self.now:6} {doing.__name__:10} {self}\n")
        doing()
        self.check()

    def __str__(self) -> str:
        kept = [saved.position for saved in self.disk.checkpoints]
        return (
            f"log {self.disk.log_from}-{self.disk.log_to} taken {self.taken} out {self.out} barrier {self.epochs.waits_at} "
            f"sinks {self.disk.positions} checkpoints {kept}"
        )

    def input(self) -> None:
        disk = self.disk
        room = min(self.log_room - (disk.log_to - disk.log_from), self.inputs - disk.log_to)
        disk.log_to += self.dice.randint(0, max(min(room, 12), 0))

    def hand_out(self) -> None:
        """A slab, cut where a sink has committed."""
        end = min(self.taken + self.dice.randint(1, 9), self.disk.log_to)
        end = min([cut for cut in self.cuts if self.taken < cut < end], default=end)
        if end == self.taken or len(self.slabs) > 6:
            return
        slab = Slab(self.taken, end)
        self.taken = end
        lanes = {self.lane(n) for n in range(slab.start, slab.end)}
        number = self.ledger.open(lanes)
        self.slabs[number] = slab
        for lane in lanes:
            self.lane_of[lane].queue.append(number)

    def lane(self, n: int) -> int:
        return n % _PARTS % self.lanes

    def work(self) -> None:
        """A lane does what is next."""
        number = self.dice.randrange(self.lanes)
        lane = self.lane_of[number]
        if not lane.queue:
            return
        step = lane.queue.popleft()
        if isinstance(step, Barrier):
            self.copy(number)
            return
        self.apply(number, step)
        lane.done_to = step
        if self.dice.random() < self.troubles:
            self.died(number)  # the word of it is lost with the process, its memory is not
        else:
            self.committed(number, step)

    def apply(self, number: int, slab: int) -> None:
        for n in range(self.slabs[slab].start, self.slabs[slab].end):
            if self.lane(n) == number:
                if self.states[n % _PARTS] > n:
                    raise Wrong(f"lane {number} has applied input {n} twice")
                self.states[n % _PARTS] = n + 1

    def copy(self, number: int) -> None:
        own = [part for part in range(_PARTS) if part % self.lanes == number]
        late = [part for part in own if self.states[part] > self.barrier_at]
        if late:
            raise Wrong(f"lane {number} copies what came behind the barrier at {self.barrier_at}")
        self.copied[number] = [self.states[part] for part in own]
        self.epochs.copied(number)
        if len(self.copied) == self.lanes:
            self.controls.drop_barrier()

    def committed(self, number: int, slab: int) -> None:
        for ready in self.ledger.committed(number, slab):
            self.emit(ready)

    def emit(self, number: int) -> None:
        slab = self.slabs.pop(number)
        if slab.start != self.out:
            raise Wrong(f"slab {number} begins at {slab.start}, and all up to {self.out} is out")
        self.out, self.emitted = slab.end, number
        for sink in self.sinks:
            if sink.resumed_at < slab.end:
                sink.queue.append(slab)
        self.ledger.freed(number)
        self.pass_barrier()

    def pass_barrier(self) -> None:
        if self.epochs.waits_at is not None and self.barrier is not None and self.emitted >= self.barrier.after:
            self.epochs.pass_barrier()
            self.commit(self.barrier_at)
            self.epochs.told(self.now, self.barrier_at)

    def commit(self, position: int) -> None:
        for sink in self.sinks:
            if sink.resumed_at < position:
                sink.queue.append(position)

    def sink(self) -> None:
        number = self.dice.randrange(len(self.sinks))
        sink = self.sinks[number]
        if not sink.queue:
            return
        step = sink.queue.popleft()
        if isinstance(step, Slab):
            if step.start < sink.resumed_at:
                raise Wrong(
                    f"sink {number} is given inputs from {step.start} again, and has them up to {sink.resumed_at}"
                )
            sink.waiting += range(step.start, step.end)
            return
        if step < self.disk.positions[number]:
            raise Wrong(f"sink {number} is to commit {step} behind {self.disk.positions[number]}")
        self.disk.sinks[number] += sink.waiting
        sink.waiting = []
        self.disk.positions[number] = step
        self.epochs.committed(number, step)

    def turn(self) -> None:
        """As `Saving.turn` does it."""
        idle = self.ledger.idle and self.taken == self.disk.log_to
        kept = [saved.position for saved in self.disk.checkpoints]
        full = self.disk.log_to - self.disk.log_from >= self.log_room
        pressed = full and (len(kept) < KEPT or kept[0] != kept[-1])
        if self.epochs.due(self.now, self.taken, pressed=pressed):
            self.copied = {}
            self.barrier_at = self.taken
            self.barrier = Barrier(self.ledger.statistics().opened, self.epochs.begin(self.taken, self.now))
            self.controls.add_barrier(self.barrier.after, self.barrier.number)
            for lane in self.lane_of:
                lane.queue.append(self.barrier)
            self.pass_barrier()
        elif self.epochs.commit_due(self.now, self.taken if idle else self.out):
            self.commit(self.taken if idle else self.out)
        if self.epochs.writable:
            states = [0] * _PARTS
            for lane, own in self.copied.items():
                states[lane :: self.lanes] = own
            self.writing = Saved(self.epochs.write(self.now), self.barrier_at, states)

    def publish(self) -> None:
        if self.writing is None:
            return
        saved, self.writing = self.writing, None
        disk = self.disk
        disk.checkpoints = [*disk.checkpoints, saved][-KEPT:]
        if any(position < saved.position for position in disk.positions):
            raise Wrong(f"checkpoint {saved.number} is at {saved.position}, and the sinks are at {disk.positions}")
        wanted = [max(range(part, saved.position, _PARTS), default=-1) + 1 for part in range(_PARTS)]
        if saved.states != wanted:
            raise Wrong(f"checkpoint {saved.number} at {saved.position} has {saved.states}, not {wanted}")
        if saved.position < disk.newest_ever:
            raise Wrong(f"checkpoint {saved.number} is at {saved.position}, behind {disk.newest_ever}")
        disk.newest_ever = saved.position
        if len(disk.checkpoints) == KEPT:
            disk.log_from = max(disk.log_from, disk.checkpoints[0].position)
        self.epochs.published(self.now)

    def time(self) -> None:
        self.now += self.dice.choice([1, 5, 50, 500])

    # -- troubles ------------------------------------------------------------------------------------------------

    def lane_dies(self) -> None:
        self.died(self.dice.randrange(self.lanes))

    def died(self, number: int) -> None:
        """Its memory lives on, rolled back to the last slab committed there; the replacement is told the rest in order."""
        lane = self.lane_of[number]
        for slab in self.ledger.owed(number):
            if slab <= lane.done_to:
                self.committed(number, slab)
        lane.queue.clear()
        for step in self.controls.among(self.ledger.owed(number)):
            if (isinstance(step, Barrier) and number not in self.copied) or isinstance(step, int):
                lane.queue.append(step)

    def crash(self) -> None:
        """Or a power failure: what is not on the disk is gone."""
        self.start()

    def sink_fails(self) -> None:
        """Perhaps after it has committed, before it could say so. The run starts over from the last checkpoint."""
        number = self.dice.randrange(len(self.sinks))
        for _ in range(self.dice.randint(0, 3)):
            sink = self.sinks[number]
            if sink.queue and not isinstance(sink.queue[0], Slab):
                self.disk.sinks[number] += sink.waiting
                sink.waiting = []
                self.disk.positions[number] = sink.queue.popleft()
            elif sink.queue:
                slab = sink.queue.popleft()
                assert isinstance(slab, Slab)
                sink.waiting += range(slab.start, slab.end)
        self.start()

    def damage(self) -> None:
        """The newest checkpoint, once more than one is there, found at a start."""
        if len(self.disk.checkpoints) > 1:
            self.disk.checkpoints[-1].damaged = True
            self.start()
            self.disk.newest_ever = self.disk.checkpoints[-1].position

    # -- what must hold --------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.ledger.validate()
        self.epochs.validate()
        disk = self.disk
        for number, (rows, position) in enumerate(zip(disk.sinks, disk.positions, strict=True)):
            if rows != list(range(position)):
                raise Wrong(f"sink {number} has committed {position}, and its rows are {rows}")
            if position > disk.log_to:
                raise Wrong(f"sink {number} has {position} inputs, and {disk.log_to} are durable")
        oldest = disk.checkpoints[0].position if len(disk.checkpoints) == KEPT else 0
        if disk.checkpoints and disk.log_from > max(oldest, disk.checkpoints[0].position):
            raise Wrong(f"inputs before {disk.log_from} are forgotten, and a checkpoint at {oldest} is kept")

    def whole(self) -> Simulation:
        """Steps with troubles, then without until all is out and saved."""
        for _ in range(self.dice.randint(100, 600)):
            self.step()
        self.troubles = 0.0
        for _ in range(40_000):
            if self.epochs.statistics().position == self.inputs:
                break
            self.step()
        else:
            raise Wrong(f"it does not come to an end: {self}")
        if any(rows != list(range(self.inputs)) for rows in self.disk.sinks):
            raise Wrong("not every input is in every sink once")
        return self


@pytest.mark.parametrize("part", range(10))
def test_every_input_is_in_every_sink_once_whatever_happens(part: int) -> None:
    """2,000 seeds; ``TIDEMILL_SEEDS=20000`` makes it a long run. The message names the seed."""
    for seed in range(part, SEEDS, 10):
        try:
            Simulation(seed).whole()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_a_sink_that_stood_still_does_not_put_off_the_checkpoint_after_it() -> None:
    """What counts is what writing takes."""
    epochs = Epochs(lanes=1, sinks=1, interval_ns=10, number=0, position=0, now_ns=0)
    epochs.begin(100, 10)
    epochs.copied(0)
    epochs.pass_barrier()
    epochs.committed(0, 100)  # an hour later
    assert epochs.write(1_000) == 1
    epochs.published(1_002)
    assert [epochs.due(now, 200) for now in (1_019, 1_022)] == [False, True]


def test_when_the_log_is_full_a_checkpoint_is_due_also_where_the_last_one_was() -> None:
    """Else inputs that only the older ones need would stay in it, and no input could come any more."""
    epochs = Epochs(lanes=1, sinks=1, interval_ns=10, number=3, position=100, now_ns=0)
    assert not epochs.due(10, 100)
    assert epochs.due(1, 100, pressed=True)
    assert not epochs.due(1, 99, pressed=True)


def test_a_seed_makes_the_same_run_again() -> None:
    """Step by step."""
    for seed in range(20):
        assert Simulation(seed).whole().seen == Simulation(seed).whole().seen


def test_all_that_can_happen_does() -> None:
    """Within few seeds, so that none of it is left out of the many."""
    seen = {what for seed in range(30) for what in Simulation(seed).whole().seen}
    assert seen >= {"lane_dies", "crash", "sink_fails", "damage", "publish", "hand_out"}


PLANTED = {
    "a checkpoint does not wait for sinks": ("writable", lambda real: property(_without_sinks)),
    "sinks count as having what they were told": ("told", lambda real: _told_is_done),
    "a lane's copy is not waited for": ("writable", lambda real: property(_without_lanes)),
}


def _without_sinks(epochs: Epochs) -> bool:
    barrier = epochs._barrier
    return barrier is not None and not barrier.writing and barrier.passed and not barrier.lanes


def _told_is_done(epochs: Epochs, now_ns: int, position: int) -> None:
    epochs._commits_ns, epochs._told = now_ns, position
    epochs._sinks = [position for _ in epochs._sinks]


def _without_lanes(epochs: Epochs) -> bool:
    barrier = epochs._barrier
    return barrier is not None and not barrier.writing and all(at >= barrier.position for at in epochs._sinks)


@pytest.mark.parametrize("planted", PLANTED)
def test_it_would_see_wrong_decisions(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be blind."""
    name, made = PLANTED[planted]
    monkeypatch.setattr(Epochs, name, made(getattr(Epochs, name)))
    with pytest.raises((Wrong, EngineError)):
        _ = [Simulation(seed).whole() for seed in range(100)]


if __name__ == "__main__":
    Simulation(int(sys.argv[1]), tell=True).whole()
