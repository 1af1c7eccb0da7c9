"""A state that was put back from an older copy than the output: refused, since new records would be taken for written ones."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import tidemill as tm
from tidemill.errors import InputError


async def fed(folder: Path, values: range) -> None:
    """A run over a live source that gets these, to an orderly stop."""
    source = tm.sources.TCP(ack=True)
    sink = tm.sinks.SQLite(folder / "out.db", columns=["value"])
    pipeline = tm.Pipeline(source, tm.Plan(tm.Lag("value")), sink, name="plant")
    async with tm.serve(pipeline, lanes=0, state=folder / "state"):
        reader, writer = await asyncio.open_connection(*await source.wait_listening())
        writer.writelines(b'{"sensor": "S1", "value": %d}\n' % value for value in values)
        await writer.drain()
        while int((await reader.readline() or b"0").split()[-1]) < len(values):
            pass
        writer.close()
        await writer.wait_closed()


def values_in(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "out.db")) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM features ORDER BY rowid")]


@pytest.mark.parametrize("log_is_there", [True, False])
async def test_an_older_state_beside_a_newer_output_is_refused(tmp_path: Path, log_is_there: bool) -> None:
    """With a copy that has entries behind its checkpoint and with one that has none; nothing of the output is touched."""
    await fed(tmp_path, range(20))
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    if log_is_there:
        for checkpoint in (tmp_path / "copy" / "checkpoints").iterdir():
            checkpoint.unlink()
    await fed(tmp_path, range(20, 50))
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "copy").rename(tmp_path / "state")
    with pytest.raises(InputError, match=r"reaches up to input 50, and the state in .* knows of 20 inputs"):
        await fed(tmp_path, range(0))
    assert values_in(tmp_path) == list(range(50))


async def test_both_from_the_same_moment_go_on(tmp_path: Path) -> None:
    """A copy of the whole folder is another machine."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    await fed(here, range(20))
    shutil.copytree(here, there)
    await fed(here, range(20, 50))
    state = there / "state" / "sinks"
    assert state.is_dir()
    shutil.rmtree(here)
    there.rename(here)
    await fed(here, range(50, 60))
    assert values_in(here) == [*range(20), *range(50, 60)]
