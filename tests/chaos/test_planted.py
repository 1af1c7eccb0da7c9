"""The tests see: each of ten planted bugs makes the test fail that is to catch it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.planted import PLANTED
from tests.chaos.planted_in_runs import PLANTED as PLANTED_IN_RUNS

import tidemill as tm
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
    options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "tests.chaos.planted"]
    environment = {**os.environ, "TIDEMILL_PLANTED": name, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(  # noqa: PLW1510 - that it fails is what is wanted
        [sys.executable, "-m", "pytest", *options, bug.caught_by],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout, done.stdout


async def test_a_full_log_makes_sources_wait_and_drops_nothing(tmp_path: Path) -> None:
    """What was given is in the log, in order, whoever waits."""
    source = tm.sources.TCP(name="S")
    log = IngestLog(tmp_path / "log", max_bytes=1 << 20, min_free=0)
    journal = Journal(log, SystemClock(), [source])
    batch = Batch.from_rows([{"note": "n" * 100_000}])
    puts = [asyncio.create_task(journal.put(batch, "S")) for _ in range(20)]
    await asyncio.wait(puts, timeout=0.1)
    assert log.end == 20
    assert not puts[-1].done()
    for put in puts:
        put.cancel()
    await asyncio.gather(*puts, return_exceptions=True)
    log.close()


@pytest.mark.parametrize("name", PLANTED_IN_RUNS)
def test_a_bug_of_the_campaigns_can_still_be_planted(name: str) -> None:
    """What it patches is still there: one that is not planted is found by nobody, after minutes."""
    program = f"from tests.chaos.planted_in_runs import PLANTED; PLANTED[{name!r}].plant()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
