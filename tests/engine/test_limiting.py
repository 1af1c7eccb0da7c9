"""The limiting resource, in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.readings_of_runs import lane, sink, source, statistics

from tidemill.core.flows import Trouble
from tidemill.core.load import Load
from tidemill.engine.limiting import limiting

CASES = {
    "the sink postgres is the limit: 1.2 M rows/s; lanes are 31 % busy": statistics(
        load=Load(9e5, 9e5, (0.25, 0.37), loop=0.4, queue=0.7, sinks=0.8, sink_rows_per_s=(1.2e6,))
    ),
    "the sink b is the limit: 12 rows/s; lanes are 5 % busy": statistics(
        load=Load(30, 20, (0.05, 0.05), queue=0.1, sinks=0.9, sink_rows_per_s=(20, 12)),
        sink_flows=(sink("a", waiting=1, waiting_s=0.1), sink("b", waiting=8, waiting_s=4.0)),
    ),
    "the source is the limit: 500 records/s; lanes are 3 % busy": statistics(load=Load(500, 500, (0.03, 0.03))),
    "the sources are the limit: 500 records/s; the lane is 3 % busy": statistics(
        load=Load(500, 500, (0.03,)), source_flows=(source("a"), source("b"))
    ),
    "the source is the limit: not connected; lanes are 3 % busy": statistics(
        load=Load(34, 34, (0.03, 0.03)), source_flows=(source("a", connected=False, tries=4),)
    ),
    "the sources are the limit: none is connected; lanes are 3 % busy": statistics(
        load=Load(34, 34, (0.03, 0.03)), source_flows=(source("a", connected=False), source("b", connected=False))
    ),
    "the sources are the limit: 34 records/s; lanes are 3 % busy": statistics(
        load=Load(34, 34, (0.03, 0.03)), source_flows=(source("a", connected=False), source("b"))
    ),
    "lane 1 is the limit: it has finished nothing for 14 s": statistics(
        load=Load(0, 0, (0.0, 0.0)), lane_flows=(lane(0), lane(1, in_flight=3, waiting_s=14.0))
    ),
    "the source is the limit: 3 records/s; lanes are 90 % busy": statistics(
        load=Load(3, 3, (0.9, 0.9)), lane_flows=(lane(0), lane(1, in_flight=1, waiting_s=2.0))
    ),
    "the lanes are the limit: 22 records/s; lanes are 87 % busy": statistics(  # what waits grows, in much room
        load=Load(3_000, 22, (0.86, 0.88), waiting=30_000, queue=0.23)
    ),
    "the lanes are the limit: 3,100 records/s; lanes are 99 % busy": statistics(  # what has gathered grows less
        load=Load(3_000, 3_100, (0.99, 0.99), waiting=30_000, queue=0.23)
    ),
    "the event loop is the limit: 400 records/s; it is 95 % busy, and lanes are 3 % busy": statistics(
        load=Load(500, 400, (0.03, 0.03), waiting=2_000, queue=0.02, loop=0.95)
    ),
    "the source is the limit: 3,000 records/s; lanes are 87 % busy": statistics(  # less than a second of it waits
        load=Load(3_000, 2_500, (0.86, 0.88), waiting=2_000, queue=0.02)
    ),
    "the source is the limit: 3,000 records/s; lanes are 10 % busy": statistics(  # a burst is nearly worked off
        load=Load(3_000, 3_100, (0.1, 0.1), waiting=4_000, queue=0.03)
    ),
    "the source is the limit: 3,000 records/s; lanes are 0 % busy": statistics(  # lanes are on their way
        load=Load(3_000, 0, (0.0, 0.0), waiting=4_000, queue=0.03), ready=False
    ),
    "the lanes are the limit: 31 k records/s; lanes are 97 % busy": statistics(
        load=Load(40_000, 31_000, (0.97, 0.97), queue=0.7, loop=0.3)
    ),
    "the one lane is the limit: 31 k records/s; the lane is 97 % busy": statistics(
        load=Load(31_000, 31_000, (0.97,), queue=0.7, loop=0.3)
    ),
    "the one lane is the limit: 31 k records/s; the lane is 60 % busy": statistics(
        load=Load(31_000, 31_000, (0.6,), queue=0.7, loop=1.0), inline=True
    ),
    "lane 1 is the limit: 31 k records/s; it is 99 % busy, all together 52 %": statistics(
        load=Load(31_000, 31_000, (0.05, 0.99), backlog=1.0)
    ),
    "the event loop is the limit: 900 k records/s; it is 95 % busy, and lanes are 40 % busy": statistics(
        load=Load(9e5, 9e5, (0.4, 0.4), queue=0.7, loop=0.95)
    ),
    "the CPUs are the limit: 900 k records/s; the event loop has 50 % of one, and lanes are 50 % busy": statistics(
        load=Load(9e5, 9e5, (0.5, 0.5), queue=0.7, loop=0.5)
    ),
    "the sink postgres is the limit: nothing gets through": statistics(trouble=Trouble("sink postgres", 2, "no")),
    "the sink hub is the limit: nothing gets through": statistics(
        sink_flows=(sink("hub", trouble=Trouble("sink hub", 2, "no")),)
    ),
    "the outside is the limit: nothing gets through": statistics(trouble=Trouble("", 2, "no")),
    "nothing has been measured yet": statistics(load=Load()),
}


@pytest.mark.parametrize("sentence", CASES)
def test_the_limit_is_named_in_one_sentence(sentence: str) -> None:
    """The whole of what is said."""
    assert limiting(CASES[sentence]) == sentence


shares = st.floats(0, 1)


rates = st.floats(0, 1e9)


@given(st.builds(Load, rates, rates, st.lists(shares, max_size=4).map(tuple), shares, rates, *[shares] * 3))
def test_every_load_has_one_limit(load: Load) -> None:
    """A sentence without an end, which says one thing."""
    said = limiting(statistics(load=load))
    assert said.count("is the limit") + said.count("are the limit") == (1 if load.lanes else 0)
    assert "\n" not in said
