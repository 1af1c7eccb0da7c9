"""PostgreSQL as the sink (R25): every side dies at every window of a commit, and its rows come once, in order."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, replace
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Final

from tests.chaos import outside
from tests.chaos.between import Between
from tests.chaos.family import Family, wait_for
from tests.chaos.harness import Campaign, Strike
from tests.chaos.oracle import Golden, Row, difference, rows_of
from tests.chaos.plant import Plant
from tests.chaos.stops import ended
from tests.postgres_server import PostgresServer

FATES: Final = {
    "all": ("cut", "passed", "left"),
    "sink": ("cut", "passed", "left"),
    "engine": ("cut", "passed"),
    "line": ("cut",),
    "server": ("cut", "passed"),
}
"""What becomes of the message that is held: it is lost, goes on its way nevertheless, or nobody tells the server."""
OUTSIDE: Final = 5
"""The exit code of a run that its database has failed."""
CASES: Final = (
    ("copying", "all"),
    ("before", "line"),
    ("answered", "engine"),
    ("position", "asleep, pooled"),
    ("unanswered", "sink"),
    ("answered", "server"),
    ("answered", "all"),
    ("unanswered", "engine"),
    ("copying", "asleep"),
    ("before", "all"),
    ("answered", "sink"),
    ("position", "engine"),
    ("unanswered", "server"),
    ("before", "sink"),
    ("unanswered", "all"),
    ("copying", "asleep, pooled"),
    ("before", "server"),
    ("position", "sink"),
    ("copying", "server"),
    ("before", "engine"),
    ("position", "all"),
    ("copying", "engine"),
    ("unanswered", "line"),
    ("copying", "sink"),
    ("position", "line"),
)
"""Windows of a commit, and what is struck there. The first twelve are those of every change: with the ones of a run that goes
on (`tests.chaos.live_databases`) three and more in each window."""
NUMBERING: Final = """
CREATE FUNCTION number_rows() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'public.features') THEN
        ALTER TABLE features ADD COLUMN place bigserial;
    END IF;
END $$;
CREATE EVENT TRIGGER numbering ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION number_rows()
"""
"""A table has no order; this gives it one, and leaves it to the sink to make the table."""


class Servers:
    """One for each of the rounds that go on at the same time, since servers are struck too; a database for each round."""

    def __init__(self, count: int) -> None:
        self._servers: list[PostgresServer] = []
        for _ in range(count):
            self._servers.append(server := PostgresServer())
            server.start()
            server.query(NUMBERING, database="template1")

    def of(self, seed: int) -> PostgresServer:
        """Rounds that go on at the same time have seeds that follow one another."""
        return self._servers[seed % len(self._servers)]

    def place(self, seed: int) -> dict[str, str]:
        """A new database for a round, as its plant is told of it."""
        name = f"round_{seed}"
        self.of(seed).query(f"CREATE DATABASE {name}")
        address = self.of(seed).url(name, query="?sslmode=disable&gssencmode=disable")
        return {"PLANT_POSTGRES": address, "PLANT_TABLE": "features"}

    def remove(self) -> None:
        for server in self._servers:
            server.remove()


class PostgresCampaign(Campaign):
    """A campaign whose golden rows are those of SQLite, which pandas has worked out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        [(sink, rows)] = self.golden.rows.items()
        assert sink == "sqlite"
        self.plant = replace(self.plant, sinks=("postgres",))
        self.golden = Golden({"postgres": list(map(as_floats, rows))}, self.golden.letters)
        self.servers = Servers(self.at_once)

    def place(self, seed: int) -> Plant:
        return replace(super().place(seed), more=self.servers.place(seed))

    def close(self) -> None:
        self.servers.remove()


def as_floats(row: Row) -> Row:
    """SQLite keeps the numbers of records as integers, and PostgreSQL has one type for a column."""
    return (*row[:3], None if row[3] is None else float(row[3]), *row[4:])


def through(between: Between, plant: Plant) -> Plant:
    """The same, whose sink takes that way to the server."""
    address = plant.more["PLANT_POSTGRES"].replace(f":{between.server}/", f":{between.port}/")
    return replace(plant, more={**plant.more, "PLANT_POSTGRES": address})


# -- a round -----------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One start of a round, up to the message that is held."""

    campaign: PostgresCampaign
    plant: Plant
    seed: int
    between: Between
    rng: random.Random

    def start(self, **changed: object) -> Family:
        """One whose way to the server leads through the line."""
        return self.campaign.start(through(self.between, replace(self.plant, **changed)))  # type: ignore[arg-type]

    def committed(self) -> tuple[int, int]:
        """Position and number of rows that a reader sees, which must be those of an uninterrupted run so far."""
        rows = rows_of(self.plant, "postgres")
        told = difference(rows, self.campaign.golden.rows["postgres"][: len(rows)])
        assert not told, f"what is committed is no beginning of the golden rows: {told}"
        return outside.position(self.plant), len(rows)


def struck_in_commits(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """R25: starts of which each is struck at a window of a commit, in turn by `CASES`; then one that may end."""
    assert isinstance(campaign, PostgresCampaign)
    strikes: list[Strike] = []
    server = campaign.servers.of(seed)
    with contextlib.closing(Between(server.port)) as between:
        trial = Trial(campaign, plant, seed, between, rng)
        while len(strikes) < most:
            window, how = CASES[((seed - 1) * most + len(strikes)) % len(CASES)]
            done = struck(trial, window, how)
            if done is None:
                break
            strikes.append(done)
    ended(campaign, replace(plant, work=0.0))
    return strikes


def struck(trial: Trial, window: str, how: str) -> Strike | None:
    """A start that is struck there; None if it has ended before that."""
    between, rng, plant = trial.between, trial.rng, trial.plant
    inline = window != "answered" and how in {"all", "line", "server"} and rng.random() < 0.4
    first = plant.state.exists() and how != "asleep, pooled" and window in {"before", "unanswered"}
    commits = 0 if first and rng.random() < 0.35 else rng.randint(1, 2)
    between.pooled = how == "asleep, pooled"
    message = "unanswered" if window == "answered" else window
    between.hold(message, commits + (how == "asleep, pooled"), of_a_new_line=True)
    family = trial.start(lanes=0 if inline else rng.choice((1, 2)))
    try:
        wait_for("a commit has come to its window", lambda: not family.alive or between.held)
        if not family.alive:
            assert family.engine.returncode == 0, family.told()[-2000:]
            return None
        if window == "answered":
            the_answer_is_read(trial, family)
        before = trial.committed()
        if how.startswith("asleep"):
            overtaken(trial, family, before)
        else:
            fate = strike(trial, family, how)
            check_end(family, window, how)
            after = trial.committed()
            told = f"position and rows are {after} after it, and were {before}"
            assert after == before or (goes_on(window, how, fate) and after > before), told
    finally:
        between.pass_on()
        family.end()
    told = f"{window}{'' if commits else ' of an epoch'}, {how}{', inline' if inline else ''}"
    return Strike(told, in_flight=commits > 0, recovering=not commits)


def the_answer_is_read(trial: Trial, family: Family) -> None:
    """By the sink's process; the engine is stopped before that, so that no checkpoint can follow."""
    line = trial.between.held
    assert line is not None
    family.send(family.engine.pid, SIGSTOP)
    trial.between.pass_on()
    wait_for("the sink has its answer", lambda: line.answer_read)


def strike(trial: Trial, family: Family, how: str) -> str:
    """What became of the message that was held: it was cut off, went on, or was left where it is."""
    between = trial.between
    fate = trial.rng.choice(FATES[how])
    if how == "server" and fate == "passed":
        between.pass_on()  # so that nobody knows how far it comes
    match how:
        case "all":
            family.kill_all()
        case "sink":
            assert family.send(family.writers()[0], SIGKILL)
        case "server":
            trial.campaign.servers.of(trial.seed).restart("immediate")
        case "engine":
            family.send(family.engine.pid, SIGKILL)
            family.engine.wait()
    if fate == "cut":
        between.cut()
    elif fate == "passed":
        between.pass_on()
    family.send(family.engine.pid, SIGCONT)
    return fate


def goes_on(window: str, how: str, fate: str) -> bool:
    """Whether more may have been committed: by a message on its way, or by a sink that had not yet heard of the strike."""
    return window == "answered" or (fate == "passed" and (window == "before" or how in {"engine", "server"}))


def check_end(family: Family, window: str, how: str) -> None:
    """As a kill is, or with one sentence about the database."""
    if how == "all":
        return
    if how == "engine":
        wait_for("the processes of a dead engine end", lambda: not family.members(), 30.0, 0.01)
        return
    code = family.finish()
    allowed = {OUTSIDE, 0} if window == "answered" else {OUTSIDE}
    assert code in allowed, f"exit code {code}; it said: {family.told()[-2000:]}"
    assert "Traceback" not in family.told(), family.told()[-3000:]


def overtaken(trial: Trial, family: Family, before: tuple[int, int]) -> None:
    """The engine dies while its sink sleeps, and another start has committed when that wakes up: not a row of it comes."""
    server, writers = family.named("tidemill-server"), family.writers()
    for pid in server + writers:
        family.send(pid, SIGSTOP)
    family.send(family.engine.pid, SIGKILL)
    family.engine.wait()
    trial.between.pooled = False
    following = trial.start(lanes=trial.rng.choice((0, 1, 2)))
    try:
        wait_for(
            "the next start has committed",
            lambda: not following.alive or outside.position(trial.plant) > before[0],
            each_s=0.01,
        )
        assert following.alive or following.engine.returncode == 0, following.told()[-2000:]
        assert set(writers) <= set(family.members()), "those who slept have ended"
        trial.between.pass_on()
        for some in (writers, server):  # who wakes up later would end the others
            for pid in some:
                family.send(pid, SIGCONT)
            wait_for("those who wake up end", lambda: not set(some) & set(family.members()), 30.0, 0.01)  # noqa: B023
        following.kill_all()
    finally:
        following.end()
    trial.committed()
