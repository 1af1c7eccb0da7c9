"""Which resource limits a run, in one sentence, from how full its queues were and how busy its workers."""

from __future__ import annotations

from typing import Final

from tidemill.core.load import Load
from tidemill.engine.metrics import Statistics

__all__ = ["limiting"]

_FULL: Final = 0.3
"""An intake that is this full on average is one that sources wait for: it swings between its marks, half and full."""
_LATE_S: Final = 1.0
"""Or one in which records wait for so long on average, however full it is: where lanes are slow that is long before."""
_SLOWER: Final = 0.9
"""Of the records that come, the share that gets through, below which what waits grows."""
_WAITING: Final = 0.4
"""Share of the slabs that wait for sinks, from which these are what all wait for."""
_HUNG_S: Final = 10.0
"""A lane that has finished nothing for so long is what all wait for, whatever came before."""
_BUSY: Final = 0.8
_APART: Final = 1.5
"""A lane that is so many times as busy as the mean has most of the sensors' records."""


def limiting(statistics: Statistics | None) -> str:
    """What would have to be faster for the run to be faster.

    >>> limiting(None)
    'nothing has been measured yet'
    """
    if statistics is not None and statistics.troubles:
        culprit = statistics.troubles[0].culprit or "the outside"
        return f"{_the(culprit)} is the limit: nothing gets through"
    if statistics is None or not statistics.load.lanes:
        return "nothing has been measured yet"
    load = statistics.load
    lanes = _lanes(load)
    if load.sinks >= _WAITING:
        return f"{_slowest_sink(statistics)}; {lanes}"
    slowest = max(statistics.lane_flows, key=lambda lane: lane.waiting_s, default=None)
    if slowest is not None and slowest.waiting_s >= _HUNG_S:
        return f"lane {slowest.number} is the limit: it has finished nothing for {slowest.waiting_s:.0f} s"
    if load.queue < _FULL and load.backlog < 0.5 and not (statistics.ready and _late(load)):
        sources = "the source is" if len(statistics.source_flows) == 1 else "the sources are"
        return f"{sources} the limit: {_given(statistics)}; {lanes}"
    busiest = max(load.lanes)
    mean = sum(load.lanes) / len(load.lanes)
    rate = _rate(load.through_per_s, "records")
    if busiest >= _BUSY and busiest >= _APART * mean:
        return f"lane {load.lanes.index(busiest)} is the limit: {rate}; it is {_percent(busiest)} busy, all together {_percent(mean)}"
    if load.loop >= max(mean, _BUSY) and not statistics.inline:
        return f"the event loop is the limit: {rate}; it is {_percent(load.loop)} busy, and {lanes}"
    if mean >= _BUSY or statistics.inline:
        return f"{'the one lane is' if len(load.lanes) == 1 else 'the lanes are'} the limit: {rate}; {lanes}"
    return f"the CPUs are the limit: {rate}; the event loop has {_percent(load.loop)} of one, and {lanes}"


def _late(load: Load) -> bool:
    """Whether records wait, for lanes or a loop that have no time for them or let ever more wait."""
    slower = load.through_per_s < _SLOWER * load.records_per_s or max(*load.lanes, load.loop) >= _BUSY
    return slower and load.waiting > _LATE_S * load.through_per_s


def _given(statistics: Statistics) -> str:
    """What sources give, or that none of those that do not end by themselves is there to give anything."""
    flows = [source for source in statistics.source_flows if not source.ended]
    if flows and all(source.live and not source.connected for source in flows):
        return "not connected" if len(flows) == 1 else "none is connected"
    return _rate(statistics.load.records_per_s, "records")


def _slowest_sink(statistics: Statistics) -> str:
    """The one whose oldest batch has waited longest, and what it writes."""
    flows, rates = statistics.sink_flows, statistics.load.sink_rows_per_s
    slowest = max(range(len(flows)), key=lambda place: (flows[place].waiting_s, flows[place].waiting), default=None)
    if slowest is None or slowest >= len(rates):
        return "the sink is the limit"
    return f"the sink {flows[slowest].name} is the limit: {_rate(rates[slowest], 'rows')}"


def _the(what: str) -> str:
    return what if what.startswith("the ") else f"the {what}"


def _lanes(load: Load) -> str:
    shares = sum(load.lanes) / len(load.lanes)
    return f"the lane is {_percent(shares)} busy" if len(load.lanes) == 1 else f"lanes are {_percent(shares)} busy"


def _percent(share: float) -> str:
    """Whole ones.

    >>> _percent(0.314)
    '31 %'
    """
    return f"{share * 100:.0f} %"


def _rate(per_second: float, what: str) -> str:
    """For a person.

    >>> _rate(1_234_567, "rows"), _rate(31_000, "rows"), _rate(12.3, "records")
    ('1.2 M rows/s', '31 k rows/s', '12 records/s')
    """
    if per_second >= 1e6:
        return f"{per_second / 1e6:.1f} M {what}/s"
    if per_second >= 1e4:
        return f"{per_second / 1e3:.0f} k {what}/s"
    return f"{per_second:,.0f} {what}/s"
