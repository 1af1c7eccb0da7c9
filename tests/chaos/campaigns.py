"""All campaigns, with their sizes: short for every change, long for `make chaos`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import crash_points, kills
from tests.chaos.harness import Campaign, Figures, Round

SEED = 1
NO_SHARES = {"recovering": 0.0, "in_checkpoint": 0.0}
SMALL = {"records": 4_000, "sinks": ("sqlite", "ndjson", "parquet"), "work": 0.0001, "checkpoint_s": 0.02}


@dataclass(frozen=True)
class Kind:
    """A campaign that can be had by its name."""

    row: str
    """Of the table in ``docs/reliability.md``."""
    one: Round
    short: int
    long: int
    each: int
    """Strikes in a round, at most."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    """Shares of strikes that must have been in flight, inside recovery, inside a checkpoint; else 0.8, 0.1 and 0.1."""


CAMPAIGNS: dict[str, Kind] = {
    "lanes": Kind("R1", kills.lanes_killed, 50, 1_000, 20, {"records": 16_000}),
    "crash-points": Kind("R3", crash_points.crashed, 45, 1_000, 2, {**SMALL, "lanes": 0}, NO_SHARES),
    "crash-points-lanes": Kind("R3", crash_points.crashed, 15, 400, 1, SMALL, NO_SHARES),
    "failing-calls": Kind("R9, R10", crash_points.failing, 16, 300, 1, {**SMALL, "lanes": 0}, NO_SHARES),
    "engines": Kind("R2", kills.engines_killed, 20, 500, 7, {"records": 16_000}),
}


def campaign(name: str, folder: Path, *, long: bool = False, seed: int = SEED, strikes: int | None = None) -> Figures:
    """Run one, and print what it did."""
    kind = CAMPAIGNS[name]
    wanted = strikes or (kind.long if long else kind.short)
    figures = Campaign(name, folder, **kind.setup).run(kind.one, strikes=wanted, seed=seed, each=kind.each)
    if strikes is None:
        figures.check(**kind.least)
    return figures
