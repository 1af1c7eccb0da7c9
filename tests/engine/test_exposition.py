"""The text of /metrics, read back by the parser of Prometheus' own library."""

from __future__ import annotations

import dataclasses
import math
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from tests.engine.readings_of_runs import lane, sink, source, state, statistics

from tidemill import letters
from tidemill.core.flows import Trouble
from tidemill.core.load import Load
from tidemill.engine.exposition import METRICS, OTHER, Reading, exposed, load_library
from tidemill.engine.metrics import Distribution, LaneStatistics, Spread, Statistics

SPREAD = Spread(
    Distribution((1_000_000, 2_500_000), (3, 8), 9, 20_000_000),
    Distribution((100_000,), (1,), 1, 50_000),
    Distribution((1, 10), (0, 4), 6, 700),
)
FULL = statistics(
    lanes=(LaneStatistics(0.5, 4, 1, 0, 1, 2.5), LaneStatistics(0.5, 4, 0, 0, 2, 1.5)),
    state=state(log_bytes=12),
    load=Load(lanes=(0.25, 0.5), loop=0.1),
    dead_letters_by_reason={"malformed": 2},
    gone={"filtered": 1},
    counters={"window_overflow": 3},
    trouble=Trouble("sink rows", 2, "no"),
)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def text_of(run: Statistics, accept: str = "") -> str:
    return exposed(Reading(run, SPREAD), accept)[1].decode()


def samples_of(run: Statistics) -> dict[tuple[str, str], float]:
    """By name and value of the label."""
    families = text_string_to_metric_families(text_of(run))
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families
        if family.name != "tidemill_run_info"
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "parse"),
    [("", text_string_to_metric_families), (OPENMETRICS, openmetrics.text_string_to_metric_families)],
)
def test_every_metric_is_there_with_its_kind_and_its_help(accept: str, parse: Any) -> None:
    """In both formats, and nothing else but the run's own name."""
    families = {family.name: family for family in parse(text_of(FULL, accept))}
    assert {name.removesuffix("_info") for name in families} == {
        "tidemill_run",
        *(f"tidemill_{metric.name}" for metric in METRICS),
    }
    for metric in METRICS:
        family = families[f"tidemill_{metric.name}"]
        assert (family.type, family.documentation) == (metric.kind, metric.told)
        assert all(sample.name.startswith(metric.exported) for sample in family.samples)
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == ({metric.label} if metric.label else set())


def test_no_scrape_needs_a_file() -> None:
    """A run that has run out of them is one that somebody wants to know of."""
    load_library()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        text = text_of(FULL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert text.startswith("# HELP tidemill_run_info ")


def test_the_names_have_one_grammar() -> None:
    """Base units; what only grows ends in _total; no word of a sensor."""
    names = [metric.exported for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"tidemill_[a-z]+(_[a-z]+)*", name) for name in names)
    assert not [name for name in names if re.search(r"_(ms|s|ns|percent|kb|mb)$", name)]
    assert {metric.label for metric in METRICS} <= {"", "source", "sink", "lane", "reason_code", "how", "what"}


def test_a_run_is_told_as_it_is() -> None:
    """A few of every kind."""
    told = samples_of(FULL)
    assert told["tidemill_records_in_total", ""] == 12
    assert told["tidemill_dead_total", "malformed"] == 2
    assert told["tidemill_lane_busy_seconds_total", "1"] == 1.5
    assert told["tidemill_source_connected", "mqtt"] == 1
    assert told["tidemill_log_seconds_left", ""] == math.inf
    assert told["tidemill_progressing", ""] == 0
    assert told["tidemill_tries", ""] == 2
    assert told["tidemill_end_to_end_seconds_bucket", "0.0025"] == 8
    assert told["tidemill_end_to_end_seconds_bucket", "+Inf"] == told["tidemill_end_to_end_seconds_count", ""] == 9
    assert told["tidemill_end_to_end_seconds_sum", ""] == 0.02


def test_a_run_without_state_says_nothing_of_it() -> None:
    """A number that is not there is better than one that means nothing."""
    told = {name for name, _ in samples_of(dataclasses.replace(FULL, state=None))}
    assert not [name for name in told if "checkpoint" in name or "_log_" in name]


@given(st.lists(st.tuples(st.text(), st.floats(0, 1e9)), min_size=1, max_size=5, unique_by=lambda pair: pair[0]))
def test_any_name_of_an_edge_comes_back_as_it_was(pairs: list[tuple[str, float]]) -> None:
    """Quotes, backslashes, line ends and all."""
    run = statistics(
        source_flows=tuple(source(name, last_record_age_s=age) for name, age in pairs),
        sink_flows=tuple(sink(name, commit_age_s=age) for name, age in pairs),
    )
    told = samples_of(run)
    for name, age in pairs:
        assert told["tidemill_source_last_record_age_seconds", name] == age
        assert told["tidemill_sink_commit_age_seconds", name] == age


def test_half_a_character_is_told_as_a_question_mark() -> None:
    """UTF-8 has no other way."""
    assert samples_of(statistics(sink_flows=(sink("a\ud800"),)))["tidemill_sink_records_total", "a?"] == 10


@given(st.dictionaries(st.text("abcdefgh_", min_size=1), st.integers(1, 1_000), max_size=200))
def test_words_that_are_counted_make_a_bounded_number_of_series(counts: dict[str, int]) -> None:
    """However many there are, and none of the counts is lost."""
    told = [value for (name, _), value in samples_of(statistics(counters=counts)).items() if "_counted_" in name]
    assert len(told) == min(len(counts), 64)
    assert sum(told) == sum(counts.values())
    assert OTHER == "other"


def test_a_reason_is_there_before_the_first_record_that_it_is_of() -> None:
    """Else nobody sees the first of them: of a series that begins with a number, that is no increase."""
    told = {label: value for (name, label), value in samples_of(FULL).items() if name == "tidemill_dead_total"}
    assert told["malformed"] > 0
    words = {name: value for name, value in vars(letters).items() if name in letters.__all__ and isinstance(value, str)}
    assert set(told) == set(words.values())
    assert told["raised"] == 0


def test_a_strange_header_gets_the_plain_format() -> None:
    """It comes from the network."""
    for accept in ("application/openmetrics-text; version=x.y", "\x00;;,,", "text/plain; version=", "a" * 10_000):
        content_type, body = exposed(Reading(FULL, SPREAD), accept)
        assert "text" in content_type
        assert b"tidemill_records_in_total" in body


def test_lanes_are_known_by_their_numbers() -> None:
    """The same in every metric of a lane."""
    told = samples_of(dataclasses.replace(FULL, lane_flows=(lane(0), lane(1, in_flight=1, waiting_s=3.0))))
    assert told["tidemill_lane_waiting_seconds", "1"] == 3.0
    assert told["tidemill_lane_restarts_total", "0"] == 1
    assert told["tidemill_lane_busy_ratio", "1"] == 0.5


def test_the_page_has_every_metric_as_it_is_exported() -> None:
    """In their order, with kind, label and words."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "watch.md").read_text()
    rows = re.findall(r"^\| `(tidemill_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", page, re.MULTILINE)
    shown = [(metric.exported, metric.kind, metric.label, metric.told) for metric in METRICS]
    assert [(name, kind, label.strip(), told) for name, kind, label, told in rows[1:]] == shown
