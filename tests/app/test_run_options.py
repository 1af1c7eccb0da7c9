"""The options of ``tidemill run``, in groups that the command line knows nothing of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cyclopts
import pytest

from tidemill.app.commands import application
from tidemill.app.run_options import Edges, Ends, Keeps, Tells

GIVEN = [
    Edges("-", "-", "{line}/{machine}", "at", "Europe/Berlin", "append"),
    Keeps(Path("state"), no_state=True, fresh=True, checkpoint_s=0.5, warm="old.csv", drop_state=["a", "b"]),
    Ends(60.0, 3.0, 300.0, 900.0, "50%/60s"),
    Tells(
        *(Path("r.json"), Path("dead.ndjson"), "127.0.0.1:0"),
        metrics_exposed=True,
        no_metrics=True,
        log_format="json",
        quiet=True,
    ),
]


def words_of(group: Any) -> list[str]:
    """As somebody types it."""
    words = []
    for field in dataclasses.fields(group):
        option, given = f"--{field.name.replace('_', '-')}", getattr(group, field.name)
        for each in given if isinstance(given, list) else [given]:
            words += [option] if each is True else [option, str(each)]
    return words


def bound(*words: str) -> dict[str, Any]:
    _, arguments, _ = application().parse_args(["run", "plant.py", *words], exit_on_error=False, print_error=False)
    assert arguments.args == ("plant.py",)
    return arguments.kwargs


def test_every_option_comes_to_its_group() -> None:
    """By its own name, in any order."""
    words = [word for group in reversed(GIVEN) for word in words_of(group)]
    given = bound("--lanes", "3", *words)
    assert [given[name] for name in ("edges", "keeps", "ends", "tells", "lanes")] == [*GIVEN, 3]


def test_no_option_is_in_two_groups() -> None:
    """One would be lost."""
    names = [field.name for group in GIVEN for field in dataclasses.fields(group)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("option", ["--edges", "--keeps.state", "--ends.seconds"])
def test_groups_are_no_options(option: str) -> None:
    """Nobody must learn them."""
    with pytest.raises(cyclopts.CycloptsError, match="Unknown option"):
        bound(option, "1")
