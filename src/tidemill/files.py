"""The only door to disk: opening, listing, writing whole files at once, and files that are synced by hand.

Every error names the absolute path that was tried, so that a run started in the wrong folder says so.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, TextIO, cast

from tidemill.errors import InputError, OutsideError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

__all__ = [
    "STANDARD_INPUT",
    "STANDARD_OUTPUT",
    "Lock",
    "PlacedFile",
    "RestingFile",
    "absolute",
    "append",
    "cache_folder",
    "ends_in_newline",
    "expand",
    "free_space",
    "head",
    "identity",
    "is_private",
    "is_readable_by_all",
    "leftovers",
    "lock",
    "make_folder",
    "may_be_open",
    "names_in",
    "open_read",
    "open_resting",
    "open_write",
    "publish",
    "read_blocks",
    "read_bytes",
    "read_table",
    "remove",
    "skip",
    "stamp",
    "stem",
    "suffix",
    "sync",
    "sync_folder",
    "truncate",
    "why_not_whole",
    "write_atomic",
    "write_whole",
]

STANDARD_INPUT: Final = Path("/dev/stdin")
STANDARD_OUTPUT: Final = Path("/dev/stdout")
"""Their names on the disk, by which a file is found that a shell has put there."""
RECORDINGS: Final = (".csv", ".ndjson", ".jsonl", ".parquet")
"""Suffixes that a folder is searched for; each also with ``.gz``."""
_COMPRESSED: Final = ".gz"
_UNPACKED_BY: Final = {
    b"\x1f\x8b": "zcat",
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"\xfd7zXZ\0": "xzcat",
    b"BZh91AY&SY": "bzcat",
}
"""How packed files begin, as no text does that is read here, and what unpacks them."""
_MAGIC: Final = frozenset("*?[")


def absolute(path: str | os.PathLike[str]) -> Path:
    """``path`` as it will be tried: ``~`` expanded, from the current folder."""
    return Path(os.path.abspath(os.path.expanduser(os.fspath(path))))  # noqa: PTH100, PTH111 - keeps symlinks


def suffix(path: str | os.PathLike[str]) -> str:
    """The suffix that says the format, in lower case, without ``.gz``.

    >>> suffix("march/plant.CSV.gz"), suffix("plant")
    ('.csv', '')
    """
    name = os.fspath(path).lower().removesuffix(_COMPRESSED)
    return os.path.splitext(name)[1]  # noqa: PTH122


def stem(path: str | os.PathLike[str]) -> str:
    """The name of the file without its folder and its suffixes for format and compression.

    >>> stem("plant/line1.pump.csv.gz")
    'line1.pump'
    """
    name = os.path.basename(os.fspath(path))  # noqa: PTH119
    if name.lower().endswith(_COMPRESSED):
        name = name[: -len(_COMPRESSED)]
    return os.path.splitext(name)[0]  # noqa: PTH122


def expand(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a file, glob pattern or folder means, sorted by path.

    A folder means the recordings directly in it. Raises `InputError` when there is none.
    """
    tried = absolute(path)
    if tried.is_file() or (tried.exists() and not tried.is_dir()):
        return [tried]
    if tried.is_dir():
        found = sorted(entry for entry in tried.iterdir() if entry.is_file() and suffix(entry) in RECORDINGS)
        if not found:
            raise InputError(f"the folder {tried} holds no recording: no file that ends in {', '.join(RECORDINGS)}.")
        return found
    if _MAGIC & set(str(tried)):
        found = sorted(Path(name) for name in glob.glob(str(tried), recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
        if not found:
            raise InputError(f"no file matches {tried}; check the pattern and the folder it starts from.")
        return found
    raise InputError(f"there is no file {tried}; check the name, or the folder that the run was started in.")


def open_read(path: str | os.PathLike[str], *, packed: bool = False) -> BinaryIO:
    """The file opened for reading bytes, unpacked when its name ends in ``.gz`` unless it is wanted ``packed``.

    Raises `InputError` with the path tried, also for one that is packed in another way.
    """
    tried = absolute(path)
    with _told(tried):
        if not packed and tried.name.lower().endswith(_COMPRESSED):
            return cast(BinaryIO, gzip.open(tried, "rb"))
        handle = open(tried, "rb")  # noqa: PTH123, SIM115 - the caller closes it
        return handle if packed else _unpacked(tried, handle)


def open_resting(path: str | os.PathLike[str]) -> tuple[BinaryIO, RestingFile]:
    """The same, and what lets the file rest between two reads; the caller closes both."""
    tried = absolute(path)
    with _told(tried):
        file = RestingFile(tried)
        handle = io.BufferedReader(file)
        if tried.name.lower().endswith(_COMPRESSED):
            return cast(BinaryIO, gzip.GzipFile(fileobj=handle, mode="rb")), file
        return _unpacked(tried, handle), file


def _unpacked(path: Path, handle: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """The file, unless it is packed, which is refused. A pipe is not asked: it would have us wait."""
    begins = handle.peek(1) if handle.seekable() else b""
    program = next((program for magic, program in _UNPACKED_BY.items() if begins.startswith(magic)), "")
    if program:
        handle.close()
        raise InputError(
            f"{path} is packed, and only what has a name that ends in .gz is unpacked here; unpack it first: "
            f"{program} {path} > FILE"
        )
    return handle


@contextlib.contextmanager
def _told(tried: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f"there is no file {tried}; check the name, or the folder that the run was started in."
        ) from None
    except OSError as error:
        raise InputError(f"{tried} cannot be read: {error.strerror or error}.") from error


class RestingFile(io.RawIOBase):
    """A file that is read, of as many as there are: one that rests takes no descriptor, and goes on where it stood."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = io.FileIO(path)
        self._inode = os.fstat(self._file.fileno()).st_ino
        self._at = 0

    def rest(self) -> None:
        """Close it until it is read again; what is no regular file, such as a pipe, stays open."""
        if self._file is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._at = self._file.tell()
            self._file.close()
            self._file = None

    def _awake(self) -> io.FileIO:
        if self._file is None:
            if self.closed:
                raise ValueError("the file is closed")
            self._file = io.FileIO(self._path)
            if os.fstat(self._file.fileno()).st_ino != self._inode:
                raise OSError(errno.ESTALE, "it is another file than it was when it was opened")
            self._file.seek(self._at)
        return self._file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._awake().seekable()

    def readinto(self, buffer: Buffer) -> int | None:
        return self._awake().readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._awake().seek(offset, whence)

    def tell(self) -> int:
        return self._awake().tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def may_be_open() -> int | None:
    """Files that this process may have open; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def read_blocks(path: str | os.PathLike[str], handle: BinaryIO, size: int) -> Iterator[bytes]:
    """Blocks of at most ``size`` bytes until the end of ``handle``.

    Raises `InputError` naming ``path`` when the file is cut short or is not the gzip file its name promises, and
    `OutsideError` when the disk fails.
    """
    while True:
        try:
            block = handle.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{absolute(path)} is not a whole gzip file: {error}.") from error
        except OSError as error:
            raise OutsideError(f"reading {absolute(path)} failed: {error.strerror or error}.") from error
        if not block:
            return
        yield block


def skip(path: str | os.PathLike[str], handle: BinaryIO, count: int) -> None:
    """Go on ``count`` bytes behind the start of ``handle``, which nothing has been read from: by unpacking them when
    the file is packed, else at once. Raises what `read_blocks` raises."""
    if absolute(path).name.lower().endswith(_COMPRESSED):
        while count and (block := next(read_blocks(path, handle, min(count, 1 << 20)), b"")):
            count -= len(block)
    else:
        handle.seek(count)


def head(path: str | os.PathLike[str], count: int) -> bytes:
    """The first ``count`` bytes of a file as it lies on the disk, or as many as there are. Raises `InputError`."""
    tried = absolute(path)
    try:
        with open(tried, "rb") as handle:  # noqa: PTH123 - as the other doors here
            return handle.read(count)
    except OSError as error:
        raise InputError(f"{tried} cannot be read: {error.strerror or error}.") from error


def read_table(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """A small CSV table, such as a calibration, as one list of texts per column.

    Raises `InputError` with the absolute path when the file is missing, empty, not UTF-8, or has a row whose number
    of cells is not the header's.
    """
    tried = absolute(path)
    with open_read(tried) as handle:
        data = b"".join(read_blocks(tried, handle, 1 << 20))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{tried} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(f"{tried}, line {reader.line_num}: {error}.") from None
    if not lines:
        raise InputError(f"{tried} is empty; its first line must name the columns.")
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) < len(header):
        raise InputError(f"{tried} names a column twice in its header: {', '.join(header)}.")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{tried}, line {number}: {len(cells)} cells where the header names {len(header)}.")
    rows = [cells for _, cells in lines[1:]]
    return {name: [cells[place].strip() for cells in rows] for place, name in enumerate(header)}


def stamp(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """What changes when the file's content does: (inode, size, time of change in ns); None when it is not there."""
    try:
        status = os.stat(absolute(path))  # noqa: PTH116 - as the other doors here
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def identity(path: str | os.PathLike[str]) -> object | None:
    """What is the same for all names of one file or folder, links among them; None for a device or a pipe, which is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as the other doors here
    except OSError:
        return os.path.realpath(path)
    one = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if one else None


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file by ``data`` at once: a reader sees the old content or the new, never a part of it.

    The data and the name have reached the disk when this returns, for this user alone (mode 0600). Raises `OutsideError`
    with the absolute path.
    """
    target = absolute(path)
    try:
        _replace(target, data, 0o600)
    except OSError as error:
        raise OutsideError(f"{target} cannot be written: {error.strerror or error}.") from error


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """The same for a file that a person has named: what a link points to is replaced, and not the link; the mode is that of the
    file that was there, else what the umask leaves; and what is no file, such as a pipe or a device, is written into, as is one
    that a standard stream goes to."""
    target = absolute(path)
    try:
        there = _status(target)
        if there is not None and (stream := _standard_stream(there)) is not None:
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        elif there is None or stat.S_ISREG(there.st_mode):
            _replace(target.resolve(), data, None if there is None else stat.S_IMODE(there.st_mode))
        else:
            with open(target, "wb") as file:  # noqa: PTH123 - one door, one way
                file.write(data)
    except OSError as error:
        raise OutsideError(f"{target} cannot be written: {error.strerror or error}.") from error


def why_not_whole(path: str | os.PathLike[str]) -> str:
    """Why `write_whole` could not write there now; empty when it could. Leaves nothing behind."""
    target = absolute(path)
    try:
        there = _status(target)
        if there is not None and _standard_stream(there) is not None:
            return ""
        if there is None or stat.S_ISREG(there.st_mode):
            handle, temporary = _beside(target.resolve())
            os.close(handle)
            os.unlink(temporary)  # noqa: PTH108
        elif stat.S_ISDIR(there.st_mode):
            return "it is a folder"
        elif not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            return "this user may not write there"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _standard_stream(there: os.stat_result) -> TextIO | None:
    """The stream of this process that goes to this file, such as /dev/stdout behind a redirection."""
    if not stat.S_ISREG(there.st_mode):
        return None
    for stream in (sys.stdout, sys.stderr):
        try:
            if os.path.samestat(os.fstat(stream.fileno()), there):
                return stream
        except (OSError, ValueError, AttributeError):  # closed, or none of the system's
            continue
    return None


def _status(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _beside(target: Path, mode: int = 0o666) -> tuple[int, Path]:
    """A new file in the folder of ``target``, and its name, as `leftovers` finds it; with what the umask leaves of the mode."""
    place = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), place


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    handle, temporary = _beside(target) if mode is None else _beside(target, 0o600)  # private before it has a byte
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # noqa: PTH105
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108
        raise
    sync_folder(target.parent)


def leftovers(path: str | os.PathLike[str]) -> list[Path]:
    """What calls of `write_atomic` and `write_whole` left beside the file that were killed on the way. Raises OSError."""
    target = absolute(path)
    return [target.with_name(name) for name in names_in(target.parent) if name.startswith(f".{target.name}.")]


def open_write(path: str | os.PathLike[str], *, append: bool = False) -> io.FileIO:
    """The file opened for writing bytes, unbuffered, made empty unless ``append``. Raises OSError."""
    return io.FileIO(absolute(path), "a+" if append else "w")


def sync(handle: BinaryIO | io.FileIO) -> None:
    """Return when what was written through ``handle`` has reached the disk. Raises OSError."""
    handle.flush()
    os.fsync(handle.fileno())


def publish(hidden: str | os.PathLike[str], place: str | os.PathLike[str]) -> None:
    """Give a file that is complete its name, at once and for good: also the folder has reached the disk. Raises OSError."""
    os.replace(hidden, place)  # noqa: PTH105
    sync_folder(absolute(place).parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Return when the names in ``folder`` are on disk: files made, renamed and removed there. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """A folder for this user alone (mode 0700), with those above it; there for good when this returns. Raises OSError."""
    made = absolute(folder)
    if made.is_dir():
        return
    if not made.parent.is_dir():
        make_folder(made.parent)
    try:
        os.mkdir(made, 0o700)  # noqa: PTH102 - as the other doors here
    except FileExistsError:
        if not made.is_dir():
            raise
    sync_folder(made.parent)


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file for good: also its folder has reached the disk. Raises OSError."""
    os.unlink(path)  # noqa: PTH108
    sync_folder(absolute(path).parent)


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of what is directly in ``folder``, sorted. Raises OSError."""
    return sorted(os.listdir(folder))  # noqa: PTH208


def free_space(folder: str | os.PathLike[str]) -> int:
    """Bytes that this user may still write to the disk of ``folder``. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class PlacedFile:
    """A file that is read and written at given places, and synced by hand: what logs and stores are made of.

    ``"create"`` makes a new file with mode 0600, ``"update"`` opens one for both, ``"read"`` for reading alone. Nothing is
    buffered here. Every method raises OSError; after an error of `sync` nobody knows what is on disk, and a second call
    would report success, so that the file must be opened anew and looked through.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Literal["create", "update", "read"]) -> None:
        flags = {"create": os.O_RDWR | os.O_CREAT | os.O_EXCL, "update": os.O_RDWR, "read": os.O_RDONLY}[mode]
        self.path = absolute(path)
        self._handle: int | None = os.open(self.path, flags, 0o600)

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise OSError(errno.EBADF, "the file was closed", str(self.path))
        return self._handle

    def size(self) -> int:
        """Bytes from its beginning to its end, those that were only allocated included."""
        return os.fstat(self._open).st_size

    def read(self, place: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``place`` on; fewer only at the end of the file."""
        data = os.pread(self._open, length, place)
        while data and len(data) < length:
            more = os.pread(self._open, length - len(data), place + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, place: int, data: bytes | memoryview) -> None:
        """Put all of ``data`` at ``place``."""
        done = os.pwrite(self._open, data, place)
        while done < len(data):
            done += os.pwrite(self._open, memoryview(data)[done:], place + done)

    def allocate(self, place: int, length: int) -> None:
        """Reserve the room from ``place`` on, so that writing there does not find the disk full; it reads as zeros.

        Where the platform cannot reserve, the file only grows.
        """
        try:
            os.posix_fallocate(self._open, place, length)
        except AttributeError:
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        if self.size() < place + length:
            self.truncate(place + length)

    def truncate(self, size: int) -> None:
        """Make it ``size`` bytes long."""
        os.ftruncate(self._open, size)

    def sync(self) -> None:
        """Return when what was written is on disk, and its length; its name may not be, see `sync_folder`."""
        getattr(os, "fdatasync", os.fsync)(self._open)

    def close(self) -> None:
        """Close it, synced or not; again is nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


class Lock:
    """A lock file that this process holds; see `lock`."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def release(self) -> None:
        """Let others have it; the file stays. Again is nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def lock(path: str | os.PathLike[str]) -> Lock | None:
    """Hold the lock file ``path``, which is made if need be; None when another process holds it. Raises OSError.

    The kernel lets go of it when the process ends, however it ends. A child forked without exec holds it too.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locked(handle):
                os.close(handle)
                return None
            if _is_there(handle, path):
                return Lock(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # moved away meanwhile: to hold it keeps nobody out


def _locked(handle: int) -> bool:
    import fcntl  # not on Windows, where this module is imported all the same

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(handle: int, path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), Path(path).stat())
    except FileNotFoundError:
        return False


def cache_folder() -> Path | None:
    """This user's folder for what can be made again (``$XDG_CACHE_HOME/tidemill``), created with mode 0700.

    None when there is no home to put it in, when it cannot be made, or when others can write to it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (root if root.is_absolute() else Path.home() / ".cache") / "tidemill"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only home, or none at all
        return None
    return folder if is_private(folder) else None


def is_private(folder: str | os.PathLike[str]) -> bool:
    """Whether only this user can write there: a folder of theirs, not open to group or world, and not a link."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    open_to_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not open_to_others


def is_readable_by_all(path: str | os.PathLike[str]) -> bool:
    """Whether every user may read the file, as far as its own mode says."""
    try:
        return bool(os.stat(absolute(path)).st_mode & stat.S_IROTH)  # noqa: PTH116 - as the other doors here
    except OSError:
        return False


def read_bytes(path: str | os.PathLike[str]) -> bytes | None:
    """The whole file; None when it is not there or cannot be read."""
    try:
        return read_there(path)
    except OSError:
        return None


def read_there(path: str | os.PathLike[str]) -> bytes | None:
    """The whole file; None when it is not there. Raises OSError when it is, and cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def append(path: str | os.PathLike[str], data: bytes, *, sync: bool = False) -> None:
    """Add ``data`` at the end of a file, which is made if need be; with ``sync`` it is on the disk, and all before it.

    Raises `OutsideError` with the path tried; the file is then as long as it was, where that can be done.
    """
    tried = absolute(path)
    length = None
    try:
        with open(tried, "ab") as handle:  # noqa: PTH123 - one door, one way
            length = handle.tell() if handle.seekable() else None
            handle.write(data)
            if sync:
                handle.flush()
                os.fsync(handle.fileno())
        if sync:
            sync_folder(tried.parent)
    except OSError as error:
        if length is not None:
            with contextlib.suppress(OSError):
                os.truncate(tried, length)
        raise OutsideError(f"{tried} cannot be written: {error.strerror or error}.") from error


def ends_in_newline(handle: BinaryIO | io.FileIO) -> bool:
    """Whether the last line of an open file is whole; it is when there is none."""
    end = handle.seek(0, io.SEEK_END)
    if not end:
        return True
    handle.seek(end - 1)
    return handle.read(1) == b"\n"


def truncate(path: str | os.PathLike[str], size: int) -> None:
    """Cut a file off behind ``size`` bytes, for good. Raises `OutsideError` with the path tried."""
    tried = absolute(path)
    try:
        handle = PlacedFile(tried, "update")
        try:
            handle.truncate(size)
            handle.sync()
        finally:
            handle.close()
    except OSError as error:
        raise OutsideError(f"{tried} cannot be cut: {error.strerror or error}.") from error
