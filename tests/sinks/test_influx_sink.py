"""`Lines` of line protocol: files that grow and are gone on with, standard output, and what is refused or told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.sinks.test_laws import Kit, read_text, shown_by_ndjson

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.formats.influx_lines import InfluxLines
from tidemill.schema import Field, Kind, Schema

OPEN = Schema(open=True)


class InfluxKit(Kit):
    """Line protocol: null is the same as absent, and rows of nulls alone are not there."""

    def make(self, folder: Path, **options: Any) -> sinks.ProcessSink:
        return super().make(folder, measurement="m", **options)

    def expected(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [{name: item for name, item in row.items() if item is not None} for row in super().expected(rows)]
        return [row for row in kept if row.keys() - {"sensor"}]


def read_lines(path: Path) -> list[dict[str, Any]]:
    decoded = InfluxLines().decode(read_text(path).encode())
    assert decoded.bad == []
    return [{name: item for name, item in row.items() if name != "measurement"} for row in decoded.rows]


INFLUX_KITS = [
    InfluxKit("influx", sinks.Lines, "features.influx", read_lines, shown_by_ndjson, sparse=True),
    InfluxKit("influx-gz", sinks.Lines, "features.lp.gz", read_lines, shown_by_ndjson, sparse=True),
]
of_files = pytest.mark.parametrize("kit", INFLUX_KITS, ids=lambda kit: kit.name)


@of_files
def test_rows_are_lines_and_more_can_be_added(kit: Kit, tmp_path: Path) -> None:
    """By the suffix, over several batches and a second run."""
    rows = [{"sensor": f"S{i}", "value": i / 7, "n": i, "note": None if i % 3 else "é \t"} for i in range(10)]
    for some, if_exists in ((rows[:4], "fail"), (rows[4:], "append")):
        sink = kit.make(tmp_path, if_exists=if_exists)
        sink.check()
        sink.open(OPEN)
        sink.write(Batch.from_rows(some[:2]))
        sink.flush()
        sink.write(Batch.from_rows(some[2:]))
        sink.close()
        assert sink.statistics().rows == len(some)
    assert kit.rows(tmp_path) == kit.expected(rows)


def test_a_run_without_rows_leaves_an_empty_file(tmp_path: Path) -> None:
    """There is no header."""
    sink = sinks.Lines(tmp_path / "a.influx", measurement="m")
    sink.open(Schema([Field("value", Kind.FLOAT)]))
    sink.close()
    assert (tmp_path / "a.influx").read_bytes() == b""


def test_columns_are_the_fields_that_are_wanted(tmp_path: Path) -> None:
    """Measurement, tags and time come along."""
    row = {"measurement": "mill", "site": "a", "time": 1_700_000_000, "value": 1.5, "noise": 2.5}
    sink = sinks.Lines(tmp_path / "a.influx", columns=["value"], tags=["site"])
    sink.bind(Schema([Field(name, None) for name in row]))
    sink.open(OPEN)
    sink.write(sink.chosen(Batch.from_rows([row])))
    sink.close()
    assert (tmp_path / "a.influx").read_text() == "mill,site=a value=1.5 1700000000000000000\n"
    with pytest.raises(PlanError, match="'vlaue'"):
        sinks.Lines("-", format="influx", columns=["vlaue"]).bind(Schema([Field("value", Kind.FLOAT)]))


def test_options_of_line_protocol_are_for_it_alone(tmp_path: Path) -> None:
    """And its formats are named where one is unknown."""
    for options in ({"measurement": "m"}, {"tags": ["a"]}, {"time": "t"}, {"precision": "s"}, {"integers": False}):
        with pytest.raises(PlanError, match='format="influx"'):
            sinks.Lines(tmp_path / "a.csv", **options)
    with pytest.raises(PlanError, match=r"\.influx, \.lp"):
        sinks.Lines(tmp_path / "a.txt")


def test_a_plan_without_a_measurement_is_refused_before_it_runs(tmp_path: Path) -> None:
    """The columns of a list are known."""
    pipeline = tm.Pipeline(
        tm.sources.Records([{"sensor": "S1", "time": 1_700_000_000, "value": 1.5}]),
        tm.Plan(),
        tm.sinks.Lines(tmp_path / "a.influx"),
    )
    with pytest.raises(PlanError, match='measurement="a name"'):
        pipeline.check()


@pytest.mark.parametrize("lanes", [0, 1])
def test_what_a_run_leaves_out_is_in_its_log_and_report(
    tmp_path: Path, lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each once, with what to do; the rows around it are written, with the records' time."""
    lines = tmp_path / "in.influx"
    lines.write_text(
        'mill,sensor=S1 speed=1.5 1700000000000000001\nmill,sensor=S1 speed=2.5,note="ok" 1700000000000000002\n'
    )
    plan = tm.Plan(tm.Rolling("speed", window=2, stats=["mean"], min_periods=2))
    sink = tm.sinks.Lines(tmp_path / "out.influx", columns=["speed_mean_2"])
    report = tm.run(tm.Pipeline(tm.sources.Lines(lines), plan, sink), lanes=lanes)
    assert (tmp_path / "out.influx").read_text() == "mill,sensor=S1 speed_mean_2=2.0 1700000000000000002\n"
    assert report.left_out == {"lines": {"rows without a field": 1}}
    assert [record.message for record in caplog.records if "rows without a field" in record.message] == [
        "sink lines: rows without a field that has a value are left out, and counted: line protocol has no such line"
    ]
