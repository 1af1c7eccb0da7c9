"""A database that is away while sensors go on sending: everything that was acknowledged meanwhile is in its table, once."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.chaos.family import Family, wait_for
from tests.chaos.harness import Campaign, Strike
from tests.chaos.live_databases import LivePostgresCampaign, PostgresScript
from tests.chaos.plant import Plant
from tests.web import asked

WHATS: Final = ("server", "file")
"""Which sink is away, in turn: PostgreSQL, whose server has crashed, or SQLite, whose file another program has locked."""
RATE: Final = 2_000
"""Lines a second that sensors send, at most."""
LEAST_TRIES: Final = 3
LEAST_LINES: Final = 3_000
MOST_AT_ONCE: Final = 600
"""Lines that are sent together: `tests.chaos.scripts.more_lines` makes fewer, and the run reads them as one entry or more."""
MEGABYTE: Final = 1 << 20


@dataclass
class OutageCampaign(LivePostgresCampaign):
    """Runs with both databases as their sinks."""

    away_s: float = 60.0
    """How long one stays away, at least: also for `LEAST_TRIES` and `LEAST_LINES`."""
    whats: tuple[str, ...] = WHATS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.plant = replace(self.plant, sinks=("postgres", "sqlite"))

    def place(self, seed: int) -> Plant:
        made = super().place(seed)
        return replace(made, more={**made.more, "PLANT_METRICS": "127.0.0.1:0"})


@dataclass
class Seen:
    """What a run has shown and taken while its sink was away."""

    lines: int = 0
    """That it has acknowledged meanwhile."""
    tries: int = 0
    spooled: float = 0.0
    """Bytes of its log, at most: of the disk, which it takes some megabytes ahead."""
    waiting: float = 0.0
    """Entries of the log that nobody has worked on, at most."""
    engine: tuple[int, int] = (0, 0)
    """Resident bytes of the engine: at first, and at most."""
    said: str = ""
    """Of its page, last."""


class LoadScript(PostgresScript):
    """One that sends as fast as is acknowledged, and no faster than `RATE`."""

    heard = 0
    """Lines that were acknowledged."""

    def load(self) -> None:
        """Some more lines, until they are acknowledged: each is the run's from then on."""
        self.add()
        family, sender = self.started()
        told, wanted = b"", len(self.sent[-1].lines)
        while self.heard < wanted or not told.endswith(b"\n"):
            more = sender.recv(1 << 16)
            assert more, f"the run has closed the connection: {family.told()[-2000:]}"
            told += more
            self.heard = max(map(int, told.split(b"\n")[:-1]), default=0)
        self.due(self.heard)

    def page(self, name: str) -> tuple[int, str]:
        """Status and text."""
        return asked((self.plant.folder / "pages").read_text() + name)

    def metrics(self) -> dict[str, float]:
        """Those without labels, and of the last sink, source or lane."""
        families = text_string_to_metric_families(self.page("/metrics")[1])
        return {sample.name: sample.value for family in families for sample in family.samples}


def struck_by_outages(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """One start under load, whose databases stay away in turn; after each all that was sent is in both."""
    assert isinstance(campaign, OutageCampaign)
    strikes: list[Strike] = []
    script = LoadScript(campaign, plant, rng)
    try:
        script.check()
        family, _ = script.started()
        while len(strikes) < most:
            what = campaign.whats[(seed - 1 + len(strikes)) % len(campaign.whats)]
            script.load()
            with away(campaign, plant, seed, what):
                seen = endured(script, family, what, campaign.away_s)
            script.check()
            wait_for("the run is well again", lambda: script.page("/healthz")[0] == script.page("/readyz")[0] == 200)
            assert script.metrics()["tidemill_tries"] == 0
            campaign.notes.append(noted(seed, what, campaign.away_s, seen))
            strikes.append(Strike(what, in_flight=True))
        assert "Traceback" not in family.told(), family.told()[-3000:]
        script.stop()
    finally:
        script.end()
    return strikes


@contextlib.contextmanager
def away(campaign: OutageCampaign, plant: Plant, seed: int, what: str) -> Iterator[None]:
    """Meanwhile this sink cannot be written to."""
    if what == "server":
        server = campaign.servers.of(seed)
        server.stop("immediate")
        try:
            yield
        finally:
            server.start()
        return
    with contextlib.closing(sqlite3.connect(Path(plant.folder, "rows.db"), timeout=20, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


SAYS: Final = {"server": ("sink postgres: ", "refused"), "file": ("sink sqlite: ", "locked by another program")}
"""How a page's sentence begins, and what is in it."""


def endured(script: LoadScript, family: Family, what: str, away_s: float) -> Seen:
    """Go on with the load for so long, and look at the run now and then."""
    engine = psutil.Process(family.engine.pid)
    seen, began = Seen(), time.monotonic()
    before = script.heard
    looked = began
    while True:
        script.load()
        seen.lines = script.heard - before
        resident = engine.memory_info().rss
        seen.engine = (seen.engine[0] or resident, max(seen.engine[1], resident))
        if time.monotonic() - looked > min(1.0, away_s):
            looked = time.monotonic()
            look(script, seen, what)
        for_s = time.monotonic() - began
        if for_s >= away_s and seen.tries >= LEAST_TRIES and seen.lines >= LEAST_LINES:
            break
        assert for_s < away_s + 60.0, f"{seen}: {family.told()[-2000:]}"
        wait_for("sensors send again", lambda: seen.lines <= RATE * (time.monotonic() - began), each_s=0.002)
    beginning, reason = SAYS[what]
    assert seen.said.startswith(f"{beginning}{seen.tries} tries, "), seen.said
    assert reason in seen.said, seen.said
    assert script.page("/readyz")[0] == 503
    assert seen.spooled > 20 * seen.lines, f"what nobody could write is not in the log: {seen}"
    assert seen.waiting > seen.lines / MOST_AT_ONCE, f"what nobody could write does not wait: {seen}"
    assert seen.engine[1] - seen.engine[0] < 48 * MEGABYTE, f"the engine has grown: {seen}"
    return seen


def look(script: LoadScript, seen: Seen, what: str) -> None:
    """At the pages of the run, which name the sink as soon as a try has failed."""
    counts = script.metrics()
    seen.spooled = max(seen.spooled, counts["tidemill_log_bytes"])
    seen.waiting = max(seen.waiting, counts["tidemill_log_waiting_entries"])
    status, said = script.page("/healthz")
    if not counts["tidemill_tries"]:
        return
    assert status == 503
    assert said.startswith(SAYS[what][0]), said
    seen.said = said.splitlines()[0]
    seen.tries = int(seen.said.split(": ")[1].split()[0])


def noted(seed: int, what: str, away_s: float, seen: Seen) -> str:
    first, most = (resident / MEGABYTE for resident in seen.engine)
    for_s = f"{away_s:.0f} s" if away_s else "some tries"
    return (
        f"seed {seed}, {what} away for {for_s}: {seen.tries} tries, {seen.lines:,} lines "
        f"acknowledged meanwhile, {seen.spooled / MEGABYTE:.1f} MB of log with {seen.waiting:,.0f} entries that wait, engine {first:.0f} to {most:.0f} MB, gap 0; it "
        f"said: {seen.said}"
    )
