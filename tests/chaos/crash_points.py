"""Every system call that changes the disk as the last one before kill -9 (R3), or as one that fails (R9, R10)."""

from __future__ import annotations

import itertools
import random
import re
import threading
from typing import Final

from tests.chaos import outside
from tests.chaos.harness import Campaign, Strike, end_well
from tests.chaos.plant import Plant
from tests.chaos.tracing import calls_in, killed_at, points, retried, traced

_REFUSED: Final = {3, 4, 5}
"""Exit codes of a run that was refused something, and said what."""
_measuring = threading.Lock()


def points_of(campaign: Campaign, plant: Plant) -> list[tuple[str, int]]:
    """Where an uninterrupted run over the campaign's recording can be struck; found once, in an order of their own."""
    with _measuring:
        if campaign.points is None:
            whole = plant.beside("measured")
            family = traced(whole)
            try:
                end_well(family)
            finally:
                family.end()
            campaign.points = mixed(points(whole), random.Random(campaign.input_seed))
            campaign.notes.append(f"{len(campaign.points)} points (call, and how many of its thread's came before)")
        return campaign.points


def mixed(known: list[tuple[str, int]], rng: random.Random) -> list[tuple[str, int]]:
    """In an order in which every call has its turn: of writes there are many, of renames few."""
    by_call: dict[str, list[tuple[str, int]]] = {}
    for point in rng.sample(known, len(known)):
        by_call.setdefault(point[0], []).append(point)
    turns = itertools.zip_longest(*by_call.values())
    return [point for turn in turns for point in turn if point is not None]


def crashed(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """R3: killed at the seed's point, and the run that goes on at another one; then to the end."""
    known = points_of(campaign, plant)
    strikes: list[Strike] = []
    for again in range(most):
        before = outside.position(plant)
        call, when = known[(seed + 7 * again) % len(known)]
        if not killed_at(plant, call, when):
            break  # another interleaving: that thread has not come so far
        recovering = bool(again) and outside.position(plant) == before
        writing = bool(outside.half_written(plant))
        strikes.append(Strike(f"at {call}", in_flight=True, recovering=recovering, in_checkpoint=writing))
    end(campaign, plant)
    return strikes


def failing(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int) -> list[Strike]:
    """R9, R10: a call fails, as on a full disk or a dying one. The run ends with a sentence, or does without; no sync is
    tried again; and the next run goes on."""
    known = [point for point in points_of(campaign, plant) if point[0] not in ("unlink", "mkdir")]
    call, when = known[seed % len(known)]
    full = call in ("write", "pwrite64", "fallocate") and seed % 2
    error = "ENOSPC" if full else "EIO"
    calls = ("fsync", "fdatasync", "rename", "write", "pwrite64", "ftruncate", "fallocate", "openat")
    family = traced(plant, f"{call}:error={error}:when={when}", calls=calls)
    try:
        code = family.finish()
        told = family.told()
    finally:
        family.end()
    failed = [one for one in calls_in(plant) if one.injected and one.path.startswith(str(plant.folder))]
    struck = [one for one in failed if not one.path.endswith("output.txt")]
    assert not (again := retried(plant)), f"a sync that had failed was tried again: {again}"
    if struck and code:
        assert code in _REFUSED, f"exit code {code} after {struck[0].line}: {told[-2000:]}"
        assert "Traceback" not in told, told[-3000:]
        if struck == failed:  # else what it said could not be written either
            assert re.search(r"(?i)full|no space|input/output error|i/o error", told), told[-2000:]
    end(campaign, plant)
    return [Strike(f"{error} at {call}, {'refused' if code else 'survived'}", in_flight=True)] if struck else []


def end(campaign: Campaign, plant: Plant) -> None:
    """A start without troubles, to the end."""
    family = campaign.start(plant)
    try:
        end_well(family)
    finally:
        family.end()
