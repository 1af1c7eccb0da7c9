"""R7: power fails at any moment of a log's life. What was durable is there bit for bit; what is beyond is a beginning.

A failing state is made again by `recording(SEED).crash(SEED, number, folder)`. `TIDEMILL_POWER_LOSS_STATES` sets how many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import pytest
from tests.durability.recording_files import Crash, Recording, replaced_in_files

from tidemill import files
from tidemill.engine import log_segments
from tidemill.engine.ingest_log import IngestLog
from tidemill.errors import OutsideError
from tidemill.files import writing

STATES = int(os.environ.get("TIDEMILL_POWER_LOSS_STATES", "1000"))
LIVES = 10
"""Different lives of a log; each has its share of the states."""
SEGMENT = 6_000


def entry(number: int) -> bytes:
    """What has this number, whatever life it is; some are longer than a block of the disk."""
    dice = Random(f"entry {number}")
    return dice.randbytes(dice.choice((0, 20, 300, 2_000)))


def live(folder: Path, recording: Recording, seed: int) -> None:
    """A log that is filled in groups, forgets, is closed or killed, and opened again; it notes what it has promised."""
    dice = Random(f"life {seed}")
    first = 0
    for _ in range(3):
        log = opened(folder)
        recording.note(("durable", log.durable))
        for _ in range(dice.randrange(1, 12)):
            for _ in range(dice.randrange(1, 6)):
                log.append(entry(log.end))
            recording.note(("end", log.end))
            recording.note(("durable", log.sync()))
            if dice.random() < 0.2:
                first = dice.randrange(log.durable)
                recording.note(("first", first))
                log.forget(first)
        if dice.random() < 0.5:
            log.close()
        else:
            die_in_a_sync(log, recording)


def die_in_a_sync(log: IngestLog, recording: Recording) -> None:
    """The process ends, or the disk fails, after the write: the cache has it, the disk may."""
    for _ in range(3):
        log.append(entry(log.end))
    recording.note(("end", log.end))
    failing = mock.patch.object(files.PlacedFile, "sync", side_effect=OSError(5, "Input/output error"))
    with failing, pytest.raises(OutsideError):
        log.sync()
    log.close()


def opened(folder: Path) -> IngestLog:
    return IngestLog(folder / "state" / "log", min_free=0, segment_bytes=SEGMENT)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reserve as little at once as a log of this size would, so that room runs out in the middle of things."""
    monkeypatch.setattr(log_segments, "STEP", 4_096)


def recorded(folder: Path, seed: int) -> Recording:
    folder.mkdir()
    recording = Recording(folder)
    with recording.installed():
        live(folder, recording, seed)
    return recording


def promised(crash: Crash) -> tuple[int, int, int]:
    """Below which entries may be forgotten, below which all is durable, and below which something was appended."""
    notes: dict[str, int] = {"first": 0, "durable": 0, "end": 0}
    for what, number in crash.notes:
        notes[what] = max(notes[what], number)
    return notes["first"], notes["durable"], notes["end"]


def check(folder: Path, crash: Crash) -> None:
    """What is recovered keeps the promises, twice, and can be gone on with."""
    first, durable, end = promised(crash)
    log = opened(folder)
    try:
        assert log.first <= first
        assert durable <= log.end == log.durable <= end
        assert list(log.read(log.first)) == [(number, entry(number)) for number in range(log.first, log.end)]
        log.append(entry(log.end))
        kept = log.sync()
    finally:
        log._last.file.close()
    log = opened(folder)
    assert (log.durable, list(log.read(kept - 1))) == (kept, [(kept - 1, entry(kept - 1))])
    log._last.file.close()


def lives(folder: Path, numbers: range) -> Iterator[tuple[int, Recording]]:
    for seed in numbers:
        yield seed, recorded(folder / f"life {seed}", seed)


@pytest.mark.timeout(3600)  # a long run has many states
def test_power_may_fail_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is recovered; most crashes are in the middle of something."""
    torn = 0
    for seed, recording in lives(tmp_path, range(LIVES)):
        for number in range(STATES // LIVES):
            crash = recording.crash(seed, number, tmp_path / "after")
            with monkeypatch.context() as quick:
                # The states are legal whether the recovery's own syncs reach a disk or not; they are what takes time.
                quick.setattr(os, "fsync", lambda handle: None)
                quick.setattr(os, "fdatasync", lambda handle: None)
                try:
                    check(tmp_path / "after", crash)
                except (AssertionError, OutsideError) as error:
                    raise AssertionError(f"life {seed}, state {number}: {error}") from error
            _, durable, end = promised(crash)
            torn += durable < end
    assert torn > STATES / 5


@pytest.mark.timeout(3600)  # a long run has many states
def test_power_may_fail_while_it_is_recovered_from(tmp_path: Path) -> None:
    """The recovery is recorded, and cut short in its turn."""
    for seed, recording in lives(tmp_path, range(100, 100 + LIVES)):
        for number in range(max(STATES // LIVES // 20, 1)):
            crash = recording.crash(seed, number, tmp_path / "after")
            again = Recording(tmp_path / "after")
            with again.installed():
                opened(tmp_path / "after")._last.file.close()
            for second in range(4):
                again.crash(seed, second, tmp_path / "twice")
                check(tmp_path / "twice", crash)


@pytest.mark.parametrize("left_out", ["folder", "data", "removal"])
def test_a_log_that_does_not_sync_what_it_must_is_caught(tmp_path: Path, left_out: str) -> None:
    """The states would show it: without the sync of a folder, without that of data, with a removal that is not."""
    without = {
        "folder": replaced_in_files(sync_folder=lambda folder: None),
        "data": mock.patch.object(files.PlacedFile, "sync", return_value=None),
        "removal": replaced_in_files(remove=lambda path: writing.os.unlink(path)),  # noqa: PLW0108 - the recording's unlink
    }
    with without[left_out], pytest.raises((AssertionError, OutsideError)):
        check_many(tmp_path)


def check_many(folder: Path) -> None:
    for seed, recording in lives(folder, range(LIVES)):
        for number in range(100):
            check(folder / "after", recording.crash(seed, number, folder / "after"))
