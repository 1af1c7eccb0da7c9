"""A clock that jumps: results are those of a clock that does not, and checkpoints go on."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import pytest
from tests.chaos.small_plants import Live, Replayed, golden, patient, recording, wanted

from tidemill.engine.checkpoint_store import listed

HOUR, DAY, YEAR = 3_600, 86_400, 365 * 86_400
JUMPS = {"an hour on": HOUR, "a day back": -DAY, "ten years on": 10 * YEAR}


class Clock:
    """The wall clock of a plant, by the library libfaketime, which reads a file; the machine's own is left alone."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock.txt"
        self.jump(0)
        places = [Path(path) for path in ("/usr/lib", "/usr/local/lib", "/opt/homebrew/lib")]
        found = [lib for place in places for lib in place.glob("**/libfaketime.so.1")]
        assert found or ctypes.util.find_library("faketime"), "this test needs the library libfaketime"
        self.environment = {
            "LD_PRELOAD": str(found[0]) if found else str(ctypes.util.find_library("faketime")),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with it, threads wait seconds for the interpreter's lock
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, seconds: int) -> None:
        """From now on it shows so much more than the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self._file)


def newest(state: Path) -> int:
    return max((one.number for one in listed(state / "checkpoints")), default=0) if state.exists() else 0


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS.keys())
def test_a_clock_that_jumps_in_the_middle_and_between_starts_changes_nothing(
    tmp_path: Path, lanes: int, jump: int
) -> None:
    """Live. After each jump checkpoints are taken as before, and the newest by number is the one that is resumed."""
    clock = Clock(tmp_path)
    state = tmp_path / "state"
    with Live(tmp_path, lanes, environment=clock.environment) as plant:
        plant.send(0, 500)
        plant.wait_for(500)
        clock.jump(jump)
        plant.send(500, 1_000)
        plant.wait_for(1_000)
        before = newest(state)
        plant.send(1_000, 1_500)
        for _ in patient():
            if newest(state) > before:
                break
        plant.wait_for(1_500)
        plant.kill()
    clock.jump(0)
    with Live(tmp_path, lanes, environment=clock.environment) as plant:
        plant.send(1_500, 2_000)
        plant.wait_for(2_000)
        plant.stop()
    assert plant.rows() == wanted(2_000)
    times = [one.written_ns for one in listed(state / "checkpoints")]
    assert len(times) == 3


def test_a_paced_recording_goes_on_at_its_pace(tmp_path: Path, lanes: int) -> None:
    """The pace is that of a clock that never jumps: it neither stops nor runs ahead."""
    recording(tmp_path, 1_500)
    rows, dead = golden(tmp_path)
    clock = Clock(tmp_path)
    with Replayed(tmp_path, lanes, environment=clock.environment, pace=500.0) as plant:
        for number, jump in enumerate((*JUMPS.values(), 0)):
            plant.wait_for(200 * (number + 1))
            clock.jump(jump)
        plant.end()
    assert plant.rows() == rows
    assert (tmp_path / "state" / "dead_letters.ndjson").read_text() == dead


def test_the_plant_sees_the_clock_of_the_test(tmp_path: Path) -> None:
    """Else the tests above would not test anything."""
    recording(tmp_path, 100)
    clock = Clock(tmp_path)
    clock.jump(10 * YEAR)
    with Replayed(tmp_path, 0) as plant:
        plant.end()
    first = listed(tmp_path / "state" / "checkpoints")[-1].written_ns
    (tmp_path / "out.db").unlink()
    with Replayed(tmp_path, 0, environment=clock.environment, options={"fresh": True}) as plant:
        plant.end()
    second = listed(tmp_path / "state" / "checkpoints")[-1].written_ns
    assert first is not None
    assert second is not None
    assert second - first > 9 * YEAR * 10**9
