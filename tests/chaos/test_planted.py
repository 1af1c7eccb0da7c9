"""The tests see: each of ten planted bugs makes the test fail that is to catch it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.planted import PLANTED

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.journal import Journal

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name: str) -> None:
    """By a test that passes without it, since it is one of these here."""
    bug = PLANTED[name]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "tests.chaos.planted"]
    environment = {**os.environ, "TIDEMILL_PLANTED": name, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(  # noqa: PLW1510 - that it fails is what is wanted
        [*command, bug.caught_by], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout, done.stdout


async def test_a_full_log_makes_sources_wait_and_drops_nothing(tmp_path: Path) -> None:
    """What was given is in the log, in order, whoever waits."""
    log = IngestLog(tmp_path / "log", max_bytes=1 << 20, min_free=0)
    journal = Journal(log, SystemClock(), lambda source, batches: None)
    syncing = asyncio.create_task(journal.sync())
    given = 0
    while log.room() > 0:
        await asyncio.wait(
            [asyncio.create_task(journal.put(Batch.from_rows([{"n": given, "wide": f"{given:06}" * 10_000}]), "S"))],
            timeout=0.2,
        )
        given += 1
    late = asyncio.create_task(journal.put(Batch.from_rows([{"n": given}]), "S"))
    await asyncio.sleep(0)
    given += 1
    assert log.end == given
    late.cancel()
    journal.close()
    await syncing
    log.close()
