"""Who is blamed for a dead lane: exactly the row that kills, and nobody for a kill from outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.blame import Blame, Cursor, Death, TooManyDeaths
from tidemill.letters import DEADLINE, KILLED

SEGFAULT, KILL = 11, 9


def death(slab=1, stage=2, row=-1, signal=SEGFAULT, *, code=None, ours=False, user=True):
    return Death(Cursor(slab, stage, row), signal, code, ours=ours, in_user_code=user)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(-1, 50)), max_size=40, unique_by=lambda place: place
    )
)
def test_kills_from_outside_cost_nothing(places):
    """However often lanes are killed at random, no record is set aside unless one row of one stage is struck twice."""
    blame = Blame()
    for place in places:
        assert not blame.died(death(*place, KILL)).quarantine
    assert not any(blame.orders(slab).quarantine for slab in (1, 2, 3))


@given(
    strikes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30),
    signal=st.sampled_from([SEGFAULT, KILL]),
)
def test_a_row_is_set_aside_when_it_has_struck_often_enough(strikes, signal):
    """Row by row, a crash is proof at once; SIGKILL must hit the same row of the same stage twice."""
    blame = Blame()
    counts = {}
    isolated = set()
    for number, (stage, row) in enumerate(strikes):
        orders = blame.died(death(1, stage, row, signal))
        if stage in isolated:
            counts[stage, row] = counts.get((stage, row), 0) + 1
        if signal != KILL or number:  # after a first kill from outside, the slab is tried again as it was
            isolated.add(stage)
        needed = 2 if signal == KILL else 1
        guilty = {place for place, times in counts.items() if times >= needed}
        assert {(s, r) for s, rows in orders.quarantine.items() for r in rows} == guilty
        assert orders.isolate == isolated


def test_a_crash_costs_two_lanes_and_one_row():
    """A segmentation fault: the first death has the stage gone through row by row, the second names the row."""
    blame = Blame()
    orders = blame.died(death())
    assert (orders.isolate, orders.quarantine) == ({2}, {})
    orders = blame.died(death(row=7))
    assert orders.quarantine == {2: {7: (KILLED, "the record killed its lane: killed by signal 11")}}
    assert blame.orders(1) == orders
    assert not blame.orders(2).isolate, "another slab is gone through as ever"


def test_one_kill_from_outside_changes_nothing():
    """After a first SIGKILL the slab is simply tried again, at full speed."""
    assert not Blame().died(death(signal=KILL)).isolate


def test_an_exit_is_a_crash():
    """A function that calls os._exit is blamed like one that crashes."""
    blame = Blame()
    blame.died(death(signal=None, code=3))
    ((code, reason),) = blame.died(death(row=0, signal=None, code=3)).quarantine[2].values()
    assert (code, reason) == (KILLED, "the record killed its lane: exit code 3")


def test_a_deadline_is_ours():
    """A kill of our own, for a deadline, needs no second strike on the row."""
    blame = Blame()
    blame.died(death(signal=KILL, ours=True))
    assert blame.died(death(row=4, signal=KILL, ours=True)).quarantine == {
        2: {4: (DEADLINE, "the record was stopped: its deadline passed")}
    }


def test_a_committed_slab_clears_its_record():
    """What a slab did is forgotten when it is through, and only that slab's."""
    blame = Blame()
    for slab in (1, 2):
        for row in (-1, -1, 3):
            assert not blame.died(death(slab, row=row, signal=KILL)).quarantine
    blame.committed(1)
    assert not blame.orders(1).isolate
    assert blame.died(death(2, row=3, signal=KILL)).quarantine[2].keys() == {3}
    for row in (-1, -1):
        blame.died(death(1, row=row, signal=KILL))
    assert not blame.died(death(1, row=3, signal=KILL)).quarantine, "its strikes count from the start again"


def test_deaths_outside_user_code_end_the_run():
    """Five deaths in a row that no function explains, without a slab committed between them, are given up on."""
    blame = Blame()
    for _ in range(4):
        blame.died(death(user=False))
    blame.committed(9)
    for _ in range(4):
        blame.died(death(slab=0, user=False))
    with pytest.raises(TooManyDeaths, match="killed by signal 11") as raised:
        blame.died(death(user=False))
    assert not raised.value.from_outside


def test_kills_from_outside_are_given_up_on_later_and_say_so():
    """Whoever kills lanes, such as a machine without memory, says nothing of us; one death by itself among them does."""
    blame = Blame()
    for _ in range(19):
        blame.died(death(user=False, signal=KILL))
    with pytest.raises(TooManyDeaths, match="killed by signal 9") as raised:
        blame.died(death(user=False, signal=KILL))
    assert raised.value.from_outside
    blame.committed(9)
    for _ in range(4):
        blame.died(death(user=False, signal=KILL))
    with pytest.raises(TooManyDeaths) as raised:
        blame.died(death(user=False))
    assert not raised.value.from_outside


def test_statistics_count_deaths_and_name_suspects():
    """A slab is a suspect until it is through."""
    blame = Blame()
    blame.died(Death(Cursor(slab=4, stage=2, row=-1), 11, None, ours=False, in_user_code=True))
    blame.died(Death(Cursor(slab=0, stage=-1, row=-1), 9, None, ours=False, in_user_code=False))
    assert (blame.statistics().deaths, blame.statistics().fruitless, blame.statistics().suspects) == (2, 1, (4,))
    blame.committed(4)
    assert (blame.statistics().deaths, blame.statistics().fruitless, blame.statistics().suspects) == (2, 0, ())
