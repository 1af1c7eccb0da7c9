"""What single sinks promise of their files in a run that keeps state."""

from __future__ import annotations

import gzip
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, OutsideError, PlanError
from tidemill.schema import Schema
from tidemill.sinks.base import Keeping

OPEN = Schema(open=True)
Resume = Callable[..., tuple[Any, int]]


@pytest.fixture
def resumed(tmp_path: Path) -> Iterator[Resume]:
    """``resumed(sink)`` → (sink, position), with the state that the test has so far."""
    state = tmp_path / "state"
    state.mkdir()
    made: list[Any] = []

    def resume(sink: sinks.ProcessSink) -> tuple[sinks.ProcessSink, int]:
        made.append(sink)
        return sink, sink.resume(OPEN, Keeping(state, "plant", len(made)))

    yield resume
    for sink in made:
        sink.close()


def batch(*rows: dict[str, Any]) -> Batch:
    return Batch.from_rows(list(rows))


def committed(resume: Resume, sink: sinks.ProcessSink, position: int, *rows: dict[str, Any]) -> None:
    resume(sink)
    sink.write(batch(*rows))
    sink.commit(position)
    sink.close()


def deleted(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    path.rename(path.with_name("earlier"))
    path.touch()


@pytest.mark.parametrize("meddle", [deleted, replaced])
@pytest.mark.parametrize("make_sink", [sinks.SQLite, sinks.Lines])
def test_a_file_that_is_gone_takes_no_rows(make_sink: Any, meddle: Any, resumed: Resume, tmp_path: Path) -> None:
    """Nobody would find them: the next commit is refused, and says what to do."""
    path = tmp_path / ("rows.db" if make_sink is sinks.SQLite else "rows.ndjson")
    sink, _ = resumed(make_sink(path))
    sink.write(batch({"value": 1.0}))
    sink.commit(1)
    meddle(path)
    sink.write(batch({"value": 2.0}))
    with pytest.raises(
        InputError, match=r"was deleted, moved or replaced while .* put it back as it was, or start over"
    ):
        sink.commit(2)


def test_a_database_that_is_gone_takes_no_rows_without_state(tmp_path: Path) -> None:
    """There the next flush is refused."""
    path = tmp_path / "rows.db"
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    sink.write(batch({"value": 1.0}))
    sink.flush()
    path.unlink()
    sink.write(batch({"value": 2.0}))
    with pytest.raises(InputError, match="was deleted, moved or replaced while rows were written to it"):
        sink.flush()
    sink.close()


# -- Lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [None, b'{"a":'], ids=["missing", "shorter"])
def test_a_file_that_lost_committed_rows_is_refused(tmp_path: Path, resumed: Resume, left: bytes | None) -> None:
    """The sentence says what to do; when it was done the run goes on."""
    path = tmp_path / "out.ndjson"
    committed(resumed, sinks.Lines(path), 5, {"a": 1.5})
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    with pytest.raises(InputError, match=r"10 were committed; put it back as it was, or start over with --fresh"):
        resumed(sinks.Lines(path))
    path.write_bytes(whole)
    assert resumed(sinks.Lines(path))[1] == 5


@pytest.mark.parametrize("file", ["out.ndjson", "out", "out.db"])
def test_another_place_than_the_state_knows_is_refused(tmp_path: Path, resumed: Resume, file: str) -> None:
    """Its rows up to now are elsewhere."""
    cls = {"out.ndjson": sinks.Lines, "out": sinks.Parquet, "out.db": sinks.SQLite}[file]
    committed(resumed, cls(tmp_path / file), 5, {"a": 1.5})
    with pytest.raises(InputError, match=f"{file}.*other-{file}.*--fresh"):
        resumed(cls(tmp_path / f"other-{file}"))
    assert resumed(cls(tmp_path / file))[1] == 5


def test_a_gzip_file_has_a_member_a_commit_and_unpacks_between_any_two(tmp_path: Path, resumed: Resume) -> None:
    """By any reader, without a complaint about its end."""
    path = tmp_path / "out.ndjson.gz"
    sink, _ = resumed(sinks.Lines(path))
    for n in range(1, 4):
        sink.write(batch({"n": n}))
        sink.commit(n)
        assert gzip.decompress(path.read_bytes()).count(b"\n") == n
        size = path.stat().st_size
        sink.commit(n + 1)  # no rows, no member
        assert path.stat().st_size == size
    assert path.read_bytes().count(b"\x1f\x8b\x08") == 3


def test_a_torn_gzip_member_is_cut_off(tmp_path: Path, resumed: Resume) -> None:
    """What a crash left beyond the last commit is no whole member."""
    path = tmp_path / "out.csv.gz"
    committed(resumed, sinks.Lines(path), 5, {"a": 1.5})
    with path.open("ab") as file:
        file.write(gzip.compress(b"2.5\n")[:-3])
    committed(resumed, sinks.Lines(path), 6, {"a": 3.5})
    assert gzip.decompress(path.read_bytes()) == b"a\n1.5\n3.5\n"


def test_a_csv_header_is_written_once_and_read_from_the_file(tmp_path: Path, resumed: Resume) -> None:
    """A field that is not in it is left out and counted, as in an uninterrupted run."""
    path = tmp_path / "out.csv"
    committed(resumed, sinks.Lines(path), 5, {"a": 1.5})
    sink = sinks.Lines(path)
    committed(resumed, sink, 6, {"b": 1, "a": 2.5})
    assert path.read_text() == "a\n1.5\n2.5\n"
    assert sink.statistics().left_out == {"b": 1}


def test_a_header_may_have_several_lines(tmp_path: Path, resumed: Resume) -> None:
    """A name may hold any of them; the file that is gone on with has it in quotes."""
    path = tmp_path / "out.csv"
    for position in (5, 6):
        sink = sinks.Lines(path)
        committed(resumed, sink, position, {"te\nm\r\np": 1.5, "a": position})
        assert sink.statistics().left_out == {}
    assert path.read_bytes() == b'"te\nm\r\np",a\n1.5,5\n1.5,6\n'


def test_rows_for_a_header_of_others_must_fit_it(tmp_path: Path, resumed: Resume) -> None:
    """Refused by the first start and by the next, until ``columns=`` says which; the line before is ended."""
    path = tmp_path / "out.csv"
    path.write_bytes(b"a\n0.5\n1")
    for _ in range(2):
        sink, _ = resumed(sinks.Lines(path, if_exists="append"))
        with pytest.raises(InputError, match="'b'"):
            sink.write(batch({"a": 1.5, "b": 2}))
        sink.close()
    sink = sinks.Lines(path, if_exists="append", columns=["a"])
    resumed(sink)
    sink.write(sink.chosen(batch({"a": 1.5, "b": 2})))
    sink.commit(1)
    sink.close()
    assert path.read_bytes() == b"a\n0.5\n1\n1.5\n"


# -- notes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "note"), [("out.ndjson", "position.json"), ("out", "manifest.json"), ("out.db", "output.json")]
)
def test_a_damaged_note_is_refused_by_any_flipped_bit_and_any_length(
    tmp_path: Path, resumed: Resume, file: str, note: str
) -> None:
    """Nobody knows then what is committed; a note of a newer version is refused as such."""
    cls = {"out.ndjson": sinks.Lines, "out": sinks.Parquet, "out.db": sinks.SQLite}[file]
    committed(resumed, cls(tmp_path / file), 5, {"a": 1.5})
    place = tmp_path / "state" / note
    whole = place.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 5)]
    for content in damaged:
        place.write_bytes(content)
        with pytest.raises(InputError, match=f"{note} is damaged"):
            resumed(cls(tmp_path / file))
    place.write_bytes(_of_version_2(whole))
    with pytest.raises(InputError, match="newer version"):
        resumed(cls(tmp_path / file))
    place.write_bytes(whole)
    assert resumed(cls(tmp_path / file))[1] == 5


def _of_version_2(note: bytes) -> bytes:
    text = note.partition(b"\n")[0].replace(b'"version": 1', b'"version": 2')
    return text + f"\n{zlib.crc32(text):08x}\n".encode()


# -- Parquet -----------------------------------------------------------------------------------------------------

columns = st.fixed_dictionaries(
    {"n": st.floats(allow_nan=False) | st.none()},
    optional={
        "text": st.text("ab\ud800é", max_size=2) | st.none(),
        "flag": st.booleans() | st.none(),
        "at": st.lists(st.integers(0, 3), max_size=2) | st.none(),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(columns, min_size=1, max_size=6), min_size=1, max_size=6),
    commits=st.lists(st.sampled_from(["", "commit", "restart"]), min_size=6, max_size=6),
    max_rows=st.integers(1, 9),
)
def test_parts_are_those_of_a_run_without_state(
    tmp_path_factory: pytest.TempPathFactory, batches: list[Any], commits: list[str], max_rows: int
) -> None:
    """Names, columns, types, row groups and values, whenever was committed, and whenever begun anew."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "state").mkdir()
    plain = sinks.Parquet(folder / "plain", max_rows=max_rows)
    plain.open(OPEN)
    epoch = 1

    def start() -> sinks.Parquet:
        sink = sinks.Parquet(folder / "kept", max_rows=max_rows)
        sink.resume(OPEN, Keeping(folder / "state", "plant", epoch))
        return sink

    kept = start()
    for number, (rows, then) in enumerate(zip(batches, commits, strict=False)):
        plain.write(Batch.from_rows(rows))
        kept.write(Batch.from_rows(rows))
        if then:
            kept.commit(number + 1)
        if then == "restart":
            epoch += 1
            kept = start()
    plain.close()
    kept.commit(100)
    kept.close()
    assert described(folder / "kept") == described(folder / "plain")


def described(folder: Path) -> list[Any]:
    found = []
    for path in sorted(folder.glob("*.parquet")):
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            found.append((path.name, str(file.schema_arrow), groups, repr(file.read().to_pylist())))
    return found


def test_row_groups_are_whole_whenever_was_committed(tmp_path: Path, resumed: Resume, monkeypatch: Any) -> None:
    """Rows of many commits make as few row groups as without state; their texts have one dictionary."""
    monkeypatch.setattr("tidemill.sinks.parquet.GROUP_ROWS", 100)
    sink, _ = resumed(sinks.Parquet(tmp_path / "out"))
    for start in range(0, 250, 7):
        stop = min(start + 7, 250)
        texts = [{"n": float(n), "text": f"S{n % (3 + start)}"} for n in range(start, stop)]
        sink.write(batch(*texts))
        sink.commit(stop)
    sink.close()
    path = tmp_path / "out" / "part-00000001.parquet"
    with parquet.ParquetFile(path) as file:
        assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [100, 100, 50]
        assert "DICTIONARY" in str(file.metadata.row_group(0).column(1).encodings)
        assert file.read().column("n").to_pylist() == list(map(float, range(250)))


def test_a_stage_that_is_missing_short_or_damaged_is_refused(tmp_path: Path, resumed: Resume) -> None:
    """Its rows were committed; nothing else is made of what is left."""
    path = tmp_path / "out.parquet"
    sink, _ = resumed(sinks.Parquet(path))
    sink.write(Batch({"n": Column.of_array(np.arange(100.0))}))
    sink.commit(100)
    sink.close()
    stage = tmp_path / "state" / "stage-00000001.arrow"
    whole = stage.read_bytes()
    for content in (None, whole[:-1]):
        stage.unlink()
        if content is not None:
            stage.write_bytes(content)
        with pytest.raises(InputError, match=r"stage-00000001.*put it back"):
            resumed(sinks.Parquet(path))
        stage.write_bytes(whole)
    for at in range(0, len(whole), 11):
        stage.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        sink, _ = resumed(sinks.Parquet(path))
        with pytest.raises(InputError, match="is damaged"):
            sink.close()
    assert not list(tmp_path.glob(".out*"))
    stage.write_bytes(whole)
    resumed(sinks.Parquet(path))[0].close()
    assert parquet.ParquetFile(path).read().num_rows == 100


def test_age_completes_a_file_at_a_commit_without_rows(tmp_path: Path, resumed: Resume) -> None:
    """Rows that wait in a stage become visible though no more come."""

    class Hands:
        now = 0

        def monotonic_ns(self) -> int:
            return self.now

        def wall_ns(self) -> int:
            return self.now

        async def sleep(self, seconds: float) -> None:
            raise AssertionError

    clock = Hands()
    sink, _ = resumed(sinks.Parquet(tmp_path / "out", max_age_s=5, clock=clock))
    sink.write(batch({"n": 1.5}))
    sink.commit(1)
    assert list((tmp_path / "out").iterdir()) == []
    clock.now = 5_000_000_000
    sink.commit(1)  # begins with the file
    sink.commit(1)  # has it
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000001.parquet"]
    assert [path.name for path in (tmp_path / "state").glob("stage*")] == []


# -- SQLite ------------------------------------------------------------------------------------------------------


def test_columns_keep_their_fields_over_starts(tmp_path: Path, resumed: Resume) -> None:
    """SQLite does not tell ``a`` from ``A``: the one that came second stays ``A_2``, also when it comes alone."""
    path = tmp_path / "out.db"
    committed(resumed, sinks.SQLite(path), 1, {"a": 1.5, "A": 2.5})
    committed(resumed, sinks.SQLite(path), 2, {"A": 3.5})
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT a, A_2 FROM features").fetchall() == [(1.5, 2.5), (None, 3.5)]
        found = connection.execute("SELECT pipeline, sink, epoch, position FROM tidemill_positions").fetchall()
    assert found == [("plant", "sqlite", 2, 2)]


def test_a_database_that_forgot_the_position_is_refused(tmp_path: Path, resumed: Resume) -> None:
    """It was deleted, or put back from before the first start."""
    path = tmp_path / "out.db"
    committed(resumed, sinks.SQLite(path), 5, {"a": 1.5})
    for place in tmp_path.glob("out.db*"):
        place.unlink()
    with pytest.raises(InputError, match=r"put it back as it was, or start over with --fresh"):
        resumed(sinks.SQLite(path))


def test_a_locked_database_is_an_error_of_the_outside(
    tmp_path: Path, resumed: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with one sentence; the next goes on from the last commit."""
    path = tmp_path / "out.db"
    committed(resumed, sinks.SQLite(path), 5, {"a": 1.5})
    monkeypatch.setattr("tidemill.sinks.sqlite.BUSY_TIMEOUT", 0.05)
    sink, _ = resumed(sinks.SQLite(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutsideError, match="locked by another program"):
            sink.write(batch({"a": 2.5}))
        with pytest.raises(OutsideError, match="locked by another program"):
            resumed(sinks.SQLite(path))
    assert resumed(sinks.SQLite(path))[1] == 5


def test_commits_are_on_the_disk_in_a_run_that_keeps_state(tmp_path: Path, resumed: Resume) -> None:
    """A checkpoint trusts them after a power cut: synchronous is FULL (2), which without state is NORMAL (1)."""
    sink, _ = resumed(sinks.SQLite(tmp_path / "out.db"))
    assert sink._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    plain = sinks.SQLite(tmp_path / "plain.db")
    plain.open(OPEN)
    assert plain._connection is not None
    assert plain._connection.execute("PRAGMA synchronous").fetchone() == (1,)
    plain.close()


def test_the_table_of_positions_takes_no_rows() -> None:
    """Its name is taken."""
    with pytest.raises(PlanError, match="Tidemill_Positions"):
        sinks.SQLite("out.db", "Tidemill_Positions")
