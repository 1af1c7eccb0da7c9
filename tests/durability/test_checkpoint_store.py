"""Checkpoints on disk: whole or not there, whatever happens to power, disk and bytes."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import stat
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.durability.recording_files import Recording, replaced_in_files

from tidemill import files
from tidemill.engine import checkpoint_store
from tidemill.engine.checkpoint_store import CheckpointStore, listed, prune
from tidemill.errors import EngineError, InputError, OutsideError
from tidemill.formats import checkpoint as form
from tidemill.testing import ManualClock

GOLDEN = Path(__file__).parent / "golden"


def facts_at(number):
    return {
        "position": 100 * number,
        "offsets": {"plant": [number, None, 2.5]},
        "watermark": -(2**63),
        "raw": b"\0\xff",
    }


def parts_at(number):
    """Every kind of part, different for each checkpoint."""
    return [
        ("state/0", np.arange(number, number + 70.0)),
        ("counts", np.full((3, 2), number, np.int32)),
        ("none", np.empty((0, 5), np.float32)),
        ("one", np.array(number, np.uint8)),
        ("flags", np.array([True, False, True])),
        ("times", np.array([number, -1], "datetime64[ns]")),
        ("strided", np.arange(10, dtype=np.int16)[::3]),
        ("swapped", np.arange(number, number + 3, dtype=">i4")),
        ("keys", f"S{number}".encode() * number),
    ]


def assert_is(found, number):
    assert found is not None
    assert found.number == number
    assert found.facts == facts_at(number)
    assert found.names == tuple(name for name, _ in parts_at(number))
    for name, value in parts_at(number):
        if isinstance(value, bytes):
            assert found.blob(name) == value
            continue
        made = found.array(name)
        assert made.dtype == value.dtype.newbyteorder("=")
        assert made.shape == value.shape
        assert made.tolist() == value.tolist()
        assert not made.flags.writeable
        assert made.flags.aligned


def write(store, *numbers):
    for number in numbers:
        size = store.write(number, facts_at(number), iter(parts_at(number)))
        assert size == path_of(store.folder, number).stat().st_size


def path_of(folder, number):
    return folder / f"{number:020}.checkpoint"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# -- what it is for --------------------------------------------------------------------------------------


def test_the_newest_comes_back_and_the_last_three_stay(tmp_path):
    """Facts, arrays with their types and shapes, and bytes; by another store, in a private folder."""
    store = CheckpointStore(tmp_path / "a" / "b")
    assert store.newest() is None
    assert store.listed() == []
    write(store, 1, 2, 9, 10, 11)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert names(store.folder) == [path_of(store.folder, number).name for number in (9, 10, 11)]
    assert_is(CheckpointStore(store.folder).newest(), 11)
    assert repr(store.newest()) == "Checkpoint(11, position 1100)"


def test_the_same_number_again_replaces(tmp_path):
    """After a fall-back, numbers are used again."""
    store = CheckpointStore(tmp_path)
    store.write(1, {"position": 5}, [])
    write(store, 1)
    assert_is(store.newest(), 1)


def test_parts_are_taken_one_by_one(tmp_path):
    """Nothing is held: each array is written before the next is asked for."""
    store = CheckpointStore(tmp_path)
    sizes = []

    def parts():
        for number in range(4):
            sizes.append((tmp_path / f".{5:020}.checkpoint").stat().st_size)
            yield f"part {number}", np.zeros(1000)

    store.write(5, {"position": 0}, parts())
    assert [after - before for before, after in itertools.pairwise(sizes)] == [8000] * 3


def test_what_can_be_listed(tmp_path):
    """Number, position, time and size, and why one cannot be used; looking changes nothing."""
    clock = ManualClock()
    store = CheckpointStore(tmp_path, clock=clock)
    write(store, 3, 4)
    (tmp_path / f".{5:020}.checkpoint").write_bytes(b"being written")
    (tmp_path / "notes.txt").write_bytes(b"")
    before = names(tmp_path)
    first, second = listed(tmp_path)
    assert (first.number, first.position, first.written_ns, first.whole) == (3, 300, clock.wall_ns(), True)
    assert second.bytes == path_of(tmp_path, 4).stat().st_size
    data = bytearray(path_of(tmp_path, 4).read_bytes())
    data[-400] ^= 1  # within the arrays
    path_of(tmp_path, 4).write_bytes(data)
    path_of(tmp_path, 3).write_bytes(b"")
    assert [one.why for one in store.listed()] == ["it is cut short within its start", ""]
    assert [bool(one.why) for one in store.verify()] == [True, True]
    assert "does not match its checksum" in store.verify()[1].why
    assert names(tmp_path) == before


def test_left_overs_of_a_crash_are_removed(tmp_path):
    """And nothing else that lies there."""
    (tmp_path / f".{5:020}.checkpoint").write_bytes(b"half")
    for name in (".hidden", "notes.txt", f"{5:020}.checkpoint.bak", "5.checkpoint"):
        (tmp_path / name).write_bytes(b"mine")
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    assert len(names(tmp_path)) == 4


# -- what goes wrong -------------------------------------------------------------------------------------


def test_a_failing_writer_leaves_no_trace(tmp_path):
    """A lane that dies while its state is copied, two parts of one name, an array of objects, a number that is none."""
    store = CheckpointStore(tmp_path)
    write(store, 1)

    def dies():
        yield "state", np.zeros(5)
        raise RuntimeError("a lane died")

    with pytest.raises(RuntimeError, match="a lane died"):
        store.write(2, {"position": 1}, dies())
    for parts, words in [
        ([("a", b""), ("a", b"")], "two parts of the name 'a'"),
        ([("a", np.array([object()]))], "no form"),
        ([("a", np.zeros(1, [("x", int)]))], "no form"),
        ([("a", np.array(["text"]))], "no form"),
    ]:
        with pytest.raises(EngineError, match=words):
            store.write(2, {"position": 1}, parts)
    with pytest.raises(InputError, match=r"type builtins\.object"):
        store.write(2, {"position": object()}, [])
    with pytest.raises(EngineError, match="no number"):
        store.write(-1, {}, [])
    with pytest.raises(EngineError, match="one checkpoint at least"):
        store.prune(0)
    with pytest.raises(EngineError, match="one checkpoint at least"):
        CheckpointStore(tmp_path, keep=0)
    assert names(tmp_path) == [path_of(tmp_path, 1).name]
    assert_is(store.newest(), 1)
    with pytest.raises(EngineError, match="nothing of the name"):
        store.newest().array("other")
    with pytest.raises(EngineError, match="is a blob"):
        store.newest().array("keys")
    with pytest.raises(EngineError, match="is an array"):
        store.newest().blob("counts")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync", "replace", "fsync"])
def test_a_disk_that_refuses_is_said_and_the_old_one_stays(tmp_path, call, code):
    """Each call in turn; a sync that failed is never tried again."""
    store = CheckpointStore(tmp_path)
    write(store, 1)
    real, failures = getattr(os, call), []

    def refuse(*rest, **options):
        if call == "open" and not rest[1] & os.O_CREAT:
            return real(*rest, **options)
        failures.append(call)
        raise OSError(code, os.strerror(code))

    with (
        mock.patch.object(os, call, refuse),
        pytest.raises(OutsideError, match=rf"checkpoint 2 .*{tmp_path}.*{os.strerror(code)}"),
    ):
        write(store, 2)
    assert len(failures) == 1 or call == "fsync"  # of the folder: also when the left-over is removed
    assert not list(tmp_path.glob(".*"))
    assert CheckpointStore(tmp_path).newest().number == (2 if call == "fsync" else 1)
    write(store, 2)
    assert_is(store.newest(), 2)


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    """A file in its place."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutsideError, match=r"checkpoints .*file"):
        CheckpointStore(tmp_path / "file")
    with pytest.raises(OutsideError, match="cannot be read"):
        listed(tmp_path / "none")


def test_a_newer_format_is_never_passed_over(tmp_path):
    """Going back without a word would forget what the newer tidemill has done since."""
    store = CheckpointStore(tmp_path)
    write(store, 1)
    with mock.patch.object(form, "VERSION", 3):
        write(store, 2)
    with pytest.raises(
        OutsideError, match=r"0002\.checkpoint.*format version 3, and this tidemill reads up to 2.*newer one"
    ):
        store.newest()
    assert [one.whole for one in store.listed()] == [True, False]
    write(store, 3)
    assert_is(store.newest(), 3)


def test_a_checkpoint_under_another_name_is_none(tmp_path):
    """A copy that was renamed would put the position wrong."""
    store = CheckpointStore(tmp_path)
    write(store, 1)
    shutil.copy(path_of(tmp_path, 1), path_of(tmp_path, 2))
    assert_is(store.newest(), 1)
    assert "checkpoint 1 under another's name" in store.listed()[1].why


def test_what_changes_after_it_was_found_is_said(tmp_path):
    """An array is compared with its checksum whenever it is read; a file that is gone is said to be."""
    store = CheckpointStore(tmp_path)
    write(store, 1)
    found = store.newest()
    data = bytearray(path_of(tmp_path, 1).read_bytes())
    data[data.index(np.arange(1, 71.0).tobytes()) + 9] ^= 4
    path_of(tmp_path, 1).write_bytes(data)
    with pytest.raises(OutsideError, match=r"'state/0' does not match its checksum"):
        found.array("state/0")
    assert found.blob("keys") == b"S1"
    path_of(tmp_path, 1).unlink()
    with pytest.raises(OutsideError, match="cannot be read any more"):
        found.blob("keys")


def test_pruning_keeps_the_last_that_are_whole(tmp_path):
    """What is damaged does not count: the last three are three to go back to."""
    store = CheckpointStore(tmp_path, keep=9)
    write(store, *range(1, 8))
    for number in (5, 7):
        path_of(tmp_path, number).write_bytes(b"")
    assert [int(path.name[:20]) for path in prune(tmp_path, 3)] == [2, 1]
    assert [int(path.name[:20]) for path in store.prune(1)] == [5, 4, 3]
    assert_is(store.newest(), 6)


# -- R8: damaged bytes -----------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A store with checkpoints 1 and 2, small enough to be damaged in every place."""
    store = CheckpointStore(tmp_path / "store")
    write(store, 1, 2)
    return store


def test_the_only_one_that_is_damaged_is_not_said_to_have_one_before_it(tmp_path, caplog):
    """The refusal says all there is to say."""
    store = CheckpointStore(tmp_path)
    write(store, 1)
    path_of(tmp_path, 1).write_bytes(path_of(tmp_path, 1).read_bytes()[:-1])
    with pytest.raises(OutsideError, match=rf"no checkpoint in {tmp_path} is whole .*--fresh"):
        store.newest()
    assert not caplog.records


def test_every_truncation_goes_back_one_and_says_so(two, caplog):
    """Whatever is cut off the newest, the one before is used, and the warning names file and reason."""
    path = path_of(two.folder, 2)
    data = path.read_bytes()
    caplog.set_level(logging.WARNING)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert two.newest().number == 1
        assert str(path) in caplog.records[-1].getMessage()
    assert len(caplog.records) == len(data)
    path.write_bytes(data + b"\0")
    assert two.newest().number == 1
    path.write_bytes(data)
    assert_is(two.newest(), 2)


@pytest.mark.parametrize("seed", range(4))
def test_every_flipped_bit_is_found(two, seed):
    """There is no byte that is not under a checksum."""
    path = path_of(two.folder, 2)
    data = path.read_bytes()
    chance = random.Random(seed)
    for place in chance.sample(range(len(data)), min(len(data), 400)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        assert two.newest().number == 1, f"byte {place}"


@pytest.mark.parametrize("seed", range(2))
def test_mixed_up_blocks_are_found(two, seed):
    """Sectors that were lost, exchanged, or are those of another file."""
    path = path_of(two.folder, 2)
    data, other = path.read_bytes(), path_of(two.folder, 1).read_bytes()
    chance = random.Random(seed)
    for _ in range(300):
        start, size = chance.randrange(len(data)), chance.choice([64, 128, 512])
        piece = chance.choice([bytes(size), data[:size], other[start : start + size], b"\xff" * size])
        mixed = (data[:start] + piece + data[start + len(piece) :])[: len(data)]
        path.write_bytes(mixed)
        if mixed != data:
            assert two.newest().number == 1


def test_when_none_is_whole_it_is_said(two):
    """With every file and its reason; an empty folder is another thing."""
    path_of(two.folder, 1).write_bytes(b"tm-check")
    path_of(two.folder, 2).write_bytes(b"")
    with pytest.raises(
        OutsideError, match=r"no checkpoint .* is whole .*0002\.checkpoint: it is cut.*0001\.checkpoint.*--fresh"
    ):
        two.newest()


def test_sums_do_not_make_lengths_true(tmp_path):
    """Ends and contents with right checksums and wrong numbers, as a fault of a writer would make them, are refused."""
    start = form.start_of(form.starting(1, 0, {}))
    head = len(form.starting(1, 0, {}))
    good, data = form.section_of("a", np.arange(8.0), head)
    for bad, words in [
        ({"bytes": 2**62, "shape": (2**59,)}, "where it should be"),
        ({"at": 0}, "where it should be"),
        ({"shape": (2**40, 2**40)}, "another size"),
        ({"shape": (-1, -8)}, "another size"),
        ({"dtype": "|O"}, "a type that is none"),
        ({"dtype": "<f8,<f8"}, "a type that is none"),
        ({"bytes": 0, "shape": (0,)}, "lies between"),
    ]:
        fields = {name: getattr(good, name) for name in ("name", "dtype", "shape", "at", "bytes", "crc")}
        section = form.Section(**{**fields, **bad})
        tail = form.ending([section], good.end)
        file = form.starting(1, 0, {}) + bytes(data) + tail
        end = form.end_of(file[-form.END_BYTES :], len(file), start)
        with pytest.raises(form.Damaged, match=words):
            form.contents_of(file[end.contents_at : end.contents_at + end.contents_bytes], start, end)


# -- R7: power failures ----------------------------------------------------------------------------------

STATES = 1_000


def survivors(tmp_path, *, seed, states):
    """The first state after a power failure that breaks the promise, if any, and how often which number came back."""
    folder = tmp_path / "disk"
    folder.mkdir()
    recording = Recording(folder)
    with recording.installed():
        store = CheckpointStore(folder / "checkpoints", keep=2)
        for number in range(1, 6):
            recording.note(("begun", number))
            write(store, number)
            recording.note(("done", number))
    came = dict.fromkeys(range(6), 0)
    for number in range(states):
        crash = recording.crash(seed, number, tmp_path / "after")
        done = max((which for what, which in crash.notes if what == "done"), default=0)
        begun = max((which for what, which in crash.notes if what == "begun"), default=0)
        try:
            found = CheckpointStore(tmp_path / "after" / "checkpoints").newest()
        except OutsideError as error:
            return f"state {number}: {error}", came
        which = found.number if found is not None else 0
        if not done <= which <= begun:
            return f"state {number}: {done} was promised, {begun} begun, and {which} came back", came
        if found is not None:
            assert_is(found, which)
        came[which] += 1
    return None, came


def test_a_power_failure_leaves_the_old_or_the_new_one_whole(tmp_path):
    """What was promised is there, whatever reached the disk, in whatever order; nothing half-written is believed."""
    broken, came = survivors(tmp_path, seed=40, states=STATES)
    assert broken is None
    assert min(came.values()) > 0, "every checkpoint was the newest in some state"


@pytest.mark.parametrize(
    "without",
    [
        partial(replaced_in_files, sync_folder=lambda folder: None),
        partial(mock.patch.object, files.PlacedFile, "sync", return_value=None),
    ],
    ids=["no folder fsync", "no file fsync"],
)
def test_the_power_failures_would_show_a_missing_sync(tmp_path, without):
    """Without either sync, some state is found that breaks the promise: the test above is not blind."""
    with without():
        broken, _ = survivors(tmp_path, seed=40, states=STATES)
    assert broken is not None


def test_the_power_failures_would_show_a_name_before_its_bytes(tmp_path):
    """The same of a writer that makes the file under its own name."""

    def in_place(store, number, facts, parts):
        place = checkpoint_store._place(store.folder, number)
        with mock.patch.object(files.PlacedFile, "sync", return_value=None):
            size = checkpoint_store._write(place, form.starting(number, 0, facts), parts)
        store.prune(store.keep)
        return size

    with mock.patch.object(CheckpointStore, "write", in_place):
        broken, _ = survivors(tmp_path, seed=40, states=STATES)
    assert broken is not None


# -- R27: the store against a model ----------------------------------------------------------------------


class Store(RuleBasedStateMachine):
    """Whatever is done to it in whatever order, the newest whole checkpoint comes back, and no other."""

    @initialize(keep=st.integers(1, 4))
    def open(self, keep):
        self.keep = keep
        self.room = tempfile.TemporaryDirectory()
        self.folder = Path(self.room.name) / "checkpoints"
        self.files = {}  # number -> "whole", "bad arrays", or "torn"
        self.reopen()

    def teardown(self):
        if hasattr(self, "room"):
            self.room.cleanup()

    @rule()
    def reopen(self):
        self.store = CheckpointStore(self.folder, keep=self.keep)
        assert not list(self.folder.glob(".*"))

    def next_number(self, step):
        return max(self.files, default=0) + step

    def pruned(self, keep):
        """What is left: looking for what is whole, pruning reads starts and ends, not arrays."""
        good = sorted(number for number, state in self.files.items() if state != "torn")
        return {n: state for n, state in self.files.items() if len(good) < keep or n >= good[-keep]}

    @rule(step=st.integers(0, 3))
    def write(self, step):
        number = self.next_number(step)
        write(self.store, number)
        self.files[number] = "whole"
        self.files = self.pruned(self.keep)

    @rule(after=st.integers(0, 9))
    def writer_dies(self, after):
        def parts():
            yield from parts_at(1)[:after]
            raise RuntimeError

        with pytest.raises(RuntimeError):
            self.store.write(self.next_number(1), facts_at(1), parts())

    @rule()
    def crash_before_the_rename(self):
        number = self.next_number(1)
        with (
            mock.patch.object(files, "publish", side_effect=KeyboardInterrupt),
            mock.patch.object(files, "remove", side_effect=FileNotFoundError),  # nobody is left to tidy up
            pytest.raises(KeyboardInterrupt),
        ):
            write(self.store, number)
        assert (self.folder / f".{number:020}.checkpoint").exists()
        self.reopen()

    @rule()
    def crash_before_pruning(self):
        number = self.next_number(1)
        with (
            mock.patch.object(checkpoint_store, "prune", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            write(self.store, number)
        self.files[number] = "whole"
        self.reopen()

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def damage(self, data):
        number = data.draw(st.sampled_from(sorted(self.files)[-2:]))
        path = path_of(self.folder, number)
        content = bytearray(path.read_bytes())
        if self.files[number] == "whole" and data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(content) - 1))
            arrays = range(len(form.starting(number, 0, facts_at(number))), arrays_end(content))
            content[place] ^= data.draw(st.integers(1, 255))
            self.files[number] = "bad arrays" if place in arrays else "torn"
        else:
            del content[data.draw(st.integers(0, max(len(content) - 1, 0))) :]
            self.files[number] = "torn"
        path.write_bytes(content)

    @rule(keep=st.integers(1, 4))
    def prune(self, keep):
        left = self.pruned(keep)
        removed = self.store.prune(keep)
        assert {int(path.name[:20]) for path in removed} == set(self.files) - set(left)
        self.files = left

    @invariant()
    def same_as_the_model(self):
        if not hasattr(self, "store"):
            return
        assert [one.number for one in self.store.listed()] == sorted(self.files)
        assert {one.number: one.whole for one in self.store.listed()} == {n: s != "torn" for n, s in self.files.items()}
        assert {one.number: one.whole for one in self.store.verify()} == {
            n: s == "whole" for n, s in self.files.items()
        }
        good = [number for number, state in self.files.items() if state == "whole"]
        if good:
            assert_is(self.store.newest(), max(good))
        elif self.files:
            with pytest.raises(OutsideError, match="is whole"):
                self.store.newest()
        else:
            assert self.store.newest() is None


def arrays_end(content):
    """Where the contents begin."""
    return int.from_bytes(content[-form.END_BYTES + 8 : -form.END_BYTES + 16], "little")


TestStore = Store.TestCase
TestStore.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)


# -- R21: what was written once can be read for ever --------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_golden_checkpoints_are_read(version):
    """Of each version that a tidemill has written; never made anew."""
    folder = GOLDEN / f"version-{version}"
    assert_is(CheckpointStore(folder).newest(), 7)
    assert [one.written_ns for one in listed(folder, verify=True)] == [1_700_000_000_000_000_000]


def test_version_2_is_still_written_to_the_byte(tmp_path):
    """Whoever changes the format makes a new version of it, and a new golden one."""
    assert form.VERSION == 2, "keep the golden one of version 2, and compare with that of the new version here"
    clock = ManualClock()
    with mock.patch.object(clock, "wall_ns", return_value=1_700_000_000_000_000_000):
        write(CheckpointStore(tmp_path, clock=clock), 7)
    golden = path_of(GOLDEN / "version-2", 7)
    assert path_of(tmp_path, 7).read_bytes() == golden.read_bytes()
