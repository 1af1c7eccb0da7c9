"""The ledger as a state machine: lanes commit, die and commit again in any order, and nothing is lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidemill.core.ledger import Ledger
from tidemill.errors import EngineError


class LedgerMachine(RuleBasedStateMachine):
    """Beside the ledger, what each lane was sent and has committed, kept in the most simple-minded way."""

    @initialize(lanes=st.integers(1, 4))
    def begin(self, lanes):
        self.ledger = Ledger(lanes)
        self.lanes = range(lanes)
        self.owners = {}  # slab -> lanes with rows in it
        self.sent = {lane: [] for lane in self.lanes}  # to the lane's present process, in order, not yet committed
        self.committed = {lane: set() for lane in self.lanes}
        self.emitted = []
        self.freed = set()

    @rule(data=st.data())
    def open(self, data):
        owners = data.draw(st.sets(st.sampled_from(list(self.lanes)), min_size=1))
        number = self.ledger.open(owners)
        assert number == len(self.owners) + 1
        self.owners[number] = owners
        for lane in owners:
            self.sent[lane].append(number)

    def commit(self, lane, number):
        ready = self.ledger.committed(lane, number)
        self.committed[lane].add(number)
        assert ready == list(range(len(self.emitted) + 1, len(self.emitted) + 1 + len(ready)))
        self.emitted.extend(ready)

    @precondition(lambda self: any(self.sent.values()))
    @rule(data=st.data())
    def commit_next(self, data):
        """A lane works in order."""
        lane = data.draw(st.sampled_from([lane for lane in self.lanes if self.sent[lane]]))
        self.commit(lane, self.sent[lane].pop(0))

    @rule(data=st.data(), heard=st.booleans())
    def lose(self, data, heard):
        """A lane dies; the word of its last commit may have been lost with it, and is read from its memory."""
        lane = data.draw(st.sampled_from(list(self.lanes)))
        if self.sent[lane] and heard:
            self.commit(lane, self.sent[lane][0])
        self.sent[lane] = self.ledger.owed(lane)
        assert self.sent[lane] == [
            number for number, owners in self.owners.items() if lane in owners and number not in self.committed[lane]
        ]

    @precondition(lambda self: any(self.committed.values()))
    @rule(data=st.data())
    def commit_again(self, data):
        """A late word about what is known changes nothing."""
        lane = data.draw(st.sampled_from([lane for lane in self.lanes if self.committed[lane]]))
        before = self.ledger.statistics()
        assert self.ledger.committed(lane, data.draw(st.sampled_from(sorted(self.committed[lane])))) == []
        assert self.ledger.statistics() == before

    @precondition(lambda self: set(self.emitted) - self.freed)
    @rule(data=st.data())
    def free(self, data):
        number = data.draw(st.sampled_from(sorted(set(self.emitted) - self.freed)))
        self.ledger.freed(number)
        self.freed.add(number)

    @invariant()
    def is_whole(self):
        if not hasattr(self, "ledger"):
            return
        self.ledger.validate()
        done = {n for n, owners in self.owners.items() if all(n in self.committed[lane] for lane in owners)}
        statistics = self.ledger.statistics()
        assert statistics.opened == len(self.owners)
        assert statistics.in_lanes == len(self.owners) - len(done)
        assert statistics.done == len(done) - len(self.emitted)
        assert statistics.in_sinks == len(self.emitted) - len(self.freed)
        assert self.ledger.in_flight() == [
            sum(lane in owners and n not in self.committed[lane] for n, owners in self.owners.items())
            for lane in self.lanes
        ]
        first_open = min(set(self.owners) - done, default=len(self.owners) + 1)
        assert self.emitted == list(range(1, first_open))

    def teardown(self):
        """Whatever happened, when all lanes have worked and all sinks have taken, every slab came out once, in order."""
        if not hasattr(self, "ledger"):
            return
        for lane in self.lanes:
            for number in self.ledger.owed(lane):
                self.commit(lane, number)
        for number in set(self.emitted) - self.freed:
            self.ledger.freed(number)
        assert self.emitted == list(self.owners)
        assert self.ledger.idle
        self.ledger.validate()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("lanes", [[], [2], [0, 5], [-1]])
def test_a_slab_has_lanes_of_the_run(lanes):
    """A slab without lanes, or for a lane that is not there, would never end; it is refused."""
    with pytest.raises(EngineError, match="slab 1 was opened for lanes"):
        Ledger(2).open(lanes)
