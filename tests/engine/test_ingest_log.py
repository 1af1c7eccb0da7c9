"""The ingest log keeps what it says is durable, finds damage, and stops for good when the disk fails."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidemill import files
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.log_segments import Last
from tidemill.errors import EngineError, OutsideError
from tidemill.formats.log_frames import FRAME_BYTES, FRAMES_AT, MAX_ENTRY

Opened = Callable[..., IngestLog]


def abandon(log: IngestLog) -> None:
    """As if the process had been killed: nothing more is written."""
    log._last.file.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens the log of this test; whatever becomes of it, no file stays open."""
    logs = []

    def open_log(folder: Path = tmp_path / "log", **options: int) -> IngestLog:
        logs.append(IngestLog(folder, min_free=0, **options))
        return logs[-1]

    yield open_log
    for log in logs:
        abandon(log)


def entries(log: IngestLog, start: int = 0) -> list[bytes]:
    """What is read from ``start`` on, in order of the numbers that come with it."""
    read = list(log.read(start))
    assert [number for number, _ in read] == list(range(start, start + len(read)))
    return [entry for _, entry in read]


# -- taking and giving -------------------------------------------------------------------------------------


def test_entries_come_back_as_they_were_given(opened: Opened) -> None:
    """Whole, in parts, or as a view that is used again; only what is synced is read."""
    log = opened()
    data = bytearray(b"one")
    assert log.append(memoryview(data)) == 0
    data[:] = b"two"
    assert log.append([b"t", b"", b"wo"]) == 1
    assert log.append(b"") == 2
    assert (entries(log), log.durable, log.end) == ([], 0, 3)
    assert log.sync() == 3
    log.append(b"later")
    assert entries(log) == [b"one", b"two", b""]
    assert entries(log, 2) == [b""]
    assert entries(log, 99) == []


def test_a_reader_goes_on_with_what_became_durable_meanwhile(opened: Opened) -> None:
    """It ends where it reaches `durable` as it is then; into the next segment, too."""
    log = opened(segment_bytes=1_000)
    log.append(b"0")
    log.sync()
    reading = log.read(0)
    assert next(reading) == (0, b"0")
    for number in range(1, 50):
        log.append(b"%d" % number * 50)
        log.sync()
    assert [number for number, _ in reading] == list(range(1, 50))
    assert log.statistics().segments > 3


def test_the_statistics_tell_what_is_where(opened: Opened) -> None:
    """In memory, on disk, in how many files; the room counts both."""
    log = opened(max_bytes=10_000, segment_bytes=1_000)
    before = log.room()
    assert before == 10_000 - FRAMES_AT
    for _ in range(5):
        log.append(bytes(476))
    assert log.room() == before - 2_500
    assert log.statistics().buffered_bytes == 2_500
    log.sync()
    statistics = log.statistics()
    assert (statistics.first, statistics.end, statistics.durable, statistics.segments) == (0, 5, 5, 5)
    assert (statistics.buffered_bytes, log.room()) == (0, before - 2_500 - 4 * FRAMES_AT)
    assert log.forget(3) == 3 * (FRAMES_AT + 500)
    assert (log.first, log.statistics().segments) == (3, 2)
    log.append(bytes(10_000))
    assert log.room() == 0
    log.sync()
    assert entries(log, 4) == [bytes(476), bytes(10_000)]


def test_what_is_being_synced_counts_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else sources would be stopped for a log that has room, for as long as the disk takes."""
    log = opened(max_bytes=10_000, segment_bytes=2_000)
    seen: list[tuple[int, float]] = []
    real = Last.sync

    def look(last: Last) -> None:
        real(last)
        seen.append((log.room(), log.filled))

    monkeypatch.setattr(Last, "sync", look)
    log.append(bytes(976))
    before = log.room(), log.filled
    log.sync()
    assert seen == [before]
    assert (log.room(), log.filled) == before


def test_the_free_space_that_must_stay_limits_the_room(tmp_path: Path) -> None:
    """A disk that is nearly full gives none, whatever the log's own limit."""
    log = IngestLog(tmp_path / "log", min_free=1 << 60)
    assert log.room() == 0
    log.close()


def test_only_whole_segments_that_are_on_disk_are_forgotten(opened: Opened) -> None:
    """And the last one stays; what is forgotten cannot be read, and its number is not given again."""
    log = opened(segment_bytes=1_000)
    for number in range(10):
        log.append(b"%d" % number * 400)
    log.sync()
    assert log.forget(1) == 0
    assert log.forget(3) > 0
    assert log.first == 2
    assert log.forget(100) > 0
    assert 2 < log.first < 10
    with pytest.raises(OutsideError, match=f"does not hold entry 2 any more; its oldest is {log.first}"):
        log.read(2)
    abandon(log)
    again = opened(segment_bytes=1_000)
    assert (again.first, again.end) == (log.first, 10)
    assert again.append(b"x") == 10


def test_reading_begins_near_the_entry_that_is_asked_for(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a segment that is being written, and in one that was read once since the log was opened."""
    log = opened(segment_bytes=8 << 20)
    for number in range(120):
        log.append(number.to_bytes(2, "big") * 50_000)
        log.sync()
    abandon(log)
    log = opened(segment_bytes=8 << 20)
    assert len(entries(log)) == 120
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *rest: (read.append(rest[1]), real(*rest))[1])
    for start in (70, 119):
        read.clear()
        assert next(log.read(start)) == (start, start.to_bytes(2, "big") * 50_000)
        assert sum(read) < 3 << 20


def test_a_segment_that_is_forgotten_while_it_is_read_is_read_to_its_end(opened: Opened) -> None:
    """And the next one, which is forgotten too, is said to be gone."""
    log = opened(segment_bytes=1_000)
    for number in range(10):
        log.append(b"%d" % number * 400)
    log.sync()
    reading = log.read(0)
    next(reading)
    log.forget(10)
    assert next(reading) == (1, b"1" * 400)
    with pytest.raises(OutsideError, match="does not hold entry 2 any more"):
        next(reading)


def test_an_entry_larger_than_a_segment_has_one_of_its_own(opened: Opened) -> None:
    """One beyond the limit of all is refused before it is taken."""
    log = opened(segment_bytes=1_000)
    large = Random(1).randbytes(3 << 20)
    for entry in (b"a", large, b"b"):
        log.append(entry)
    log.sync()
    assert entries(log) == [b"a", large, b"b"]
    assert log.statistics().segments == 3
    part = bytes(1 << 20)
    with pytest.raises(EngineError, match="too large for the ingest log"):
        log.append([part] * (MAX_ENTRY // len(part)) + [b"x"])
    assert log.end == 3


def test_large_groups_and_small_ones_are_written_by_another_thread(opened: Opened) -> None:
    """While the first thread goes on appending and a third one reads; nothing is lost or out of order."""
    log = opened(segment_bytes=200_000)
    dice, count = Random(7), 3_000
    sent = [dice.randbytes(dice.randrange(2_000)) for _ in range(count)]
    got: list[bytes] = []
    ended = threading.Event()

    def syncing() -> None:
        while log.durable < count:
            log.sync()

    def reading() -> None:
        while len(got) < count and not ended.is_set():
            got.extend(entry for _, entry in log.read(len(got)))

    threads = [threading.Thread(target=work) for work in (syncing, reading)]
    for thread in threads:
        thread.start()
    for entry in sent:
        log.append(entry)
    threads[0].join()
    threads[1].join(60)
    ended.set()
    assert got == sent


def test_a_group_is_one_write_and_one_sync(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was appended."""
    log = opened()
    log.append(b"the first reserves room")
    log.sync()
    calls = []
    for name in ("pwrite", "fdatasync", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *rest, name=name, real=real: (calls.append(name), real(*rest))[1])
    for number in range(100):
        log.append(b"%d" % number)
    log.sync()
    assert calls == ["pwrite", "fdatasync"]


# -- opening again -----------------------------------------------------------------------------------------


def test_a_closed_log_takes_no_more_and_goes_on_when_opened(opened: Opened) -> None:
    """Closing syncs what was appended; again is nothing; and what was only reserved is given back."""
    log = opened()
    log.append(b"a")
    log.close()
    log.close()
    for refused in (lambda: log.append(b"b"), log.sync):
        with pytest.raises(OutsideError, match="was closed"):
            refused()
    again = opened()
    assert (again.durable, entries(again)) == (1, [b"a"])
    assert again.statistics().bytes == FRAMES_AT + FRAME_BYTES + 1
    again.append(b"b")
    again.sync()
    assert entries(again) == [b"a", b"b"]


def test_what_was_not_synced_is_gone_after_a_crash_and_the_rest_is_there(opened: Opened) -> None:
    """And its numbers are given again, as nobody was told of them."""
    log = opened()
    log.append(b"a")
    log.sync()
    log.append(b"b")
    abandon(log)
    again = opened()
    assert (again.end, entries(again)) == (1, [b"a"])
    assert again.append(b"c") == 1


def test_the_folder_is_for_this_user_alone(opened: Opened, tmp_path: Path) -> None:
    """As what comes from sensors may be private; the files too."""
    opened(tmp_path / "state" / "log")
    for path in (tmp_path / "state", tmp_path / "state" / "log"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state" / "log").iterdir()} == {0o600}


def test_a_folder_that_cannot_be_is_an_error_of_the_outside(tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "log").touch()
    with pytest.raises(OutsideError, match="log cannot be opened"):
        IngestLog(tmp_path / "log")


# -- faults of the disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fdatasync", "pwrite", "posix_fallocate"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_disk_breaks_the_log_for_good(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    """Nothing of the group counts, nothing is tried again though it would succeed; a new log goes on."""
    log = opened()
    log.append(b"a")
    log.sync()
    log.append(bytes(17 << 20))  # more than was reserved
    real, calls = getattr(os, where), []

    def fails(*rest: object) -> object:
        calls.append(rest)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))
        return real(*rest)

    monkeypatch.setattr(os, where, fails)
    told = "disk of the ingest log in .* is full" if number == errno.ENOSPC else "cannot be written"
    with pytest.raises(OutsideError, match=told):
        log.sync()
    for refused in (log.sync, lambda: log.append(b"c")):
        with pytest.raises(OutsideError, match=told):
            refused()
    assert (log.durable, entries(log), len(calls)) == (1, [b"a"], 1)
    log.close()
    assert len(calls) == 1
    again = opened()
    assert again.end in (1, 2)
    assert entries(again) == [b"a", bytes(17 << 20)][: again.end]
    assert again.append(b"d") == again.end - 1


def test_a_failed_sync_is_not_believed_when_the_log_is_opened_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache shows what the disk may never have got, and a sync of it succeeds: so it is written once more."""
    log = opened()
    log.append(b"a")
    log.sync()
    log.append(b"b" * 100)
    monkeypatch.setattr(os, "fdatasync", _raises(errno.EIO))
    with pytest.raises(OutsideError, match="cannot be written"):
        log.sync()
    monkeypatch.undo()
    written = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *rest: (written.append(bytes(rest[1])), real(*rest))[1])
    again = opened()
    assert again.durable == 2
    assert b"b" * 100 in b"".join(written)


def test_a_nearly_full_disk_takes_what_still_fits(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reserving ahead of need does not find it full before it is."""
    log = opened()
    real = os.posix_fallocate

    def small(handle: int, place: int, length: int) -> None:
        if length > 1_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle, place, length)

    monkeypatch.setattr(os, "posix_fallocate", small)
    log.append(bytes(500))
    assert log.sync() == 1
    log.append(bytes(5_000))
    with pytest.raises(OutsideError, match="is full"):
        log.sync()


def _raises(number: int) -> Callable[..., None]:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fails


def test_a_group_that_no_memory_is_left_for_breaks_the_log_too(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in no buffer any more: to go on would leave a gap."""
    log = opened()
    log.append(b"a")
    monkeypatch.setattr(log._last, "write", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        log.sync()
    with pytest.raises(OutsideError, match="MemoryError"):
        log.append(b"b")


# -- damage ------------------------------------------------------------------------------------------------


SMALL = 370


def small_log(folder: Path, *, closed: bool) -> list[bytes]:
    """Two segments and a bit, in groups of three entries; what is in it."""
    log = IngestLog(folder, min_free=0, segment_bytes=SMALL)
    dice, sent = Random(3), []
    for number in range(12):
        sent.append(dice.randbytes(dice.randrange(1, 50)))
        log.append(sent[-1])
        if number % 3 == 2:
            log.sync()
    log.close() if closed else abandon(log)
    for path in folder.iterdir():  # what was only reserved, but for a few bytes, would make these tests long
        os.truncate(path, min(path.stat().st_size, SMALL + 30))
    return sent


def found_in(folder: Path) -> list[bytes] | None:
    """All that a log opened there gives; None when it says that it is damaged, and where."""
    log = None
    try:
        log = IngestLog(folder, min_free=0, segment_bytes=SMALL)
        return entries(log, log.first)
    except OutsideError as error:
        told = str(error)
    finally:
        if log is not None:
            abandon(log)
    assert f"the ingest log is damaged in {folder}" in told
    assert "at byte" in told
    return None


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_every_length_that_a_file_may_be_cut_to(tmp_path: Path, segment: int) -> None:
    """After a proper end: it is refused, or nothing of an entry is lost."""
    sent = small_log(tmp_path / "log", closed=True)
    names = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert len(names) == 3
    whole = (tmp_path / "log" / names[segment]).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "log" / names[segment]).write_bytes(whole[:length])
        assert found_in(tmp_path / "log") is None, length
    (tmp_path / "log" / names[segment]).write_bytes(whole)
    assert found_in(tmp_path / "log") == sent


def test_every_length_that_the_only_file_may_be_cut_to(tmp_path: Path) -> None:
    """But for nothing at all, which a log that was never begun looks like, too."""
    log = IngestLog(tmp_path / "log", min_free=0)
    log.append(b"51.3")
    log.close()
    (path,) = (tmp_path / "log").iterdir()
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        assert found_in(tmp_path / "log") is None, length
    path.write_bytes(b"")
    assert found_in(tmp_path / "log") == []


def test_every_length_that_a_crash_may_leave_of_the_last_file(tmp_path: Path) -> None:
    """Without a proper end the whole entries before the cut are there; one that a later one knows of is not missed."""
    sent = small_log(tmp_path / "log", closed=False)
    last = max((tmp_path / "log").iterdir())
    whole = last.read_bytes()
    counts = []
    for length in range(FRAMES_AT, len(whole)):
        shutil.copytree(tmp_path / "log", tmp_path / "cut")
        (tmp_path / "cut" / last.name).write_bytes(whole[:length])
        found = found_in(tmp_path / "cut")
        assert found is not None
        assert found == sent[: len(found)]
        counts.append(len(found))
        shutil.rmtree(tmp_path / "cut")
    assert counts == sorted(counts)
    assert counts[-1] == len(sent)
    assert counts[0] == int(last.stem)


FLIPS = int(os.environ.get("TIDEMILL_FLIPS", "1000"))


@pytest.mark.slow
@pytest.mark.parametrize("closed", [True, False])
def test_one_flipped_bit_is_found_or_means_nothing(tmp_path: Path, closed: bool) -> None:
    """Whatever file and bit; after a crash alone the last group, and no other, may be taken for one that was torn."""
    sent = small_log(tmp_path / "log", closed=closed)
    paths = sorted((tmp_path / "log").iterdir())
    missed = 0
    for number in range(FLIPS):
        dice = Random(f"flip {number}")
        shutil.copytree(tmp_path / "log", tmp_path / "flipped")
        path = tmp_path / "flipped" / dice.choice(paths).name
        data = bytearray(path.read_bytes())
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        found = found_in(tmp_path / "flipped")
        if not closed and found is not None and found != sent:
            assert found == sent[: len(found)], number
            assert len(found) >= len(sent) - 3, number
            missed += 1
        else:
            assert found in (None, sent), number
        shutil.rmtree(tmp_path / "flipped")
    assert missed == 0 if closed else missed < FLIPS / 5


def test_zeroed_blocks_are_found(tmp_path: Path) -> None:
    """A page that a disk has lost reads as zeros, as reserved room does: wherever it is, it is told from that."""
    sent = small_log(tmp_path / "log", closed=True)
    for path in sorted((tmp_path / "log").iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 64):
            shutil.copytree(tmp_path / "log", tmp_path / "zeroed")
            (tmp_path / "zeroed" / path.name).write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
            found = found_in(tmp_path / "zeroed")
            assert found is None or (found == sent and place == 64), (path, place)  # the mark is there
            shutil.rmtree(tmp_path / "zeroed")


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    """In the middle and at the end; the oldest may have been forgotten."""
    sent = small_log(tmp_path / "log", closed=True)
    names = files.names_in(tmp_path / "log")
    for name, found in zip(names, [sent[int(names[1][:20]) :], None, None], strict=True):
        shutil.copytree(tmp_path / "log", tmp_path / name)
        (tmp_path / name / name).unlink()
        assert found_in(tmp_path / name) == found


def test_files_of_another_log_another_name_or_a_newer_version_are_refused(tmp_path: Path) -> None:
    """Each in a sentence that says what is the matter."""
    small_log(tmp_path / "log", closed=True)
    small_log(tmp_path / "other", closed=True)
    first, second, third = files.names_in(tmp_path / "log")

    def refused(change: Callable[[Path], object]) -> str:
        folder = tmp_path / "changed"
        shutil.copytree(tmp_path / "log", folder)
        change(folder)
        with pytest.raises(OutsideError) as error:
            IngestLog(folder)
        shutil.rmtree(folder)
        return str(error.value)

    assert f"another log than {first}" in refused(lambda folder: shutil.copy(tmp_path / "other" / second, folder))
    assert "not its name" in refused(lambda folder: (folder / third).rename(folder / f"{int(third[:20]) + 1:020d}.log"))

    def newer(folder: Path) -> None:
        from tidemill.formats.log_frames import Head, read_head

        data = (folder / first).read_bytes()
        head = read_head(data)
        (folder / first).write_bytes(Head(head.log, head.first, head.before, 2).pack() + data[FRAMES_AT:])

    assert "written by a newer tidemill (version 2" in refused(newer)


# -- a model -----------------------------------------------------------------------------------------------


class LogMachine(RuleBasedStateMachine):
    """Any sequence of what may be done to a log, and of crashes, against a list."""

    @initialize(segment_bytes=st.sampled_from([300, 1_000, 1 << 20]))
    def begin(self, segment_bytes: int) -> None:
        import tempfile

        self.root = Path(tempfile.mkdtemp())
        self.segment_bytes = segment_bytes
        self.model: list[bytes] = []  # every entry with a number, forgotten ones included
        self.durable = 0
        self.forgotten = 0
        self.open_again()

    def open_again(self) -> None:
        self.needed_from = 0  # what may be forgotten is remembered, till it can be; not by the next that opens the log
        self.log = IngestLog(self.root / "log", min_free=0, segment_bytes=self.segment_bytes)

    @rule(entry=st.binary(max_size=400), repeated=st.integers(1, 4))
    def append(self, entry: bytes, repeated: int) -> None:
        for _ in range(repeated):
            assert self.log.append(entry) == len(self.model)
            self.model.append(entry)

    @rule()
    def sync(self) -> None:
        self.durable = self.log.sync()
        assert self.durable == len(self.model)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.model) + 1))
        if start < self.log.first:
            with pytest.raises(OutsideError, match="any more"):
                self.log.read(start)
        else:
            assert entries(self.log, start) == self.model[start : self.durable]

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        before = data.draw(st.integers(0, len(self.model) + 1))
        taken = self.log.statistics().bytes
        freed = self.log.forget(before)
        assert taken - self.log.statistics().bytes == freed
        self.needed_from = max(self.needed_from, before)
        assert self.forgotten <= self.log.first <= max(self.needed_from, self.forgotten)
        self.forgotten = self.log.first

    @rule()
    def close(self) -> None:
        self.log.close()
        self.durable = len(self.model)
        self.open_again()

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """What was appended and not synced is not there, or, if the crash came in a sync, in any part."""
        last = self.log._last
        if self.durable < len(self.model) and data.draw(st.booleans()):
            path, size = last.segment.path, last.place
            self.log.sync()
            abandon(self.log)
            if self.log._last is last:  # no new segment was begun
                end = self.log._last.place
                content = path.read_bytes()
                cut = data.draw(st.integers(size, end))
                torn = data.draw(st.binary(max_size=end - cut))
                path.write_bytes((content[:cut] + torn).ljust(len(content), b"\0"))
        abandon(self.log)
        self.open_again()
        assert self.durable <= self.log.end <= len(self.model)
        assert self.log.durable == self.log.end
        del self.model[self.log.end :]
        self.durable = self.log.end

    @precondition(lambda self: self.durable > self.log.first)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """One bit of a log that has ended properly: it is refused, or all is there."""
        self.log.close()
        self.durable = len(self.model)
        copy = self.root / "copy"
        shutil.copytree(self.root / "log", copy)
        path = data.draw(st.sampled_from(sorted(copy.iterdir())))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        assert found_in(copy) in (None, self.model[self.forgotten :])
        shutil.rmtree(copy)
        self.open_again()

    @invariant()
    def numbers_agree(self) -> None:
        if hasattr(self, "log"):
            statistics = self.log.statistics()
            assert (statistics.end, statistics.durable) == (len(self.model), self.durable)
            assert statistics.first == self.log.first == self.forgotten
            assert statistics.buffered_bytes == sum(FRAME_BYTES + len(one) for one in self.model[self.durable :])

    def teardown(self) -> None:
        if hasattr(self, "log"):
            abandon(self.log)
            shutil.rmtree(self.root)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=int(os.environ.get("TIDEMILL_LOG_RUNS", 2 * settings().max_examples)), stateful_step_count=50
)
