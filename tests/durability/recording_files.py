"""What a power failure may leave on disk: every change that goes through `tidemill.files` is recorded, and rebuilt in part.

    recording = Recording(folder)                # what is in the folder now counts as on disk
    with recording.installed():
        ...                                      # the code under test, in one thread
        recording.note(("acknowledged", 17))     # what was promised by then
    for number in range(1_000):
        crash = recording.crash(seed, number, target)    # `target` holds one legal state; the same numbers, the same state
        ...                                      # recover from `target`, compare with crash.notes

The rules of the disk are the strict ones of POSIX. Until a file is synced, each block of each write may be there or not,
whatever was written before or after; so may its length. Until a folder is synced, each new, renamed or removed name may be
there or not, even of a file that is synced itself. A sync covers what had been done when it was called. Nothing ever shows
what was never written, and a rename is never half done.

Not recorded: what libraries write by their own hands (sqlite3, pyarrow given a path).
"""

# ruff: noqa: PTH100, PTH102, PTH105, PTH108, PTH116, PTH123

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import os
import pkgutil
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any
from unittest import mock

from tidemill import files

__all__ = ["Crash", "Recording", "replaced_in_files"]

BLOCK = 512
"""Bytes that a disk writes as one: the smallest sector, so that every larger one is covered."""

MODULES = [
    files,
    *(importlib.import_module(f"{files.__name__}.{found.name}") for found in pkgutil.iter_modules(files.__path__)),
]
"""All of `tidemill.files`."""


@contextlib.contextmanager
def replaced_in_files(**others: Any) -> Iterator[None]:
    """While it lasts, all of `tidemill.files`, and who calls it, finds these under the names of its own or of a builtin."""
    with contextlib.ExitStack() as stack:
        for name, other in others.items():
            is_builtin = hasattr(builtins, name)
            users = [module for module in MODULES if is_builtin or hasattr(module, name)]
            assert users, f"nothing in tidemill.files has the name {name}"
            for module in users:
                stack.enter_context(mock.patch.object(module, name, other, create=is_builtin))
        yield


# -- what is recorded --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A name in a folder came to mean a node, or none."""

    folder: int
    name: str
    node: int | None
    was: str | None = None
    """The name it had until then, in the same folder."""


@dataclass(frozen=True)
class Written:
    node: int
    place: int
    data: bytes


@dataclass(frozen=True)
class Resized:
    node: int
    size: int
    only_grows: bool


@dataclass(frozen=True)
class Synced:
    """Of a file or folder; what had been recorded before ``upto`` is on disk."""

    node: int
    upto: int


@dataclass(frozen=True)
class Note:
    """What the test wants to know of this moment."""

    value: Any


@dataclass(frozen=True)
class Crash:
    """One rebuilt state: power failed after the first ``at`` of the recorded operations."""

    at: int
    notes: list[Any]


@dataclass
class _File:
    data: bytearray
    pending: list[tuple[int, Written | Resized]] = field(default_factory=list)


@dataclass
class _Folder:
    names: dict[str, int]
    pending: list[tuple[int, Named]] = field(default_factory=list)


_Node = _File | _Folder


class Recording:
    """Every change below one folder, in order, and the states that a crash may leave of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.operations: list[Named | Written | Resized | Synced | Note] = []
        self._count = 0
        self._node_of: dict[int, int] = {}  # by inode
        self._start: dict[int, _Node] = {}  # what counts as on disk from the beginning
        self._root = self._take(self.folder)

    def _take(self, path: Path) -> int:
        node = self._new(path.stat().st_ino)
        if path.is_dir():
            self._start[node] = _Folder({one.name: self._take(one) for one in sorted(path.iterdir())})
        else:
            self._start[node] = _File(bytearray(path.read_bytes()))
        return node

    def note(self, value: Any) -> None:
        """Remember this with the moment: a crash tells what was noted before it."""
        self.operations.append(Note(value))

    def installed(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, `tidemill.files` works through this recording."""
        return replaced_in_files(os=_Os(self), io=_Io(self), open=self._open)

    # -- recording -----------------------------------------------------------------------------------------

    def _new(self, inode: int) -> int:
        self._count += 1
        self._node_of[inode] = self._count
        return self._count

    def node(self, handle: int) -> int | None:
        """Which of ours an open file is; None when it lies elsewhere."""
        return self._node_of.get(os.fstat(handle).st_ino)

    def _folder_of(self, path: Any) -> tuple[int, str] | None:
        place = Path(os.path.abspath(path))
        if not place.is_relative_to(self.folder) or place == self.folder:
            return None
        return self._node_of[place.parent.stat().st_ino], place.name

    def made(self, path: Any, inode: int, *, is_folder: bool = False) -> None:
        where = self._folder_of(path)
        if where is not None:
            node = self._new(inode)
            self._start[node] = _Folder({}) if is_folder else _File(bytearray())  # without a name it is nowhere
            self.operations.append(Named(*where, node))

    def written(self, handle: int, place: int, data: bytes) -> None:
        node = self.node(handle)
        if node is not None and data:
            self.operations.append(Written(node, place, data))

    def resized(self, handle: int, size: int, *, only_grows: bool = False) -> None:
        node = self.node(handle)
        if node is not None:
            self.operations.append(Resized(node, size, only_grows))

    def synced(self, handle: int, upto: int) -> None:
        node = self.node(handle)
        if node is not None:
            self.operations.append(Synced(node, upto))

    def renamed(self, source: Any, target: Any, inode: int) -> None:
        before, after = self._folder_of(source), self._folder_of(target)
        if before is None and after is None:
            return
        known = before is not None and after is not None and before[0] == after[0]
        assert known, f"{source} was renamed to {target} in another folder, which the rules here do not know"
        self.operations.append(Named(*after, self._node_of[inode], was=before[1]))

    def forgotten(self, inode: int) -> None:
        """No name leads to it any more: its number may be given again."""
        self._node_of.pop(inode, None)

    def removed(self, path: Any, inode: int) -> None:
        where = self._folder_of(path)
        if where is not None:
            self.forgotten(inode)
            self.operations.append(Named(*where, None))

    def _open(self, path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return builtins.open(path, mode, *rest, **options)
        assert set(mode) < set("waxb"), f"files.open(..., {mode!r}) is not known here"
        return io.BufferedWriter(_FileIO(self, path, mode.replace("b", "")))

    # -- rebuilding ----------------------------------------------------------------------------------------

    def crash(self, seed: int, number: int, target: Path) -> Crash:
        """Make ``target`` one of the states that a power failure may leave. The same numbers make the same state."""
        dice = Random(f"{seed}:{number}")
        at = dice.randrange(len(self.operations) + 1)
        nodes = self._at(at)
        shutil.rmtree(target, ignore_errors=True)
        self._lay(nodes, self._root, target, dice)
        return Crash(at, [one.value for one in self.operations[:at] if isinstance(one, Note)])

    def _at(self, at: int) -> dict[int, _Node]:
        """What is on disk for certain after so many operations, and what is pending."""
        nodes: dict[int, _Node] = {
            node: _File(bytearray(one.data)) if isinstance(one, _File) else _Folder(dict(one.names))
            for node, one in self._start.items()
        }
        for index, operation in enumerate(self.operations[:at]):
            match operation:
                case Named(folder=node) | Written(node=node) | Resized(node=node):
                    nodes[node].pending.append((index, operation))  # type: ignore[arg-type]
                case Synced(node=node, upto=upto):
                    one = nodes[node]
                    done = [change for place, change in one.pending if place < upto]
                    one.pending = [(place, change) for place, change in one.pending if place >= upto]  # type: ignore[assignment]
                    for change in done:
                        _apply(one, change)
        return nodes

    def _lay(self, nodes: dict[int, _Node], node: int, target: Path, dice: Random) -> None:
        one = nodes[node]
        kept = _kept(dice)
        if isinstance(one, _Folder):
            for _, change in one.pending:
                if kept():
                    _apply(one, change)
            target.mkdir(mode=0o700)
            for name, inside in sorted(one.names.items()):
                self._lay(nodes, inside, target / name, dice)
            return
        sizes = [len(one.data)]
        for _, change in one.pending:
            for part in _blocks(change):
                if kept():
                    _apply(one, part)
                    sizes.append(len(one.data))
        if dice.random() < 0.2:  # its length was not written, or that of another moment
            del one.data[dice.choice(sizes) :]
        target.write_bytes(one.data)


def _kept(dice: Random) -> Any:
    """Whether the next pending change is on disk: all, none, the first ones, or any."""
    way = dice.choice(("all", "none", "first", "any", "any"))
    chance = {"all": 1.0, "none": 0.0}.get(way, dice.random())
    still = True

    def kept() -> bool:
        nonlocal still
        hit = dice.random() < chance
        if way == "first":
            still = still and dice.random() < 0.95
            return still
        return hit

    return kept


def _blocks(change: Written | Resized) -> Iterator[Written | Resized]:
    if isinstance(change, Resized):
        yield change
        return
    start, end = change.place, change.place + len(change.data)
    while start < end:
        stop = min(start - start % BLOCK + BLOCK, end)
        yield Written(change.node, start, change.data[start - change.place : stop - change.place])
        start = stop


def _apply(one: _Node, change: Named | Written | Resized) -> None:
    if isinstance(change, Named):
        assert isinstance(one, _Folder)
        if change.was is not None:
            one.names.pop(change.was, None)
        one.names.pop(change.name, None)
        if change.node is not None:
            one.names[change.name] = change.node
        return
    assert isinstance(one, _File)
    if isinstance(change, Written):
        one.data.extend(bytes(max(change.place - len(one.data), 0)))
        one.data[change.place : change.place + len(change.data)] = change.data
    elif change.size > len(one.data):
        one.data.extend(bytes(change.size - len(one.data)))
    elif not change.only_grows:
        del one.data[change.size :]


# -- the doors that record ---------------------------------------------------------------------------------


class _Door:
    """A module, but for what is defined here."""

    real: ModuleType

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class _Os(_Door):
    real = os

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        there = os.path.lexists(path)
        handle = os.open(path, flags, mode)
        if not there:
            self._recording.made(path, os.fstat(handle).st_ino)
        elif flags & os.O_TRUNC:
            self._recording.resized(handle, 0)
        return handle

    def fdopen(self, handle: int, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode != "wb":
            return os.fdopen(handle, mode, *rest, **options)
        return io.BufferedWriter(_FileIO(self._recording, handle, "w"))

    def write(self, handle: int, data: Any) -> int:
        place = os.lseek(handle, 0, os.SEEK_CUR)
        done = os.write(handle, data)
        self._recording.written(handle, place, bytes(data)[:done])
        return done

    def pwrite(self, handle: int, data: Any, place: int) -> int:
        done = os.pwrite(handle, data, place)
        self._recording.written(handle, place, bytes(data)[:done])
        return done

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)
        self._recording.resized(handle, size)

    def posix_fallocate(self, handle: int, place: int, length: int) -> None:
        os.posix_fallocate(handle, place, length)
        self._recording.resized(handle, place + length, only_grows=True)

    def fsync(self, handle: int) -> None:
        upto = len(self._recording.operations)
        os.fsync(handle)
        self._recording.synced(handle, upto)

    def fdatasync(self, handle: int) -> None:
        upto = len(self._recording.operations)
        os.fdatasync(handle)
        self._recording.synced(handle, upto)

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self._recording.made(path, os.stat(path).st_ino, is_folder=True)

    def replace(self, source: Any, target: Any) -> None:
        inode = os.stat(source).st_ino
        if os.path.lexists(target):
            self._recording.forgotten(os.lstat(target).st_ino)
        os.replace(source, target)
        self._recording.renamed(source, target, inode)

    rename = replace

    def unlink(self, path: Any) -> None:
        inode = os.lstat(path).st_ino
        os.unlink(path)
        self._recording.removed(path, inode)

    remove = unlink


class _Io(_Door):
    real = io

    def FileIO(self, path: Any, mode: str = "r", **options: Any) -> Any:
        return io.FileIO(path, mode, **options) if mode == "r" else _FileIO(self._recording, path, mode, **options)


class _FileIO(io.FileIO):
    """A raw file that records what is written through it."""

    def __init__(self, recording: Recording, path: Any, mode: str, **options: Any) -> None:
        there = isinstance(path, int) or os.path.lexists(path)
        super().__init__(path, mode, **options)
        self._recording = recording
        self._appends = "a" in mode
        if not there:
            recording.made(path, os.fstat(self.fileno()).st_ino)
        elif not isinstance(path, int) and "w" in mode:
            recording.resized(self.fileno(), 0)

    def write(self, data: Any, /) -> int:
        place = os.fstat(self.fileno()).st_size if self._appends else self.tell()
        done = super().write(data)
        self._recording.written(self.fileno(), place, bytes(data)[:done])
        return done

    def truncate(self, size: int | None = None, /) -> int:
        cut = super().truncate(size)
        self._recording.resized(self.fileno(), cut)
        return cut
