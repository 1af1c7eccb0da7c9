"""All campaigns, with their sizes: short for every change, long for `make chaos`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import crash_points, databases, kills, live_databases, outages, scripts, stops, zombies
from tests.chaos.harness import Campaign, Figures, Round

SEED = 1
THREE = ("sqlite", "ndjson", "parquet")
SMALL = {"records": 2_000, "sinks": THREE, "work": 0.0001, "checkpoint_s": 0.02}
POSTGRES = {"records": 4_000, "sinks": ("sqlite",), "checkpoint_s": 0.02}
NO_SHARES = {"recovering": 0.0, "in_checkpoint": 0.0}
ANY = {"in_flight": 0.5, **NO_SHARES}
"""These say what they struck in the name of the strike."""


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
    make: Callable[..., Campaign] = Campaign


CAMPAIGNS: dict[str, Kind] = {
    "lanes": Kind("R1", kills.lanes_killed, 50, 1_000, 20, {"records": 16_000}),
    "crash-points": Kind("R3", crash_points.crashed, 45, 1_000, 2, {**SMALL, "lanes": 0}, NO_SHARES),
    "crash-points-lanes": Kind("R3", crash_points.crashed, 15, 400, 1, SMALL, NO_SHARES),
    "failing-calls": Kind("R9, R10", crash_points.failing, 12, 300, 1, {**SMALL, "lanes": 0}, NO_SHARES),
    "engines": Kind("R2", kills.engines_killed, 20, 500, 7, {"records": 16_000}),
    "mixed": Kind("R5", stops.mixed, 10, 300, 5, {"records": 16_000}, {"in_flight": 0.5}),
    "zombies": Kind("R6", zombies.slept, 5, 100, 3, {"records": 12_000, "sinks": THREE}, ANY),
    "postgres": Kind("R25", databases.struck_in_commits, 12, 800, 6, POSTGRES, ANY, databases.PostgresCampaign),
    "postgres-live": Kind(
        "R25", live_databases.struck_on_line, 6, 600, 3, {"records": 0}, ANY, live_databases.LivePostgresCampaign
    ),
    "outage": Kind("outages", outages.struck_by_outages, 2, 20, 10, {"records": 0}, ANY, outages.OutageCampaign),
    "rescaling": Kind("R20", stops.rescaled, 5, 100, 3, {"records": 12_000, "sinks": THREE}, ANY),
    "scripts": Kind("R28", scripts.played, 200, 5_000, 20, {"records": 0}, ANY, scripts.LiveCampaign),
    "signals": Kind("R24", stops.stopped, 20, 200, 5, {"records": 12_000, "sinks": THREE}, ANY),
}

TINY = {"records": 6_000, "sinks": ("sqlite", "ndjson")}
SMALL_CAMPAIGNS: dict[str, Kind] = {
    "small-lanes": Kind("R29", kills.lanes_killed, 12, 12, 12, TINY, ANY),
    "small-engines": Kind("R29", kills.engines_killed, 6, 6, 3, TINY, ANY),
    "small-crash-points": Kind(
        "R29", crash_points.crashed, 12, 12, 2, {**SMALL, "sinks": ("sqlite",), "lanes": 0}, ANY
    ),
}
"""Enough to catch a bug that is there; not among those that are run to find one."""


def campaign(name: str, folder: Path, *, long: bool = False, seed: int = SEED, strikes: int | None = None) -> Figures:
    """Run one, and print what it did."""
    kind = {**CAMPAIGNS, **SMALL_CAMPAIGNS}[name]
    wanted = strikes or (kind.long if long else kind.short)
    made = kind.make(name, folder, **kind.setup)
    try:
        figures = made.run(kind.one, strikes=wanted, seed=seed, each=kind.each)
    finally:
        made.close()
    if strikes is None:
        figures.check(**kind.least)
    return figures
