"""How long a run bears that it does not progress, by a clock that is moved by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.patience import ConnectAnew, GiveUp, Patience, Stall

SECOND = 1_000_000_000
MQTT = Stall("source mqtt: connected, silent 312 s (limit 300)", "mqtt", 300.0)
OPC = Stall("source opc: connected, silent 312 s (limit 300)", "opc", 300.0)
SINK = Stall("sink postgres: 14 tries, connection refused", "", 300.0)


def test_what_cannot_be_helped_from_here_ends_the_run_at_once() -> None:
    """It has lasted for as long as is allowed; a source that waits for it is not connected anew for that."""
    assert Patience().look([SINK, MQTT], 0) == GiveUp(SINK.said)


def test_a_source_that_progresses_and_stalls_again_is_connected_anew_again() -> None:
    """Once each time, not once a run."""
    patience = Patience()
    assert patience.look([MQTT], 0) == ConnectAnew(("mqtt",), MQTT.said)
    assert patience.look([], 100 * SECOND) is None
    assert patience.look([MQTT], 900 * SECOND) == ConnectAnew(("mqtt",), MQTT.said)
    assert patience.look([MQTT], 1_199 * SECOND) is None
    assert isinstance(patience.look([MQTT], 1_200 * SECOND), GiveUp)


def test_two_sources_are_told_of_together_and_each_has_its_own_time() -> None:
    """The one that came to it later may take longer."""
    patience = Patience()
    assert patience.look([MQTT, OPC], 0) == ConnectAnew(("mqtt", "opc"), f"{MQTT.said}; {OPC.said}")
    patience.look([MQTT], 10 * SECOND)
    assert patience.look([OPC], 20 * SECOND) == ConnectAnew(("opc",), OPC.said)
    assert patience.look([OPC], 310 * SECOND) is None


@given(st.lists(st.tuples(st.integers(0, 200), st.sets(st.sampled_from([MQTT, OPC]))), max_size=50))
def test_a_run_is_given_up_only_when_a_source_has_stalled_for_its_limit_after_it_was_connected_anew(
    looks: list[tuple[int, set[Stall]]],
) -> None:
    """Whatever comes between: against a history that is kept whole."""
    patience, now = Patience(), 0
    anew: dict[str, int] = {}
    for passed, stalled in looks:
        now += passed
        names = {stall.source for stall in stalled}
        anew = {name: since for name, since in anew.items() if name in names}
        late = any(now - since >= 300 for since in anew.values())
        did = patience.look(sorted(stalled, key=str), now * SECOND)
        assert isinstance(did, GiveUp) == late
        if late:
            return
        new = names - set(anew)
        assert (set(did.sources) if isinstance(did, ConnectAnew) else set()) == new
        anew |= dict.fromkeys(new, now)
