"""The shim that plays power failures knows the rules of a disk: what may be lost, and what may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.durability.recording_files import BLOCK, Recording, replaced_in_files

from tidemill import files

STATES = 300

Found = list[tuple[dict[str, bytes], list[Any]]]


@pytest.fixture
def states(tmp_path: Path) -> Callable[[Callable[[Path, Recording], None]], Found]:
    """What the folder may hold, and what was noted by then, after power failed at any time of ``work``."""

    def found(work: Callable[[Path, Recording], None]) -> Found:
        folder, target = tmp_path / "real", tmp_path / "rebuilt"
        folder.mkdir()
        (folder / "old").write_bytes(b"as it was")
        recording = Recording(folder)
        with recording.installed():
            work(folder, recording)
        contents: Found = []
        for number in range(STATES):
            notes = recording.crash(1, number, target).notes
            content = {str(one.relative_to(target)): one.read_bytes() for one in target.rglob("*") if one.is_file()}
            assert content.pop("old") == b"as it was"
            contents.append((content, notes))
        return contents

    return found


def test_a_published_file_is_there_whole_or_not_at_all(states) -> None:
    """Synced, renamed, and its folder synced: no state has a part of it under its name."""

    def work(folder: Path, recording: Recording) -> None:
        with files.open_write(folder / ".a") as handle:
            handle.write(b"x" * 3 * BLOCK)
            files.sync(handle)
        files.publish(folder / ".a", folder / "a")
        recording.note("published")

    found = states(work)
    assert {content["a"] for content, _ in found if "a" in content} == {b"x" * 3 * BLOCK}
    assert {} in [content for content, _ in found]
    assert {"a" in content for content, notes in found if notes} == {True}


def test_a_file_that_was_not_synced_may_be_in_parts(states) -> None:
    """Its second block without its first, its name without its content."""

    def work(folder: Path, recording: Recording) -> None:
        with files.open_write(folder / ".a") as handle:
            handle.write(b"x" * 2 * BLOCK)
        files.publish(folder / ".a", folder / "a")

    contents = {content["a"] for content, _ in states(work) if "a" in content}
    assert contents >= {b"", b"x" * BLOCK, b"\0" * BLOCK + b"x" * BLOCK, b"x" * 2 * BLOCK}


def test_a_synced_file_may_be_lost_with_its_name_until_its_folder_is_synced(states) -> None:
    """The content is on disk, but nothing leads to it."""

    def work(folder: Path, recording: Recording) -> None:
        file = files.PlacedFile(folder / "a", "create")
        file.write(0, b"x")
        file.sync()
        file.close()
        recording.note("file")
        files.sync_folder(folder)
        recording.note("folder")

    found = states(work)
    assert {"a" in content for content, notes in found if notes == ["file"]} == {True, False}
    assert [content for content, notes in found if notes == ["file", "folder"] and content != {"a": b"x"}] == []


def test_a_removed_file_may_come_back_until_its_folder_is_synced(states) -> None:
    """`files.remove` syncs it."""

    def work(folder: Path, recording: Recording) -> None:
        files.append(folder / "a", b"x")
        files.sync_folder(folder)
        (folder / "a").touch()
        with replaced_in_files(sync_folder=lambda folder: None):
            files.remove(folder / "a")
        recording.note("unlinked")
        files.sync_folder(folder)
        recording.note("gone")

    found = states(work)
    assert {"a" in content for content, notes in found if notes == ["unlinked"]} == {True, False}
    assert {"a" in content for content, notes in found if notes == ["unlinked", "gone"]} == {False}


def test_a_shortened_file_may_be_long_again_until_it_is_synced(states) -> None:
    """A cut is a change like another."""

    def work(folder: Path, recording: Recording) -> None:
        file = files.PlacedFile(folder / "a", "create")
        file.write(0, b"xyz")
        file.sync()
        files.sync_folder(folder)
        recording.note("written")
        file.truncate(1)
        recording.note("cut")
        file.sync()
        recording.note("synced")
        file.close()

    found = states(work)
    assert {content["a"] for content, notes in found if notes[-1:] == ["cut"]} == {b"x", b"xyz"}
    assert {content["a"] for content, notes in found if notes[-1:] == ["synced"]} == {b"x"}


def test_a_replaced_file_is_the_old_or_the_new(states) -> None:
    """`files.write_atomic`, as often as one likes; once it has returned, the new one."""

    def work(folder: Path, recording: Recording) -> None:
        for number in range(3):
            files.write_atomic(folder / "a", b"%d" % number * 2 * BLOCK)
            recording.note(number)

    found = [(content.get("a"), notes) for content, notes in states(work)]
    assert {content for content, _ in found} == {None, *(b"%d" % number * 2 * BLOCK for number in range(3))}
    assert all(content is not None and content[:1] >= b"%d" % notes[-1] for content, notes in found if notes)


def test_folders_are_made_for_good(states) -> None:
    """`files.make_folder` syncs the one above each."""

    def work(folder: Path, recording: Recording) -> None:
        files.make_folder(folder / "b" / "c")
        recording.note("made")
        files.append(folder / "b" / "c" / "a", b"x")
        files.sync_folder(folder / "b" / "c")
        recording.note("named")

    found = states(work)
    assert {"b/c/a" in content for content, notes in found if notes == ["made", "named"]} == {True}


@pytest.mark.parametrize(
    ("made", "done"),
    [
        ({}, lambda place: files.write_atomic(place, b"x")),
        ({}, lambda place: files.write_whole(place, b"x")),
        ({}, lambda place: files.append(place, b"x", sync=True)),
        ({"a": b"x" * 9}, lambda place: files.truncate(place, 4)),
        ({"a": b"x"}, files.remove),
        ({".a": b"x"}, lambda place: files.publish(place.with_name(".a"), place)),
    ],
    ids=["write_atomic", "write_whole", "append", "truncate", "remove", "publish"],
)
def test_what_is_done_for_good_is_recorded_whatever_does_it(
    tmp_path: Path, made: dict[str, bytes], done: Callable[[Path], None]
) -> None:
    """Not a write, a name or a sync of `tidemill.files` goes past the recording."""
    folder, target = tmp_path / "real", tmp_path / "rebuilt"
    folder.mkdir()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    recording = Recording(folder)
    with recording.installed():
        done(folder / "a")
    recording.note("done")
    left = {one.name: one.read_bytes() for one in folder.iterdir()}
    assert left != made
    for number in range(STATES):
        if recording.crash(1, number, target).notes:
            assert {one.name: one.read_bytes() for one in target.iterdir()} == left


def test_a_lock_file_is_recorded(states) -> None:
    """It has a name of its own, which may be lost."""

    def work(folder: Path, recording: Recording) -> None:
        held = files.lock(folder / "lock")
        assert held is not None
        held.release()

    assert {tuple(content) for content, _ in states(work)} == {(), ("lock",)}


def test_the_same_numbers_make_the_same_state(tmp_path: Path) -> None:
    """A failing state can be looked at again."""
    (tmp_path / "real").mkdir()
    recording = Recording(tmp_path / "real")
    with recording.installed():
        for number in range(5):
            files.append(tmp_path / "real" / f"{number}", bytes(range(256)) * 8)
    for number in range(50):
        one = recording.crash(7, number, tmp_path / "one")
        other = recording.crash(7, number, tmp_path / "other")
        assert one == other
        assert [path.read_bytes() for path in sorted((tmp_path / "one").iterdir())] == [
            path.read_bytes() for path in sorted((tmp_path / "other").iterdir())
        ]
