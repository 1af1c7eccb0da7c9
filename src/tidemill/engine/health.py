"""Whether a run progresses, and if not, who keeps it from that: a judgement of its `Statistics`, and nothing else.

    source mqtt: connected, silent 312 s (limit 300)
    sink postgres: 14 tries, connection refused

Rules of this file: who waits for another is not to blame, so culprits are looked for from the sinks back to the sources;
what is quiet because there is nothing to do is well; each sentence begins with the culprit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidemill.core.epochs import NEARLY_FULL
from tidemill.core.flows import LaneFlow, SinkFlow, SourceFlow, Trouble
from tidemill.core.lately import LATELY_S
from tidemill.core.patience import Stall
from tidemill.engine.metrics import Statistics
from tidemill.printable import counted, in_one_line

__all__ = ["STALL_S", "Health", "Readiness", "held_loop", "is_ready", "judged", "stalls"]

STALL_S: Final = 300.0
"""Seconds without progress after which a run counts as stalled, unless it says otherwise."""
_CALL_S: Final = 30.0
"""A call to a sink that lasts for so long is told: one that works by design comes back in seconds, however far apart its commits
are."""
_OFTEN: Final = 3
"""Lost processes of a lane within a minute, since one record that kills its lane costs two, or connections turned away."""
_TOGETHER_S: Final = 1.0
"""A source whose last record came so long before a lane stood still, or later, is silent since then: its senders may wait."""
_LONGEST: Final = 400
"""Characters of what an error said; a health page is read at a glance."""


@dataclass(frozen=True)
class Health:
    """Whether a run progresses."""

    culprits: tuple[str, ...] = ()
    """One sentence each, the one to look at first first; none when the run progresses."""
    strained: tuple[str, ...] = ()
    """What goes on all the same, and will not for long, or not well; one sentence each."""
    trying: tuple[str, ...] = ()
    """Sinks that are refused and try again by themselves, which may help yet, or that do not answer; one sentence each."""

    @property
    def progresses(self) -> bool:
        return not self.culprits

    @property
    def wrong(self) -> tuple[str, ...]:
        """All that is not as it should be."""
        return (*self.culprits, *self.trying, *self.strained)

    def __str__(self) -> str:
        progresses = () if self.culprits or self.trying else ("the run progresses",)
        return "\n".join([*progresses, *self.wrong])


@dataclass(frozen=True)
class Readiness:
    """Whether a run works on what comes."""

    missing: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.missing

    def __str__(self) -> str:
        return "\n".join(self.missing) if self.missing else "ready"


def judged(statistics: Statistics | None, limit_s: float = STALL_S, silent_s: float | None = None) -> Health:
    """Whether the run progresses; None stands for one that has only just begun. A source may be silent for ``silent_s``
    seconds, else as long as all others may stand still. One that ends itself does not, for the reason that it has.

    >>> judged(None).progresses
    True
    """
    if statistics is not None and statistics.ending:
        return Health((statistics.ending,))
    culprits = tuple(found.said for found in _found(statistics, limit_s, silent_s))
    return Health(culprits, tuple(_strained(statistics)), tuple(_trying(statistics, culprits)))


def stalls(statistics: Statistics | None, limit_s: float = STALL_S, silent_s: float | None = None) -> list[Stall]:
    """Who has kept the run from progressing for longer than is allowed. A source that is connected and silent is none of
    these, unless ``silent_s`` says how long it may be so: a plant may have its quiet hours. ``limit_s`` may be infinite."""
    found = (
        one
        for one in _found(statistics, limit_s, silent_s)
        if one.lasts_s > one.limit_s and (silent_s is not None or not one.merely_silent)
    )
    return [Stall(one.said, one.source, one.limit_s) for one in found]


def held_loop(seconds: float) -> Health:
    """Of a run whose event loop has not answered for so long."""
    return Health((f"event loop: held, no answer for {_s(seconds)} s; code of the application blocks it",))


def is_ready(statistics: Statistics | None) -> Readiness:
    """Whether lanes and sinks are ready, and every source that connects has done so."""
    if statistics is None:
        return Readiness(("the run is being started",))
    if statistics.ending:
        return Readiness((statistics.ending,))
    if statistics.stopping:
        return Readiness(("the run is being stopped",))
    missing: list[str] = []
    if statistics.trouble is not None:
        missing += [found.said for found in _refused(statistics, STALL_S)]
    elif not statistics.ready:
        missing.append("lanes and sinks are being made ready")
    missing += [
        f"source {source.name}: {_how(source)}"
        for source in statistics.source_flows
        if source.live and not source.connected and not source.ended
    ]
    return Readiness(tuple(missing))


# -- the culprits, from the sinks back to the sources -------------------------------------------------------


@dataclass(frozen=True)
class _Culprit:
    said: str
    lasts_s: float
    limit_s: float
    source: str = ""
    """Its name, if it is one that can be connected anew."""
    merely_silent: bool = False
    """It is a source that is connected: perhaps there is nothing to say."""


def _found(statistics: Statistics | None, limit_s: float, silent_s: float | None) -> list[_Culprit]:
    if statistics is None or statistics.stopping:
        return []
    standing = [*_stuck(statistics, limit_s)]
    since_s = max((one.lasts_s + _TOGETHER_S for one in standing), default=0.0)
    stuck = [*_refused(statistics, limit_s), *standing] or [*_waiting_for_checkpoint(statistics, limit_s)]
    return [*stuck, *_silent(statistics, limit_s, silent_s, since_s, blameless=bool(stuck))]


def _refused(statistics: Statistics, limit_s: float) -> Iterator[_Culprit]:
    """At once what has ended an attempt; a sink that tries again by itself when that has lasted."""
    for trouble in statistics.troubles:
        ended = statistics.trouble is not None and trouble.culprit == statistics.trouble.culprit
        if ended or trouble.lasts_s > limit_s:
            yield _Culprit(_away(trouble), trouble.lasts_s, limit_s)


def _stuck(statistics: Statistics, limit_s: float) -> Iterator[_Culprit]:
    if statistics.trouble is not None:
        return  # it begins again: nothing that waits has a place yet
    if not statistics.ready:
        if statistics.seconds > limit_s:
            told = f"start: lanes and sinks are not ready after {_over(statistics.seconds, limit_s)}"
            yield _Culprit(told, statistics.seconds, limit_s)
        return
    more_s = 0.0 if statistics.state is None else statistics.state.interval_s  # rows wait so long for their commit
    stuck_sinks = [sink for sink in statistics.sink_flows if sink.waiting_s > limit_s + more_s]
    refused = [sink for sink in stuck_sinks if sink.trouble is not None and sink.trouble.lasts_s > limit_s]
    yield from (_stuck_sink(sink, sink.waiting_s, limit_s + more_s) for sink in stuck_sinks if sink not in refused)
    if not stuck_sinks:  # a sink that takes nothing stops the lanes too
        yield from (_stuck_lane(lane, limit_s) for lane in statistics.lane_flows if lane.waiting_s > limit_s)


def _stuck_sink(sink: SinkFlow, lasts_s: float, limit_s: float) -> _Culprit:
    told = f"sink {sink.name}: {_batches(sink)}, the oldest for {_over(sink.waiting_s, limit_s)}"
    return _Culprit(told if sink.trouble is None else _away(sink.trouble), lasts_s, limit_s)


def _stuck_lane(lane: LaneFlow, limit_s: float) -> _Culprit:
    told = f"lane {lane.number}: {counted(lane.in_flight, 'slab')}, none finished for {_over(lane.waiting_s, limit_s)}"
    told += f", in a call of {lane.at}" * bool(lane.at)
    return _Culprit(told, lane.waiting_s, limit_s)


def _waiting_for_checkpoint(statistics: Statistics, limit_s: float) -> Iterator[_Culprit]:
    """Or rather the sinks that it waits for: what they have was handed to them a moment later."""
    state = statistics.state
    if state is None or state.waiting_s <= limit_s + state.interval_s or not statistics.ready:
        return
    limit_s += state.interval_s
    late_s = limit_s - _TOGETHER_S
    sinks = [
        one for one in statistics.sink_flows if one.waiting and (one.trouble is not None or one.waiting_s > late_s)
    ]
    yield from (_stuck_sink(sink, state.waiting_s, limit_s) for sink in sinks)
    if not sinks:
        inputs = "1 input has" if state.behind == 1 else f"{state.behind:,} inputs have"
        told = f"checkpoint: {inputs} waited for one for {_over(state.waiting_s, limit_s)}"
        yield _Culprit(told, state.waiting_s, limit_s)


def _silent(
    statistics: Statistics, limit_s: float, silent_s: float | None, since_s: float, *, blameless: bool
) -> Iterator[_Culprit]:
    """``since_s``: for how long lanes or sinks stand still; who is connected and fell silent with them waits for them."""
    connected_s = limit_s if silent_s is None else silent_s
    for source in statistics.source_flows:
        anew = source.name if source.dials else ""
        allowed_s = connected_s if source.connected else min(connected_s, limit_s)
        silent_for_s = source.last_record_age_s
        if source.ended or not source.live:
            continue
        if source.tries and not source.connected:
            yield _Culprit(f"source {source.name}: {_how(source)}", silent_for_s, allowed_s, anew)
        elif source.held_s > limit_s:
            if not blameless:
                log_full = statistics.state is not None and statistics.state.log_full
                why = "the ingest log is full" if log_full else "it is not taken in"
                told = f"source {source.name}: what it gave has waited for {_over(source.held_s, limit_s)}: {why}"
                yield _Culprit(told, source.held_s, limit_s)
        elif not source.held_s and silent_for_s > (max(allowed_s, since_s) if source.connected else allowed_s):
            told = f"source {source.name}: {_how(source)}, silent {_over(silent_for_s, allowed_s)}"
            yield _Culprit(told, silent_for_s, allowed_s, anew, merely_silent=source.connected)


# -- what will not go on for long ---------------------------------------------------------------------------


def _trying(statistics: Statistics | None, culprits: tuple[str, ...]) -> Iterator[str]:
    """But for those that are called culprits."""
    if statistics is None or statistics.stopping:
        return
    yield from (said for trouble in statistics.troubles if (said := _away(trouble)) not in culprits)
    if statistics.trouble is not None or not statistics.ready:
        return
    for sink in statistics.sink_flows:
        told = any(culprit.startswith(f"sink {sink.name}: ") for culprit in culprits)
        if sink.call_s > _CALL_S and sink.trouble is None and not told:
            yield f"sink {sink.name}: no answer for {_s(sink.call_s)} s, {_batches(sink)}"


def _strained(statistics: Statistics | None) -> Iterator[str]:
    if statistics is None or statistics.stopping:
        return
    yield from (found.said for found in statistics.mostly_dead)
    yield from (
        f"lane {lane.number}: its process was lost {lane.lost_lately:,} times within {LATELY_S:.0f} s; the dead letters say "
        "to which records, or the log to what else"
        for lane in statistics.lane_flows
        if lane.lost_lately >= _OFTEN
    )
    yield from (
        f"source {source.name}: at least {source.away_lately:,} connections were turned away within {LATELY_S:.0f} s, "
        f"the last from {_line(source.last_away)}"
        for source in statistics.source_flows
        if source.away_lately >= _OFTEN
    )
    state = statistics.state
    if state is None:
        return
    if state.log_full:
        yield f"ingest log: full, so sources wait: {state.log_why_full}"
    elif state.log_filled > NEARLY_FULL:
        for_s = f" and lasts {_s(state.log_seconds_left)} s at the present rate" if state.log_seconds_left < 1e6 else ""
        yield f"ingest log: {state.log_filled:.0%} full; what is left is {state.log_room_bytes / 1e6:,.1f} MB{for_s}"


# -- words ------------------------------------------------------------------------------------------------


def _how(source: SourceFlow) -> str:
    if source.connected:
        return "connected"
    why = [_line(source.trouble)] if source.trouble else []
    return ", ".join([_tries(source.tries), *why] if source.tries else ["not connected", *why])


def _away(trouble: Trouble) -> str:
    return f"{trouble.culprit or 'the outside'}: {_tries(trouble.tries)}, {_line(trouble.said)}"


def _batches(sink: SinkFlow) -> str:
    return "1 batch waits" if sink.waiting == 1 else f"{sink.waiting:,} batches wait"


def _tries(tries: int) -> str:
    return counted(tries, "try", "tries")


def _over(seconds: float, limit_s: float) -> str:
    return f"{_s(seconds)} s (limit {_s(limit_s)})"


def _s(seconds: float) -> str:
    """Whole seconds, or what is more precise for a small limit.

    >>> _s(312.4), _s(0.25)
    ('312', '0.25')
    """
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.3g}"


def _line(said: str) -> str:
    """One line of what was said, and no more than a page has room for.

    >>> _line("refused by\\n  the host.")
    'refused by the host'
    """
    return in_one_line(said.rstrip(" \n."), longest=_LONGEST)
