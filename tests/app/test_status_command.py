"""``tidemill status`` beside a run."""

from __future__ import annotations

import asyncio
import http.server
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tidemill as tm
from tidemill.app.cli import answer
from tidemill.testing import ManualClock


async def test_it_prints_what_the_run_says_and_ends_with_what_that_means(capsys: pytest.CaptureFixture[str]) -> None:
    """0 while it progresses, 1 when it does not; the address with or without its scheme."""
    clock, source = ManualClock(), tm.sources.TCP()
    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Latest(), name="plant")
    async with tm.serve(pipeline, lanes=0, state=False, clock=clock, metrics="127.0.0.1:0") as run:
        await source.wait_listening()
        assert await asyncio.to_thread(answer, ["status", run.metrics_url]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[0] == "the run progresses"
        assert told[2].startswith("plant: 0 records in")
        clock.advance(312)
        assert await asyncio.to_thread(answer, ["status", run.metrics_url.removeprefix("http://")]) == 1
        assert capsys.readouterr().out.splitlines()[0] == "source tcp: connected, silent 312 s (limit 300)"


def test_where_nobody_answers_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """With the code of the world outside."""
    address = "http://127.0.0.1:1"
    assert answer(["status", address]) == 5
    assert f"no run answers at {address}/healthz?verbose: Connection refused." in capsys.readouterr().err


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1:1", "http://", "127.0.0.1:x", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else is opened."""
    assert answer(["status", url]) == 4
    assert "is no address of a run" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://me:c4nary@127.0.0.1:1", "me:c4nary@plant", "http://me:1/c4nary@plant"])
def test_an_address_with_a_login_is_refused_and_not_quoted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run has no use for one."""
    assert answer(["status", url]) == 4
    told = capsys.readouterr().err
    assert "a login in it, is no address of a run" in told
    assert "c4nary" not in told


class Other(http.server.BaseHTTPRequestHandler):
    code = 404

    def do_GET(self) -> None:
        self.send_error(self.code)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def other() -> Iterator[str]:
    """Something that is no run."""
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_another_program_is_not_taken_for_a_run(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its 404 says nothing of a plant."""
    assert answer(["status", other]) == 5
    assert "is no run of tidemill: it says 404" in capsys.readouterr().err


@pytest.mark.parametrize("code", [200, 503])
def test_another_program_that_is_well_is_no_run_either(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    """Whatever its page of health says."""
    monkeypatch.setattr(Other, "code", code)
    assert answer(["status", other]) == 5
    told = capsys.readouterr()
    assert (told.out, f"is no run of tidemill: it says {code}" in told.err) == ("", True)


LIVE = """
import tidemill as tm

pipeline = tm.Pipeline(tm.sources.TCP(), tm.Plan(), tm.sinks.Lines("rows.ndjson"))
"""


def test_a_live_run_of_the_command_line_is_asked_by_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says where it shows how it is."""
    (tmp_path / "plant.py").write_text(LIVE)
    command = [sys.executable, "-m", "tidemill", "run", "plant.py", "--lanes", "0", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        url = next(found[1] for line in run.stderr if (found := re.search("/healthz are on (http://[0-9.:]+)", line)))
        assert answer(["status", url]) == 0
        assert capsys.readouterr().out.startswith("the run progresses")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
    assert run.returncode == 0


def test_metrics_and_no_metrics_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the file is looked at."""
    assert answer(["run", str(tmp_path / "plant.py"), "--metrics", "9464", "--no-metrics"]) == 4
    assert "--no-metrics shows nothing, so it does not go with --metrics 9464." in capsys.readouterr().err
