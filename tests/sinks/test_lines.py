"""What only lines of text promise."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
from tidemill.schema import Schema
from tidemill.sinks.line_sink import LineSink

OPEN = Schema(open=True)


def opened(path: Path | str, **options: Any) -> sinks.Lines:
    sink = sinks.Lines(path, **options)
    sink.open(OPEN)
    return sink


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    sink = opened(path, **options)
    try:
        sink.write(Batch.from_rows(rows))
    finally:
        sink.close()


def test_rows_are_visible_after_a_flush(tmp_path: Path) -> None:
    """Not before it, and always whole lines."""
    path = tmp_path / "out.ndjson"
    sink = opened(path)
    sink.write(Batch.from_rows([{"a": 1.5}]))
    assert path.read_bytes() == b""
    sink.flush()
    assert path.read_bytes() == b'{"a":1.5}\n'
    assert sink.statistics().bytes == 10
    sink.close()


def test_gzip_can_be_unpacked_up_to_the_last_flush(tmp_path: Path) -> None:
    """A reader gets the rows so far while the file is written."""
    path = tmp_path / "out.ndjson.gz"
    sink = opened(path)
    for n in range(3):
        sink.write(Batch.from_rows([{"a": n}]))
        sink.flush()
        so_far = zlib.decompressobj(31).decompress(path.read_bytes())
        assert so_far.count(b"\n") == n + 1
        size = path.stat().st_size
        sink.flush()
        assert path.stat().st_size == size  # nothing new, nothing written
    sink.close()
    assert gzip.decompress(path.read_bytes()) == so_far


def test_append_keeps_apart_from_a_line_cut_short(tmp_path: Path) -> None:
    """What a killed run left half-written is one bad line, not two."""
    path = tmp_path / "out.ndjson"
    path.write_bytes(b'{"a":1}\n{"a":')
    write(path, [{"a": 2}], if_exists="append")
    assert path.read_bytes() == b'{"a":1}\n{"a":\n{"a":2}\n'


def test_append_refuses_a_gzip_file_cut_short(tmp_path: Path) -> None:
    """Nothing added after it could ever be read."""
    path = tmp_path / "out.csv.gz"
    write(path, [{"a": 1.5}])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=str(path)):
        opened(path, if_exists="append")


def test_append_to_csv_keeps_its_header(tmp_path: Path) -> None:
    """Columns go under their names, whatever their order here; one that is not there is refused."""
    path = tmp_path / "out.csv"
    path.write_text('"a,1",b\n1,2\n')
    write(path, [{"b": 4.5, "a,1": 3.5}], if_exists="append")
    assert path.read_text().splitlines() == ['"a,1",b', "1,2", "3.5,4.5"]
    with pytest.raises(InputError, match="'c'"):
        write(path, [{"c": 1.5}], if_exists="append")


def test_a_csv_for_a_spreadsheet_is_appended_to_under_its_names(tmp_path: Path) -> None:
    """The apostrophe belongs to the file, not to the column; other formats have no use for it."""
    path = tmp_path / "out.csv"
    for start in ("fail", "append"):
        write(path, [{"=a": "@b", "c": -1}], if_exists=start, spreadsheet=True)
    assert path.read_text().splitlines() == ["'=a,c", "'@b,-1", "'@b,-1"]
    with pytest.raises(PlanError, match="for CSV alone"):
        sinks.Lines(tmp_path / "out.ndjson", spreadsheet=True)


def test_the_suffix_says_the_format(tmp_path: Path) -> None:
    """An unknown one is refused with those known; ``format`` overrules it."""
    with pytest.raises(PlanError, match=r"\.ndjson, \.jsonl, \.csv.*format="):
        sinks.Lines(tmp_path / "out.txt")
    with pytest.raises(PlanError, match="format='xml'"):
        sinks.Lines(tmp_path / "out.csv", format="xml")  # type: ignore[arg-type]
    write(tmp_path / "out.txt", [{"a": 1.5}], format="csv")
    assert (tmp_path / "out.txt").read_text().split() == ["a", "1.5"]
    assert sinks.Lines(tmp_path / "OUT.CSV.GZ").format == "csv"


def test_rows_are_numbered_where_that_is_asked_for(tmp_path: Path) -> None:
    """Two integers more, also in line protocol that writes all others as floats; of the rows that ``where`` leaves. A run without
    state has no numbers."""
    batch = Batch.from_rows([{"sensor": "S", "n": n, "text": "x"} for n in range(3)])
    batch.sequence, batch.epoch = np.arange(70, 73), 2
    shown = {
        "ndjson": b'{"n":1,"_epoch":2,"_seq":71}\n{"n":2,"_epoch":2,"_seq":72}\n',
        "influx": b"m n=1.0,_epoch=2i,_seq=71i\nm n=2.0,_epoch=2i,_seq=72i\n",
    }
    for format_, lines in shown.items():
        influx = {} if format_ == "ndjson" else {"measurement": "m", "integers": False}
        sink = sinks.Lines(
            tmp_path / "out", format=format_, numbered=True, columns=["n"], where="n > 0", if_exists="replace", **influx
        )  # type: ignore[arg-type]
        for given in (batch, Batch.from_rows([{"sensor": "S", "n": 5}])):
            sink.open(OPEN)
            sink.write(sink.chosen(given))
            sink.close()
            if given is batch:
                assert (tmp_path / "out").read_bytes().replace(b",sensor=S", b"") == lines
        assert b"_seq" not in (tmp_path / "out").read_bytes()


def test_rows_that_get_no_numbers_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers are of runs that keep state; in another the log says that there are none."""
    for state in (tmp_path / "state", None):
        caplog.clear()
        source = tm.sources.Records([{"sensor": "S", "time": 0, "n": 1}])
        sink = sinks.Lines(tmp_path / "out.ndjson", numbered=True, if_exists="replace")
        tm.run(tm.Pipeline(source, tm.Plan(), sink), lanes=0, state=state)
        told = (
            "sink lines: numbered=True is for a run with state (--state); its rows have no numbers" in caplog.messages
        )
        assert told == (state is None)
        assert told == (b"_seq" not in (tmp_path / "out.ndjson").read_bytes())


@pytest.mark.parametrize("name", ["_seq", "_epoch"])
def test_a_column_of_the_name_of_a_number_is_refused(tmp_path: Path, name: str) -> None:
    """At the start where it is known by then, else when it comes, by every sink of lines; and so are numbers in a CSV."""
    batch = Batch.from_rows([{"sensor": "S", "n": 1, name: 1}])
    batch.sequence = np.arange(1)
    made: list[LineSink] = [
        sinks.HTTP("http://127.0.0.1:1", numbered=True),
        sinks.TCP("tcp://127.0.0.1:1", numbered=True),
        sinks.UDP("udp://127.0.0.1:1", numbered=True, format="influx", measurement="m"),
        sinks.Lines(tmp_path / "out.ndjson", numbered=True),
    ]
    for sink in made:
        with pytest.raises(PlanError, match=f"there is a column '{name}' already"):
            sink.bind(batch.schema)
        with pytest.raises(PlanError, match=f"there is a column '{name}' already"):
            sink._encoded(sink.chosen(batch))
    sinks.Lines(tmp_path / "out.ndjson", numbered=True, columns=["n"]).bind(batch.schema)
    with pytest.raises(PlanError, match="numbered= of Lines"):
        sinks.Lines(tmp_path / "out.csv", numbered=True)


def test_a_device_is_no_file_to_keep() -> None:
    """/dev/null is always there."""
    sink = sinks.Lines("/dev/null", format="ndjson")
    sink.check()
    sink.open(OPEN)
    sink.write(Batch.from_rows([{"a": 1}]))
    sink.close()


SCRIPT = """
import sys
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import OutsideError
from tidemill.schema import Schema
sink = sinks.Lines("-", format=sys.argv[1])
sink.check()
sink.open(Schema(open=True))
try:
    for n in range(int(sys.argv[2])):
        sink.write(Batch.from_rows([{"n": n, "text": "x" * 100}] * 1000))
        sink.flush()
    sink.close()
except OutsideError as error:
    print(error, file=sys.stderr)
sink.close()
"""


@pytest.mark.parametrize(("format_", "first"), [("ndjson", b'{"n":0,'), ("csv", b"n,text")])
def test_standard_output(format_: str, first: bytes) -> None:
    """``-`` writes where the process writes."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, format_, "3"], capture_output=True, check=True, timeout=120)
    assert done.stdout.startswith(first)
    assert done.stdout.count(b"\n") == 3000 + (format_ == "csv")
    assert done.stderr == b""


def test_the_reader_of_standard_output_goes_away() -> None:
    """One sentence, as for ``tidemill run ... | head``."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "ndjson", "1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
    assert said.startswith("The program that read standard output has gone away")
    assert said.count("\n") == 1
