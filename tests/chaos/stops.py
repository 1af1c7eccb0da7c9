"""Signals that ask a run to stop (R24), starts with another number of lanes (R20), and all faults mixed (R5)."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from functools import partial
from signal import SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Signals

from tests.chaos import outside
from tests.chaos.family import UNHURRIED_S, Family, is_working, wait_for
from tests.chaos.harness import Campaign, Strike, end_well
from tests.chaos.kills import Writing, kill_a_lane, kill_the_engine, moment, waited
from tests.chaos.plant import Plant

PACED = {"more": {"PLANT_PACE": "20"}, "options": ("--report", "report.json", "--grace", "600")}
"""A recording at so many times its speed is not read to its end at once: there is something left after a stop."""
UNPACED = {"more": {}, "work": 0.0}
HOW_SIGNALS = ("SIGTERM", "SIGINT", "SIGINT to all", "SIGTERM twice", "SIGINT twice", "SIGHUP")
WORKING = ("lane", "lanes", "writer", "server", "at work", "SIGTERM", "sleep")
BEGINNING = ("beginning", "lanes", "writer", "server", "beginning")
LANES = (1, 4, 2, 0, 3)


def has_begun(plant: Plant, family: Family, begun: int, before: int, *, working: bool) -> None:
    """Wait until a start holds the folder; ``working`` until its sinks have more than ``before`` too."""
    holds, more = lambda: outside.epoch(plant) > begun, lambda: outside.position(plant) > before
    wait_for("the start holds its folder", lambda: not family.alive or holds(), each_s=UNHURRIED_S)
    if working:
        wait_for("more is committed", lambda: not family.alive or more(), each_s=UNHURRIED_S)


def in_flight(plant: Plant, family: Family) -> bool:
    """Whether something could be lost: a lane is at work, or a checkpoint half written."""
    return any(map(is_working, family.lanes())) or bool(outside.half_written(plant))


# -- signals -----------------------------------------------------------------------------------------------


def stopped(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int = 0) -> list[Strike]:
    """R24: starts that are asked to stop: they end well, and the next goes on exactly where they were. A second signal
    leaves at once, when the run has ended by the signal itself; SIGHUP, which nobody handles, is a kill. Nothing is left of any."""
    plant = replace(plant, **PACED)
    strikes: list[Strike] = []
    hows = rng.sample(HOW_SIGNALS, len(HOW_SIGNALS))
    goes_on_at: int | None = None
    while len(strikes) < most:
        begun, before = outside.epoch(plant), outside.position(plant)
        family = campaign.start(plant)
        try:
            has_begun(plant, family, begun, before, working=rng.random() < 0.85)
            waited(family, rng.expovariate(1 / 0.2))
            if not family.alive:
                end_well(family)
                return strikes
            strike, how = moment(family, partial(in_flight, plant, family), 0.5), hows[len(strikes) % len(hows)]
            signal_to(family, how, rng)
            code = family.finish()
        finally:
            family.end()
        allowed = {"SIGHUP": {-SIGHUP, 0}, "SIGTERM twice": {143, 0}, "SIGINT twice": {130, -SIGINT, 0}}.get(how, {0})
        assert code in allowed, f"exit code {code} after {how}; it said: {family.told()[-2000:]}"
        assert "Traceback" not in family.told(), family.told()[-2000:]
        strikes.append(Strike(how if code == 0 or how == "SIGHUP" else f"{how}, at once", strike))
        if goes_on_at is not None and code == 0:
            assert report(plant)["resumed_at"] == goes_on_at, f"{report(plant)['resumed_at']} and not {goes_on_at}"
        goes_on_at = report(plant)["position"] if code == 0 else None
    ended(campaign, replace(plant, **UNPACED))
    assert goes_on_at is None or report(plant)["resumed_at"] == goes_on_at
    assert not [name for name in os.listdir("/dev/shm") if "tidemill" in name]  # noqa: PTH208
    return strikes


def signal_to(family: Family, how: str, rng: random.Random) -> None:
    """What a person, a terminal or a service manager sends."""
    number = Signals[how.partition(" ")[0]]
    if how.endswith("all"):
        for pid in family.members():
            family.send(pid, number)
        return
    family.send(family.engine.pid, number)
    if how.endswith("twice"):
        waited(family, rng.uniform(0.0, 0.2))
        family.send(family.engine.pid, number)


def report(plant: Plant) -> dict[str, int]:
    """What the last start that ended well has reported."""
    read: dict[str, int] = json.loads((plant.folder / "report.json").read_text())
    return read


# -- lanes -------------------------------------------------------------------------------------------------


def rescaled(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int = 0) -> list[Strike]:
    """R20: 1, 4, 2, none and 3 lanes, beginning anywhere; each start is stopped or killed when it has got on."""
    plant = replace(plant, **PACED)
    strikes: list[Strike] = []
    first = rng.randrange(len(LANES))
    while True:
        start = replace(plant, lanes=LANES[(first + len(strikes)) % len(LANES)])
        if len(strikes) == most:
            ended(campaign, replace(start, **UNPACED))
            return strikes
        begun, before = outside.epoch(plant), outside.position(plant)
        family = campaign.start(start)
        try:
            has_begun(plant, family, begun, before, working=True)
            waited(family, rng.expovariate(1 / 0.2))
            if not family.alive:
                end_well(family)
                return strikes
            busy = start.lanes == 0 or moment(family, partial(in_flight, plant, family), 0.5)
            if killed := rng.random() < 0.5:
                family.kill_all()
            else:
                family.send(family.engine.pid, SIGTERM)
                end_well(family)
        finally:
            family.end()
        strikes.append(Strike(f"{start.lanes} lanes {'killed' if killed else 'stopped'}", busy))


# -- all of it ---------------------------------------------------------------------------------------------


def mixed(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int = 0) -> list[Strike]:
    """R5: lanes, sinks' processes, the server that forks them, engines, in one start and one after another; and every
    second start is struck again before it has come to where the one before it was."""
    strikes: list[Strike] = []
    working = ["in a checkpoint", *rng.sample(WORKING, len(WORKING))]
    beginning = rng.sample(BEGINNING, len(BEGINNING))
    again = False
    while len(strikes) < most:
        begun, before = outside.epoch(plant), outside.position(plant)
        hows = beginning if again else working
        hows.append(how := hows.pop(0))
        family = campaign.start(plant)
        try:
            if how == "in a checkpoint":
                strikes += kill_in_a_checkpoint(plant, family, rng, before)
            elif how in ("beginning", "at work"):
                strikes += kill_the_engine(plant, family, rng, how, before)
            else:
                has_begun(plant, family, begun, before, working=not again)
                wait_for("lanes are there", lambda: not family.alive or family.lanes())  # noqa: B023 - in this turn
                waited(family, rng.expovariate(1 / 0.1))
                strikes += struck(plant, family, rng, how, before)
            if family.alive and how in ("lane", "lanes", "sleep"):
                strikes += kill_in_a_checkpoint(plant, family, rng, before)
            code = family.finish()
            assert "Traceback" not in family.told(), family.told()[-3000:]
            if code == 0 and how != "SIGTERM":
                return strikes
        finally:
            family.end()
        again = not again and outside.position(plant) > 0
    ended(campaign, plant)
    return strikes


def kill_in_a_checkpoint(plant: Plant, family: Family, rng: random.Random, before: int) -> list[Strike]:
    """The engine is stopped to look whether it is writing one; if so it never wakes up."""
    moment(family, lambda: outside.position(plant) > before, 20, UNHURRIED_S)
    for _ in range(50):
        moment(family, Writing(plant, []))
        family.send(family.engine.pid, SIGSTOP)
        if outside.half_written(plant):
            break
        family.send(family.engine.pid, SIGCONT)
    if not family.alive:
        return []
    busy, writing = in_flight(plant, family), bool(outside.half_written(plant))
    family.kill_all() if rng.random() < 0.5 else family.kill_engine()
    return [Strike("engine in a checkpoint", busy, False, writing)]


def struck(plant: Plant, family: Family, rng: random.Random, how: str, before: int) -> list[Strike]:
    """One fault to a start that goes on."""
    busy, recovering = in_flight(plant, family), outside.position(plant) <= before and before > 0
    writing = bool(outside.half_written(plant))
    match how:
        case "lane":
            return kill_a_lane(plant, family, rng, rng.choice(("at work", "in a checkpoint", "again")))
        case "lanes":
            done = [family.send(pid, SIGKILL) for pid in family.lanes()]
            return [Strike("every lane", busy, recovering, writing)] if any(done) else []
        case "writer" | "server":
            pids = family.writers() if how == "writer" else family.named("tidemill-server")
            if not pids or not family.send(rng.choice(pids), SIGKILL):
                return []
            return [Strike(how, busy, recovering, writing)]
        case "SIGTERM":
            family.send(family.engine.pid, SIGTERM)
            return [Strike(how, busy, recovering, writing)]
        case "sleep":
            pids = family.lanes() + family.writers()
            if not pids or not family.send(pid := rng.choice(pids), SIGSTOP):
                return []
            waited(family, rng.uniform(0.1, 1.0))
            family.send(pid, SIGCONT)
            return [Strike(how, busy, recovering, writing)]
    raise ValueError(how)


def ended(campaign: Campaign, plant: Plant) -> None:
    """A start without troubles, to the end."""
    family = campaign.start(plant)
    try:
        end_well(family)
    finally:
        family.end()
