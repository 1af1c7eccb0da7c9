"""kill -9: of lanes, of sinks' processes, of the engine and of all at once (R1, R2, R5)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from signal import SIGKILL

from tests.chaos import outside
from tests.chaos.family import LOOK_S, UNHURRIED_S, Family, Late, is_working, wait_for
from tests.chaos.harness import Campaign, Strike, end_well
from tests.chaos.plant import Plant

PATIENCE_S = 4.0
"""How long a strike waits for the moment that it wants."""
HOW_LANES = ("at work", "at work", "in a checkpoint", "in a checkpoint", "again", "again")
HOW_ENGINES = ("at work", "at work", "in a checkpoint", "in a checkpoint", "beginning", "beginning")


def waited(family: Family, seconds: float) -> bool:
    """Let time pass; whether the run goes on."""
    deadline = time.monotonic() + seconds
    while family.alive and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))
    return family.alive


def moment(family: Family, look: Callable[[], object], within_s: float = PATIENCE_S, each_s: float = LOOK_S) -> bool:
    """Wait a while for a moment that may not come; whether it has."""
    try:
        wait_for("the moment", lambda: not family.alive or look(), within_s, each_s)
    except Late:
        return False
    return family.alive


class Writing:
    """The moment in which a checkpoint is being written; ``working`` says whether a lane was at work then."""

    def __init__(self, plant: Plant, lanes: list[int]) -> None:
        self._folder = plant.state / "checkpoints"
        self._lanes = lanes
        self.working = False

    def __call__(self) -> bool:
        if any(name.startswith(".") for name in os.listdir(self._folder)):  # noqa: PTH208 - the quickest
            self.working = any(map(is_working, self._lanes))
            return True
        return False


# -- lanes -------------------------------------------------------------------------------------------------


def kill_a_lane(plant: Plant, family: Family, rng: random.Random, how: str) -> list[Strike]:
    """One that is at work, if there is one in time; ``"again"`` kills its successor too, as soon as it is there."""
    lanes = family.lanes()
    if not lanes:
        return []
    lane = rng.choice(lanes)
    if how == "in a checkpoint" and plant.state.exists():
        moment(family, Writing(plant, [lane]))
    else:
        moment(family, lambda: is_working(lane), 0.5)
    working, writing = is_working(lane), bool(outside.half_written(plant))
    if not family.send(lane, SIGKILL) or not family.alive:
        return []
    done = [Strike("lane", working, False, writing and bool(outside.half_written(plant)))]
    if how == "again" and moment(family, lambda: set(family.lanes()) - set(lanes)):
        fresh = set(family.lanes()) - set(lanes)
        if fresh and family.send(fresh.pop(), SIGKILL):
            done.append(Strike("lane", working, recovering=True, in_checkpoint=bool(outside.half_written(plant))))
    return done


def lanes_killed(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """R1: one start, whose lanes are killed at random until it has ended. Whoever kills a lane four times in a function at one
    record looks like that record, which is then set aside as it should be: so after two strikes something must be committed."""
    family = campaign.start(plant)
    strikes: list[Strike] = []
    in_vain, reached = 0, 0
    try:
        wait_for("a lane is at work", lambda: not family.alive or any(map(is_working, family.lanes())))
        while len(strikes) < most and waited(family, rng.expovariate(1 / 0.15)):
            if in_vain >= 2:
                moment(family, partial(_is_beyond, plant, reached), 60, UNHURRIED_S)
            if (now := outside.position(plant)) > reached:
                in_vain, reached = 0, now
            done = kill_a_lane(plant, family, rng, rng.choice(HOW_LANES))
            in_vain += len(done)
            strikes += done
        end_well(family)
    finally:
        family.end()
    return strikes


def _is_beyond(plant: Plant, reached: int) -> bool:
    return outside.position(plant) > reached


# -- engines -----------------------------------------------------------------------------------------------


def kill_the_engine(plant: Plant, family: Family, rng: random.Random, how: str, before: int) -> list[Strike]:
    """``before`` is the position that was committed when it began: what does not pass it is recovery."""
    begun = outside.epoch(plant)
    working = False
    if how == "beginning":
        moment(family, lambda: outside.epoch(plant) > begun, 20, UNHURRIED_S)
        waited(family, rng.uniform(0.0, 0.7))
    else:
        moment(family, lambda: outside.position(plant) > before, 20, UNHURRIED_S)
        waited(family, rng.expovariate(1 / 0.3))
        lanes = family.lanes()
        if how == "in a checkpoint":
            writing = Writing(plant, lanes)
            moment(family, writing)
            working = writing.working
        else:
            moment(family, lambda: any(map(is_working, lanes)), 0.5)
            working = any(map(is_working, lanes))
    if not family.alive:
        return []
    working = working or (how == "beginning" and any(map(is_working, family.lanes())))
    if rng.random() < 0.5:
        family.kill_all()
    else:
        family.kill_engine()
    recovering = how == "beginning" and outside.position(plant) == before
    writing = bool(outside.half_written(plant))
    return [Strike(f"engine {how}", working or recovering or writing, recovering, writing)]


def engines_killed(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """R2: starts that are killed one after another, and one that may end."""
    strikes: list[Strike] = []
    while True:
        family = campaign.start(plant)
        try:
            if len(strikes) < most:
                strikes += kill_the_engine(plant, family, rng, rng.choice(HOW_ENGINES), outside.position(plant))
            if family.alive or family.engine.returncode == 0:
                end_well(family)
                return strikes
            assert family.engine.returncode == -SIGKILL, family.told()[-2000:]
        finally:
            family.end()
