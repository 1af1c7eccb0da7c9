"""What a power failure leaves of the rows of `Lines` and `Parquet`, and what the next start makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.durability.kept_sinks import KEPT, Start, let_go, same, visible
from tests.durability.recording_files import Recording
from tests.sinks.test_laws import Kit

from tidemill import sinks

STATES = 500
LAST = 40


@pytest.fixture(autouse=True)
def _starts_end() -> Iterator[None]:
    yield
    let_go()


@pytest.mark.parametrize("kit", [kit for kit in KEPT if kit.cls is not sinks.SQLite], ids=lambda kit: kit.name)
def test_what_was_committed_outlives_a_power_failure(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every state that the disk may have: no start loses a row that was committed, nor writes one twice."""
    folder = tmp_path / "plant"
    (folder / "state").mkdir(parents=True)
    if kit.name == "parquet-folder":
        (folder / kit.file).mkdir()
    recording = Recording(folder)
    with recording.installed():
        for epoch in (1, 2, 3):
            start = Start(kit, folder, epoch)
            for inputs in (3, 6, 2):
                start.write(inputs)
                start.commit()
                recording.note(start.committed)
            start.write(4)
            if epoch == 2:
                start.commit()
                recording.note(start.committed)
                start.sink.close()
            start.vanish()
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug any more
    monkeypatch.setattr(os, "fdatasync", lambda handle: None)
    lost = 0
    for number in range(STATES):
        crash = recording.crash(41, number, folder)
        start = Start(kit, folder, 4)
        assert start.handed >= max(crash.notes, default=0), f"state {number}"
        lost += start.handed < max(recording_notes(recording))
        start.finish(LAST)
        assert same(visible(kit, folder), start.expected(LAST)), f"state {number}"
    assert lost > STATES // 4  # most failures came before the end


def recording_notes(recording: Recording) -> list[int]:
    return [one.value for one in recording.operations if hasattr(one, "value")]
