"""What only Parquet promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, MissingExtra, PlanError
from tidemill.schema import Kind, Schema
from tidemill.sinks.parquet import GROUP_ROWS

OPEN = Schema(open=True)


class Hands:
    """A clock that stands still until it is moved."""

    now = 0

    def monotonic_ns(self) -> int:
        return self.now

    def wall_ns(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


def numbers(start: int, stop: int) -> Batch:
    return Batch({"n": Column.of_array(np.arange(start, stop, dtype=float))})


def parts(folder: Path) -> list[list[float]]:
    return [read(path).column("n").to_pylist() for path in sorted(folder.glob("*.parquet"))]


def read(path: Path) -> Any:
    return parquet.ParquetFile(path).read()


def opened(path: Path, **options: Any) -> sinks.Parquet:
    sink = sinks.Parquet(path, **options)
    sink.open(OPEN)
    return sink


def test_files_are_complete_after_so_many_rows(tmp_path: Path) -> None:
    """Each but the last has exactly ``max_rows``, however the rows came; numbered in input order."""
    sink = opened(tmp_path / "out", max_rows=4)
    for start, stop in ((0, 1), (1, 11), (11, 12)):
        sink.write(numbers(start, stop))
    assert len(parts(tmp_path / "out")) == 3
    sink.close()
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"part-{n:08d}.parquet" for n in (1, 2, 3)]
    assert parts(tmp_path / "out") == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_file_shows_nothing_until_it_is_complete(tmp_path: Path) -> None:
    """Under way it has a hidden name, which readers of a folder pass over."""
    sink = opened(tmp_path / "out")
    sink.write(numbers(0, GROUP_ROWS + 1))
    sink.flush()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".part-00000001.parquet.tmp"]
    sink.close()
    file = parquet.ParquetFile(tmp_path / "out" / "part-00000001.parquet")
    with file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [GROUP_ROWS, 1]


def test_files_are_complete_after_so_many_bytes(tmp_path: Path) -> None:
    """Looked at after each row group; the statistics count what was written."""
    sink = opened(tmp_path / "out", max_bytes=1000)
    values = np.random.default_rng(0).normal(size=2 * GROUP_ROWS + 5)
    sink.write(Batch({"n": Column.of_array(values)}))
    sink.close()
    assert list(map(len, parts(tmp_path / "out"))) == [GROUP_ROWS, GROUP_ROWS, 5]
    assert sink.statistics().bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_files_are_complete_after_so_many_seconds(tmp_path: Path) -> None:
    """Counted from the file's first row; an idle run's flush completes the file too."""
    clock = Hands()
    sink = opened(tmp_path / "out", clock=clock)
    clock.now += 1000 * 10**9
    sink.write(numbers(0, 2))
    clock.now += 59 * 10**9
    sink.write(numbers(2, 3))
    sink.flush()
    assert parts(tmp_path / "out") == []
    clock.now += 10**9
    sink.flush()
    assert parts(tmp_path / "out") == [[0, 1, 2]]
    sink.flush()
    sink.write(numbers(3, 4))
    clock.now += 60 * 10**9
    sink.write(numbers(4, 5))
    sink.close()
    assert parts(tmp_path / "out") == [[0, 1, 2], [3], [4]]


def test_append_goes_on_counting(tmp_path: Path) -> None:
    """Earlier files are not touched; other files in the folder are nobody's business."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for start, if_exists in ((0, "fail"), (1, "append"), (2, "append")):
        sink = opened(tmp_path / "out", if_exists=if_exists)
        sink.write(numbers(start, start + 1))
        sink.close()
    assert parts(tmp_path / "out") == [[0], [1], [2]]
    opened(tmp_path / "out", if_exists="replace").close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_new_column_starts_a_new_file(tmp_path: Path) -> None:
    """When rows without it were written already; rows still gathered are widened."""
    sink = opened(tmp_path / "out")
    sink.write(Batch.from_rows([{"a": 1.5}]))
    sink.write(Batch.from_rows([{"b": "x"}]))
    sink.write(Batch({"a": Column.of_array(np.zeros(GROUP_ROWS))}))
    sink.write(Batch.from_rows([{"c": True}]))
    sink.close()
    first, second = (read(path) for path in sorted((tmp_path / "out").iterdir()))
    assert first.column_names == ["a", "b"]
    assert first.slice(0, 2).to_pylist() == [{"a": 1.5, "b": None}, {"a": None, "b": "x"}]
    assert len(first) == GROUP_ROWS + 2
    assert second.to_pylist() == [{"a": None, "b": None, "c": True}]


def test_a_single_file_is_widened(tmp_path: Path) -> None:
    """One file has one schema: it is written anew with the column, null in the rows before it."""
    sink = opened(tmp_path / "out.parquet")
    rows = GROUP_ROWS + 3
    time = np.full(rows, "2024-01-01", "datetime64[ns]")
    sensor = Column(Kind.TEXT, np.arange(rows, dtype=np.int32) % 2, texts=np.array(["S1", "S2"], object))
    nulls = Column.missing(Kind.OBJECT, rows)
    sink.write(Batch({"sensor": sensor, "time": Column.of_array(time), "late": nulls}))
    sink.write(Batch.from_rows([{"sensor": "S3", "late": 4.5, "b": "x"}]))
    sink.close()
    table = read(tmp_path / "out.parquet")
    assert table.schema.types == [
        pa.string(), pa.timestamp("ns", "UTC"), pa.float64(), pa.string(),
    ]  # fmt: skip
    assert table.column("sensor").to_pylist() == [f"S{1 + i % 2}" for i in range(rows)] + ["S3"]
    assert table.column("late").null_count == rows
    assert table.column("time").null_count == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_single_file_replaces_at_the_end(tmp_path: Path) -> None:
    """Until the new file is complete, the old one is there whole."""
    path = tmp_path / "out.parquet"
    for n in (1, 2):
        sink = opened(path, if_exists="replace")
        sink.write(numbers(0, n))
        assert path.exists() == (n == 2)
        sink.close()
        assert read(path).num_rows == n


def test_columns_are_stored_by_kind(tmp_path: Path) -> None:
    """float64 with NaN kept, int64, bool, string, timestamp; only text has dictionaries; all zstd."""
    sink = opened(tmp_path / "out.parquet")
    sink.write(
        Batch(
            {
                "f": Column.of_array(np.array([1.5, np.nan])),
                "i": Column(Kind.INT, np.array([1, 2]), exact={1: 2**70}),
                "b": Column.of_array(np.array([True, False])),
                "s": Column.of_texts(["x", "y"]),
                "t": Column.of_array(np.array(["2024-01-01T00:00:00.000000001", "NaT"], "datetime64[ns]")),
            }
        )
    )
    sink.close()
    table = read(tmp_path / "out.parquet")
    assert list(map(str, table.schema.types)) == ["double", "int64", "bool", "string", "timestamp[ns, tz=UTC]"]
    assert np.isnan(table.column("f").to_pylist()[1])
    assert table.column("i").to_pylist() == [1, None]
    assert table.column("t").cast(pa.int64()).to_pylist() == [1704067200_000_000_001, None]
    with parquet.ParquetFile(tmp_path / "out.parquet") as file:
        group = file.metadata.row_group(0)
        chunks = [group.column(i) for i in range(group.num_columns)]
    assert [chunk.has_dictionary_page for chunk in chunks] == [False, False, False, True, False]
    assert {chunk.compression for chunk in chunks} == {"ZSTD"}


def test_texts_of_many_tables_become_one(tmp_path: Path) -> None:
    """Batches bring codes into tables of their own, small or big; the rows read back as their texts."""
    sink, expected = opened(tmp_path / "out.parquet"), []
    generator = np.random.default_rng(7)
    for size in (3, 1000, 3, 50):
        texts = np.array([f"S{n}" for n in generator.permutation(size)], object)
        codes = generator.integers(-1, size, 20).astype(np.int32)
        sink.write(Batch({"s": Column(Kind.TEXT, codes, texts=texts)}))
        expected += [None if code < 0 else texts[code] for code in codes]
    sink.close()
    assert read(tmp_path / "out.parquet").column("s").to_pylist() == expected


def test_what_was_written_is_a_copy(tmp_path: Path) -> None:
    """A batch's arrays are lent for the call only."""
    sink = opened(tmp_path / "out.parquet")
    values = np.arange(5.0)
    sink.write(Batch({"n": Column(Kind.FLOAT, values)}))
    values[:] = -1
    sink.close()
    assert read(tmp_path / "out.parquet").column("n").to_pylist() == [0, 1, 2, 3, 4]


def test_a_column_keeps_its_kind(tmp_path: Path) -> None:
    """Text where numbers were is refused by name; the file of the rows before it is not published."""
    sink = opened(tmp_path / "out")
    sink.write(Batch.from_rows([{"a": 1.5}]))
    with pytest.raises(InputError, match="'a' was float and is text"):
        sink.write(Batch.from_rows([{"a": "x"}]))
    sink.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_options_are_checked(tmp_path: Path) -> None:
    """A limit of nothing would make no file."""
    with pytest.raises(PlanError, match="max_rows"):
        sinks.Parquet(tmp_path, max_rows=0)
    sink = opened(tmp_path / "out")
    sink.write(Batch.from_rows([{}]))
    with pytest.raises(InputError, match="no fields"):
        sink.close()


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message holds the command that installs it, at start."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="tidemill\\[parquet\\]"):
        sinks.Parquet(tmp_path).check()


def test_making_a_sink_imports_nothing_heavy() -> None:
    """pyarrow is loaded in the sink's process only."""
    script = (
        "import sys; from tidemill import sinks; sinks.Parquet('x').check(); sinks.SQLite('y'); sinks.Lines('-');"
        "assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
