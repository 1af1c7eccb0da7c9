"""stderr as JSON objects, one a line, whatever is written there and by whom."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from tidemill.app.json_stderr import Wrapped
from tidemill.app.logs import json_line

NASTY = 'pump "7"\n{"level": "ERROR"}\x1b[2J\u202e'


def wrapped(*parts: bytes) -> list[dict[str, Any]]:
    lines: list[str] = []
    made = Wrapped(lines.append)
    for part in parts:
        made.feed(part)
    made.end()
    assert all(line.isascii() and line.isprintable() for line in lines)
    return [json.loads(line) for line in lines]


@given(st.lists(st.binary(max_size=40), max_size=20), st.lists(st.integers(0, 800), max_size=10))
def test_any_bytes_become_objects_and_how_they_are_cut_changes_nothing(lines: list[bytes], cuts: list[int]) -> None:
    """Each line that is not empty, and no object of JSON, is the message of one."""
    data = b"\n".join(lines)
    assume(not any(line.startswith(b"{") for line in data.split(b"\n")))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    made = wrapped(*(data[start:stop] for start, stop in pairwise(edges)))
    whole = wrapped(data)
    assert [one["message"] for one in made] == [one["message"] for one in whole]
    shown = [line.decode("utf-8", "backslashreplace").rstrip("\r") for line in data.split(b"\n")]
    assert [one["message"] for one in whole] == [line for line in shown if line]


@given(st.text(max_size=50), st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3))
def test_a_line_of_the_log_passes_as_it_is(message: str, fields: dict[str, str]) -> None:
    """Whatever a sensor is called: it is in its field, and adds none."""
    line = json_line("INFO", "tidemill", message, fields)
    (made,) = wrapped(line.encode("utf-8") + b"\n")
    own = {"level": "INFO", "logger": "tidemill", "message": message}
    assert made == {**fields, **own, "time": made["time"]}


def test_a_traceback_is_one_object() -> None:
    """Its message is what was raised; lines around it are their own."""
    text = 'before\nTraceback (most recent call last):\n  File "x.py", line 1\n    f()\n    ^^^\nKeyError: 3\nafter\n'
    before, traceback, after = wrapped(text.encode())
    assert [before["message"], traceback["message"], after["message"]] == ["before", "KeyError: 3", "after"]
    assert traceback["traceback"] == "\n".join(text.split("\n")[1:6])
    assert traceback["level"] == "ERROR"


def test_a_line_without_an_end_takes_no_memory_without_end() -> None:
    """It becomes several."""
    made = wrapped(*[b"x" * 10_000] * 30)
    assert sum(len(one["message"]) for one in made) == 300_000
    assert max(len(one["message"]) for one in made) <= 65_536


NOISY = """
import os
import sys
import threading
import warnings

import tidemill as tm

warnings.warn("an old word\\nof two lines")
print("not a log line", file=sys.stderr)
os.write(2, b"from below Python\\n")
thread = threading.Thread(target=lambda: {}["gone"])
thread.start()
thread.join()


def noisy(batch):
    print("in a lane", file=sys.stderr, flush=True)
    raise ValueError("no\\nsuch value")


records = [{"sensor": NASTY, "time": n, "value": float(n)} for n in range(300)]
pipeline = tm.Pipeline(
    tm.sources.Records(records), tm.Plan(tm.Map(noisy, adds={"x": float}, on_error=ON_ERROR)), tm.sinks.Latest()
)
"""


def told(tmp_path: Path, *options: str, on_error: str = "dead_letter", code: int = 0) -> list[dict[str, Any]]:
    """The objects that a run writes to stderr."""
    (tmp_path / "plant.py").write_text(NOISY.replace("NASTY", repr(NASTY)).replace("ON_ERROR", repr(on_error)))
    command = [sys.executable, "-m", "tidemill", "run", "plant.py", "--log-format", "json", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == code, run.stderr
    objects = [json.loads(line) for line in run.stderr.splitlines()]
    for one in objects:
        assert {"time", "level", "logger", "message"} <= set(one)
    return objects


def test_everything_that_a_run_writes_to_stderr_is_json(tmp_path: Path) -> None:
    """What the file of the pipeline says, its functions, a thread's traceback, the log, the summary."""
    objects = told(tmp_path, "--lanes", "1")
    messages = [one["message"] for one in objects]
    assert {"not a log line", "from below Python", "KeyError: 'gone'"} <= set(messages)
    assert "in a lane" in messages
    (traceback,) = [one["traceback"] for one in objects if one["message"] == "KeyError: 'gone'"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert objects[-1]["logger"] == "tidemill"
    assert messages[-1].startswith("300 records in, 0 rows out, in ")
    assert "; dead letters: 300 raised; " in messages[-1]
    assert (objects[-1]["records"], objects[-1]["rows"], objects[-1]["dead_letters"]) == (300, 0, 300)
    assert objects[-1]["dead_letters_in"] == "dead_letters.ndjson"
    (letters,) = [one for one in objects if one["message"].startswith("300 of 300 records are dead letters")]
    assert (letters["dead_letters"], letters["level"]) == (300, "WARNING")


def test_the_error_that_ends_a_run_is_json_with_its_traceback(tmp_path: Path) -> None:
    """And so is a mistake in the command line."""
    objects = told(tmp_path, "--lanes", "0", "--debug", on_error="stop", code=1)
    assert objects[-1]["level"] == "ERROR"
    assert "no such value" in objects[-1]["message"]
    assert any("traceback" in one and "tidemill.errors" in one["message"] for one in objects)
    (mistake,) = told(tmp_path, "--lanez", "2", code=2)
    assert mistake["message"].endswith("See: tidemill run --help")
