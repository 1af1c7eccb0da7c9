"""What a service manager is told, by a clock that is moved by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.heartbeat import Heartbeat

SECOND = 1_000_000_000


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.booleans(), st.booleans(), st.booleans(), st.text(max_size=5)), max_size=60
    )
)
def test_signs_of_life_are_given_while_it_progresses_and_never_else(
    looks: list[tuple[float, bool, bool, bool, str]],
) -> None:
    """Twice as often as is waited for, as far as there are looks; ready and stopping once each, in this order."""
    heart, now = Heartbeat(watchdog_s=4.0), 0
    alive: int | None = None
    lines: list[str] = []
    was_stopping = False
    for passed, progresses, ready, stopping, status in looks:
        now += round(passed * SECOND)
        said = heart.look(now, progresses=progresses, ready=ready, stopping=stopping, status=status)
        new = said.split("\n") if said else []
        due = alive is None or now - alive >= 2 * SECOND
        assert ("WATCHDOG=1" in new) == (progresses and due)
        if "WATCHDOG=1" in new:
            alive = now
        assert ("STOPPING=1" in new) == (stopping and not was_stopping)
        was_stopping = was_stopping or stopping
        assert all(line.startswith(("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=")) for line in new)
        lines += new
    assert lines.count("READY=1") <= 1
    assert ("READY=1" in lines) == any(ready and not stopping for _, _, ready, stopping, _ in looks)


def test_a_manager_that_waits_for_nothing_gets_no_signs_of_life() -> None:
    """It has no watchdog."""
    assert Heartbeat(None).look(0, progresses=True) == ""


def test_a_status_cannot_give_the_manager_orders() -> None:
    """What an error said may come from outside."""
    heart = Heartbeat(None)
    said = heart.look(0, progresses=False, status="sink db: no\nREADY=1\r\nMAINPID=1\x1b[2J\u2028x" + "y" * 1_000)
    assert said.startswith(r"STATUS=sink db: no READY=1 MAINPID=1\x1b[2J xyyy")
    assert len(said.splitlines()) == 1
    assert len(said) == len(r"STATUS=\x1b…") - 1 + 400


def test_a_status_is_told_each_ten_seconds_and_at_once_when_the_run_falls_ill() -> None:
    """For people, who need not see each percent."""
    heart = Heartbeat(None)
    assert heart.look(0, progresses=True, status="a") == "STATUS=a"
    assert heart.look(1 * SECOND, progresses=True, status="b") == ""
    assert heart.look(2 * SECOND, progresses=False, status="ill") == "STATUS=ill"
    assert heart.look(3 * SECOND, progresses=False, status="worse") == ""
    assert heart.look(12 * SECOND, progresses=False, status="worse") == "STATUS=worse"
    assert heart.look(40 * SECOND, progresses=False, status="worse") == ""
