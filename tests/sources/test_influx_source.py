"""`Lines` of line protocol and of Telegraf's JSON: files and pipes, keys, times, and rejects."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.errors import PlanError
from tidemill.letters import MALFORMED, WRONG_TYPE, DeadLetter
from tidemill.schema import Kind
from tidemill.sources import Lines, SourceContext

BLOCK = (
    b"cpu,host=a,cpu=cpu0 idle=82.5,n=4i 1568760922000000001\n"
    b"mill,sensor=S1 speed=fast\n"
    b'mill,sensor=S1 state="on",speed=3 1568760922000000002\n'
)


async def read(source: Lines) -> tuple[Batch, list[DeadLetter]]:
    letters: list[DeadLetter] = []
    batches = [batch async for batch in source.stream(SourceContext(SystemClock(), letters.append))]
    return Batch.concat(batches), letters


def keys(batch: Batch) -> list[Any]:
    return batch.keys[batch.key].tolist()


@pytest.mark.parametrize("name", ["plant.influx", "plant.lp", "plant.txt"])
async def test_a_file_of_line_protocol_is_read(tmp_path: Path, name: str) -> None:
    """By its suffix or by ``format``: records to the nanosecond, and the line that is none with the field's name."""
    path = tmp_path / name
    path.write_bytes(BLOCK)
    source = Lines(path, format="influx" if name.endswith("txt") else None)
    assert source.peek()["time"].kind is Kind.TIME
    batch, letters = await read(source)
    assert batch.time.tolist() == [1568760922000000001, 1568760922000000002]
    assert batch.to_rows()[0] == {
        "measurement": "cpu",
        "host": "a",
        "cpu": "cpu0",
        "time": 1568760922000000001,
        "idle": 82.5,
        "n": 4,
    }
    assert [(letter.reason_code, letter.raw) for letter in letters] == [(MALFORMED, "mill,sensor=S1 speed=fast")]
    assert "'speed'" in letters[0].reason


async def test_the_sensor_is_the_tag_of_that_name_or_the_series(tmp_path: Path) -> None:
    """The series has its tags sorted; ``key`` makes the sensor of what the line has."""
    path = tmp_path / "plant.influx"
    path.write_bytes(BLOCK)
    assert keys((await read(Lines(path)))[0]) == ["cpu,cpu=cpu0,host=a", "S1"]
    batch, letters = await read(Lines(path, key="{measurement}.{host}"))
    assert keys(batch) == ["cpu.a"]
    assert len(letters) == 2


async def test_a_line_without_a_timestamp_has_the_time_of_its_arrival(tmp_path: Path) -> None:
    """Of a file, when its reading began; its neighbours keep their own."""
    path = tmp_path / "plant.influx"
    path.write_bytes(b"m f=1\nm f=2 1700000000\n")
    before = SystemClock().wall_ns()
    batch, _ = await read(Lines(path, precision="s"))
    assert min(batch.time.tolist()) == 1700000000 * 10**9
    assert before <= max(batch.time.tolist()) <= SystemClock().wall_ns()


async def test_a_field_has_one_kind_in_all_measurements(tmp_path: Path) -> None:
    """A text where numbers have been is a letter that names the field and both kinds."""
    path = tmp_path / "plant.influx"
    path.write_bytes(b'a state=1 5\nb state="on" 5\na state=2 5\n')
    batch, letters = await read(Lines(path))
    assert batch["state"].tolist() == [1.0, 2.0]
    assert [letter.reason_code for letter in letters] == [WRONG_TYPE]
    assert "'state'" in letters[0].reason


async def test_a_pipe_gives_a_record_while_it_stays_open() -> None:
    """What is written comes out at once, however it is cut."""
    read_end, write_end = os.pipe()
    source = Lines(f"/proc/self/fd/{read_end}", format="influx")
    letters: list[DeadLetter] = []
    context = SourceContext(SystemClock(), letters.append)
    stream = source.stream(context)
    try:
        os.write(write_end, b"cpu,host=a id")
        os.write(write_end, b"le=1 1568760922000000000\ncpu,host=a idle=2")
        async with asyncio.timeout(120):
            batch = await anext(stream)
        assert batch["idle"].tolist() == [1.0]
        os.close(write_end)
        async with asyncio.timeout(120):
            rest = await anext(stream)
        assert rest["idle"].tolist() == [2.0]
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
        os.close(read_end)


async def test_telegrafs_json_gives_the_same_records_as_its_lines(tmp_path: Path) -> None:
    """With the unit that Telegraf gives timestamps in JSON, seconds, or another."""
    metric = {"name": "cpu", "tags": {"host": "a"}, "fields": {"idle": 1.5, "n": 4}, "timestamp": 1568760922}
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": [metric, {"name": "cpu"}]}) + "\n")
    (tmp_path / "lines.influx").write_text("cpu,host=a idle=1.5,n=4i 1568760922\n")
    batch, letters = await read(Lines(tmp_path / "metrics.json", format="telegraf-json"))
    other, _ = await read(Lines(tmp_path / "lines.influx", precision="s"))
    assert batch.to_rows() == other.to_rows()
    assert keys(batch) == keys(other) == ["cpu,host=a"]
    assert batch.time.tolist() == other.time.tolist()
    assert [letter.raw for letter in letters] == [{"name": "cpu"}]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"precision": "s"},
        {"format": "csv", "precision": "s"},
        {"format": "influx", "precision": "h"},
    ],
)
def test_what_is_no_format_or_precision_is_refused(options: dict[str, Any]) -> None:
    """Early, naming the option."""
    with pytest.raises(PlanError, match=r"format=|precision="):
        Lines("-", **options)
