"""`Parquet`: rows into files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tidemill import files
from tidemill.batch import Batch
from tidemill.clock import Clock, SystemClock
from tidemill.errors import InputError, MissingExtra, OutputExists, OutsideError, PlanError
from tidemill.schema import Kind, Schema
from tidemill.sinks.base import IfExists, Keeping, ProcessSink, SinkStatistics, Where
from tidemill.sinks.fence import Fence
from tidemill.sinks.parquet_file import ParquetFile
from tidemill.sinks.parquet_roller import Roller
from tidemill.sinks.parquet_stages import Stage, Stages, noted
from tidemill.sinks.row_group import RowGroup, kind_of

__all__ = ["Parquet"]

GROUP_ROWS: Final = 131_072
"""Rows in a row group: large enough to compress and to skip over, small enough to gather in memory."""
FILE_ROWS: Final = 8 * GROUP_ROWS
FILE_BYTES: Final = 128 * 2**20
FILE_AGE_S: Final = 60.0

_PART: Final = re.compile(r"part-(\d{8,})\.parquet")


class Parquet(ProcessSink):
    """Rows into Parquet files (zstd; text dictionary-encoded).

    ``Parquet("features/")`` fills a folder with ``part-00000001.parquet`` and so on; a file is complete after
    ``max_rows`` rows, ``max_bytes`` bytes or ``max_age_s`` seconds, whichever comes first. ``Parquet("march.parquet")``
    makes that one file, whatever its size. The folder is made when it is missing; its parent must be there.

    Columns: float64 (NaN stays NaN, missing is null; ints beyond 2**53 are rounded, and those declared int beyond 64
    bits are null), int64, bool, string, timestamp[ns, UTC], nested values as JSON strings, others (a UUID,
    a Decimal) as their text. A field that comes later
    starts a new file in a folder; in a single file the rows before it read null.

    Delivery: rows are in input order, in the order of the files' names. A file is written under a hidden name and
    becomes visible, whole and on disk (fsync), by one rename when it is complete: ``flush`` alone shows nothing new.
    After a crash the rows of the file that was not complete are not there; a re-run writes all its rows again. One run
    writes to a folder at a time.

    With state, exactly-once: each commit (about once a second) adds its rows to a stage, a file of Arrow IPC in the state
    folder, brings that to the disk, and then names the stage's length and the position of the last row in a manifest,
    at once. The same rows are encoded in a thread meanwhile, for the file to be. A stage that is full (here ``max_bytes``
    counts its bytes), old, or at an orderly end, is committed as such and becomes that file, by the rename above, before
    the next commit. A start cuts the stage to what the manifest names, and goes on from there; a file that a crash kept
    from being made is made again under the same name. So rows are visible file by file, as without state,
    and are safe from the commit on. A single file is made at each orderly end, anew if the run is continued; its rows
    stay in the state folder for that. Nothing that is not committed is ever visible.

    Raises `MissingExtra` without pyarrow; `InputError` when there are files already and ``if_exists`` is ``"fail"``;
    or when the state knows another place; `OutsideError` when the disk is full, or an earlier start still writes.

    >>> import tempfile, pyarrow.parquet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = Parquet(f"{folder}/features.parquet")
    ...     sink.open(Schema(open=True))
    ...     sink.write(Batch.from_rows([{"sensor": "S1", "value": 20.5}, {"sensor": "S2", "value": None}]))
    ...     sink.close()
    ...     pyarrow.parquet.read_table(f"{folder}/features.parquet").to_pylist()
    [{'sensor': 'S1', 'value': 20.5}, {'sensor': 'S2', 'value': None}]
    """

    looked_up_options = frozenset({"path"})
    keeps_position = True
    delivery = "at-least-once; a file appears whole or not at all"
    delivery_with_state = "exactly-once; on disk at each commit, visible file by file, each whole or not at all"

    def __init__(
        self,
        path: str | Path,
        *,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
        max_rows: int = FILE_ROWS,
        max_bytes: int = FILE_BYTES,
        max_age_s: float = FILE_AGE_S,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        for option, limit in (("max_rows", max_rows), ("max_bytes", max_bytes), ("max_age_s", max_age_s)):
            if not limit > 0:
                raise PlanError(f"{option}={limit!r} of Parquet must be more than 0.")
        self.path = files.absolute(path)
        self.single = self.path.suffix.lower() == ".parquet" and not self.path.is_dir() and not str(path).endswith("/")
        if self.single and if_exists == "append":
            raise PlanError(
                f"{self.path} is one Parquet file, to which nothing can be added; give a folder, such as "
                f'{self.path.stem}/, or write if_exists="replace".'
            )
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self._clock = clock or SystemClock()
        self._schema = Schema(open=True)
        self._open = False
        self._failed = False
        self._number = 0
        self._file: ParquetFile | Stage | None = None
        self._fence: Fence | None = None
        self._stages: Stages | None = None
        self._roller: Roller | None = None
        self._changed = False
        self._kinds: dict[str, Kind | None] = {}
        self._group = RowGroup(GROUP_ROWS)
        self._began_ns = 0
        self._rows = 0
        self._bytes = 0

    # -- the contract of a sink ----------------------------------------------------------------------

    @property
    def place(self) -> str:
        return str(self.path.resolve())

    @property
    def writes(self) -> Path:
        return self.path

    def check(self) -> None:
        self._require_folder()
        if self.if_exists == "fail":
            if self.single and self.path.exists():
                raise OutputExists(f'{self.path} already exists; write if_exists="replace" to write over it.')
            if not self.single and any(self._parts()):
                raise OutputExists(
                    f"The folder {self.path} already has Parquet files of an earlier run; write "
                    f'if_exists="append" to add to them, or if_exists="replace" to delete them first.'
                )

    def _require_folder(self) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise MissingExtra("pyarrow", "parquet", "Parquet files")
        place = self.path
        if not place.parent.is_dir():
            raise InputError(f"The folder {place.parent} for {place.name} does not exist; create it.")
        if not self.single and place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; Parquet needs a folder, or a name that ends with .parquet.")

    def open(self, schema: Schema) -> None:
        self.check()
        self._fence = self._stages = None
        self._begin(schema)
        with self._refusals():
            self._make_folder()
        self._open = True

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        self._require_folder()
        self._begin(schema)
        self._fence = Fence.take(keeping, self._let_go)
        try:
            with self._refusals():
                self._stages = Stages(keeping, self.path, self.name)
                self._roller = Roller(self._group.capacity)
                position = self._resumed(self._stages)
        except BaseException:
            self._let_go()
            self._fence.release()
            raise
        self._open = True
        return position

    def _begin(self, schema: Schema) -> None:
        self._schema = schema
        self._failed = False
        self._changed = False
        self._file = None
        self._kinds = {}
        self._number = 0
        self._group = RowGroup(min(GROUP_ROWS, self.max_rows))

    def _make_folder(self) -> None:
        if not self.single:
            self.path.mkdir(exist_ok=True)
            for part in self._parts() if self.if_exists == "replace" else ():
                part.unlink()
            self._number = max((int(part.name[5:-8]) for part in self._parts()), default=0)

    def write(self, batch: Batch) -> None:
        self._require_open()
        if not len(batch):
            return
        kinds = {name: kind_of(column) for name, column in batch.columns.items()}
        with self._mine(), self._refusals():
            self._changed = True
            self._roll_if_old()
            self._take_kinds(kinds)
            start = 0
            while start < len(batch):
                part = batch.slice(start, start + self._room())
                if not self._file_rows():
                    self._began_ns = self._clock.monotonic_ns()
                self._group.append(part, kinds)
                start += len(part)
                if not self._room():
                    self._write_group()
        self._rows += len(batch)

    def flush(self) -> None:
        """Complete the file if it is old enough; younger rows stay hidden until their file is complete."""
        self._require_open()
        if self._stages is None:  # else rows are made visible by commits alone
            with self._refusals():
                self._roll_if_old()

    def commit(self, position: int) -> None:
        self._require_open()
        if self._stages is None:
            self.flush()
            return
        with self._mine(), self._refusals():
            self._roll_if_old()
            self._write_group()
            self._commit(self._stages, position)

    def close(self) -> None:
        """Complete the last file, unless writing it failed; with state, unless rows were not committed."""
        if not self._open:
            return
        self._open = False
        if self._stages is not None:
            self._leave(self._stages)
            return
        with self._refusals():
            file, failed = self._file, self._failed
            if failed:
                if isinstance(file, ParquetFile):
                    file.discard()
                self._file = None
                return
            if self.single and not self._rows:  # a run without rows leaves an empty file, not none
                self._kinds = self._foreseen()
                self._start_file()
            self._finish_file()

    def _foreseen(self) -> dict[str, Kind | None]:
        known = {field.name: field.kind for field in self._schema}
        return {name: known.get(name) for name in self.columns or self._schema.names}

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(self.name, self._rows, self._bytes + (self._file.size() if self._file else 0))

    # -- with state ----------------------------------------------------------------------------------

    def require_same_output(self, folder: Path) -> None:
        noted(folder, self.path, self.name)

    def _resumed(self, stages: Stages) -> int:
        known = stages.known()
        if known is None:
            self.check()
            self._make_folder()
            if not self.single:  # what was deleted stays so, also through a power cut
                files.sync_folder(self.path)
                files.sync_folder(self.path.parent)
            stages.begin(self._number)
            return 0
        if not self.single:
            self.path.mkdir(exist_ok=True)
        self._file = stages.resume(known)
        self._number = known.number
        self._kinds = known.all_kinds()
        self._began_ns = self._clock.monotonic_ns()
        self._roll(stages.full)
        if not self.single and self._file_rows() >= self.max_rows:  # which may be less than it was
            self._finish_file()
        return known.position

    def _commit(self, stages: Stages, position: int) -> None:
        self._rolled(stages)  # what the last commit has begun
        growing = self._file if isinstance(self._file, Stage) else None
        full = stages.commit(position, self._number, self._kinds, growing)
        self._changed = False
        self._roll(full)

    def _roll(self, full: Sequence[Stage]) -> None:
        assert self._roller is not None
        for stage in full:
            self._roller.begin(stage, self._place_of(stage.number))

    def _rolled(self, stages: Stages) -> None:
        """Wait until the parts that were begun are in place."""
        assert self._roller is not None
        parts = self._roller.done()
        self._bytes += sum(size for _, size in parts)
        stages.rolled([stage for stage, _ in parts])

    def _leave(self, stages: Stages) -> None:
        """Let go at the last commit. When that was of the last row, its rows become visible."""
        assert self._fence is not None
        try:
            if not (self._failed or self._changed or self._fence.shut):
                with self._mine(), self._refusals():
                    self._complete(stages)
        finally:
            self._let_go()
            self._fence.release()
            self._fence = self._stages = None

    def _complete(self, stages: Stages) -> None:
        assert stages.manifest is not None
        if not self.single:
            self._finish_file()
            self._commit(stages, stages.manifest.position)
            self._rolled(stages)
        elif isinstance(self._file, Stage):  # which stays, for the rows of a later start
            self._bytes = self._file.roll(self.path, self._group.capacity)
        else:
            self._bytes = ParquetFile(self.path, self._foreseen()).publish()

    def _mine(self) -> contextlib.AbstractContextManager[None]:
        return self._fence.passed() if self._fence is not None else contextlib.nullcontext()

    def _let_go(self) -> None:
        if self._roller is not None:
            self._roller.end()
        if isinstance(self._file, Stage):
            self._file.close()
        if self._stages is not None:
            self._stages.close()

    # -- files ---------------------------------------------------------------------------------------

    def _take_kinds(self, kinds: dict[str, Kind | None]) -> None:
        """Make place for columns that are new, or whose kind is: a file with rows in it has its columns for good."""
        merged = {**self._kinds}
        for name, kind in kinds.items():
            known = merged.get(name)
            if kind is not None and known is not None and kind is not known:
                raise InputError(f"Column {name!r} was {known.value} and is {kind.value} now; a column keeps its kind.")
            merged[name] = kind or known or self._declared(name)
        if merged == self._kinds:
            return
        if self._file is not None:
            if self.single:
                self._write_group()
                self._file.widen(merged)
            elif self._file_rows() >= self._group.capacity:
                self._finish_file()
            else:  # a stage, of rows that would still be gathered without state: parts are the same with it
                self._file.widen(merged)
        self._kinds = merged

    def _declared(self, name: str) -> Kind | None:
        return self._schema[name].kind if name in self._schema else None

    def _file_rows(self) -> int:
        return self._group.rows + (self._file.rows if self._file else 0)

    def _room(self) -> int:
        """Rows that the group can take before it, or its file, is full. A group that follows on a part of one, which a
        commit has staged, takes what that lacks."""
        begun = self._file.rows % self._group.capacity if self._file else 0
        room = self._group.capacity - begun - self._group.rows
        return room if self.single else min(room, self.max_rows - self._file_rows())

    def _write_group(self) -> None:
        if not self._group.rows:
            return
        if not self._kinds:
            raise InputError(f"The rows for {self.path} have no fields at all; Parquet needs one or more.")
        file = self._file or self._start_file()
        if isinstance(file, Stage):
            self._stage(file)
        else:
            file.write(self._group, self._kinds)
        self._group.clear()
        if not self.single and (file.rows >= self.max_rows or file.size() >= self.max_bytes):
            self._finish_file()

    def _stage(self, stage: Stage) -> None:
        table = stage.write(self._group, self._kinds)
        if self._roller is not None and not self.single:  # whose file is made of all rows at each end
            self._roller.take(stage, self._place_of(stage.number), table)

    def _start_file(self) -> ParquetFile | Stage:
        self._number += 1
        if self._stages is not None:
            self._file = Stage(self._stages.folder, self._number, self._kinds)
        else:
            self._file = ParquetFile(self._place_of(self._number), self._kinds)
        return self._file

    def _place_of(self, number: int) -> Path:
        return self.path if self.single else self.path / f"part-{number:08d}.parquet"

    def _finish_file(self) -> None:
        self._write_group()
        file, self._file = self._file, None
        if isinstance(file, Stage):
            assert self._stages is not None
            self._stages.fill(file)
        elif file is not None:
            self._bytes += file.publish()

    def _roll_if_old(self) -> None:
        if self.single or not self._file_rows():
            return
        if self._clock.monotonic_ns() - self._began_ns >= self.max_age_s * 1e9:
            self._finish_file()

    def _parts(self) -> Iterator[Path]:
        """The complete files of this and of earlier runs."""
        if self.path.is_dir():
            yield from (place for place in self.path.iterdir() if _PART.fullmatch(place.name))

    def _require_open(self) -> None:
        if self._stages is not None and self._failed:
            raise OutsideError(f"Rows for {self.path} met an error before; start again to go on from the last commit.")
        if not self._open:
            raise PlanError(f"sink {self.name} is not open.")

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[Any]:
        try:
            yield
        except OSError as error:
            self._failed = True
            lost = (
                "What was committed is not lost"
                if self._stages
                else "The rows of the file that was not complete are lost"
            )
            raise OutsideError(f"Writing Parquet to {self.path} failed: {files.why(error)}. {lost}.") from error
        except BaseException:
            self._failed = True
            raise
        finally:
            if self._failed and self._stages is not None:
                self._let_go()  # nothing more is tried on these files
