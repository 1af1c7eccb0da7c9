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

from tidemill.core.flows import LaneFlow, SinkFlow, SourceFlow
from tidemill.engine.metrics import Statistics

__all__ = ["STALL_S", "Health", "Readiness", "held_loop", "is_ready", "judged"]

STALL_S: Final = 300.0
"""Seconds without progress after which a run counts as stalled, unless it says otherwise."""
_LONGEST: Final = 400
"""Characters of what an error said; a health page is read at a glance."""


@dataclass(frozen=True)
class Health:
    """Whether a run progresses."""

    culprits: tuple[str, ...] = ()
    """One sentence each, the one to look at first first; none when all is well."""

    @property
    def progresses(self) -> bool:
        return not self.culprits

    def __str__(self) -> str:
        return "\n".join(self.culprits) if self.culprits else "the run progresses"


@dataclass(frozen=True)
class Readiness:
    """Whether a run works on what comes."""

    missing: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.missing

    def __str__(self) -> str:
        return "\n".join(self.missing) if self.missing else "ready"


def judged(statistics: Statistics | None, limit_s: float = STALL_S) -> Health:
    """Whether the run progresses; None stands for one that has only just begun.

    >>> judged(None).progresses
    True
    """
    if statistics is None or statistics.stopping:
        return Health()
    stuck = [*_refused(statistics), *_stuck(statistics, limit_s)]
    if not stuck:
        stuck = [*_waiting_for_checkpoint(statistics, limit_s)]
    return Health((*stuck, *_silent(statistics, limit_s, blameless=bool(stuck))))


def held_loop(seconds: float) -> Health:
    """Of a run whose event loop has not answered for so long."""
    return Health((f"event loop: held, no answer for {_s(seconds)} s; code of the application blocks it",))


def is_ready(statistics: Statistics | None) -> Readiness:
    """Whether lanes and sinks are ready, and every source that connects has done so."""
    if statistics is None:
        return Readiness(("the run is being started",))
    if statistics.stopping:
        return Readiness(("the run is being stopped",))
    missing: list[str] = []
    if statistics.trouble is not None:
        missing += _refused(statistics)
    elif not statistics.ready:
        missing.append("lanes and sinks are being made ready")
    missing += [
        f"source {source.name}: {_how(source)}"
        for source in statistics.source_flows
        if source.live and not source.connected and not source.ended
    ]
    return Readiness(tuple(missing))


# -- the culprits, from the sinks back to the sources -------------------------------------------------------


def _refused(statistics: Statistics) -> Iterator[str]:
    trouble = statistics.trouble
    if trouble is not None:
        said = " ".join(trouble.said.split()).rstrip(".")
        yield f"{trouble.culprit or 'the outside'}: {_tries(trouble.tries)}, {_cut(said)}"


def _stuck(statistics: Statistics, limit_s: float) -> Iterator[str]:
    if statistics.trouble is not None:
        return  # it begins again: nothing that waits has a place yet
    if not statistics.ready:
        if statistics.seconds > limit_s:
            yield f"start: lanes and sinks are not ready after {_over(statistics.seconds, limit_s)}"
        return
    more_s = 0.0 if statistics.state is None else statistics.state.interval_s  # rows wait so long for their commit
    stuck_sinks = [sink for sink in statistics.sink_flows if sink.waiting_s > limit_s + more_s]
    yield from (_stuck_sink(sink, limit_s + more_s) for sink in stuck_sinks)
    if not stuck_sinks:  # a sink that takes nothing stops the lanes too
        yield from (_stuck_lane(lane, limit_s) for lane in statistics.lane_flows if lane.waiting_s > limit_s)


def _stuck_sink(sink: SinkFlow, limit_s: float) -> str:
    batches = "1 batch waits" if sink.waiting == 1 else f"{sink.waiting:,} batches wait"
    return f"sink {sink.name}: {batches}, the oldest for {_over(sink.waiting_s, limit_s)}"


def _stuck_lane(lane: LaneFlow, limit_s: float) -> str:
    slabs = "1 slab" if lane.in_flight == 1 else f"{lane.in_flight:,} slabs"
    return f"lane {lane.number}: {slabs}, none finished for {_over(lane.waiting_s, limit_s)}"


def _waiting_for_checkpoint(statistics: Statistics, limit_s: float) -> Iterator[str]:
    state = statistics.state
    if state is not None and state.waiting_s > limit_s + state.interval_s and statistics.ready:
        yield f"checkpoint: {state.behind:,} inputs have waited for one for {_over(state.waiting_s, limit_s + state.interval_s)}"


def _silent(statistics: Statistics, limit_s: float, *, blameless: bool) -> Iterator[str]:
    for source in statistics.source_flows:
        if source.ended or not source.live:
            continue
        if source.tries and not source.connected:
            yield f"source {source.name}: {_how(source)}"
        elif source.held_s > limit_s:
            if not blameless:
                full = (
                    "the ingest log is full" if statistics.state and statistics.state.log_full else "it is not taken in"
                )
                yield f"source {source.name}: what it gave has waited for {_over(source.held_s, limit_s)}: {full}"
        elif not source.held_s and source.last_record_age_s > limit_s:
            yield f"source {source.name}: {_how(source)}, silent {_over(source.last_record_age_s, limit_s)}"


# -- words ------------------------------------------------------------------------------------------------


def _how(source: SourceFlow) -> str:
    if source.connected:
        return "connected"
    why = [_cut(" ".join(source.trouble.split()).rstrip("."))] if source.trouble else []
    return ", ".join([_tries(source.tries), *why] if source.tries else ["not connected", *why])


def _tries(tries: int) -> str:
    return "1 try" if tries == 1 else f"{tries:,} tries"


def _over(seconds: float, limit_s: float) -> str:
    return f"{_s(seconds)} s (limit {_s(limit_s)})"


def _s(seconds: float) -> str:
    """Whole seconds, or what is more precise for a small limit.

    >>> _s(312.4), _s(0.25)
    ('312', '0.25')
    """
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.3g}"


def _cut(said: str) -> str:
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
