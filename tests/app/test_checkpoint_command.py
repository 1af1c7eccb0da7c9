"""``tidemill checkpoint``: what there is, whether it can be used, and an exit code that says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tidemill.app.cli import answer
from tidemill.engine.checkpoint_store import CheckpointStore


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with three checkpoints."""
    store = CheckpointStore(tmp_path / "plant" / "checkpoints")
    for number in (8, 9, 10):
        store.write(number, {"position": 1000 * number}, [("state", np.arange(500.0))])
    return tmp_path / "plant"


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_checkpoints_are_listed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Number, position, time and size, oldest first; by the state folder or the one within."""
    for folder in (state, state / "checkpoints"):
        assert answer(["checkpoint", str(folder)]) == 0
        told, complaints = capsys.readouterr()
        lines = [line.split() for line in told.splitlines()]
        assert lines[0] == ["number", "position", "written", "size", "state"]
        assert [line[:2] for line in lines[1:4]] == [["8", "8000"], ["9", "9000"], ["10", "10000"]]
        assert all(line[2].endswith("Z") and line[3:] == ["4.2", "kB", "complete"] for line in lines[1:4])
        assert "--verify" in told
        assert complaints == ""
    assert answer(["checkpoint", str(state), "--verify"]) == 0
    assert capsys.readouterr().out.count("whole") == 3


def test_a_damaged_one_is_named_and_ends_with_4(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged array is found by --verify, a file that was cut short by any look."""
    names = sorted((state / "checkpoints").iterdir())
    damage(names[1], 1000)
    assert answer(["checkpoint", str(state)]) == 0
    capsys.readouterr()
    assert answer(["checkpoint", str(state), "--verify"]) == 4
    told, complaints = capsys.readouterr()
    assert [line.split()[-1] for line in told.splitlines()[1:]] == ["whole", "damaged", "whole"]
    assert complaints == f"tidemill: {names[1]} cannot be used: 'state' does not match its checksum.\n"
    names[2].write_bytes(names[2].read_bytes()[:100])
    assert answer(["checkpoint", str(state)]) == 4
    assert "0010.checkpoint cannot be used: it is cut short" in capsys.readouterr().err


def test_pruning_removes_the_oldest_and_says_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At least one stays; what is being written by a run is left alone."""
    hidden = state / "checkpoints" / f".{11:020}.checkpoint"
    hidden.write_bytes(b"half")
    assert answer(["checkpoint", str(state), "--prune", "0"]) == 4
    assert "at least must stay" in capsys.readouterr().err
    assert answer(["checkpoint", str(state), "--prune", "2"]) == 0
    told, complaints = capsys.readouterr()
    assert complaints.splitlines() == [f"tidemill: removed {state / 'checkpoints' / f'{8:020}.checkpoint'}"]
    assert [line.split()[0] for line in told.splitlines()[1:3]] == ["9", "10"]
    assert hidden.exists()


def test_a_folder_without_any_is_no_error_and_no_folder_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made there."""
    assert answer(["checkpoint", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no checkpoints in {tmp_path}\n"
    (tmp_path / "all" / "plant" / "checkpoints").mkdir(parents=True)
    assert answer(["checkpoint", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out == f"no checkpoints in {tmp_path}/all; name one of the state folders in it: plant\n"
    shutil.rmtree(tmp_path / "all")
    assert answer(["checkpoint", str(tmp_path / "none")]) == 4
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert answer(["checkpoint"]) == 2
    assert "tidemill checkpoint --help" in capsys.readouterr().err
