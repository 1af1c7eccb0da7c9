"""The harness: rounds of faults over a plant, each of which must end in the golden output; and what became of them.

A round is one run of the plant, in as many starts as the faults ask for. Its faults follow from its seed; when they
strike follows from the seed too, and from the machine: the same seed strikes in the same places as far as the machine
does the same. What counts is seen from outside alone: `tests.chaos.outside`, `tests.chaos.family`.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.family import Family
from tests.chaos.oracle import Golden, check_against_pandas
from tests.chaos.plant import FILE_SINKS, Plant


@dataclass(frozen=True)
class Strike:
    """One fault, and what was under way when it struck."""

    what: str
    in_flight: bool
    """Something that could be lost or doubled: a lane was at work, or a checkpoint was half written, or a run that had begun
    again had not come to where the one before it was."""
    recovering: bool = False
    """What had been struck before was not through it."""
    in_checkpoint: bool = False
    """A checkpoint was being written."""


@dataclass
class Figures:
    """What a campaign did."""

    name: str
    strikes: list[Strike] = field(default_factory=list)
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def share(self, of: str) -> float:
        return sum(getattr(strike, of) for strike in self.strikes) / max(len(self.strikes), 1)

    def __str__(self) -> str:
        count = len(self.strikes)
        seeds = f"{min(self.seeds)}..{max(self.seeds)}" if self.seeds else "none"
        told = (
            f"{self.name}: {count} in {self.rounds} rounds (seeds {seeds}), {self.seconds:.0f} s; "
            f"in flight {self.share('in_flight'):.0%}, inside recovery {self.share('recovering'):.0%}, "
            f"inside a checkpoint {self.share('in_checkpoint'):.0%}; {len(self.failures)} failures in {count}"
        )
        if count and not self.failures:
            told += f" (95 % bound {3 / count:.2g})"
        kinds = Counter(f"{strike.what}{'' if strike.in_flight else ', idle'}" for strike in self.strikes)
        told += "\n    " + ", ".join(f"{count} {what}" for what, count in sorted(kinds.items()))
        return "\n".join([told, *(f"    {note}" for note in self.notes), *self.failures])

    def check(self, *, in_flight: float = 0.8, recovering: float = 0.1, in_checkpoint: float = 0.1) -> None:
        """Nothing failed, and the strikes were worth something."""
        assert not self.failures, str(self)
        assert self.strikes, "nothing was struck"
        for name, least in (("in_flight", in_flight), ("recovering", recovering), ("in_checkpoint", in_checkpoint)):
            assert self.share(name) >= least, f"only {self.share(name):.0%} {name}: {self}"


Round = Callable[["Campaign", Plant, random.Random, int, int], list[Strike]]
"""Runs the round of a seed (the last argument) in the plant's folder, with at most so many strikes (the one before), and
returns them. What it raises is its failure."""


@dataclass
class Campaign:
    """Rounds of one kind over one recording, until there are as many strikes as wanted."""

    name: str
    folder: Path
    records: int
    sinks: tuple[str, ...] = FILE_SINKS
    lanes: int = 2
    work: float = 0.0003
    checkpoint_s: float = 0.05
    plan: str = "rows"
    suffix: str = "ndjson"
    input_seed: int = 1
    at_once: int = 2
    """Rounds that go on at the same time."""
    points: list[tuple[str, int]] | None = None
    """System calls at which a start can be struck; measured by the first round that asks."""
    notes: list[str] = field(default_factory=list)
    """What rounds have to tell beside their strikes."""

    def __post_init__(self) -> None:
        self.plant = Plant.recorded(
            self.folder / "plant",
            self.records,
            self.input_seed,
            suffix=self.suffix,
            sinks=self.sinks,
            lanes=self.lanes,
            work=self.work,
            checkpoint_s=self.checkpoint_s,
            plan=self.plan,
        )
        self.golden = Golden.of(self.plant)
        if self.plan == "rows" and self.suffix == "ndjson" and "sqlite" in self.sinks:
            check_against_pandas(self.golden, self.plant)

    def run(self, one: Round, *, strikes: int, seed: int, each: int) -> Figures:
        """Rounds with the seeds ``seed``, ``seed + 1``, ... of ``each`` strikes at most, until there are ``strikes``."""
        figures = Figures(self.name, notes=self.notes)
        began = time.monotonic()
        with ThreadPoolExecutor(self.at_once) as pool:
            while len(figures.strikes) < strikes and not figures.failures:
                left = strikes - len(figures.strikes)
                wanted = [min(each, left - at * each) for at in range(self.at_once) if left > at * each]
                seeds = [seed + figures.rounds + at for at in range(len(wanted))]
                for done in pool.map(lambda pair: self._tried(one, *pair, figures), zip(seeds, wanted, strict=True)):
                    figures.strikes += done
                figures.rounds += len(seeds)
                figures.seeds += seeds
                assert figures.rounds <= 4 * strikes + 4, f"rounds without strikes: {figures}"
        figures.seconds = time.monotonic() - began
        sys.stderr.write(f"\n{figures}\n")
        return figures

    def _tried(self, one: Round, seed: int, most: int, figures: Figures) -> list[Strike]:
        plant = self.place(seed)
        strikes: list[Strike] = []
        try:
            strikes = one(self, plant, random.Random(seed), most, seed)
            told = self.golden.difference(plant)
            assert not told, told
        except Exception as error:  # noqa: BLE001 - told with the seed that brings it back
            where = "".join(traceback.format_exception(error)[-2:])
            again = f"python -m tests.chaos {self.name} --seed {seed} --strikes {most}"
            figures.failures.append(f"FAILED with seed {seed}; again: {again}\n{where[:3000]}(kept: {plant.folder})")
        else:
            shutil.rmtree(plant.folder)
        return strikes

    def place(self, seed: int) -> Plant:
        """Where the round of a seed runs."""
        return self.plant.beside(f"round-{seed}")

    def close(self) -> None:
        """What the campaign itself has started ends."""

    def start(self, plant: Plant) -> Family:
        """A start of the plant."""
        return Family(plant.command(), plant.folder, plant.environment())


def end_well(family: Family) -> None:
    """Let a start go on to its end."""
    code = family.finish()
    assert code == 0, f"the run ended with exit code {code}; it said: {family.told()[-2000:]}"
