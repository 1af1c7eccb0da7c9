"""Whether a run progresses is judged of its statistics alone, and the culprit is named in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.readings_of_runs import lane, sink, source, state, statistics

from tidemill.core.flows import SinkFlow, Trouble
from tidemill.engine.health import held_loop, is_ready, judged, stalls
from tidemill.engine.metrics import Statistics

REFUSED = Trouble("sink postgres", 14, "connection refused.")


def trying(lasts_s: float, **changed: Any) -> SinkFlow:
    """A sink that is refused, and tries again by itself."""
    trouble = Trouble("sink hub", 3, "connection refused.", lasts_s)
    return sink("hub", **{"waiting": 1, "waiting_s": 6.0, "trouble": trouble, **changed})


CASES = {
    "source mqtt: connected, silent 312 s (limit 300)": statistics(source_flows=(source(last_record_age_s=312.0),)),
    "source mqtt: not connected, silent 312 s (limit 300)": statistics(
        source_flows=(source(connected=False, last_record_age_s=312.0),)
    ),
    "source mqtt: 14 tries, connection refused": statistics(
        source_flows=(source(connected=False, tries=14, trouble="connection refused."),)
    ),
    "source mqtt: 1 try": statistics(source_flows=(source(connected=False, tries=1),)),
    "sink postgres: 14 tries, connection refused": statistics(ready=False, trouble=REFUSED),
    "the outside: 1 try, the disk is full": statistics(trouble=Trouble("", 1, "the disk\n is full.")),
    "sink postgres: 12 batches wait, the oldest for 312 s (limit 300)": statistics(
        sink_flows=(sink(waiting=12, waiting_s=312.0),)
    ),
    "sink postgres: 1 batch waits, the oldest for 312 s (limit 301)": statistics(
        sink_flows=(sink(waiting=1, waiting_s=312.0),), state=state()
    ),
    "lane 1: 3 slabs, none finished for 312 s (limit 300)": statistics(
        lane_flows=(lane(0), lane(1, in_flight=3, waiting_s=312.0))
    ),
    "lane 1: 1 slab, none finished for 312 s (limit 300), in a call of Map(features)": statistics(
        lane_flows=(lane(0), lane(1, in_flight=1, waiting_s=312.0, at="Map(features)"))
    ),
    "start: lanes and sinks are not ready after 312 s (limit 300)": statistics(ready=False, seconds=312.0),
    "checkpoint: 1,234 inputs have waited for one for 312 s (limit 301)": statistics(
        state=state(behind=1_234, waiting_s=312.0)
    ),
    "source mqtt: what it gave has waited for 312 s (limit 300): the ingest log is full": statistics(
        source_flows=(source(held_s=312.0, last_record_age_s=312.0),), state=state(log_full=True)
    ),
    "source mqtt: what it gave has waited for 312 s (limit 300): it is not taken in": statistics(
        source_flows=(source(held_s=312.0, last_record_age_s=312.0),)
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_the_culprit_is_named_in_one_sentence(sentence: str) -> None:
    """The whole of what is said."""
    health = judged(CASES[sentence])
    assert not health.progresses
    assert health.culprits == (sentence,)


WELL = {
    "nothing to do": statistics(sink_flows=(sink(commit_age_s=9_000.0),)),
    "just begun": None,
    "asked to stop": statistics(stopping=True, source_flows=(source(last_record_age_s=9_000.0),)),
    "a recording that waits for nobody": statistics(source_flows=(source(live=False, last_record_age_s=9_000.0),)),
    "a source that has ended": statistics(source_flows=(source(ended=True, last_record_age_s=9_000.0),)),
    "an old checkpoint of all there is": statistics(state=state(checkpoint_age_s=9_000.0)),
    "rows that wait for a commit each hour": statistics(
        state=state(interval_s=3_600.0, waiting_s=3_000.0), sink_flows=(sink(waiting=5, waiting_s=3_000.0),)
    ),
}


@pytest.mark.parametrize("condition", WELL)
def test_who_has_nothing_to_do_is_well(condition: str) -> None:
    """Quiet is not stuck."""
    assert judged(WELL[condition]).progresses
    assert str(judged(WELL[condition])) == "the run progresses"


def test_who_waits_for_another_is_not_to_blame() -> None:
    """A sink that takes nothing holds the lanes, the checkpoint and the sources."""
    held = statistics(
        sink_flows=(sink("a", waiting=3, waiting_s=400.0), sink("b")),
        lane_flows=(lane(0, in_flight=6, waiting_s=390.0),),
        source_flows=(source("tcp", held_s=380.0, last_record_age_s=380.0),),
        state=state(behind=10, waiting_s=400.0, log_full=True),
    )
    assert judged(held).culprits == ("sink a: 3 batches wait, the oldest for 400 s (limit 301)",)


def test_who_fell_silent_with_a_lane_that_hangs_waits_for_it() -> None:
    """Its senders may be waiting for answers; who was silent long before, or is not connected, has a fault of its own."""
    hung = "lane 1: 3 slabs, none finished for 400 s (limit 300)"
    for changed, told in (
        ({"last_record_age_s": 400.5}, ()),
        ({"last_record_age_s": 500.0}, ("source tcp: connected, silent 500 s (limit 300)",)),
        ({"last_record_age_s": 390.0, "connected": False}, ("source tcp: not connected, silent 390 s (limit 300)",)),
    ):
        run = statistics(
            lane_flows=(lane(0), lane(1, in_flight=3, waiting_s=400.0)), source_flows=(source("tcp", **changed),)
        )
        assert judged(run).culprits == (hung, *told)


def test_a_silent_source_beside_a_sink_that_is_away_is_told_too() -> None:
    """Two faults are two sentences, the sink's first: it loses more."""
    both = statistics(trouble=REFUSED, source_flows=(source("a", last_record_age_s=400.0), source("b")))
    assert judged(both).culprits == (
        "sink postgres: 14 tries, connection refused",
        "source a: connected, silent 400 s (limit 300)",
    )


# -- sinks that try again by themselves ------------------------------------------------------------------------

AWAY_HUB = "sink hub: 3 tries, connection refused"


def test_a_sink_that_tries_again_by_itself_is_named_at_once() -> None:
    """Whether the run progresses is not known yet: nobody says so, and nobody that it does not."""
    for kept in (None, state(waiting_s=6.0)):
        health = judged(statistics(sink_flows=(trying(4.0),), state=kept))
        assert health.progresses
        assert str(health) == AWAY_HUB
        assert health.wrong == (AWAY_HUB,)
        assert is_ready(statistics(sink_flows=(trying(4.0),), state=kept)).ready


@pytest.mark.parametrize("waited_s", [5.5, 6.0, 6.1])
@pytest.mark.parametrize("lasts_s", [4.9, 5.5])
def test_a_sink_that_tries_again_for_longer_than_is_allowed_is_the_culprit(waited_s: float, lasts_s: float) -> None:
    """Once, with its tries, and not the checkpoint that waits for it, whichever of their times is over first."""
    away = statistics(sink_flows=(trying(lasts_s, waiting_s=waited_s),), state=state(behind=10, waiting_s=6.1))
    assert judged(away, 5.0).culprits == (AWAY_HUB,)
    assert judged(away, 5.0).wrong == (AWAY_HUB,)
    assert [stall.said for stall in stalls(away, 5.0)] == [AWAY_HUB]


def test_a_sink_holds_the_checkpoint_for_which_it_was_handed_rows_a_moment_later() -> None:
    """Also where it does not know why nothing is taken. One that has been given rows only now holds nothing yet."""
    for waiting_s, culprit in ((5.9, "sink hub: 1 batch waits, the oldest for 5.9 s (limit 6)"), (0.5, "checkpoint: ")):
        run = statistics(
            sink_flows=(sink("hub", waiting=1, waiting_s=waiting_s),), state=state(behind=10, waiting_s=6.1)
        )
        (stall,) = stalls(run, 5.0)
        assert stall.said.startswith(culprit)


def test_tries_of_several_attempts_are_counted_together() -> None:
    """The newest error is told; another sink that tries has a sentence of its own."""
    away = statistics(trouble=Trouble("sink hub", 8, "no route", 20.0), sink_flows=(trying(1.0),), ready=False)
    assert str(judged(away)) == "sink hub: 11 tries, connection refused"
    other = replace(trying(1.0), name="b", trouble=Trouble("sink b", 1, "no", 1.0))
    both = statistics(trouble=Trouble("sink hub", 8, "no route", 20.0), sink_flows=(trying(1.0), other))
    assert judged(both).culprits == ("sink hub: 11 tries, connection refused",)
    assert judged(both).trying == ("sink b: 1 try, no",)
    assert [trouble.tries for trouble in both.troubles] == [11, 1]


def test_a_sink_that_does_not_answer_is_named_before_it_is_a_culprit() -> None:
    """Nobody says then that the run progresses; of one that is refused, or is a culprit, there is one sentence."""
    silent = sink("hub", waiting=4, waiting_s=31.0, call_s=31.0)
    assert str(judged(statistics(sink_flows=(silent,)))) == "sink hub: no answer for 31 s, 4 batches wait"
    assert judged(statistics(sink_flows=(silent,))).progresses
    assert judged(statistics(sink_flows=(replace(silent, call_s=30.0),))).wrong == ()
    assert judged(statistics(sink_flows=(trying(31.0, call_s=31.0),))).wrong == (AWAY_HUB,)
    late = replace(silent, waiting_s=312.0, call_s=312.0)
    assert judged(statistics(sink_flows=(late,))).wrong == (
        "sink hub: 4 batches wait, the oldest for 312 s (limit 300)",
    )
    for begun in (
        statistics(ready=False, seconds=40.0, sink_flows=(silent,)),
        statistics(stopping=True, sink_flows=(silent,)),
    ):
        assert judged(begun).wrong == ()


ages = st.floats(0, 1_000)
runs = st.builds(
    lambda sources, sinks, lanes, kept, refused, ready: statistics(
        source_flows=tuple(
            source(f"s{number}", last_record_age_s=age, held_s=held, connected=connected, ended=ended)
            for number, (age, held, connected, ended) in enumerate(sources)
        ),
        sink_flows=tuple(sink(f"k{number}", waiting=1, waiting_s=age) for number, age in enumerate(sinks)),
        lane_flows=tuple(lane(number, in_flight=1, waiting_s=age) for number, age in enumerate(lanes)),
        state=None if kept is None else state(behind=5, waiting_s=kept),
        trouble=REFUSED if refused else None,
        ready=ready,
    ),
    st.lists(st.tuples(ages, ages | st.just(0.0), st.booleans(), st.booleans()), min_size=1, max_size=3),
    st.lists(ages, min_size=1, max_size=3),
    st.lists(ages, min_size=1, max_size=3),
    st.none() | ages,
    st.booleans(),
    st.booleans(),
)


@given(runs, st.floats(0.1, 2_000))
def test_culprits_are_edges_of_the_run_that_are_over_the_limit(run: Statistics, limit_s: float) -> None:
    """One line each, its culprit in front, none twice; and within all limits there is none."""
    culprits = judged(run, limit_s).culprits
    names = [f"source {flow.name}" for flow in run.source_flows] + [f"sink {flow.name}" for flow in run.sink_flows]
    names += [f"lane {flow.number}" for flow in run.lane_flows] + ["checkpoint", "start", "sink postgres"]
    assert all("\n" not in culprit and culprit.partition(":")[0] in names for culprit in culprits)
    assert len({culprit.partition(":")[0] for culprit in culprits}) == len(culprits)
    assert judged(run, 3_000).culprits == (("sink postgres: 14 tries, connection refused",) if run.trouble else ())


@given(runs, st.floats(0.1, 2_000))
def test_a_stalled_run_has_a_culprit_whatever_else_there_is(run: Statistics, limit_s: float) -> None:
    """It may be another than the one that is looked at: whoever stands behind it."""
    over = [flow.last_record_age_s > limit_s and not flow.held_s for flow in run.source_flows if not flow.ended]
    over += [flow.waiting_s > limit_s + 1 for flow in (*run.sink_flows, *run.lane_flows) if run.ready]
    if any(over):
        assert not judged(run, limit_s).progresses


def test_a_run_is_ready_once_lanes_sinks_and_connections_are() -> None:
    """And no longer when one of them is not, or it is asked to stop."""
    assert is_ready(statistics()).ready
    assert str(is_ready(statistics())) == "ready"
    assert str(is_ready(None)) == "the run is being started"
    assert str(is_ready(statistics(ready=False))) == "lanes and sinks are being made ready"
    assert str(is_ready(statistics(stopping=True))) == "the run is being stopped"
    assert str(is_ready(statistics(trouble=REFUSED))) == "sink postgres: 14 tries, connection refused"
    assert str(is_ready(statistics(source_flows=(source(connected=False),)))) == "source mqtt: not connected"
    assert is_ready(statistics(source_flows=(source(connected=False, ended=True),))).ready


def test_a_loop_that_does_not_answer_is_a_culprit_itself() -> None:
    """Who is held cannot be asked why."""
    assert not held_loop(2.0).progresses
    assert str(held_loop(2.0)).startswith("event loop: held, no answer for 2 s")


def test_what_an_error_said_is_one_line_of_bounded_length() -> None:
    """A server may say a lot."""
    said = str(judged(statistics(trouble=Trouble("sink rows", 2, "no\n" * 5_000))))
    assert "\n" not in said
    assert len(said) < 500


# -- what will not go on for long ------------------------------------------------------------------------------

STRAINED = {
    "lane 1: its process was lost 6 times within 60 s; the dead letters say to which records, or the log to what else": (
        statistics(lane_flows=(lane(0, lost_lately=2), lane(1, lost_lately=6)))
    ),
    "source http: at least 300 connections were turned away within 60 s, the last from 10.0.0.7: 84 are open, and "
    "connections=84": statistics(
        source_flows=(
            source("tcp", turned_away=900, away_lately=2, last_away="10.0.0.8"),
            source("http", turned_away=301, away_lately=300, last_away="10.0.0.7: 84 are open, and connections=84"),
        )
    ),
    "ingest log: full, so sources wait: the disk has 9 bytes left (log_min_free) or fewer; make room there": statistics(
        state=state(
            log_full=True,
            log_room_bytes=0.0,
            log_why_full="the disk has 9 bytes left (log_min_free) or fewer; make room there",
        )
    ),
    "ingest log: 93% full; what is left is 70.0 MB and lasts 41 s at the present rate": statistics(
        state=state(log_filled=0.93, log_room_bytes=70_000_000, log_seconds_left=41.2)
    ),
    "ingest log: 93% full; what is left is 70.0 MB": statistics(
        state=state(log_filled=0.93, log_room_bytes=70_000_000)
    ),
}


@pytest.mark.parametrize("sentence", STRAINED)
def test_what_will_not_go_on_for_long_is_told_while_the_run_progresses(sentence: str) -> None:
    """It changes no answer from well to ill."""
    health = judged(STRAINED[sentence])
    assert health.progresses
    assert str(health) == f"the run progresses\n{sentence}"


def test_a_log_with_room_and_a_record_that_killed_its_lane_once_are_nothing_to_tell() -> None:
    """Nor is a run without a log."""
    for run in (
        statistics(state=state(log_filled=0.8, log_room_bytes=200.0)),
        statistics(state=state()),
        statistics(lane_flows=(lane(0, lost_lately=2),)),
    ):
        assert judged(run).strained == ()


# -- what ends a run that is asked to end itself ----------------------------------------------------------------

QUIET = statistics(source_flows=(source(last_record_age_s=312.0),))
AWAY = statistics(source_flows=(source(connected=False, tries=14, trouble="refused", last_record_age_s=312.0),))


def test_a_source_that_is_merely_silent_stalls_only_for_whom_asks_for_it() -> None:
    """It is named all the same; one that is not connected is not merely silent."""
    assert not judged(QUIET).progresses
    assert stalls(QUIET) == []
    assert [stall.said for stall in stalls(QUIET, silent_s=200)] == ["source mqtt: connected, silent 312 s (limit 200)"]
    assert stalls(QUIET, silent_s=400) == []
    assert judged(QUIET, silent_s=400).progresses
    assert [stall.said for stall in stalls(AWAY)] == ["source mqtt: 14 tries, refused"]


def test_a_run_that_ends_itself_is_not_well_until_it_has_ended() -> None:
    """Its culprit is named all the while it finishes what it has, and it is not ended twice; one that was asked to stop is well."""
    hung = statistics(stopping=True, lane_flows=(lane(0, in_flight=1, waiting_s=20.0),))
    ending = replace(hung, ending="lane 0: 1 slab, none finished for 12 s (limit 12)")
    assert judged(ending, 12.0).culprits == (ending.ending,)
    assert not is_ready(ending).ready
    assert stalls(ending, 12.0) == []
    assert judged(hung, 12.0).progresses


def test_what_the_outside_refuses_stalls_when_that_has_lasted() -> None:
    """Health names it at once."""
    for lasts_s, stalled in ((0.0, False), (300.0, False), (301.0, True)):
        run = statistics(trouble=Trouble("sink postgres", 3, "no", lasts_s))
        assert not judged(run).progresses
        assert bool(stalls(run)) == stalled


def test_only_a_source_that_dials_can_be_connected_anew() -> None:
    """One that listens waits for others."""
    for dials, name in ((True, "mqtt"), (False, "")):
        run = statistics(source_flows=(source(last_record_age_s=312.0, dials=dials),))
        assert [(stall.source, stall.limit_s) for stall in stalls(run, silent_s=200)] == [(name, 200)]


@pytest.mark.parametrize("sentence", CASES)
def test_who_stalls_is_among_who_is_named(sentence: str) -> None:
    """In the same words."""
    run = CASES[sentence]
    assert {stall.said for stall in stalls(run, silent_s=300)} <= set(judged(run, silent_s=300).culprits)
