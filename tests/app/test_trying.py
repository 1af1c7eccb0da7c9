"""The stages tried on a recording: what is said of each."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.app.check import aligned
from tidemill.app.recording import read_first
from tidemill.app.trying import table_of, told, try_stages
from tidemill.batch import Batch
from tidemill.core.apply import with_roles
from tidemill.errors import InputError, StageError

ROWS = [{"sensor": f"S{n % 3}", "time": n, "value": float(n * 7 % 11)} for n in range(50)]
BATCH = with_roles(ROWS, "sensor", None, "UTC")
NUMBERS = np.random.default_rng(3)
DICE = random.Random(3)


class Adding:
    def __init__(self) -> None:
        self.sum = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        made = []
        for row in rows:
            self.sum += row["value"]
            made.append({**row, "sum": self.sum})
        return made


class Counted:
    """Its objects count in one list."""

    counts: list[int] = []  # noqa: RUF012 - which is the slip

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.counts.append(1)
        return {"n": len(self.counts)}


COUNTS: dict[str, int] = {}


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        COUNTS[row["sensor"]] = row["n"] = COUNTS.get(row["sensor"], 0) + 1
    return rows


class Centred:
    def update_many(self, batch: Batch) -> dict[str, Any]:
        return {"y": batch["value"] - batch["value"].mean()}


def failing(batch: Batch) -> dict[str, Any]:
    if (batch["value"] == 3).any():
        raise ValueError("three")
    return {"half": batch["value"] / 2}


def waiting(batch: Any) -> Any:
    threading.Event().wait()


def deadly(windows: Any) -> Any:
    os._exit(3)


def said(*stages: Any, lanes: int | None = 0) -> tuple[str, bool]:
    lines: list[str] = []
    tried = try_stages(
        tm.Plan(*stages).stages,
        BATCH,
        lanes=lanes,
        tell=lambda number, one: lines.extend(f"{label:<10}{text}" for label, text in told(number, one)),
    )
    return "\n".join(lines), all(one.passed for one in tried)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (tm.Map(lambda batch: {"y": batch["value"] - batch["value"].mean()}), ["IT LOOKS AT ITS NEIGHBOURS", "tm.Rolling"]),
        (
            tm.MapWindows(lambda windows: windows[:, -1] - np.nanmean(windows), "value", window=5, into="y"),
            ["IT LOOKS AT ITS NEIGHBOURS", "It uses nanmean(): work along axis=1"],
        ),
        (
            tm.Rolling("value", 5, ["mean", lambda windows: windows[:, -1] - np.nanmean(windows)], names=["m", "y"]),
            ["IT LOOKS AT ITS NEIGHBOURS", "It uses nanmean(): work along axis=1"],
        ),
        (tm.Keyed(Centred), ["IT LOOKS AT ITS NEIGHBOURS", "It uses mean(): work record by record"]),
        (tm.Map(lambda batch: {"y": NUMBERS.normal(size=len(batch))}), ["IT GIVES OTHER VALUES EACH TIME", "a fixed seed"]),
        (tm.MapRows(Adding), ["IT REMEMBERS EARLIER BATCHES", "a lane that is replaced forgets"]),
        (tm.Map(lambda batch: {"y": batch["value"] * (1 + len(batch) * 2.0**-52)}), ["ITS LAST DIGITS", "tile=256"]),
        (tm.Map(lambda batch: {"y": ["high" if v > 8 else v for v in batch["value"].tolist()]}), ["THE KINDS OF WHAT IT RETURNS DEPEND", "adds="]),
        (tm.Map(lambda batch: {"y": np.diff(batch["value"])}), ["IT REJECTED THEM ALL", "50 rejected as wrong_length", "tm."]),
    ],
    ids=["neighbours", "windows", "rolling", "objects", "chance", "memory", "digits", "kinds", "rejects"],
)  # fmt: skip
def test_what_speaks_against_a_function(stage: Any, words: list[str]) -> None:
    """In capitals beside its name, with the record that shows it and what to do."""
    text, passed = said(tm.Select("sensor", "value"), stage)
    assert not passed
    assert all(word in text for word in words), text
    assert "stage 1   Select('sensor', 'value'): 50 rows of 50 records\n" in text


@pytest.fixture
def by_value() -> Iterator[None]:
    """This module's functions travel as those of a user's file do."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (tm.MapRows(counted), "use tm.Keyed or tm.scan, which is kept for each sensor"),
        (tm.MapRows(Adding()), "use tm.Keyed or tm.scan"),
        (tm.Keyed(Counted), "keep it in the object of the sensor"),
    ],
    ids=["module", "object", "class"],
)
def test_what_is_kept_for_all_sensors_is_memory(stage: Any, words: str, lanes: int, by_value: None) -> None:
    """In a module, in an object that is the function, in a class: not chance, and the stage to use is named."""
    text, passed = said(stage, lanes=lanes)
    assert not passed
    assert "IT REMEMBERS EARLIER BATCHES" in text
    assert words in text


def test_a_generator_of_random_numbers_is_chance(by_value: None) -> None:
    """Though it remembers where it is: a copy would give the same numbers again."""
    for numbers in (
        NUMBERS.normal,
        np.random.RandomState(3).normal,
        lambda *, size: [DICE.random() for _ in range(size)],
    ):
        text, _ = said(tm.Map(lambda batch, numbers=numbers: {"y": numbers(size=len(batch))}))
        assert "IT GIVES OTHER VALUES EACH TIME" in text
        assert "a fixed seed" in text


def test_stages_see_what_those_before_them_left(lanes: int) -> None:
    """Inline, and in a process; a record that one rejects is not in the next, and costs nobody the check."""
    text, passed = said(
        tm.Map(failing), tm.Filter("half > 2"), tm.Rolling("half", window=2, stats=["max"]), lanes=lanes
    )
    assert passed, text
    assert (
        "stage 1   Map(failing): 45 rows of 50 records; the same for 50 records whole, in halves, and 50 one by one"
        in text
    )
    assert "5 rejected as raised: ValueError: three (failing, line " in text
    assert "stage 3   Rolling('half', 2): 27 rows of 27 records" in text
    assert "half_max_2" in text


def test_a_stage_that_is_to_stop_the_run_stops_the_check() -> None:
    """With its own error, as in a run."""
    with pytest.raises(StageError, match=r"Map\(failing\) failed: ValueError: three"):
        said(tm.Map(failing, on_error="stop"))


def test_a_function_that_hangs_is_given_as_long_as_its_deadline_allows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is being tried is told once its budget has passed; then whose the function is, and what a run would do."""
    monkeypatch.setattr("tidemill.app.trying.SINGLES_S", 0.2)
    hanging = tm.Map(waiting, name="features", deadline_s=0.001).within(0.05)
    with pytest.raises(
        StageError, match=r"features, which calls waiting, was not through .* its deadline_s, and go on"
    ):
        said(tm.Map(failing), hanging, lanes=1)
    assert "features is being tried on 45 records" in caplog.text


def test_a_function_that_ends_its_process_is_named() -> None:
    """With how, and without a name of ours; what the stages before it made has been told."""
    lines: list[int] = []
    stages = tm.Plan(tm.Map(failing), tm.Rolling("half", 3, [deadly])).stages
    with pytest.raises(StageError) as failed:
        try_stages(stages, BATCH, lanes=1, tell=lambda number, one: lines.append(number))
    assert str(failed.value) == (
        "Rolling('half', 3), which calls deadly, ended the process it ran in (exit code 3), with 45 records"
    )
    assert lines == [1]


def test_the_first_rows_as_a_table() -> None:
    """Five rows, values short, what is missing told apart, and of many columns the last."""
    rows = [{"a": 1 / 3, "b": "x" * 40, "c": None, "d": [1, 2], "e": True}, {"a": 5, "c": 2.5}]
    table = table_of(Batch.from_rows(rows * 4))
    assert table[0].split() == ["a", "b", "c", "d", "e"]
    assert table[1].split() == ["0.3333333333", "x" * 25 + "...", "null", "[1,", "2]", "True"]
    assert table[2].split() == ["5", "-", "2.5", "-", "-"]
    assert len(table) == 6
    wide = table_of(Batch.from_rows([{f"column_{n}": float(n) for n in range(30)}]))
    assert wide[0].endswith("column_29")
    assert wide[-1] == f"(and {30 - len(wide[0].split())} columns before these)"
    assert table_of(Batch({}, rows=3)) == []


HOSTILE = "\x1b[31mpump\x07\u202e\r\n"


def test_names_from_outside_cannot_reach_the_terminal() -> None:
    """What clears, colours, reorders or breaks lines in a sensor's or a field's name is shown escaped."""
    table = table_of(Batch.from_rows([{"sensor": HOSTILE, HOSTILE: 1.0}]))
    assert table[1].split()[0] == r"\x1b[31mpump\x07\u202e"
    assert all(line.isprintable() for line in table)
    listed = aligned([("stage 1", HOSTILE)])
    assert listed == "stage 1   \\x1b[31mpump\\x07\\u202e\n"


def test_the_first_records_of_a_recording(tmp_path: Path) -> None:
    """So many of them, over several blocks, with the rejects before; none at all is an error that says why."""
    path = tmp_path / "plant.csv"
    lines = [f"S{n % 3},{n},{n}.5\n" for n in range(30_000)]
    lines[5] = "S1,soon,2\n"
    path.write_text("sensor,time,value\n" + "".join(lines))
    recording = read_first(tm.sources.Replay(path), 20_000)
    assert len(recording.batch) == 20_000
    assert recording.rejected.told == [
        "1 rejected as wrong_type: field 'time' is float and this record has the text 'soon'"
    ]
    assert str(recording).endswith("; rejected on the way: 1")
    assert str(recording).startswith("the first 20,000 records, of 3 sensors, 1970-01-01T00:00:00Z to ")
    assert len(read_first(tm.sources.Replay(path), 50_000).batch) == 29_999
    path.write_text("sensor,time,value\nS1,soon,2\n")
    with pytest.raises(InputError, match="soon"):
        read_first(tm.sources.Replay(path), 10)


class Unmade:
    def __init__(self) -> None:
        raise OSError("no weights")

    def __call__(self, batch: Any) -> Any:
        return {}


def test_a_class_whose_object_cannot_be_made_is_the_users_error() -> None:
    """Told as a fault of the plan, with the stage and the class."""
    with pytest.raises(
        tm.PlanError, match=r"Map\(Unmade\): an object of the class Unmade could not be made: OSError: no w"
    ):
        said(tm.Map(Unmade))
