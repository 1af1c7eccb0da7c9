"""Values of classes that only the user's script has, on their way through lanes."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])

HOME = os.getpid()


class Quality(enum.Enum):
    GOOD = 1


class Level(enum.IntEnum):
    LOW = 1


class Unit(enum.StrEnum):
    C = "C"


@dataclass
class Place:
    line: str


class Exact(float):
    pass


class Named(str):
    __slots__ = ()


class Homebound:
    """Cannot be read in another process."""

    def __setstate__(self, state: Any) -> None:
        if os.getpid() != HOME:
            raise ValueError("far from home")

    def __getstate__(self) -> Any:
        return {"a": 1}


class Travelling:
    """Cannot be read anywhere."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("never")

    def __getstate__(self) -> Any:
        return {"a": 1}


def rows_of(items: list[Any]) -> list[dict[str, Any]]:
    return [{"sensor": "S1", "time": at, "value": float(at), "q": item} for at, item in enumerate(items)]


def through(items: list[Any], *stages: Any, lanes: int, folder: Path) -> tuple[list[Any], list[Any]]:
    """The rows that come out, and the letters."""
    seen: list[Any] = []
    letters = folder / f"letters-{lanes}.ndjson"
    source = tm.sources.Records(rows_of(items))
    tm.run(
        tm.Pipeline(source, tm.Plan(*stages), tm.sinks.Callback(seen.extend, rows=True)),
        lanes=lanes,
        dead_letters=letters,
    )
    return seen, [json.loads(line) for line in letters.read_text().splitlines()] if letters.exists() else []


def doubled(batch: tm.Batch) -> dict[str, Any]:
    return {"y": batch["value"] * 2}


def known(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = (Quality, Level, Unit, Place, Exact, Named)
    return [{**row, "is": isinstance(row["q"], kinds) and type(row["q"]).__name__} for row in rows]


def made(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "place": Place("a"), "quality": Quality.GOOD} for row in rows]


def unmade(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "line": row["place"].line, "good": row["quality"] is Quality.GOOD} for row in rows]


@pytest.mark.parametrize("lanes", [0, 1])
@pytest.mark.parametrize("value", [Quality.GOOD, Level.LOW, Unit.C, Place("a"), [Place("a")], Exact(1.5), Named("x")])
def test_a_records_value_of_a_class_of_the_script(value: Any, lanes: int, tmp_path: Path) -> None:
    """It goes through a lane and comes out as what it was, also past functions that never look at it; they know its class."""
    seen, letters = through([value, value], tm.Map(doubled), tm.MapRows(known), lanes=lanes, folder=tmp_path)
    assert not letters
    assert [(row["q"], type(row["q"]), row["y"]) for row in seen] == [
        (value, type(value), 0.0),
        (value, type(value), 2.0),
    ]
    assert [row["is"] for row in seen] == [False if type(value) is list else type(value).__name__] * 2


@pytest.mark.parametrize("lanes", [0, 1])
def test_what_a_function_makes_of_a_class_of_the_script(lanes: int, tmp_path: Path) -> None:
    """It goes from one function to the next and out of the lane, with its class as the script has it."""
    seen, letters = through([None], tm.MapRows(made), tm.MapRows(unmade), lanes=lanes, folder=tmp_path)
    assert not letters
    assert seen[0]["place"] == Place("a")
    assert (seen[0]["quality"], seen[0]["line"], seen[0]["good"]) == (Quality.GOOD, "a", True)


class Judge:
    """Says of each record what a class of the script has for it."""

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"grade": Quality.GOOD, "where": Place("b")}


@pytest.mark.parametrize("lanes", [0, 1])
def test_what_an_object_of_a_sensor_makes_of_a_class_of_the_script(lanes: int, tmp_path: Path) -> None:
    """As what a function makes."""
    rows, letters = through([0, 1], tm.Keyed(Judge), lanes=lanes, folder=tmp_path)
    assert [(row["grade"], row["where"]) for row in rows] == [(Quality.GOOD, Place("b"))] * 2
    assert not letters


def test_what_a_lane_cannot_read_is_that_records_dead_letter(tmp_path: Path) -> None:
    """Its neighbours in the same batch go on, and so does the run."""
    items = [Place("a"), Homebound(), Place("b")]
    seen, letters = through(items, tm.Map(doubled), lanes=1, folder=tmp_path)
    assert [row["q"] for row in seen] == [items[0], items[2]]
    told = "field 'q' holds a value that another process cannot read: ValueError: far from home"
    assert [(letter["reason_code"], letter["reason"]) for letter in letters] == [("wrong_type", told)]


@pytest.mark.parametrize("lanes", [0, 1])
def test_what_nobody_can_read_is_that_records_dead_letter(lanes: int, tmp_path: Path) -> None:
    """Whether a record brings it or a function makes it."""

    def bad(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "o": Travelling() if row["value"] == 1 else None} for row in rows]

    _, letters = through([[1], Travelling(), [3]], tm.Map(doubled), lanes=lanes, folder=tmp_path)
    told = "field 'q' holds a Travelling that cannot be sent to another process: ValueError: never"
    assert [letter["reason"] for letter in letters] == [told]
    (folder := tmp_path / "made").mkdir()
    seen, letters = through([1, 2, 3], tm.MapRows(bad), lanes=lanes, folder=folder)
    assert [row["q"] for row in seen] == [1, 3]
    assert "cannot be sent to another process" in letters[0]["reason"]


SCRIPT = """
import dataclasses, enum, pathlib
import tidemill as tm

with open({ran!r}, "a") as file:
    file.write("ran\\n")

class Quality(enum.Enum):
    GOOD = 1

@dataclasses.dataclass
class Reading:
    value: float

def rows(rows):
    return [{{**row, "o": Reading(row["value"])}} for row in rows]

def back(rows):
    return [{{**row, "p": row["o"].value, "good": row["q"] is Quality.GOOD}} for row in rows]

records = [{{"sensor": "S1", "time": at, "value": float(at), "q": Quality.GOOD}} for at in range(3)]
pipeline = tm.Pipeline(tm.sources.Records(records), tm.Plan(tm.MapRows(rows), tm.MapRows(back)), tm.sinks.Lines({out!r}))
{foot}
"""


@pytest.mark.parametrize("how", ["python", "tidemill run"])
def test_no_lane_runs_the_script_for_its_classes(how: str, tmp_path: Path) -> None:
    """As a script, and as the file of `tidemill run` with a ``tm.run`` at its foot, it is executed once."""
    script, out, ran = tmp_path / "plant.py", tmp_path / "out.ndjson", tmp_path / "ran.txt"
    foot = "tm.run(pipeline, lanes=1, state=False)" if how == "python" else "tm.run(pipeline)"
    script.write_text(SCRIPT.format(ran=str(ran), out=str(out), foot=foot))
    options = ["--lanes", "1", "--no-state", "--no-metrics"]
    command = [str(script)] if how == "python" else ["-m", "tidemill", "run", str(script), *options]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ran.read_text() == "ran\n"
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["o"], row["p"], row["good"], row["q"]) for row in made] == [
        ({"value": float(at)}, float(at), True, 1) for at in range(3)
    ]
