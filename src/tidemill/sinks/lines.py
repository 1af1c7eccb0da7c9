"""`Lines`: rows as NDJSON, CSV or InfluxDB line protocol, to a file or to standard output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from tidemill import files
from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, Column
from tidemill.errors import InputError, OutputExists, OutsideError, PlanError
from tidemill.schema import Kind, Schema
from tidemill.sinks.base import IfExists, Keeping, SinkStatistics, Where
from tidemill.sinks.csv_headers import csv_header, header_of
from tidemill.sinks.fence import Fence, another_start
from tidemill.sinks.line_sink import LineSink
from tidemill.sinks.notes import read_note, write_note
from tidemill.sinks.output import KeptOutput, Output, require_whole_gzip

__all__ = ["Lines"]

_Format = Literal["ndjson", "csv", "influx"]
_FORMATS: Final[dict[str, _Format]] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".influx": "influx",
    ".lp": "influx",
}
_NOTE: Final = "position.json"
_MOST_TOLD: Final = 100
"""Fields that have no place and are counted each by its name; the rest are counted together."""


class _Committed(msgspec.Struct, frozen=True):
    """What the state folder knows of the file."""

    path: str
    epoch: int
    position: int
    length: int
    """Bytes of the file that hold the rows up to ``position``."""
    found: int
    """Bytes that were there before this pipeline's first start."""


class Lines(LineSink):
    """Rows as lines of text: ``.ndjson`` or ``.jsonl`` (one JSON object a line), ``.csv`` (one header), ``.influx`` or
    ``.lp`` (InfluxDB line protocol), each also with ``.gz``; ``Lines("-")`` is standard output, NDJSON unless ``format``
    says ``"csv"`` or ``"influx"``. ``format`` overrules the suffix.

    ``measurement``  of line protocol: the measurement, or a template over columns, ``"{site}_{kind}"``; by default what
                     column ``measurement`` holds
    ``tags``         of line protocol: the columns that are tags (default: ``sensor``), or ``"text"``: that and all columns of
                     text, for lines whose tags are not known beforehand; the others are fields
    ``time``         of line protocol: the column of the timestamp; by default, the record's time
    ``precision``    of line protocol: ``"ns"`` (default), ``"us"``, ``"ms"`` or ``"s"``, what a timestamp counts
    ``integers``     of line protocol: False writes every number as a float, also ``5`` that came as an integer, unless its
                     column is declared ``int``: InfluxDB refuses a field that is one here and the other there

    ``numbered``     of NDJSON and line protocol: True adds ``_seq``, the row's number since the pipeline's first start, which is
                     the same when it comes again, and ``_epoch``, that of the start; two integer fields, also of a row that
                     has no other. Needs a run that keeps state; without it they are left out

    ``spreadsheet``  of CSV: True puts an apostrophe before each text that a spreadsheet would work out as a formula instead of
                     showing it, ``=HYPERLINK(...)``: whoever names a sensor may do harm on the desk where the file is opened

    NDJSON keeps each record's fields, order and types; NaN is null, an absent field is left out. CSV has the columns
    that are known when the run starts, else those of its first batch, or those of ``columns=``; what is missing is empty.
    A field that comes later has no place under that header: the row is written without it, and the report counts it.

    Line protocol has neither null nor NaN: such a field or tag is left out, and so is an empty tag. A row without a field
    or a measurement is left out, and the report counts it, as it does an infinite number and an integer beyond 64 bits. A
    line break in a text becomes ``\\n``, two characters, and a backslash at the end of a tag is dropped; the report counts
    both. Times that are fields are ISO 8601, nested values JSON. A row without a time has no timestamp.

    Delivery: rows become visible at each flush (at least every 0.25 s), in input order, and a flush ends in a whole
    line, also when the disk is full. They are with the system then, not yet on the disk: a crash of the program loses
    rows since the last flush, a power cut may lose more. A re-run with ``if_exists="append"`` writes its rows again. A
    ``.gz`` can be unpacked up to the last flush at any time (gzip then says that the end is missing).

    With state, exactly-once: each commit (about once a second) brings the rows to the disk, then notes the length of
    the file and the position of the last row in the state folder, at once. A start cuts the file to that length and goes
    on from there, so rows and position agree after any crash and power cut. Rows are visible at the commit; a reader who
    follows the file may see some lines sooner, and after a crash the same lines again at the same place. A ``.gz`` has
    one member a commit, and unpacks whole at any time between two. Standard output cannot be cut: at-least-once,
    and a reader that keeps the last ``_seq`` of ``numbered=True`` leaves out what comes again.

    Raises `InputError` when the file exists and ``if_exists`` is ``"fail"``, or when rows are to be appended under a CSV
    header that lacks one of their columns, or when the file is not the one that the state knows; `OutsideError` when the
    disk is full, the reader of standard output has gone, or an earlier start still writes.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = Lines(f"{folder}/features.csv")
    ...     sink.open(Schema(open=True))
    ...     sink.write(Batch.from_rows([{"sensor": "S1", "value": 20.5}]))
    ...     sink.close()
    ...     pathlib.Path(f"{folder}/features.csv").read_text().split()
    ['sensor,value', 'S1,20.5']
    """

    looked_up_options = frozenset({"path"})
    keeps_position = True
    delivery = "at-least-once; whole lines, in order"
    delivery_with_state = "exactly-once; whole lines, in order, on disk and visible at each commit"

    def __init__(
        self,
        path: str | Path,
        *,
        format: Literal["ndjson", "csv", "influx"] | None = None,  # noqa: A002 - the user's word
        measurement: str | None = None,
        tags: Sequence[str] | None = None,
        time: str | None = None,
        precision: str | None = None,
        integers: bool = True,
        numbered: bool = False,
        spreadsheet: bool = False,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        if format not in (None, "ndjson", "csv", "influx"):
            raise PlanError(f'format={format!r} of Lines is not one of "ndjson", "csv", "influx".')
        super().__init__(
            format or _format_of(path),
            measurement=measurement, tags=tags, time=time, precision=precision, integers=integers,
            numbered=numbered,
            where=where, columns=columns, if_exists=if_exists, name=name,
        )  # fmt: skip
        self.path = None if str(path) == "-" else files.absolute(path)
        self.gz = str(path).lower().endswith(".gz")
        if self.path is None or (self.path.exists() and _is_device(self.path)):
            self.keeps_position = False
            self.delivery_with_state = self.delivery
        if numbered and self.format == "csv":
            raise PlanError("numbered= of Lines is for NDJSON and line protocol.")
        if spreadsheet and self.format != "csv":
            raise PlanError("spreadsheet= of Lines is for CSV alone.")
        self.spreadsheet = spreadsheet
        self._output: Output | None = None
        self._fence: Fence | None = None
        self._noted_in = Path()
        self._committed: _Committed | None = None
        self._header: tuple[str, ...] | None = None
        self._began = False
        self._fits = False
        self._left_out: dict[str, int] = {}
        self._schema = Schema(open=True)
        self._rows = 0
        self._bytes = 0

    # -- the contract of a sink ----------------------------------------------------------------------

    @property
    def place(self) -> str | None:
        if self.path is None:
            return "standard output"
        return None if self.path.exists() and _is_device(self.path) else str(self.path.resolve())

    @property
    def writes(self) -> Path:
        return self.path or files.STANDARD_OUTPUT

    def check(self) -> None:
        self._require_folder()
        if self.if_exists == "fail" and self.path is not None and self.path.exists() and not _is_device(self.path):
            raise OutputExists(
                f'{self.path} already exists; write if_exists="append" to add to it, or if_exists="replace" to '
                f"write over it."
            )

    def _require_folder(self) -> None:
        if self.path is None:
            return
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; Lines needs the path of a file.")
        if not self.path.parent.is_dir():
            raise InputError(f"The folder {self.path.parent} for {self.path.name} does not exist; create it.")

    def open(self, schema: Schema) -> None:
        self.check()
        self._schema = schema
        self._fence = self._committed = None
        append = self.if_exists == "append" and self.path is not None and self.path.exists()
        self._begin_lines(append=append, fitting=True)
        try:
            self._output = Output(self.path, gz=self.gz, append=append)
        except OSError as error:
            raise self._unwritable(error) from error

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        if self.path is None or not self.keeps_position:
            return super().resume(schema, keeping)
        self._schema = schema
        self._require_folder()
        self._fence = Fence.take(keeping, self._let_go)
        try:
            return self._resumed(self.path, keeping)
        except BaseException as error:
            self._let_go()
            self._fence.release()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def write(self, batch: Batch) -> None:
        output = self._opened()
        if not len(batch):
            return
        with self._mine():
            output.write(self._encoded(batch))
        self._rows += len(batch)

    def flush(self) -> None:
        output = self._opened()
        if self._committed is None:  # else rows are visible by commits alone
            output.flush()
            self._bytes = output.size

    def commit(self, position: int) -> None:
        output = self._opened()
        if self._committed is None or not isinstance(output, KeptOutput):
            self.flush()
            return
        with self._mine():
            noted = msgspec.structs.replace(self._committed, position=position, length=output.commit())
            if noted != self._committed:
                try:
                    write_note(self._noted_in, noted)
                except BaseException:
                    output.drop()  # whether it is noted, only the next start can know
                    raise
                self._committed = noted
        self._bytes = output.size

    def close(self) -> None:
        output, self._output = self._output, None
        if output is None:
            return
        names = () if self.format != "csv" or self._began else self._header or self._schema.names
        header = csv_header(names, plain=self.spreadsheet) if names else b""  # a run without rows leaves a header
        if isinstance(output, KeptOutput):
            assert self._fence is not None
            try:
                if not self._fence.shut:
                    with self._fence.passed():
                        output.leave(header)
            finally:
                self._fence.release()
                self._fence = self._committed = None
            return
        try:
            if header:
                output.write(header)
        finally:
            output.close()
            self._bytes = output.size

    def statistics(self) -> SinkStatistics:
        """``bytes`` counts what reached the system at the last flush, after compression."""
        if self._influx is not None:
            return SinkStatistics(self.name, self._influx.rows, self._bytes, self._unfit())
        return SinkStatistics(self.name, self._rows, self._bytes, self._left_out)

    def why_left_out(self, name: str) -> str:
        if self.format != "csv":
            return super().why_left_out(name)
        place = self.path or "standard output"
        return (
            f"the field {name!r} is not in the header of {place}, and rows are written without it; name the columns you "
            "want with columns=[...], or write NDJSON"
        )

    # -- with state ----------------------------------------------------------------------------------

    def require_same_output(self, folder: Path) -> None:
        known = read_note(folder / _NOTE, _Committed)
        if known is not None and self.path is not None and self.keeps_position:
            self._require_same(self.path, known)

    def _resumed(self, path: Path, keeping: Keeping) -> int:
        self._noted_in = keeping.folder / _NOTE
        known = read_note(self._noted_in, _Committed)
        if known is None:
            self.check()
            found = path.stat().st_size if self.if_exists == "append" and path.exists() else 0
            self._begin_lines(append=found > 0, fitting=True)
            committed = _Committed(str(path), keeping.epoch, 0, found, found)
        else:
            if known.epoch > keeping.epoch:
                raise another_start()
            self._require_same(path, known)
            committed = msgspec.structs.replace(known, epoch=keeping.epoch)
        write_note(self._noted_in, committed)  # before the file is made: else the next start might not know it as ours
        output = self._output = KeptOutput(path, gz=self.gz, length=committed.length)
        files.sync_folder(path.parent)
        if known is not None:
            self._begin_lines(append=known.length > 0, fitting=known.length == known.found)
        self._committed = committed
        self._bytes = output.size
        return committed.position

    def _require_same(self, path: Path, known: _Committed) -> None:
        if known.path != str(path):
            raise InputError(
                f"The rows of sink {self.name} up to now are in {known.path}, and {path} is to take the rest; go back to "
                f"the first, or start over with --fresh."
            )
        size = path.stat().st_size if path.exists() else 0
        if size < known.length:
            there = f"{path} has {size} bytes" if path.exists() else f"{path} is not there"
            raise InputError(
                f"{there}, and {known.length} were committed; put it back as it was, or start over with --fresh."
            )

    def _mine(self) -> contextlib.AbstractContextManager[None]:
        return self._fence.passed() if self._fence is not None else contextlib.nullcontext()

    def _let_go(self) -> None:
        if isinstance(self._output, KeptOutput):
            self._output.drop()

    def _unwritable(self, error: OSError) -> OutsideError:
        return OutsideError(f"{self.path} cannot be written: {error.strerror or error}.")

    # -- lines ---------------------------------------------------------------------------------------

    def _opened(self) -> Output:
        if self._output is None:
            raise PlanError(f"sink {self.name} is not open.")
        return self._output

    def _begin_lines(self, *, append: bool, fitting: bool) -> None:
        """``fitting``: a header that is there already must have a place for our columns."""
        self._header = self.columns or (self._schema.names if not self._schema.open else None) or None
        self._began = append
        self._fits = not fitting
        if append:
            assert self.path is not None
            if self.gz and fitting:
                require_whole_gzip(self.path)
            if self.format == "csv":
                wanted = () if self._fits else self._header or ()
                self._header = self._fitting(header_of(self.path, plain=self.spreadsheet), wanted)

    def _encoded(self, batch: Batch) -> bytes:
        if self.format != "csv":
            return super()._encoded(batch)
        from tidemill.formats.csv_encode import encode_csv

        if self._header is None:
            self._header = batch.names
        elif not self._rows and self._began and not self._fits:
            self._fitting(self._header, batch.names)
        starts, self._began = not self._began, True
        if batch.names != self._header:
            batch = self._aligned(batch, self._header)
        return encode_csv(batch, header=starts, plain=self.spreadsheet)

    def _aligned(self, batch: Batch, header: tuple[str, ...]) -> Batch:
        for name, column in batch.columns.items():
            if name not in header:
                self._leave_out(name, column)
        rows = len(batch)
        return Batch({name: batch.columns.get(name) or Column.missing(Kind.OBJECT, rows) for name in header}, rows=rows)

    def _leave_out(self, name: str, column: Column) -> None:
        if name not in self._left_out and len(self._left_out) >= _MOST_TOLD:
            name = "..."
        values = len(column) if column.tags is None else int((column.tags != ABSENT_TAG).sum())
        self._left_out = {**self._left_out, name: self._left_out.get(name, 0) + values}

    def _fitting(self, header: tuple[str, ...] | None, names: Sequence[str]) -> tuple[str, ...] | None:
        """The header of the file that is appended to; refuses it when a column of every row would have no place."""
        unknown = [name for name in names if name not in (header or names)]
        if unknown:
            raise InputError(
                f"A row for {self.path} has a column {unknown[0]!r}, and the CSV header there is without it "
                f"({', '.join(header or ())}); name the columns you want with columns=[...], or write to another file."
            )
        return header


def _format_of(path: str | Path) -> _Format:
    found = _FORMATS.get(files.suffix(path)) if str(path) != "-" else "ndjson"
    if found is None:
        raise PlanError(
            f"Lines({str(path)!r}) does not say what to write; the suffixes are {', '.join(_FORMATS)}, each also with "
            f'.gz, or give format="ndjson", "csv" or "influx".'
        )
    return found


def _is_device(path: Path) -> bool:
    """/dev/null, a FIFO, a terminal: there, but nothing in it to keep."""
    return not path.is_file() and os.access(path, os.W_OK)
