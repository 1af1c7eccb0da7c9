"""Laws of every sink that commits rows with their position; each class found in the package is put through all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.durability.kept_sinks import KEPT, OPEN, Start, let_go, same, visible
from tests.sinks.test_laws import Kit, sinks_in_the_package

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import OutputExists, OutsideError
from tidemill.schema import Field, Kind, Schema
from tidemill.sinks.base import Keeping

ENDS = ("dropped", "closed", "woken")
"""How a start ends: without a word, by close(), or by stopping and waking up when the next has begun."""

steps = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 9)),
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("end"), st.sampled_from(ENDS)),
)


@pytest.fixture(params=KEPT, ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest) -> Kit:
    return request.param


@pytest.fixture(autouse=True)
def _starts_end() -> Iterator[None]:
    yield
    let_go()


def is_beginning(kit: Kit, got: list[dict[str, Any]], start: Start) -> bool:
    """What is visible is a beginning of what is committed: all of it, but for Parquet."""
    expected = start.expected(start.committed)
    if kit.cls is sinks.Parquet:
        expected = expected[: len(got)]
    return same(got, expected)


def test_every_sink_that_keeps_its_position_is_under_the_laws() -> None:
    """A new one has a kit from the day it is written; PostgreSQL is held to them on a server, in ``tests/sinks``."""
    tried = {kit.cls for kit in KEPT} | {sinks.PostgreSQL}
    assert {cls for cls in sinks_in_the_package() if cls.keeps_position} == tried
    assert {cls for cls in sinks_in_the_package() if cls.commit is not sinks.ProcessSink.commit} == tried


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(steps, max_size=14))
def test_rows_are_those_of_an_uninterrupted_run_however_often_it_ends(
    kit: Kit, tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, Any]]
) -> None:
    """Whatever was written, committed, dropped, closed or woken: in order, each once, and a reader never saw others."""
    folder = tmp_path_factory.mktemp("kept")
    start = Start(kit, folder)
    for step, value in script:
        if step == "write":
            start.write(value)
        elif step == "commit":
            start.commit()
        else:
            before = start
            if value == "closed":
                before.sink.close()
            start = Start(kit, folder, before.epoch + 1)
            assert start.handed == before.committed
            if value == "woken":
                with pytest.raises(OutsideError, match="another start"):
                    before.write(3)
                with pytest.raises(OutsideError, match="another start"):
                    before.commit()
                before.sink.close()
        assert is_beginning(kit, visible(kit, folder), start)
    last = max(start.handed, 1)
    start.finish(last)
    assert same(visible(kit, folder), start.expected(last))


def test_a_run_without_state_writes_the_same_rows(kit: Kit, tmp_path: Path) -> None:
    """The expectation of the law before this one, by the other way of opening."""
    start = Start(kit, tmp_path)
    start.finish(30)
    (tmp_path / "without").mkdir()
    plain = Start.__new__(Start)
    plain.kit, plain.folder, plain.handed = kit, tmp_path / "without", 0
    plain.sink = kit.make(plain.folder, **({} if kit.grows else {"columns": ["sensor", "value", "seldom", "late"]}))
    plain.sink.open(OPEN)
    plain.write(30)
    plain.sink.close()
    assert same(visible(kit, tmp_path), start.expected(30))
    assert same(visible(kit, plain.folder), start.expected(30))


def test_close_without_commit_leaves_the_last_commit(kit: Kit, tmp_path: Path) -> None:
    """Rows of an abandoned run are not there: they come again after the next start."""
    start = Start(kit, tmp_path)
    start.write(3)
    start.commit()
    start.write(3)
    start.sink.flush()  # which shows nothing in a run that keeps state
    start.sink.close()
    start.sink.close()
    assert is_beginning(kit, visible(kit, tmp_path), start)
    assert Start(kit, tmp_path, 2).handed == 3


def test_a_position_without_rows_is_kept(kit: Kit, tmp_path: Path) -> None:
    """Records that were filtered count too."""
    start = Start(kit, tmp_path)
    start.write(3)
    start.commit()
    start.handed = 1_000_000_000_000
    start.commit()
    start.commit()
    assert Start(kit, tmp_path, 2).handed == 1_000_000_000_000


def test_what_is_there_is_treated_as_if_exists_says_by_the_first_start_only(kit: Kit, tmp_path: Path) -> None:
    """Refused, added to or replaced; then it is this pipeline's own, whatever ``if_exists`` is."""
    found = [{"sensor": "old", "value": 0.5}]
    columns = {} if kit.grows else {"columns": ["sensor", "value", "seldom", "late"]}
    for if_exists in ("fail", "append", "replace"):
        if if_exists == "append" and not kit.appends:
            continue
        folder = tmp_path / if_exists
        folder.mkdir()
        sink = kit.make(folder, **columns)
        sink.open(OPEN)
        sink.write(sink.chosen(Batch.from_rows(found)))
        sink.close()
        if if_exists == "fail":
            with pytest.raises(OutputExists, match="if_exists="):
                Start(kit, folder)
            assert same(visible(kit, folder), kit.expected(found))
            continue
        Start(kit, folder, 1, {"if_exists": if_exists}).write(5)
        start = Start(kit, folder, 2, {"if_exists": if_exists})
        assert start.handed == 0
        start.write(9)
        start.commit()
        start = Start(kit, folder, 3, {"if_exists": if_exists})
        assert start.handed == 9
        start.finish(20)
        before = kit.expected(found) if if_exists == "append" else []
        assert same(visible(kit, folder), before + start.expected(20))
        if kit.appends:
            Start(kit, folder, 4).finish(24)  # if_exists="fail" is not asked
            assert same(visible(kit, folder), before + start.expected(24))


def test_a_run_without_rows_leaves_something_to_read_and_goes_on(kit: Kit, tmp_path: Path) -> None:
    """What it leaves has the columns that were known; rows that come after a later start have theirs."""
    known = Schema([Field("sensor", Kind.TEXT), Field("value", Kind.FLOAT)], open=True)
    for epoch in (1, 2):
        sink = kit.make(tmp_path)
        assert sink.resume(known, Keeping(state(tmp_path), "plant", epoch)) == 0
        sink.close()
        assert kit.rows(tmp_path) == []
    sink = kit.make(tmp_path)
    sink.resume(OPEN, Keeping(state(tmp_path), "plant", 3))
    sink.write(Batch.from_rows([{"value": 5, "text": "x"}, {"value": 5.5}]))
    sink.commit(2)
    sink.close()
    assert repr(kit.rows(tmp_path)) == repr(kit.expected([{"value": 5, "text": "x"}, {"value": 5.5}]))


def state(folder: Path) -> Path:
    place = folder / "state"
    place.mkdir(exist_ok=True)
    return place


def test_an_earlier_start_is_refused(kit: Kit, tmp_path: Path) -> None:
    """Also when it comes with a number that was used: the later one has written it down."""
    start = Start(kit, tmp_path, 7)
    start.write(3)
    start.commit()
    start.sink.close()
    with pytest.raises(OutsideError, match="another start"):
        Start(kit, tmp_path, 6)
    assert Start(kit, tmp_path, 8).handed == 3


def test_two_pipelines_have_their_own_positions(kit: Kit, tmp_path: Path) -> None:
    """Each in its state folder; only one of them may write to the same place without if_exists."""
    start = Start(kit, tmp_path)
    start.write(6)
    start.commit()
    start.sink.close()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OutputExists):
        kit.make(tmp_path).resume(OPEN, Keeping(other, "other plant", 1))
    assert Start(kit, tmp_path, 2).handed == 6


def test_delivery_with_state_says_exactly_once(kit: Kit) -> None:
    """And without state it does not."""
    sink = kit.make(Path("/nowhere"))
    assert sink.delivery_with_state.startswith("exactly-once")
    assert sink.delivery.startswith("at-least-once")


def test_standard_output_and_devices_cannot_be_taken_back() -> None:
    """They know at least once, with state too."""
    for path in ("-", "/dev/null"):
        sink = sinks.Lines(path, format="ndjson")
        assert not sink.keeps_position
        assert sink.delivery_with_state == sink.delivery
        assert math.isclose(sink.resume(OPEN, Keeping(Path("/nowhere"), "plant", 1)), 0)
        sink.commit(5)
        sink.close()
