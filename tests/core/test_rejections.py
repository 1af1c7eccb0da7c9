"""Of whom most of what came lately are dead letters, by a clock that is moved by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.rejections import Rejections

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


class Seen:
    """A run whose records come and die as a test says."""

    def __init__(self) -> None:
        self.rejections = Rejections()
        self.now = 0

    def passed(self, seconds: int, came: int, dead: int, source: str = "tcp", *, stage: str = "") -> list[str]:
        """Each second of these brings so many records, of which so many die; what is said at the end."""
        said: list[str] = []
        for _ in range(seconds):
            self.now += SECOND
            self.rejections.came(came, source)
            for _ in range(dead):
                self.rejections.buried("wrong_type", "'value' is text", source="" if stage else source, stage=stage)
            said = [found.said for found in self.rejections.look(self.now)]
        return said


def test_a_firmware_update_is_told_within_the_minute_and_forgotten_within_another() -> None:
    """Also after a night of good records."""
    run = Seen()
    assert run.passed(600, came=100, dead=0) == []
    assert run.passed(29, came=100, dead=100) == []
    assert run.passed(3, came=100, dead=100) == [
        "source tcp: 3,200 of the last 6,000 records are dead letters, 3,200 of them wrong_type"
    ]
    assert run.passed(600, came=100, dead=100) == [
        "source tcp: 6,000 of the last 6,000 records are dead letters, 6,000 of them wrong_type"
    ]
    assert run.passed(30, came=100, dead=0) == []


def test_a_quiet_source_is_judged_by_its_last_ten_records() -> None:
    """A reading every five minutes comes within no minute with another."""
    run = Seen()
    said: list[str] = []
    for _ in range(10):
        assert said == []
        run.passed(299, came=0, dead=0)
        said = run.passed(1, came=1, dead=1)
    assert said == ["source tcp: 10 of the last 10 records are dead letters, 10 of them wrong_type"]
    assert run.passed(3_599, came=0, dead=0) == []  # all but one are older than an hour


def test_a_few_say_nothing() -> None:
    """Nine of nine, and half."""
    run = Seen()
    assert run.passed(1, came=9, dead=9) == []
    run = Seen()
    assert run.passed(300, came=10, dead=5) == []


def test_a_source_is_not_hidden_by_another_that_gives_more() -> None:
    """One bad gateway of two."""
    run = Seen()
    run.passed(10, came=1_000, dead=0, source="mqtt")
    assert run.passed(1, came=10, dead=10) == [
        "source tcp: 10 of the last 10 records are dead letters, 10 of them wrong_type"
    ]


def test_what_a_stage_refuses_is_judged_against_all_that_came() -> None:
    """It knows of no source."""
    run = Seen()
    assert run.passed(5, came=10, dead=4, stage="clean") == []
    assert run.passed(20, came=10, dead=10, stage="clean") == [
        "stage clean: 220 of the last 250 records are dead letters, 220 of them wrong_type"
    ]


def test_rows_that_stages_made_are_judged_against_those_that_came_to_the_stage() -> None:
    """However many records they were made of: one gives many rows, or a thousand give one."""
    run = Seen()
    for made, dead, said in (
        (1_000, 40, []),
        (10_000, 9_000, ["stage rate: 9,040 of the last 11,000 rows are dead letters, 9,040 of them raised"]),
    ):
        run.rejections.made(made, "rate")
        for _ in range(dead):
            run.rejections.buried_row("raised", "ValueError: no", "rate")
        assert run.passed(1, came=10, dead=0) == said


def test_a_few_of_many_are_told_once_a_minute_by_stage_and_reason() -> None:
    """At once, then what came since, and nothing while there are no more; each with the newest reason."""
    run, told = Seen(), []
    for second in range(300):
        for _ in range(4 if second < 130 else 0):
            run.rejections.buried("raised", f"ValueError: {second}", stage="rate")
        if second == 30:
            run.rejections.buried("wrong_type", "it is text", source="tcp")
        assert run.passed(1, came=10, dead=0) == []
        told += [(second, *news) for news in run.rejections.news(run.now)]
    assert told == [
        (0, "stage rate: 4 dead letters, raised", "ValueError: 0"),
        (30, "source tcp: 1 dead letter, wrong_type", "it is text"),
        (60, "stage rate: 240 dead letters within 60 s, raised", "ValueError: 60"),
        (120, "stage rate: 240 dead letters within 60 s, raised", "ValueError: 120"),
        (180, "stage rate: 36 dead letters within 60 s, raised", "ValueError: 129"),
    ]
    assert run.rejections.dead == {("stage rate", "raised"): 520, ("source tcp", "wrong_type"): 1}


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(0, 50), st.integers(0, 50)), max_size=100))
def test_little_is_remembered(seconds: list[tuple[int, int, int]]) -> None:
    """However long the run, and however its records come."""
    rejections, now = Rejections(), 0
    for passed, came, dead in seconds:
        now += passed * SECOND
        rejections.came(came, "tcp")
        for _ in range(dead):
            rejections.buried("malformed", "no JSON", source="tcp")
        rejections.look(now)
        assert all(len(book._slices) <= 60 + 10 for book in (rejections._all, rejections._sources["tcp"]))
