"""Disks that are full, or fail: one clear sentence, nothing promised after it, and on again when that is over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.small_plants import (
    Disk,
    Live,
    Replayed,
    golden,
    lines,
    patient,
    recording,
    small_disk,
    wanted,
)

from tidemill.engine.checkpoint_store import listed

RECORDS = 3_000
PACED = {"pace": 100.0}
"""Half a minute, of which a run needs a second or three: it does not end before its disk is full."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def published(state: Path) -> int:
    folder = state / "checkpoints"
    return len(list(folder.glob("*.checkpoint"))) if folder.exists() else 0


def under_strace(calls: str, error: str, when: str, trace: Path) -> list[str]:
    """These system calls of the command behind it fail."""
    strace = shutil.which("strace")
    assert strace, "this test needs the program strace"
    inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"]
    return [strace, "-f", "-o", str(trace), "--seccomp-bpf", *inject]


def letters(state: Path) -> str:
    return (state / "dead_letters.ndjson").read_text()


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_below_the_state_ends_the_run_and_the_next_goes_on(
    tmp_path: Path, disk: Disk, lanes: int, after: int
) -> None:
    """Whatever was on it by then: nothing, or as many checkpoints as are kept."""
    recording(tmp_path, RECORDS)
    rows, dead = golden(tmp_path)
    state = disk.place / "state"
    with Replayed(tmp_path, lanes, state=state, **PACED) as plant:
        for _ in patient():
            if (state / "epoch").exists() and published(state) >= after:
                break
        disk.fill(plant)
    told = plant.refusal()
    assert re.search("No space left on device|is full", told), told
    assert str(disk.place) in told
    assert rows[: len(plant.rows())] == plant.rows()
    with Replayed(tmp_path, lanes, state=state) as refused:
        refused.process.wait()
    assert "is full; make room, or choose another" in refused.refusal()
    disk.empty()
    with Replayed(tmp_path, lanes, state=state) as plant:
        plant.end()
    assert plant.rows() == rows
    assert letters(state) == dead


def test_a_full_disk_below_a_sink_ends_a_run_over_a_recording(tmp_path: Path, disk: Disk, lanes: int) -> None:
    """What is visible is a beginning of the rows; the next run adds the rest."""
    recording(tmp_path, RECORDS)
    rows, dead = golden(tmp_path)
    out = disk.place / "out.db"
    with Replayed(tmp_path, lanes, out=out, **PACED) as plant:
        plant.wait_for(100)
        disk.fill(plant)
    told = plant.refusal()
    assert "disk" in told
    assert "full" in told
    assert str(out) in told
    disk.empty()
    assert rows[: len(plant.rows())] == plant.rows()
    with Replayed(tmp_path, lanes, out=out) as plant:
        plant.end()
    assert plant.rows() == rows
    assert letters(tmp_path / "state") == dead


def test_a_live_run_waits_for_room_below_its_sink(tmp_path: Path, disk: Disk, lanes: int) -> None:
    """Meanwhile it takes in what comes, and nobody has to start it again."""
    out = disk.place / "out.db"
    with Live(tmp_path, lanes, out=out) as plant:
        plant.send(0, 500)
        plant.wait_for(500)
        disk.fill()
        plant.send(500, 3_000)
        for _ in patient():
            if "Once more from the last checkpoint" in plant.told():
                break
        assert "The disk is full" in plant.told()
        disk.empty()
        plant.wait_for(3_000)
        plant.stop()
    assert plant.rows() == wanted(3_000)


TELLS = """
class Source(tm.sources.TCP):
    '''Notes how many records are acknowledged.'''

    acknowledges = True

    async def stream(self, context):
        self.given = [0]
        self.acked = os.open("acked", os.O_WRONLY | os.O_CREAT)
        async for batch in super().stream(context):
            self.given.append(self.given[-1] + len(batch))
            yield batch

    def kept(self, batches):
        os.pwrite(self.acked, b"%12d" % self.given[batches], 0)
"""


def test_a_live_run_whose_disk_fills_up_makes_its_senders_wait(tmp_path: Path, disk: Disk, lanes: int) -> None:
    """What is left is for checkpoints. When there is room again it goes on by itself."""
    state = disk.place / "state"
    with Live(tmp_path, lanes, state=state, options={"log_min_free": 16 << 20}) as plant:
        plant.send(0, 500)
        plant.wait_for(500)
        disk.fill(leave=4 << 20)
        with plant.connected() as sender:
            sent = 500
            for _ in patient():
                if "the ingest log is full, so sources wait" in plant.told():
                    break
                sender.sendall(lines(sent, sent + 10))
                sent += 10
            assert "the disk has 16777216 bytes left (log_min_free) or fewer; make room there" in plant.told()
            sender.sendall(lines(sent, sent + 1_000))
            disk.empty()
            plant.wait_for(sent + 1_000)
        plant.stop()
    assert plant.rows() == wanted(sent + 1_000)


def test_what_was_acknowledged_before_the_log_found_the_disk_full_is_there(tmp_path: Path, lanes: int) -> None:
    """The log is the promise, so a run that cannot keep it ends; the next goes on behind what was acknowledged, or more."""
    with Live(tmp_path, lanes, changes=TELLS) as plant:
        plant.send(0, 500)
        plant.wait_for(500)
        plant.stop()
    assert int((tmp_path / "acked").read_text()) == 500
    (tmp_path / "acked").write_text("0")
    full = under_strace("fallocate", "ENOSPC", "1+", tmp_path / "trace.txt")
    with Live(tmp_path, lanes, changes=TELLS, under=full) as plant:
        plant.send(500, 600)
        plant.process.wait()
    assert "(INJECTED)" in (tmp_path / "trace.txt").read_text()
    told = plant.refusal()
    assert "the disk of the ingest log" in told
    assert "is full" in told
    assert "make room and start again" in told
    assert int((tmp_path / "acked").read_text()) == 0
    with Live(tmp_path, lanes) as plant:
        plant.send(500, 1_000)
        plant.wait_for(1_000)
        plant.stop()
    assert plant.rows() == wanted(1_000)


# -- a disk that fails -------------------------------------------------------------------------------------

SYNCS = "fsync,fdatasync"


@pytest.mark.parametrize("number", [1, 2, 4, 8, 16])
def test_a_sync_that_fails_is_never_taken_for_done(tmp_path: Path, number: int) -> None:
    """Of the state folder, its files, a checkpoint, or SQLite: the run ends with one sentence, and the next goes on.

    The calls are counted in each thread, so that several may fail.
    """
    recording(tmp_path, 10_000)  # far more than it comes to
    rows, dead = golden(tmp_path)
    trace = tmp_path / "trace.txt"
    under = under_strace(SYNCS, "EIO", str(number), trace)
    with Replayed(tmp_path, 0, under=under, pace=700.0) as plant:
        plant.process.wait()
    assert "(INJECTED)" in trace.read_text(), "no call failed"
    told = plant.refusal()
    assert re.search("Input/output error|disk I/O error", told), told
    assert not re.search(r"[.!?]\s+[.!?]", told)
    assert rows[: len(plant.rows())] == plant.rows()
    with Replayed(tmp_path, 0) as plant:
        plant.end()
    assert plant.rows() == rows
    assert letters(tmp_path / "state") == dead
    assert all(one.whole for one in listed(tmp_path / "state" / "checkpoints", verify=True))
