"""Records that kill their lane, in a run that keeps state: each ends as one dead letter, and costs nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.chaos.small_plants import Replayed, golden, patient, recording

POISON = """
import ctypes
from tidemill.engine.lane import Lane

overdue = Lane.overdue

def at_once(lane, now_ns, deadlines_ns):
    'The deadline is over for who hangs, and for nobody else, however slow the machine is.'
    stage, hangs = overdue(lane, 1 << 62, deadlines_ns), pathlib.Path(f"hangs {lane.pid}")
    if stage is None or not hangs.exists():
        return None
    hangs.unlink()
    return stage

Lane.overdue = at_once

def strike(how):
    print("struck", how, file=sys.stderr, flush=True)
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "memory":
        bytearray(1 << 62)
    else:
        pathlib.Path(f"hangs {os.getpid()}").touch()
        while True:
            pass


def ways(rows):
    for row in rows:
        if row.get("how"):
            strike(row["how"])
    return [{name: value for name, value in row.items() if name != "how"} for row in rows]


stages = [stages[0], tm.MapRows(ways, deadline_s=60), stages[1]]
"""
WAYS = {"segfault": "killed_lane", "exit": "killed_lane", "memory": "raised", "loop": "deadline"}
RECORDS = 8_000
PACED = {"pace": 500.0}
"""Far longer than until the last poison strikes: a run that is to be killed then does not end before."""


def poisoned(folder: Path, records: int, at: dict[int, str]) -> None:
    """The recording with poison in it, of a sensor that also has other records; it has no part in their windows."""
    recording(folder, records)
    whole = (folder / "in.ndjson").read_bytes().splitlines(keepends=True)
    with (folder / "in.ndjson").open("wb") as file:
        for number, line in enumerate(whole):
            if number in at:
                file.write(json.dumps({"sensor": "P", "time": number, "value": 1, "how": at[number]}).encode() + b"\n")
            file.write(line)


def how_letters(state: Path) -> Counter[tuple[str, str]]:
    """What the dead letters say, of the poison."""
    found = [json.loads(line) for line in (state / "dead_letters.ndjson").read_text().splitlines()]
    return Counter((one["reason_code"], one["raw"]["how"]) for one in found if one["reason_code"] != "malformed")


@pytest.mark.parametrize("killed", [False, True], ids=["once", "with restarts"])
def test_poison_is_one_dead_letter_however_often_the_run_is_begun(tmp_path: Path, killed: bool) -> None:
    """With restarts: the whole family is killed right after each kind of poison has struck, and begins at a checkpoint.

    A segfault, ``os._exit``, an endless loop and a MemoryError; all others are as if these had never been there.
    """
    recording(tmp_path, RECORDS)
    rows, dead = golden(tmp_path)
    poisoned(tmp_path, RECORDS, {200: "segfault", 500: "exit", 800: "memory", 1_100: "loop"})
    told = ""
    if killed:
        for how in WAYS:
            with Replayed(tmp_path, 2, changes=POISON, **PACED) as plant:
                for _ in patient():
                    if f"struck {how}" in plant.told():
                        break
                    assert plant.process.poll() is None, plant.told()
                plant.kill()
    with Replayed(tmp_path, 2, changes=POISON) as plant:
        plant.end()
        told = plant.told()
    assert plant.rows() == rows
    found = how_letters(tmp_path / "state")
    assert found == Counter((code, how) for how, code in WAYS.items())
    malformed = [line for line in dead.splitlines() if '"malformed"' in line]
    assert (tmp_path / "state" / "dead_letters.ndjson").read_text().count('"malformed"') == len(malformed)
    if not killed:
        assert told.count("; replaced, nothing is lost") <= 2 * sum(code != "raised" for code in WAYS.values()), told
