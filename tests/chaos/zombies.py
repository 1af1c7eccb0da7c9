"""SIGSTOP (R6): lanes, whole engines and sinks' processes that sleep while others go on, and wake up."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from signal import SIGCONT, SIGKILL, SIGSTOP

from tests.chaos import outside
from tests.chaos.family import Family, is_working, wait_for
from tests.chaos.harness import Campaign, Strike
from tests.chaos.kills import moment, waited
from tests.chaos.plant import Plant
from tests.chaos.stops import PACED, UNPACED, ended, has_begun, in_flight

REFUSED = 5
"""The exit code of a start whose folder another has."""


def slept(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int = 0) -> list[Strike]:
    """Starts of which something is stopped (SIGSTOP), and goes on when others have taken over; the last may end."""
    strikes: list[Strike] = []
    plant = replace(plant, **PACED)
    while len(strikes) < most:
        begun, before = outside.epoch(plant), outside.position(plant)
        family = campaign.start(plant)
        try:
            has_begun(plant, family, begun, before, working=True)
            while family.alive and len(strikes) < most:
                waited(family, rng.expovariate(1 / 0.2))
                busy = moment(family, partial(in_flight, plant, family), 0.5)
                if family.alive:
                    what = HOW[(seed + len(strikes)) % len(HOW)]
                    strikes.append(Strike(what(campaign, plant, family, rng), busy))
                    has_begun(plant, family, begun, outside.position(plant), working=True)
            if family.engine.poll() == 0:
                return strikes
        finally:
            family.end()
    ended(campaign, replace(plant, **UNPACED))
    return strikes


def a_lane(campaign: Campaign, plant: Plant, family: Family, rng: random.Random) -> str:
    """A lane at work sleeps, and wakes up or is killed in its sleep."""
    lane = rng.choice(family.lanes())
    moment(family, lambda: is_working(lane), 1.0)
    family.send(lane, SIGSTOP)
    waited(family, rng.uniform(0.1, 1.5))
    killed = rng.random() < 0.3
    family.send(lane, SIGKILL if killed else SIGCONT)
    return f"lane {'killed in its sleep' if killed else 'woken'}"


def an_engine(campaign: Campaign, plant: Plant, family: Family, rng: random.Random) -> str:
    """All of a start sleeps: a second start is refused as long as it lives; then it wakes up, or is killed."""
    for pid in family.members():
        family.send(pid, SIGSTOP)
    second = campaign.start(plant)
    try:
        code = second.finish()
    finally:
        second.end()
    assert code == REFUSED, f"exit code {code} of a second start: {second.told()[-2000:]}"
    assert "in use by another run" in second.told(), second.told()[-2000:]
    if rng.random() < 0.5:
        family.kill_all()
        return "engine refuses a second, then killed"
    for pid in family.members():
        family.send(pid, SIGCONT)
    return "engine refuses a second, then woken"


def its_sinks(campaign: Campaign, plant: Plant, family: Family, rng: random.Random) -> str:
    """The engine is killed while its sinks' processes, and the server that would end them, sleep: these wake up when the
    next start is writing. Not a byte of theirs may get through."""
    asleep = [*family.named("tidemill-server"), *family.writers()]
    for pid in asleep:
        family.send(pid, SIGSTOP)
    family.send(family.engine.pid, SIGKILL)
    family.engine.wait()
    begun, before = outside.epoch(plant), outside.position(plant)
    following = campaign.start(plant)
    try:
        has_begun(plant, following, begun, before, working=rng.random() < 0.5)
        waited(following, rng.uniform(0.0, 0.5))
        left = set(asleep) & set(family.writers())
        for pid in asleep:
            family.send(pid, SIGCONT)
        wait_for("those who wake up end", lambda: not family.members(), 30.0, 0.01)
    finally:
        following.end()
    return f"sinks asleep; {'some were left to wake up' if left else 'the next start had shut them out'}"


HOW = (a_lane, an_engine, its_sinks, a_lane, its_sinks)
"""In turn, beginning with that of the seed."""
