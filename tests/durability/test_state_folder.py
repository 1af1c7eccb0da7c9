"""What a state folder may be: what cannot serve is refused at the start, in a sentence that says what to do."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

import tidemill as tm
from tidemill import files
from tidemill.engine import state_folder
from tidemill.engine.state_folder import StateFolder
from tidemill.errors import InputError, OutputExists, OutsideError

ROWS = [{"sensor": f"S{n % 3}", "time": n, "value": n} for n in range(300)]


def pipeline(folder: Path, name: str = "plant", sink: tm.sinks.ProcessSink | None = None) -> tm.Pipeline:
    source = folder / "in.ndjson"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plan = tm.Plan(tm.Rolling("value", window=5, stats=["mean"]))
    return tm.Pipeline(tm.sources.Replay(source), plan, sink or tm.sinks.SQLite(folder / "out.db"), name=name)


def run(folder: Path, **changed: object) -> tm.Report:
    state = changed.pop("state", folder / "state")
    return tm.run(pipeline(folder, **changed), lanes=0, state=state)


def count(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT COUNT(*) FROM features").fetchone()[0]
    finally:
        connection.close()


def refusal(folder: Path, error: type[tm.TidemillError], **changed: object) -> str:
    """What the user reads: one sentence, or two, on one line, and nothing was written."""
    with pytest.raises(error) as caught:
        run(folder, **changed)
    told = str(caught.value)
    assert "\n" not in told
    assert told.endswith(".")
    assert not (folder / "out.db").exists()
    return told


def test_a_folder_that_another_run_holds(tmp_path: Path) -> None:
    """Two engines on one state would each undo what the other does."""
    first = StateFolder(tmp_path / "state", "plant")
    try:
        assert "is in use by another run of this pipeline; stop that one first" in refusal(tmp_path, OutsideError)
    finally:
        first.close()
    assert run(tmp_path).rows_out == len(ROWS)


def test_fresh_does_not_move_a_folder_that_another_run_holds(tmp_path: Path) -> None:
    """It would be moved away under the feet of that run."""
    first = StateFolder(tmp_path / "state", "plant")
    try:
        told = refusal(tmp_path, OutsideError, state=tm.State(tmp_path / "state", fresh=True))
        assert "in use by another run; stop that one first" in told
        assert (tmp_path / "state" / "pipeline.json").exists()
    finally:
        first.close()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to(tmp_path: Path, mode: int) -> None:
    """What is read from it decides what is computed, and objects in it are unpickled."""
    place = tmp_path / "state"
    place.mkdir()
    place.chmod(mode)
    assert f"{place} may be written to by others; run chmod 700 on it" in refusal(tmp_path, InputError)


def test_a_folder_of_a_newer_tidemill(tmp_path: Path) -> None:
    """What it knows must not be forgotten without a word."""
    StateFolder(tmp_path / "state", "plant").close()
    place = tmp_path / "state" / "pipeline.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 2}))
    told = refusal(tmp_path, InputError)
    assert "is of a newer tidemill (version 2 of the format" in told
    assert "upgrade tidemill, or start over with --fresh" in told


def test_a_folder_of_another_pipeline(tmp_path: Path) -> None:
    """Its state would be taken for this one's."""
    StateFolder(tmp_path / "state", "other").close()
    told = refusal(tmp_path, InputError)
    assert "belongs to the pipeline 'other', and this is 'plant'" in told
    assert "choose another folder, or start over with --fresh" in told


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    """It is somebody's, and not ours to write to."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "letters.txt").touch()
    told = refusal(tmp_path, InputError)
    assert "holds other things than a state; choose a folder of its own" in told


@pytest.mark.parametrize("name", ["pipeline.json", "epoch", "letters.json", "beginning.json"])
def test_a_start_that_was_killed_before_its_first_file_was_whole(tmp_path: Path, name: str, monkeypatch) -> None:
    """The next start takes the folder for its own, and sweeps it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        patched.setattr("os.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            files.write_atomic(place / name, b"half of i")
    assert [left.startswith(f".{name}.") for left in files.names_in(place)] == [True]
    StateFolder(place, "plant").close()
    assert not [left for left in files.names_in(place) if left.startswith(".")]


@pytest.mark.parametrize("below", ["", "plant", "line/2"])
def test_a_file_in_its_place_or_above_it(tmp_path: Path, below: str) -> None:
    """A mistyped path."""
    (tmp_path / "state").touch()
    told = refusal(tmp_path, InputError, state=tmp_path / "state" / below)
    assert told == f"{tmp_path / 'state'} is a file; the state needs a folder."


@pytest.mark.parametrize("name", ["pipeline.json", "epoch", "beginning.json"])
def test_a_folder_whose_own_files_are_damaged(tmp_path: Path, name: str) -> None:
    """A number of a start that is too low would let an earlier one write on."""
    StateFolder(tmp_path / "state", "plant").close()
    (tmp_path / "state" / name).write_bytes(b"\0\0\0")
    told = refusal(tmp_path, InputError)
    assert f"{name} is not readable" in told
    assert "restore it, or start over with --fresh" in told


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better at the start than in the middle of the night."""
    monkeypatch.setattr(files, "free_space", lambda folder: 1 << 20)
    assert "is full; make room, or choose another" in refusal(tmp_path, OutsideError)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The mount with the longest matching path counts, also one with a space in its name; a neighbour's does not."""
    shared = tmp_path / "on the net"
    shared.mkdir()
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/on\\040the\\040net {kind} rw 0 0\n"
    real = files.read_bytes
    monkeypatch.setattr(
        files, "read_bytes", lambda path: mounts.encode() if path == "/proc/self/mounts" else real(path)
    )
    told = refusal(tmp_path, OutsideError, state=shared / "not yet" / "state")
    assert f"is on a network file system ({kind}), where locks and fsync cannot be relied on" in told
    assert not (shared / "not yet").exists()
    assert state_folder._file_system(tmp_path / "on the net beside") == "ext4"
    assert run(tmp_path).rows_out == len(ROWS)


def test_fresh_moves_the_state_aside_and_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Twice: the first that was moved aside is not overwritten."""
    run(tmp_path)
    first = (tmp_path / "state" / "pipeline.json").read_text()
    for number in (1, 2):
        (tmp_path / "out.db").unlink()
        report = run(tmp_path, state=tm.State(tmp_path / "state", fresh=True))
        assert (report.resumed_at, report.rows_out) == (0, len(ROWS))
        assert f"the state so far was moved to {tmp_path / f'state.old-{number}'}" in caplog.text
        assert count(tmp_path / "out.db") == len(ROWS)
    assert (tmp_path / "state.old-1" / "pipeline.json").read_text() == first


def test_a_fresh_start_that_is_refused_moves_nothing(tmp_path: Path) -> None:
    """For an output that is there, or a place that cannot be: all is as it was, and the run goes on without ``fresh``."""
    run(tmp_path)
    anew = tm.State(tmp_path / "state", fresh=True)
    with pytest.raises(OutputExists, match="if_exists"):
        run(tmp_path, state=anew)
    (tmp_path / "out.db").rename(tmp_path / "aside.db")
    with pytest.raises(InputError, match="nowhere"):
        tm.run(pipeline(tmp_path), lanes=0, state=anew, dead_letters=tmp_path / "nowhere" / "letters.ndjson")
    (tmp_path / "aside.db").rename(tmp_path / "out.db")
    assert not (tmp_path / "state.old-1").exists()
    assert run(tmp_path).resumed_at


def test_a_start_that_was_refused_leaves_the_folder_free(tmp_path: Path) -> None:
    """The lock goes with the error."""
    StateFolder(tmp_path / "state", "other").close()
    refusal(tmp_path, InputError)
    StateFolder(tmp_path / "state", "other").close()
    assert int((tmp_path / "state" / "epoch").read_text()) == 2


def test_lines_to_a_file_that_is_there_needs_to_be_told(tmp_path: Path) -> None:
    """With state or without: somebody's file is not added to, and not cut, unless it was asked for."""
    place = tmp_path / "out.ndjson"
    place.write_text("mine\n")
    for state in (False, tmp_path / "state"):
        told = refusal(tmp_path, OutputExists, sink=tm.sinks.Lines(place), state=state)
        assert 'if_exists="append"' in told
        assert 'if_exists="replace"' in told
        assert place.read_text() == "mine\n"
    run(tmp_path, sink=tm.sinks.Lines(place, if_exists="append"), state=False)
    assert place.read_text().startswith("mine\n")
    assert len(place.read_text().splitlines()) == 1 + len(ROWS)
