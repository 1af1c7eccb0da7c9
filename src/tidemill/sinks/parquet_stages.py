"""Rows that are committed and not yet in a Parquet file: Arrow IPC in the state folder."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tidemill import files
from tidemill.errors import InputError
from tidemill.schema import Kind
from tidemill.sinks.base import Keeping
from tidemill.sinks.fence import another_start
from tidemill.sinks.notes import read_note, write_note
from tidemill.sinks.parquet_file import ParquetFile
from tidemill.sinks.row_group import RowGroup, arrow_type

__all__ = ["Kinds", "RowGroups", "Stage", "Stages", "noted"]

_NOTE: Final = "manifest.json"
_FRAME: Final = struct.Struct("<QI")
"""Before each stream of Arrow IPC: its bytes, and their CRC-32."""

Kinds = dict[str, Kind | None]


class Staged(msgspec.Struct, frozen=True):
    """What is committed of a stage."""

    number: int
    """Of the part that it becomes."""
    length: int
    rows: int
    kinds: list[tuple[str, str | None]]


class Manifest(msgspec.Struct, frozen=True):
    """What is committed, and where it is: every row is in a part whose stage is not named here, or in a stage that is."""

    path: str
    epoch: int
    position: int
    number: int
    """The last part that was begun."""
    kinds: list[tuple[str, str | None]]
    """All columns so far, in their order."""
    full: list[Staged] = []
    """Stages that are made into parts."""
    growing: Staged | None = None

    def all_kinds(self) -> Kinds:
        return _kinds(self.kinds)


class Stage:
    """The rows of one file to be. Appended to only; each write is a stream of Arrow IPC of its own, in a frame.

    So columns may be added, or get their kind, between two writes; a column is known by its place in ``kinds``.
    """

    def __init__(self, folder: Path, number: int, kinds: Kinds) -> None:
        self.number = number
        self.kinds = kinds
        self.rows = 0
        self.path = folder / f"stage-{number:08d}.arrow"
        self._length = 0
        self._synced = -1
        self._file: files.PlacedFile | None = None
        self._memory = bytearray()

    @classmethod
    def committed(cls, folder: Path, staged: Staged) -> Stage:
        """One of an earlier start. Raises `InputError` when it is not there as it was committed."""
        stage = cls(folder, staged.number, _kinds(staged.kinds))
        stage.rows, stage._length = staged.rows, staged.length
        there = files.stamp(stage.path)
        if there is None or there[1] < staged.length:
            raise InputError(
                f"{stage.path}, with rows that were committed, is not there or too short; put it back as it was, or "
                f"start over with --fresh."
            )
        return stage

    def size(self) -> int:
        """Bytes written so far."""
        return self._length

    def write(self, group: RowGroup, kinds: Kinds) -> Any:
        """Add these rows, and return them as a table, with columns by their places. Raises OSError."""
        table = _by_place(group.arrays(kinds))
        data = self._as_stream(table)
        file = self._opened()
        file.write(self._length, _FRAME.pack(len(data), zlib.crc32(data)))
        file.write(self._length + _FRAME.size, data)
        self._length += _FRAME.size + len(data)
        self.rows += group.rows
        return table

    def _as_stream(self, table: Any) -> memoryview:
        """In memory that is used again: new memory costs the machine more than the copy does."""
        import pyarrow as pa

        counted = pa.MockOutputStream()
        _write_stream(counted, table)
        if counted.size() > len(self._memory):
            self._memory = bytearray(counted.size())
        _write_stream(pa.FixedSizeBufferWriter(pa.py_buffer(self._memory)), table)
        return memoryview(self._memory)[: counted.size()]

    def widen(self, kinds: Kinds) -> None:
        """There are more columns: null in the rows so far."""
        self.kinds = kinds

    def sync(self) -> Staged:
        """Return when every row has reached the disk. Raises OSError."""
        if self._length != self._synced:
            if self._file is not None:
                self._file.sync()
            self._synced = self._length
        return Staged(self.number, self._length, self.rows, _named(self.kinds))

    def roll(self, place: Path, capacity: int) -> int:
        """Make the Parquet file, with row groups of ``capacity`` rows: its size in bytes. Once more gives the same."""
        file = ParquetFile(place, self.kinds)
        try:
            groups = RowGroups(capacity)
            for table in self._tables():
                for group in groups.add(table):
                    file.take(group(self.kinds))
            for group in groups.rest():
                file.take(group(self.kinds))
            return file.publish()
        except BaseException:
            file.discard()
            raise

    def close(self) -> None:
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()

    def _opened(self) -> files.PlacedFile:
        """Cut to what is committed, on the first write."""
        if self._file is None and self._length:
            self._file = files.PlacedFile(self.path, "update")
            self._file.truncate(self._length)
        elif self._file is None:
            self._file = files.PlacedFile(self.path, "create")
            files.sync_folder(self.path.parent)
        return self._file

    def _tables(self) -> Iterator[Any]:
        import pyarrow as pa

        with files.open_read(self.path) as handle:
            left = self._length
            while left:
                head = handle.read(_FRAME.size)
                size, crc = _FRAME.unpack(head) if len(head) == _FRAME.size else (-1, 0)
                left -= _FRAME.size + size
                data = handle.read(size) if size >= 0 and left >= 0 else b""
                if size < 0 or left < 0 or zlib.crc32(data) != crc:
                    raise InputError(
                        f"{self.path}, with rows that were committed, is damaged; put it back from a copy, or start over "
                        f"with --fresh."
                    )
                with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
                    yield stream.read_all()


class RowGroups:
    """Tables as they come, as row groups of ``capacity`` rows, which are asked for with all columns of their file."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: list[Any] = []
        self._rows = 0

    def add(self, table: Any) -> Iterator[Callable[[Kinds], Any]]:
        """The row groups that are full with this one."""
        self._waiting.append(table)
        self._rows += len(table)
        while self._rows >= self._capacity:
            last = self._waiting.pop()
            ends = len(last) - (self._rows - self._capacity)
            whole, self._waiting = [*self._waiting, last.slice(0, ends)], [last.slice(ends)]
            self._rows -= self._capacity
            yield functools.partial(_joined, whole)

    def rest(self) -> Iterator[Callable[[Kinds], Any]]:
        """What is left, if anything."""
        if self._rows:
            yield functools.partial(_joined, self._waiting)
        self._waiting, self._rows = [], 0


def noted(folder: Path, path: Path, name: str) -> Manifest | None:
    """The manifest in the folder of a sink of this name, which is to write to ``path``. Raises `InputError` where that is another
    place than the manifest's."""
    manifest = read_note(folder / _NOTE, Manifest)
    if manifest is not None and manifest.path != str(path):
        raise InputError(
            f"The rows of sink {name} up to now are in {manifest.path}, and {path} is to take the rest; go back to the first, or "
            "start over with --fresh."
        )
    return manifest


class Stages:
    """The stages of one sink and its manifest, which is replaced at once by each `commit`.

    A stage that is full is named as such before its part is made, and its part is in place, on disk, before the manifest
    ceases to name it: a crash in between makes the same part again, under the same name.
    """

    def __init__(self, keeping: Keeping, path: Path, name: str) -> None:
        self.folder = keeping.folder
        self._keeping = keeping
        self._path = path
        self._name = name
        self._noted_in = keeping.folder / _NOTE
        self.full: list[Stage] = []
        """Those that take no more rows, and are not parts yet."""
        self.manifest: Manifest | None = None

    def known(self) -> Manifest | None:
        """What an earlier start has committed here. Raises `InputError`, `OutsideError`."""
        manifest = noted(self.folder, self._path, self._name)
        if manifest is not None and manifest.epoch > self._keeping.epoch:
            raise another_start()
        return manifest

    def begin(self, number: int) -> None:
        """The first start, with ``number`` parts there already."""
        self._note(Manifest(str(self._path), self._keeping.epoch, 0, number, []))

    def resume(self, manifest: Manifest) -> Stage | None:
        """Go on from there: the stage that grows. What no commit names is deleted."""
        self.full = [Stage.committed(self.folder, staged) for staged in manifest.full]
        growing = Stage.committed(self.folder, manifest.growing) if manifest.growing else None
        named = {stage.path for stage in (*self.full, growing) if stage is not None}
        for name in files.names_in(self.folder):
            if name.startswith("stage-") and self.folder / name not in named:
                files.remove(self.folder / name)
        self._note(msgspec.structs.replace(manifest, epoch=self._keeping.epoch))
        return growing

    def fill(self, stage: Stage) -> None:
        """It takes no more rows: the next commit makes its part."""
        self.full.append(stage)

    def commit(self, position: int, number: int, kinds: Kinds, growing: Stage | None) -> list[Stage]:
        """Return when every row so far and ``position`` have reached the disk; the stages that can be rolled since then.
        Raises OSError, `OutsideError`."""
        assert self.manifest is not None
        known = {staged.number for staged in self.manifest.full}
        full = [stage.sync() for stage in self.full]
        staged = growing.sync() if growing is not None and growing.rows else None
        path, epoch = self.manifest.path, self.manifest.epoch
        self._note(Manifest(path, epoch, position, number, _named(kinds), full, staged))
        return [stage for stage in self.full if stage.number not in known]

    def rolled(self, parts: Collection[Stage]) -> None:
        """Their parts are in place. Raises OSError, `OutsideError`."""
        assert self.manifest is not None
        if not parts:
            return
        made = {stage.number for stage in parts}
        left = [staged for staged in self.manifest.full if staged.number not in made]
        self._note(msgspec.structs.replace(self.manifest, full=left))
        for stage in parts:
            stage.close()
            files.remove(stage.path)
        self.full = [stage for stage in self.full if stage.number not in made]

    def close(self) -> None:
        for stage in self.full:
            stage.close()

    def _note(self, manifest: Manifest) -> None:
        if manifest != self.manifest:
            write_note(self._noted_in, manifest)
            self.manifest = manifest


def _write_stream(sink: Any, table: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


def _by_place(arrays: list[Any]) -> Any:
    import pyarrow as pa

    return pa.Table.from_arrays(arrays, names=list(map(str, range(len(arrays)))))


def _joined(tables: list[Any], kinds: Kinds) -> Any:
    import pyarrow as pa

    types = [arrow_type(kind) for kind in kinds.values()]
    return pa.concat_tables([_fitted(table, types) for table in tables if len(table)])


def _fitted(table: Any, types: list[Any]) -> Any:
    """With all columns of the file: those that these rows lack are null."""
    import pyarrow as pa

    def array(place: int, kind: Any) -> Any:
        if place >= table.num_columns or pa.types.is_null(table.column(place).type):
            return pa.nulls(len(table), kind)
        return table.column(place)

    return _by_place([array(place, kind) for place, kind in enumerate(types)])


def _named(kinds: Kinds) -> list[tuple[str, str | None]]:
    return [(name, kind.value if kind is not None else None) for name, kind in kinds.items()]


def _kinds(named: list[tuple[str, str | None]]) -> Kinds:
    return {name: Kind(kind) if kind is not None else None for name, kind in named}
