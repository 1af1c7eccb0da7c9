"""Finding the pipeline in a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.app.load import load, split
from tidemill.errors import InputError, PlanError

HEAD = """
import tidemill as tm

def pipe(name):
    return tm.Pipeline(tm.sources.Records([]), tm.Select("value"), tm.sinks.Callback(print), name=name)

"""


@pytest.fixture(autouse=True)
def unchanged_interpreter() -> Iterator[None]:
    """What loading leaves behind (a folder on sys.path, a module) is taken away again."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("tidemill", "numpy", "cloudpickle")):
            del sys.modules[name]


@pytest.fixture
def written(tmp_path: Path):
    def write(body: str, name: str = "plant_file.py", head: str = HEAD) -> Path:
        path = tmp_path / name
        path.write_text(head + body)
        return path

    return write


def found_name(target: object) -> str | None:
    pipeline = load(str(target)).pipeline
    return pipeline.name if pipeline else None


def test_the_only_pipeline_needs_no_name(written) -> None:
    """Whatever it is called."""
    assert found_name(written("night = pipe('the night shift')")) == "the night shift"


def test_among_several_the_one_called_pipeline_is_meant(written) -> None:
    """So that a file may hold helpers for others."""
    assert found_name(written("a = pipe('a')\npipeline = pipe('main')\nb = pipe('b')")) == "main"


def test_a_name_after_a_colon_chooses(written) -> None:
    """FILE.py:NAME wins over every rule."""
    path = written("a = pipe('a')\npipeline = pipe('main')")
    assert found_name(f"{path}:a") == "a"


def test_two_names_of_one_pipeline_are_one(written) -> None:
    """An alias is no reason to ask."""
    assert found_name(written("first = pipe('it')\nsecond = first")) == "it"


def test_several_without_a_choice_are_listed(written) -> None:
    """The error names them all and shows what to type."""
    path = written("a = pipe('a')\nb = pipe('b')")
    with pytest.raises(PlanError, match=r"holds 2 pipelines: a, b\. Say which one: .*plant_file\.py:a$"):
        load(str(path))


def test_a_wrong_name_lists_what_is_there(written) -> None:
    """Both for a name that is not there and for one that is something else."""
    path = written("a = pipe('a')\nnumber = 7")
    with pytest.raises(PlanError, match=r"has no b; it holds a\."):
        load(f"{path}:b")
    with pytest.raises(PlanError, match=r"number in .* is of type int, not .*; it holds a\."):
        load(f"{path}:number")


def test_a_file_without_a_pipeline_shows_what_to_write(written) -> None:
    """The names that are there, and the line that is missing."""
    path = written("x = 1\n", head="")
    with pytest.raises(PlanError, match=r"holds no pipeline\. The names in it: x\. .*pipeline = tm\.Pipeline"):
        load(str(path))


def test_a_plan_alone_is_found(written) -> None:
    """Its edges are for the command line to give."""
    found = load(str(written("plan = tm.Plan(tm.Select('value'))")))
    assert found.pipeline is None
    assert found.plan is not None
    assert found.name == "plan"


def test_a_run_at_the_foot_does_no_harm(written) -> None:
    """The file ends at its own tm.run; the names above it are usable, and nothing has run."""
    path = written("pipeline = pipe('main')\ntm.run(pipeline)\nraise SystemExit('never reached')")
    assert found_name(path) == "main"


def test_a_serve_at_the_foot_does_no_harm(written) -> None:
    """Not even inside asyncio.run."""
    body = """
import asyncio
pipeline = pipe('main')
async def main():
    async with tm.serve(pipeline):
        raise SystemExit('never reached')
asyncio.run(main())
"""
    assert found_name(written(body)) == "main"


def test_no_except_of_the_file_swallows_the_stop(written) -> None:
    """A careful script that catches every Exception around its run is still only read."""
    body = "p = pipe('main')\ntry:\n    tm.run(p)\nexcept Exception:\n    raise SystemExit('never reached')\n"
    assert found_name(written(body)) == "main"


def test_a_pipeline_that_only_the_run_knew_is_found(written) -> None:
    """tm.run(tm.Pipeline(...)) at the foot names the pipeline by itself."""
    assert found_name(written("tm.run(pipe('inline'))")) == "inline"


def test_neighbours_can_be_imported(written, tmp_path: Path) -> None:
    """The file's folder is on the path, as under python."""
    (tmp_path / "plant_names.py").write_text("NAME = 'from next door'\n")
    assert found_name(written("from plant_names import NAME\npipeline = pipe(NAME)")) == "from next door"


def test_a_file_may_bear_the_name_of_a_library(written) -> None:
    """json.py is a fine name for a pipeline file and takes nobody's place."""
    import json

    assert found_name(written("pipeline = pipe('it')", name="json.py")) == "it"
    assert sys.modules["json"] is json


def test_functions_of_the_file_travel_by_value(written) -> None:
    """Lanes never import the pipeline file: what they are sent holds the code itself."""
    import cloudpickle

    path = written("def double(rows):\n    return [{**r, 'twice': 2 * r['value']} for r in rows]\npipeline = pipe('p')")
    load(str(path))
    data = cloudpickle.dumps(sys.modules["plant_file"].double)
    del sys.modules["plant_file"]
    sys.path.remove(str(path.parent))
    assert cloudpickle.loads(data)([{"value": 2}]) == [{"value": 2, "twice": 4}]


def test_a_missing_file_is_named_with_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name is easily looked for in the wrong folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere.py does not exist"):
        load("nowhere.py")
    with pytest.raises(InputError, match="is a folder"):
        load(".")


def test_errors_in_the_file_name_its_line(written) -> None:
    """The user's own line, not one of ours; the type and words of the error."""
    with pytest.raises(PlanError, match=r"plant_file\.py, line 3 could not be read: ZeroDivisionError"):
        load(str(written("x = 1\ny = 2\nz = 1 / 0\n", head="")))
    with pytest.raises(PlanError, match=r"plant_file\.py, line 2: "):
        load(str(written("x = 1\nif\n", head="")))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("tm.sinks.SQLite('x.db', if_exist='replace')", "argument 'if_exist'. Did you mean if_exists=?"),
        ("tm.Rolling('value', 5, stat=['mean'])", "argument 'stat'. Did you mean stats=?"),
        ("tm.sinks.Latest(xyzzy=1)", "argument 'xyzzy'. Its options are "),
        ("dict.fromkeys(xyzzy=1)", "dict.fromkeys() takes no keyword arguments"),
    ],
)
def test_an_option_that_does_not_exist_is_told_with_those_that_do(written, call: str, says: str) -> None:
    """Of what is ours; Python names the wrong one alone."""
    with pytest.raises(PlanError, match=re.escape(says)):
        load(str(written(f"made = {call}\n")))


@pytest.mark.parametrize("row", ["S1,1,1.5", "S1,007,1.5"])
def test_a_recording_in_place_of_a_file_says_where_it_belongs(row: str, tmp_path: Path) -> None:
    """Read as Python it has an error that helps nobody."""
    path = tmp_path / "march.csv"
    path.write_text(f"sensor,time,value\n{row}\n")
    with pytest.raises(PlanError, match=f"is no Python file, .* tidemill new plan.py --from {path}$"):
        load(str(path))


def test_our_own_errors_in_the_file_stay_what_they_are(written) -> None:
    """A plan that is wrong at construction keeps its message and its exit code."""
    with pytest.raises(PlanError, match="window"):
        load(str(written("pipeline = tm.Rolling('value', window=0)")))


@pytest.mark.parametrize(
    ("target", "path", "name"),
    [
        ("plant.py", "plant.py", None),
        ("plant.py:night", "plant.py", "night"),
        ("a:b/plant.py", "a:b/plant.py", None),
        ("a:b/plant.py:x", "a:b/plant.py", "x"),
    ],
)
def test_targets_are_split_at_the_last_colon(target: str, path: str, name: str | None) -> None:
    """What follows it is a name only when it can be one."""
    assert split(target) == (Path(path), name)
