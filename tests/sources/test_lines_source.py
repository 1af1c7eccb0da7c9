"""Lines: pipes and files."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.clock import SystemClock
from tidemill.errors import InputError, PlanError
from tidemill.schema import Kind
from tidemill.sources import Lines, SourceContext
from tidemill.testing import ListSink


class Stdin(io.TextIOWrapper):
    """Standard input on a descriptor of the test's own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(os.fdopen(descriptor, "rb"))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    reading, writing = os.pipe()
    stdin = Stdin(reading)
    monkeypatch.setattr(sys, "stdin", stdin)
    yield writing
    stdin.close()


async def test_standard_input_comes_as_it_is_written(drain: Any, pipe: int) -> None:
    """Each line is a record as soon as it is written; the end of the pipe ends the source."""
    os.write(pipe, b'{"sensor":"a","value":1}\n{"sensor":"b",')

    def more(drained: Any) -> bool:
        if drained.count == 1:
            os.write(pipe, b'"value":2}\nnonsense\n{"sensor":"c","value":3}')
            os.close(pipe)
        return False

    drained = await drain(Lines("-"), until=more)
    assert drained.keys == ["a", "b", "c"]
    assert [letter.raw for letter in drained.letters] == ["nonsense"]


async def test_stopping_ends_a_read_that_waits(drain: Any, pipe: int) -> None:
    """A pipe that stays open and silent does not hold up the end of the run."""
    os.write(pipe, b'{"sensor":"a","value":1}\n')
    async with asyncio.timeout(120):
        drained = await drain(Lines(), until=lambda _: True)
    assert drained.count == 1
    os.close(pipe)


async def test_a_long_pipe_is_whole(drain: Any, pipe: int) -> None:
    """More than a pipe and our buffer hold: every line once, in order."""
    data = b"".join(b'{"sensor":"a","value":%d}\n' % n for n in range(100_000))

    def write() -> None:
        with os.fdopen(pipe, "wb") as out:
            out.write(data)

    writing = asyncio.ensure_future(asyncio.to_thread(write))
    drained = await drain(Lines("-"))
    await writing
    assert [row["value"] for row in drained.rows] == list(range(100_000))


async def test_a_pipe_whose_writer_is_faster_is_not_read_after_the_stop(pipe: int) -> None:
    """What was read by then is a record, and no more is: else such a run would not come to its end."""
    os.set_blocking(pipe, False)
    context = SourceContext(SystemClock(), [].append)
    source = Lines("-")
    batches = source.stream(context)
    written = came = 0

    def fill() -> None:
        nonlocal written
        with contextlib.suppress(BlockingIOError):
            while True:
                written += os.write(pipe, b'{"sensor":"a","value":1}\n' * 100) // 25

    fill()
    came += len(await anext(batches))
    for _ in range(2_000):  # nobody takes what comes, and the buffer fills
        fill()
        await asyncio.sleep(0)
    before = written
    fill()
    assert written == before  # the pipe is full, too
    context.stopping.set()
    async for batch in batches:
        came += len(batch)
        fill()
        assert written == before
    assert 25 * came > 1 << 20
    os.close(pipe)


async def test_a_named_pipe_waits_for_its_writer(drain: Any, tmp_path: Path) -> None:
    """The loop goes on meanwhile; what the writer brings are records, and its end is the end."""
    os.mkfifo(tmp_path / "pipe")
    draining = asyncio.ensure_future(drain(Lines(tmp_path / "pipe")))
    writing = await asyncio.to_thread(os.open, tmp_path / "pipe", os.O_WRONLY)
    for n in range(3):
        os.write(writing, b'{"sensor":"a","value":%d}\n' % n)
        await asyncio.sleep(0)
    os.close(writing)
    drained = await draining
    assert [row["value"] for row in drained.rows] == [0, 1, 2]


@pytest.mark.parametrize("written", [False, True])
def test_a_named_pipe_without_a_writer_holds_no_run(tmp_path: Path, written: bool) -> None:
    """Neither one that nobody has opened nor one that stays silent: the run ends when it is told to."""
    os.mkfifo(tmp_path / "pipe")
    writing = os.open(tmp_path / "pipe", os.O_RDWR) if written else None
    pipeline = tm.Pipeline(Lines(tmp_path / "pipe"), tm.Plan(), ListSink())
    assert tm.run(pipeline, lanes=0, seconds=0.05, state=False).records_in == 0
    if writing is not None:
        os.close(writing)


async def test_a_packed_file(drain: Any, tmp_path: Path) -> None:
    """A name that ends in .gz is unpacked, as by every other source."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"sensor,n\n" + b"S,1\n" * 50_000))
    assert (await drain(Lines(path))).count == 50_000


async def test_a_file_of_lines(drain: Any, tmp_path: Path) -> None:
    """A CSV file by its suffix, an NDJSON file else; times default to the arrival."""
    path = tmp_path / "a.csv"
    path.write_text("sensor,value\na,1\nb,2")
    drained = await drain(Lines(path))
    assert drained.keys == ["a", "b"]
    assert drained.times[0] > 10**18
    with pytest.raises(InputError, match=str(tmp_path / "none")):
        Lines(tmp_path / "none").check()
    with pytest.raises(PlanError, match="format"):
        Lines("-", format="parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.csv.gz"])
def test_the_head_of_a_file_is_looked_at(tmp_path: Path, name: str) -> None:
    """Its fields and their kinds are known before the run, so that an unknown column is refused then."""
    text = "id,n\nS1,1\nS2,2\n" if "csv" in name else '{"id":"S1","n":1}\n{"id":"S2","n":2}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    schema = Lines(path, key="id", columns={"n": int}).peek()
    assert (schema.names, schema["n"].kind, schema.open) == (("id", "n"), Kind.INT, False)
    with pytest.raises(InputError, match=f"{path} has no field 'sensor'.*key='id'"):
        Lines(path).check()


def test_what_a_pipe_brings_is_not_known(tmp_path: Path) -> None:
    """Nobody reads from it before the run."""
    os.mkfifo(tmp_path / "pipe")
    assert Lines(tmp_path / "pipe", format="csv").peek().open
    assert Lines("-").peek().open
