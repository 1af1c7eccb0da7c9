"""`tidemill log` tells what a log holds, what a crash has torn, and where it is damaged; it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.app.cli import answer
from tidemill.app.log_command import inspect, survey
from tidemill.engine.ingest_log import IngestLog
from tidemill.errors import InputError, OutsideError
from tidemill.formats.log_frames import FRAME_BYTES, FRAMES_AT

ENTRY = 100


def filled(state: Path, *, entries: int = 10, closed: bool = True) -> Path:
    """A log of small segments, three entries each; its folder."""
    log = IngestLog(state / "log", min_free=0, segment_bytes=FRAMES_AT + 3 * (FRAME_BYTES + ENTRY))
    for number in range(entries):
        log.append(bytes([number]) * ENTRY)
        log.sync()
    log.close() if closed else log._last.file.close()
    return state / "log"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def place_of(index: int) -> int:
    return FRAMES_AT + index * (FRAME_BYTES + ENTRY)


def test_a_whole_log_is_told_by_its_state_folder_or_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file, its entries, its bytes; and nothing is changed."""
    folder = filled(tmp_path / "state")
    before = contents(folder)
    told = inspect(tmp_path / "state")
    assert told == inspect(folder)
    lines = told.splitlines()
    assert lines[0] == f"{folder}: 10 entries (0 to 9) in 4 segments, 0.0 MB"
    assert lines[2] == "  00000000000000000003.log  3 entries (3 to 5), 0.0 MB of 0.0 MB used"
    assert lines[4] == "  00000000000000000009.log  1 entry (9 to 9), 0.0 MB of 0.0 MB used"
    assert lines[5:] == ["torn tail: no", "damage: none"]
    assert answer(["log", str(folder)]) == 0
    assert capsys.readouterr().out == told
    assert contents(folder) == before


def test_a_torn_tail_is_no_damage(tmp_path: Path) -> None:
    """It is told, with its place; the entries before it count."""
    folder = filled(tmp_path, closed=False)
    path = folder / "00000000000000000009.log"
    data = bytearray(path.read_bytes())
    data[place_of(1) : place_of(1) + 7] = b"garbage"
    path.write_bytes(data)
    found = survey(folder)
    assert found.is_whole
    assert found.segments[-1].torn_at == place_of(1)
    assert found.segments[-1].end == 10
    assert f"torn tail: yes, at byte {place_of(1)} of {path.name}" in inspect(folder)
    log = IngestLog(folder, min_free=0)  # as it was told
    assert log.end == 10
    log.close()


def test_damage_is_told_with_file_and_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each place of each file, in the middle and at the end; what is whole around them is counted."""
    folder = filled(tmp_path)
    for name, index in (
        ("00000000000000000000.log", 1),
        ("00000000000000000003.log", 2),
        ("00000000000000000009.log", 0),
    ):
        data = bytearray((folder / name).read_bytes())
        data[place_of(index) + FRAME_BYTES + 5] ^= 1
        (folder / name).write_bytes(data)
    found = survey(folder)
    assert [(one.path.name[18:20], one.place, one.what) for one in found.damages] == [
        ("00", place_of(1), "entry 1 is not whole"),
        ("03", place_of(2), "entry 5 is not whole"),
        ("09", place_of(0), "entry 9 is not whole"),
    ]
    assert sum(one.entries for one in found.segments) == 7
    assert answer(["log", str(folder)]) == 4
    told = capsys.readouterr().out
    assert "damage: 3 places" in told
    assert f"  00000000000000000003.log at byte {place_of(2)}: entry 5 is not whole" in told


def test_what_a_run_would_be_refused_for_is_told_in_its_words(tmp_path: Path) -> None:
    """A missing file, a damaged head, entries that end too early."""
    folder = filled(tmp_path / "a")
    (folder / "00000000000000000003.log").unlink()
    with pytest.raises(OutsideError) as error:
        IngestLog(folder)
    assert f"a run would be refused: {error.value}" in inspect(folder)
    assert not survey(folder).is_whole

    folder = filled(tmp_path / "b")
    (folder / "00000000000000000003.log").write_bytes(bytes(500))
    assert "00000000000000000003.log at byte 0: it does not begin as a segment of a log does" in inspect(folder)

    folder = filled(tmp_path / "c", closed=False)
    path = folder / "00000000000000000003.log"
    path.write_bytes(path.read_bytes()[: place_of(2)])
    assert f"at byte {place_of(2)}: entry 5 is not whole" in inspect(folder)


def test_a_segment_that_was_half_made_is_no_damage(tmp_path: Path) -> None:
    """A crash may leave an empty file behind the last one; the next start removes it."""
    folder = filled(tmp_path, closed=False)
    (folder / "00000000000000000010.log").touch()
    assert survey(folder).is_whole


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_log_is_an_error_of_the_input(tmp_path: Path, made: bool) -> None:
    """With the path that was tried."""
    if made:
        (tmp_path / "state").mkdir()
    with pytest.raises(InputError, match=str(tmp_path / "state")):
        inspect(tmp_path / "state")
    assert answer(["log", str(tmp_path / "state")]) == 4
