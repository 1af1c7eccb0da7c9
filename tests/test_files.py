"""The door to disk: what is opened, listed and written, and what its errors say."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill import files
from tidemill.errors import InputError, OutsideError


def test_a_missing_file_names_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names are shown as what was tried."""
    monkeypatch.chdir(tmp_path)
    for attempt in (files.open_read, files.expand, files.read_table):
        with pytest.raises(InputError, match=str(tmp_path / "none.csv")):
            attempt("none.csv")


def test_expand_leaves_hidden_files_alone(tmp_path: Path) -> None:
    """In a folder as by a pattern; named itself, one is read."""
    for name in ("b.csv", ".hidden.csv", "._b.csv", ".csv"):
        (tmp_path / name).touch()
    assert files.expand(tmp_path) == files.expand(tmp_path / "*.csv") == [tmp_path / "b.csv"]
    assert files.expand(tmp_path / ".hidden.csv") == [tmp_path / ".hidden.csv"]
    (tmp_path / "b.csv").unlink()
    with pytest.raises(InputError, match="holds no recording"):
        files.expand(tmp_path)


def test_expand_takes_files_globs_and_folders(tmp_path: Path) -> None:
    """A folder means its recordings, a pattern what matches, in the order of their paths."""
    for name in ("b.csv", "a.ndjson.gz", "c.parquet", "notes.txt", "d.jsonl"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub").mkdir()
    assert [path.name for path in files.expand(tmp_path)] == ["a.ndjson.gz", "b.csv", "c.parquet", "d.jsonl"]
    assert [path.name for path in files.expand(tmp_path / "*.csv")] == ["b.csv"]
    assert [path.name for path in files.expand(tmp_path / "notes.txt")] == ["notes.txt"]
    with pytest.raises(InputError, match="no file matches"):
        files.expand(tmp_path / "*.xml")
    with pytest.raises(InputError, match="holds no recording"):
        files.expand(tmp_path / "sub")


def test_gz_is_unpacked_by_suffix(tmp_path: Path) -> None:
    """A .gz file reads as what was packed; one that is cut short or no gzip is refused by name."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"hello" * 1000))
    with files.open_read(path) as handle:
        assert b"".join(files.read_blocks(path, handle, 64)) == b"hello" * 1000
    path.write_bytes(gzip.compress(os.urandom(1000))[:-20])
    with files.open_read(path) as handle, pytest.raises(InputError, match="not a whole gzip file"):
        list(files.read_blocks(path, handle, 64))
    path.write_bytes(b"plain text")
    with files.open_read(path) as handle, pytest.raises(InputError, match="not a whole gzip file"):
        list(files.read_blocks(path, handle, 64))


@pytest.mark.parametrize(
    ("name", "data", "program"),
    [
        ("a.ndjson.zst", b"\x28\xb5\x2f\xfd" + bytes(range(256)), "zstdcat"),
        ("a.csv.xz", lzma.compress(b"hello"), "xzcat"),
        ("a.csv.bz2", bz2.compress(b"hello"), "bzcat"),
        ("a.csv", gzip.compress(b"hello"), "zcat"),
    ],
    ids=["zstd", "xz", "bzip2", "gzip"],
)
def test_what_is_packed_otherwise_is_refused(tmp_path: Path, name: str, data: bytes, program: str) -> None:
    """A file that only its first bytes show to be packed is no text: the error says what is read, and how to get there."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"ends in \.gz .*: {program} {path} > FILE"):
        files.open_read(path)
    with files.open_read(path, packed=True) as handle:
        assert handle.read() == data


def test_suffix_and_stem() -> None:
    """Compression is not a format."""
    assert (files.suffix("x/A.NDJSON.GZ"), files.stem("x/A.NDJSON.GZ")) == (".ndjson", "A")
    assert (files.suffix("x/a"), files.stem("x/a")) == ("", "a")


def test_tables(tmp_path: Path) -> None:
    """A table is columns of texts; each fault is named with its line."""
    path = tmp_path / "calibration.csv"
    path.write_text('\ufeffsensor, baseline\nS1, 20\n\n"S,2",21\n', encoding="utf-8")
    assert files.read_table(path) == {"sensor": ["S1", "S,2"], "baseline": ["20", "21"]}
    for content, words in [
        (b"", "is empty"),
        (b"a,a\n", "twice"),
        (b"a,b\n1\n", "line 2: 1 cells"),
        (b"a\n\xff\n", "not UTF-8"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            files.read_table(path)
        assert str(path) in str(caught.value)


def test_writing_at_once(tmp_path: Path) -> None:
    """The old content stays until the new is whole; nothing else is left in the folder."""
    path = tmp_path / "state"
    files.write_atomic(path, b"one")
    files.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    with pytest.raises(OutsideError, match=str(tmp_path)):
        files.write_atomic(tmp_path / "none" / "state", b"")


def test_a_file_that_a_person_has_named_stays_what_it_was(tmp_path: Path) -> None:
    """A link, a mode; a new one gets what the umask leaves, and what is no file is written into."""
    before = os.umask(0o022)
    try:
        files.write_whole(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644
    (tmp_path / "new").chmod(0o640)
    (tmp_path / "link").symlink_to("new")
    files.write_whole(tmp_path / "link", b"2")
    assert ((tmp_path / "new").read_bytes(), (tmp_path / "link").is_symlink()) == (b"2", True)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_whole(tmp_path / "pipe", b"3")
    assert (os.read(reader, 10), (tmp_path / "pipe").is_fifo()) == (b"3", True)
    os.close(reader)
    files.write_atomic(tmp_path / "state", b"")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    assert files.names_in(tmp_path) == ["link", "new", "pipe", "state"]


def test_whether_a_file_could_be_written_is_tried(tmp_path: Path) -> None:
    """Nothing of the trial stays."""
    os.mkfifo(tmp_path / "pipe")
    assert [files.why_not_whole(tmp_path / name) for name in ("a", "pipe")] == ["", ""]
    assert files.why_not_whole(tmp_path) == "it is a folder"
    assert files.why_not_whole(tmp_path / "none" / "a") == "No such file or directory"
    assert files.why_not_whole("/proc/r.json") != ""
    assert files.names_in(tmp_path) == ["pipe"]


def test_what_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    """A folder given as a file is refused by name."""
    with pytest.raises(InputError, match=str(tmp_path)):
        files.open_read(tmp_path)


def test_a_placed_file_is_written_where_it_is_told(tmp_path: Path) -> None:
    """Room that was only allocated reads as zeros; a read beyond the end is short; closing again is nothing."""
    file = files.PlacedFile(tmp_path / "a", "create")
    file.allocate(0, 100)
    file.write(10, b"hello")
    file.allocate(0, 50)
    file.sync()
    assert (file.size(), file.read(8, 9)) == (100, b"\0\0hello\0\0")
    assert file.read(98, 10) == b"\0\0"
    file.truncate(12)
    assert file.read(0, 100) == bytes(10) + b"he"
    file.close()
    file.close()
    with pytest.raises(OSError, match="was closed"):
        file.read(0, 1)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        files.PlacedFile(tmp_path / "a", "create")


def test_room_is_only_grown_where_it_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without posix_fallocate, and a file system that refuses it; another error is told."""
    file = files.PlacedFile(tmp_path / "a", "create")
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    file.allocate(0, 10)
    assert file.size() == 10

    def refuses(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuses, raising=False)
    number = errno.EOPNOTSUPP
    file.allocate(0, 20)
    assert file.size() == 20
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        file.allocate(0, 30)
    file.close()


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    """Until it is released, which may be done twice; the file stays."""
    held = files.lock(tmp_path / "lock")
    assert held is not None
    assert files.lock(tmp_path / "lock") is None
    held.release()
    held.release()
    again = files.lock(tmp_path / "lock")
    assert again is not None
    again.release()
    assert files.names_in(tmp_path) == ["lock"]


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    """With those above it; one that is there is left as it is, a file in its place is an error."""
    files.make_folder(tmp_path / "a" / "b")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o700}
    files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        files.make_folder(tmp_path / "file")
    files.remove(tmp_path / "file")
    assert files.names_in(tmp_path) == ["a"]
    assert files.free_space(tmp_path) > 0


def test_what_a_standard_stream_goes_to_is_written_into(tmp_path: Path) -> None:
    """`--report /dev/stdout >> log` adds to the log, and what comes later is behind it."""
    log = tmp_path / "log"
    log.write_text("history\n")
    script = (
        "from tidemill import files; assert not files.why_not_whole('/dev/stdout'); "
        "files.write_whole('/dev/stdout', b'report\\n'); print('later')"
    )
    with log.open("ab") as stream:
        subprocess.run([sys.executable, "-c", script], stdout=stream, check=True, timeout=120)
    assert log.read_text() == "history\nreport\nlater\n"
