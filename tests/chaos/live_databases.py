"""The plant on line over PostgreSQL (R25): the run itself goes on after what its sink, the line or the server has suffered."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from signal import SIGKILL
from typing import Final

import psycopg
from tests.chaos.between import WINDOWS, Between
from tests.chaos.databases import Servers, through
from tests.chaos.family import Family, wait_for
from tests.chaos.harness import Campaign, Strike
from tests.chaos.plant import Plant
from tests.chaos.scripts import LiveCampaign, Script

HOWS: Final = ("line", "server", "sink")
CASES: Final = tuple((window, HOWS[(at + turn) % 3]) for turn in range(3) for at, window in enumerate(WINDOWS))
"""Windows of a commit, and what is struck there."""


class LivePostgresCampaign(LiveCampaign):
    """Rounds of which each has a database."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.plant = replace(self.plant, sinks=("postgres",))
        self.servers = Servers(self.at_once)

    def place(self, seed: int) -> Plant:
        return replace(super().place(seed), more=self.servers.place(seed))

    def close(self) -> None:
        self.servers.remove()


class PostgresScript(Script):
    """One whose first sink is PostgreSQL."""

    def start(self, lanes: int) -> Family:
        """With a process for the sink."""
        return self.campaign.start(replace(self.plant, lanes=max(lanes, 1)))

    def newest(self) -> float | None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.plant.more["PLANT_POSTGRES"]) as connection:
            found = connection.execute("SELECT n FROM features ORDER BY place DESC LIMIT 1").fetchone()
            return None if found is None else found[0]
        return None


class LineScript(PostgresScript):
    """One whose database is at the end of a line."""

    def __init__(self, campaign: Campaign, plant: Plant, rng: random.Random, between: Between) -> None:
        super().__init__(campaign, plant, rng)
        self._between = between

    def start(self, lanes: int) -> Family:
        return self.campaign.start(through(self._between, replace(self.plant, lanes=max(lanes, 1))))


def struck_on_line(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """R25: one start, struck at windows of its commits, in turn by `CASES`; all that was sent is there after each."""
    assert isinstance(campaign, LivePostgresCampaign)
    strikes: list[Strike] = []
    server = campaign.servers.of(seed)
    with contextlib.closing(Between(server.port)) as between:
        script = LineScript(campaign, plant, rng, between)
        try:
            script.check()
            family, _ = script.started()
            while len(strikes) < most:
                window, how = CASES[((seed - 1) * most + len(strikes)) % len(CASES)]
                between.hold(window, 1)
                script.add()
                wait_for("a commit has come to its window", lambda: not family.alive or between.held)
                assert family.alive, family.told()[-2000:]
                if how == "server":
                    server.restart("immediate")
                elif how == "sink":
                    assert family.send(family.writers()[0], SIGKILL)
                between.cut()
                script.check()
                strikes.append(Strike(f"{window}, {how}", in_flight=True))
            assert "Traceback" not in family.told(), family.told()[-3000:]
            script.stop()
        finally:
            script.end()
    return strikes
