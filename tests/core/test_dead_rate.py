"""How many of the last records are dead letters, by a clock that is moved by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.dead_rate import DeadRate, MaxDead, TooMany
from tidemill.errors import PlanError

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


class Seen:
    """A run whose records come and die as a test says."""

    def __init__(self, bound: str) -> None:
        self.rate = DeadRate(MaxDead.of(bound), now_ns=0)
        self.records = self.now = 0

    def passed(self, seconds: int, records: int, dead: int, sensor: str | None = "a") -> TooMany | None:
        """Each second of these brings so many records, of which so many die."""
        found = None
        for _ in range(seconds):
            self.now += SECOND
            self.records += records
            for _ in range(dead):
                self.rate.buried("missing_field", sensor=sensor, source="mqtt")
            found = found or self.rate.look(self.records, self.now)
        return found


def test_a_share_is_judged_of_a_whole_minute() -> None:
    """A run that begins with bad records is given its minute, and one that has worked for hours the time it takes."""
    run = Seen("50%/60s")
    assert run.passed(60, records=10, dead=10) is None
    assert run.passed(1, records=10, dead=10) is not None
    run = Seen("50%/60s")
    assert run.passed(3_600, records=10, dead=0) is None
    assert run.passed(30, records=10, dead=10) is None
    assert run.passed(2, records=10, dead=10) is not None


def test_half_is_not_more_than_half() -> None:
    """For as long as it lasts."""
    run = Seen("50%/60s")
    assert run.passed(300, records=10, dead=5) is None
    assert run.passed(300, records=10, dead=6) is not None


def test_a_few_records_say_nothing_of_a_share() -> None:
    """A quiet plant whose one record of the minute is bad goes on."""
    run = Seen("1%/60s")
    for _ in range(50):
        assert run.passed(59, records=0, dead=0) is None
        assert run.passed(1, records=1, dead=1) is None


def test_a_number_is_judged_at_once_and_forgotten_after_its_time() -> None:
    """More than it, not as many."""
    run = Seen("100/60s")
    assert run.passed(1, records=100, dead=100) is None
    assert run.passed(61, records=0, dead=0) is None
    assert run.passed(1, records=100, dead=100) is None
    assert run.passed(1, records=1, dead=1) is not None


def test_it_says_which_reason_and_which_sensor_lead() -> None:
    """The one who is called at night looks there first."""
    rate = DeadRate(MaxDead.of("4/60s"), now_ns=0)
    for sensor in ("a", "b", "b", None):
        rate.buried("missing_field", sensor=sensor, source="mqtt")
    for _ in range(2):
        rate.buried("wrong_type", sensor="c", source="mqtt")
    assert rate.look(1_000, SECOND) == TooMany(
        "6 of 1,000 records of the last 60 s are dead letters (limit 4), 4 of them missing_field",
        "at least 2 of these are of sensor 'b'",
    )


def test_records_of_no_sensor_are_told_by_their_source() -> None:
    """What could not be read has none."""
    run = Seen("4/60s")
    found = run.passed(1, records=5, dead=5, sensor=None)
    assert found is not None
    assert found.lead == "at least 5 of these are of source 'mqtt'"


def test_names_that_are_made_up_take_no_memory_and_hide_nobody() -> None:
    """Thousands of sensors that exist once, and one that is bad all the time."""
    run = Seen("100000/60s")
    for number in range(10_000):
        run.rate.buried("missing_field", sensor=f"made up {number}", source="mqtt")
        if number % 20 == 0:
            run.rate.buried("missing_field", sensor="pump", source="mqtt")
        if number % 200 == 0:
            run.passed(1, records=1, dead=0)
    assert sum(len(one.senders) for one in run.rate._slices) <= 64 * 62
    found = run.rate.look(300_000, run.now) or run.passed(1, records=200_000, dead=100_000, sensor="pump")
    assert found is not None
    assert found.lead.endswith("of these are of sensor 'pump'")


def test_a_name_cannot_give_orders_to_a_terminal_or_a_log() -> None:
    """It may be of any length and in any letters."""
    found = Seen("0/60s").passed(1, records=1, dead=1, sensor="pump\n\x1b[2J\u202e" + "x" * 1_000)
    assert found is not None
    assert found.lead.startswith("at least 1 of these are of sensor 'pump\\n\\x1b[2J\\u202exxx")
    assert found.lead.isprintable()
    assert len(found.lead) < 200


@given(st.lists(st.integers(0, 100_000), unique=True, max_size=500), st.integers(0, 3))
def test_a_sensor_that_fails_all_the_time_is_not_hidden_by_many_that_fail_once(others: list[int], each: int) -> None:
    """Whatever the order."""
    run = Seen("0/60s")
    for number in [*others, "bad", "bad"]:
        for sensor in [str(number), *["bad"] * each]:
            run.rate.buried("missing_field", sensor=sensor, source="mqtt")
    found = run.passed(1, records=2_000, dead=0)
    assert found is not None
    if each or len(others) < 60:
        assert found.lead.endswith(" of these are of sensor 'bad'")


def test_what_comes_again_in_another_attempt_is_counted_once() -> None:
    """After a fault the run goes on from its checkpoint: neither do a million records of before hide those that die now."""
    run = Seen("50%/60s")
    assert run.passed(120, records=1_000, dead=0) is None
    run.records = 60_000
    assert run.passed(1, records=60_000, dead=0) is None
    assert run.passed(120, records=10, dead=4) is None
    assert run.passed(120, records=10, dead=6) is not None


@pytest.mark.parametrize(
    "text", ["", "50%", "50%/", "/60s", "100%/60s", "0.5/60s", "-1/60s", "50%/0s", "5O%/60s", "1/x", "٣/60s"]
)
def test_what_is_no_bound_is_refused(text: str) -> None:
    """In one sentence that shows what is meant."""
    with pytest.raises(PlanError, match="max_dead"):
        MaxDead.of(text)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=200), st.integers(0, 99))
def test_it_judges_as_a_history_that_is_kept_whole(seconds: list[tuple[int, int]], most: int) -> None:
    """Second by second, of the last sixty of them."""
    run = Seen(f"{most}%/60s")
    begun = next((at for at, (good, dead) in enumerate(seconds) if good or dead), len(seconds))
    for at, (good, dead) in enumerate(seconds):
        found = run.passed(1, records=good + dead, dead=dead)
        last = seconds[max(at - 59, 0) : at + 1]
        died, came = sum(dead for _, dead in last), sum(map(sum, last))
        assert (found is not None) == (at - begun >= 60 and died >= 10 and died * 100 > most * came)
