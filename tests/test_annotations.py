"""Annotations that stand for nothing at run time."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest

import tidemill as tm
from tidemill.annotations import annotations_of

TEXT = """
from typing import TYPE_CHECKING
import polars
import tidemill as tm
if TYPE_CHECKING:
    import polars as pl

def bare(frame, by=2): ...
def both(one: {pl}, two: {pl}): ...
def known(frame: polars.DataFrame) -> int: ...
def unknown(frame: {pl}) -> {pl}: ...
def kept(value: {pl}, *, by: int = 2) -> {several}:
    return value * by if value else kept(3)
class Counter:
    n: {pl} = 0
    def update(self, record: {pl}) -> {pl}:
        self.n += 1
        return {{"n": self.n}}
class Whole:
    def __call__(self, frame): ...
class Own(tm.sources.Records):
    def __init__(self, rows: {pl}) -> None:
        super().__init__([], tz="${{env:ZONE}}")
"""


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """Before Python 3.14 such an annotation is written as text, or Python itself refuses it."""
    made: dict[str, Any] = {}
    pl, several = "pl.DataFrame", "list[pl.DataFrame]"
    if sys.version_info < (3, 14):
        pl, several = repr(pl), repr(several)
    text = TEXT.format(pl=pl, several=several)
    exec(compile(text, "written.py", "exec", dont_inherit=True), made)
    return made


def test_a_name_that_stands_for_nothing_is_text(written: dict[str, Any]) -> None:
    """What stands for something is that."""
    assert annotations_of(written["bare"]) == {}
    assert annotations_of(written["known"]) == {"frame": written["polars"].DataFrame, "return": int}
    assert annotations_of(written["unknown"]) == {"frame": "pl.DataFrame", "return": "pl.DataFrame"}
    assert annotations_of(functools.partial(written["unknown"])) == {}
    assert annotations_of(written["Whole"]()) == {}


def test_a_frame_of_polars_is_told_by_a_name_for_type_checkers(written: dict[str, Any]) -> None:
    """As it is by the library's own."""
    frames = [tm.MapFrame(written[name]).frame for name in ("bare", "known", "unknown")]
    assert frames == ["pandas", "polars", "polars"]
    with pytest.raises(tm.PlanError, match=r"calls its function with one argument, and this is both\(one"):
        tm.Map(written["both"])


async def test_functions_that_have_them_go_to_lanes(written: dict[str, Any]) -> None:
    """By value, with their attributes; and the classes of objects for each sensor."""
    written["kept"].unit = "bar"
    async with tm.Lanes(1) as lanes:
        assert await lanes.run(written["kept"], 0) == 6
        assert await lanes.run(lambda: (written["kept"].unit, written["kept"].__qualname__)) == ("bar", "kept")
        assert await lanes.keyed(written["Counter"])("S1", {}) == {"n": 1}


def test_a_source_of_the_users_may_have_them_too(written: dict[str, Any]) -> None:
    """References in its options are looked for by name."""
    with pytest.raises(tm.PlanError, match=r"tz= of Own takes no \$\{env:NAME\}"):
        written["Own"]([])
