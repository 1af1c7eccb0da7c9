"""How `tidemill.Lanes` are: one frozen reading."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.clock import SystemClock
from tidemill.engine.crew import Crew
from tidemill.engine.loop_lag import LagMonitor
from tidemill.engine.metrics import Quantiles

__all__ = ["LaneUse", "LanesReader", "LanesStatistics"]


@dataclass(frozen=True)
class LaneUse:
    """One lane, now."""

    busy: float
    """Share of the time since the last reading spent in calls that ended in it, 0 to 1."""
    in_flight: int
    """Messages with calls that it has and has not answered; the first of them is running."""
    done: int
    """Messages with calls that it answered; a batch of records is one, and short calls of a stream go together."""
    items: int
    """Values and errors in its answers: more than messages where `Lanes.batched` or `Lanes.stream` put several into one."""
    sent_bytes: int
    """Bytes of arguments that went to it."""
    received_bytes: int
    """Bytes of values and errors that came from it."""
    arena_bytes: int
    """Memory that its arena takes from the machine now: what large arguments and results have used so far."""
    restarts: int
    """Times that its process died or was killed, and was replaced."""
    recycled: int
    """Times that its process had served long enough (``recycle_after``, ``recycle_rss``), and was replaced."""
    pid: int | None
    """Its process; None inline, or while a new one is being started."""


@dataclass(frozen=True)
class LanesStatistics:
    """How the lanes are."""

    lanes: tuple[LaneUse, ...]
    waiting: int
    """Calls that no lane has yet."""
    waiting_bytes: int
    """Bytes of their arguments."""
    blocked: int
    """Callers that wait until a call may wait."""
    rejected: int
    """Calls refused because too many waited (``when_full="reject"``), since the beginning."""
    dropped: int
    """Calls dropped for newer ones (``when_full="drop_oldest"``), since the beginning."""
    depth: int
    """Calls that a busy lane may hold, by what calls cost."""
    loop_lag: Quantiles
    """How late the event loop came back to a timer, since the lanes were opened."""


class LanesReader:
    """Reads a crew; busy shares are since the reading before."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._clock = SystemClock()
        self._at_ns = self._clock.monotonic_ns()
        self._busy_ns = [0] * len(crew.lanes)
        self._lag = LagMonitor(self._clock)
        self._lag.start()

    def close(self) -> None:
        """Measure no more."""
        self._lag.stop()

    def read(self) -> LanesStatistics:
        """See `tidemill.Lanes.statistics`."""
        crew, now_ns = self._crew, self._clock.monotonic_ns()
        calls, passed_ns = crew.calls.statistics(), max(now_ns - self._at_ns, 1)
        uses = tuple(
            LaneUse(
                busy=min(1.0, (lane.busy_ns - before_ns) / passed_ns),
                in_flight=0 if crew.closed else calls.in_lanes[number],
                done=lane.done,
                items=lane.items,
                sent_bytes=lane.sent_bytes,
                received_bytes=lane.received_bytes,
                arena_bytes=crew.staff.arena_bytes(number),
                restarts=lane.restarts,
                recycled=lane.recycled,
                pid=crew.staff.pid(number),
            )
            for number, (lane, before_ns) in enumerate(zip(crew.lanes, self._busy_ns, strict=True))
        )
        self._at_ns, self._busy_ns = now_ns, [lane.busy_ns for lane in crew.lanes]
        door = crew.door
        waiting, waiting_bytes = crew.waiting_calls()
        return LanesStatistics(
            lanes=uses,
            waiting=waiting,
            waiting_bytes=waiting_bytes,
            blocked=len(door.line),
            rejected=door.rejected,
            dropped=door.dropped,
            depth=calls.depth,
            loop_lag=self._lag.histogram.quantiles(),
        )
