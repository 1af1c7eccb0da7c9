"""One awaited call a record, micro-batched underneath."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, Final

from tidemill.core.batching import Batcher, Limits
from tidemill.engine.backpressure import dropped, refused
from tidemill.engine.batch_limits import BatchedStatistics, BatchLimits
from tidemill.engine.call_process import Request
from tidemill.engine.crew import Crew
from tidemill.engine.endings import own, settle, unsendable
from tidemill.engine.functions_sent import SentFunction
from tidemill.engine.options import check_timeout
from tidemill.errors import CallError, LaneDied
from tidemill.lanes.call_codec import MAX_BYTES, Answer, Parcel, dumps_arguments
from tidemill.lanes.framing import Discarded

__all__ = ["Batched"]

_running_loop: Final = asyncio._get_running_loop
"""None where no loop runs, in a tenth of the time that the public one takes to raise."""
_PRUNE: Final = 1024
"""Records whose callers gave up that may lie among those that wait before they are swept out."""
_ENDS_A_TURN: Final = 1_000
"""Records that time out in one turn of the loop, at most: a millisecond, and as long for the tasks that are told."""
_PATIENCE_S: Final = 0.02
"""Seconds that records wait for a lane with room before they take a place behind the calls of others."""


class _Awaited(asyncio.Future[Any]):
    """What a caller awaits. It knows its place, so that giving up costs nothing to those who do not."""

    __slots__ = ("deadline_s", "parcel", "place")

    deadline_s: float
    parcel: Any
    """What is sent; the record itself while its caller is blocked; None when it was given up."""
    place: Batched | _Batch

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg):
            return False
        self.place.given_up(self)
        return True


class Batched:
    """``await batched(record)`` gives what the function made of that record; see `tidemill.Lanes.batched`.

    A batch is formed when a lane has room: of one record when all is quiet, of what has gathered meanwhile under load,
    divided between the lanes that are idle.
    """

    def __init__(
        self,
        crew: Crew,
        check: Callable[[], object],
        name: str,
        function: Callable[..., Any],
        sent: SentFunction,
        limits: BatchLimits,
    ) -> None:
        self._crew = crew
        crew.holders.add(self)
        self._check = check
        self._name = name
        self._function = function  # keeps its number
        self._sent = sent
        self._limits = limits
        self._max_waiting, self._max_waiting_bytes = limits.max_waiting, limits.max_waiting_bytes
        self._timeout_s = check_timeout(limits.timeout)
        most_bytes = min(limits.max_batch_bytes, MAX_BYTES)  # more fits in no message
        self._batcher = Batcher(Limits(max_records=limits.max_batch, max_bytes=most_bytes))
        self._waiting: deque[_Awaited] = deque()
        self._waiting_bytes = 0
        self._gone = 0  # among those that wait
        self._blocked: deque[_Awaited] = deque()
        self._batches: dict[_Batch, None] = {}
        self._scheduled = False
        self._passed_over_s: float | None = None
        """Since when records wait for a lane, and none was sent; None when none wait."""
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._records = self._sent_batches = self._timed_out = self._rejected = self._dropped = 0

    def __call__(self, record: Any) -> asyncio.Future[Any]:
        """Send a record; the future's result is its value, its exception its own error. It is no coroutine: ``asyncio.gather``
        takes it, ``asyncio.create_task`` does not.

        Raises `CallError` at once when the record cannot be pickled or the lanes are closed, and `LanesFull` when too
        many records wait and ``when_full="reject"``.
        """
        if not self._scheduled or self._crew.closed or _running_loop() is not self._loop:
            self._check()  # once a turn is enough here
        if len(self._waiting) - self._gone >= self._max_waiting or self._waiting_bytes >= self._max_waiting_bytes:
            if self._limits.when_full == "block":
                return self._block(record)
            self._make_room()
        elif self._blocked:
            return self._block(record)
        parcel = dumps_arguments(record, {"the record": record})
        future = _Awaited(loop=self._loop)
        future.parcel = parcel
        future.place = self
        if self._timeout_s is not None:
            self._due(future)
        self._waiting.append(future)
        self._waiting_bytes += parcel.size
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._begin)  # whatever else this turn of the loop sends goes along
        return future

    def statistics(self) -> BatchedStatistics:
        """How it is, now."""
        batcher = self._batcher.statistics()
        return BatchedStatistics(
            len(self._waiting) - self._gone,
            self._waiting_bytes,
            sum(not future.done() for future in self._blocked),
            self._records,
            self._sent_batches,
            batcher.cap,
            batcher.cost_s,
            self._timed_out,
            self._rejected,
            self._dropped,
        )

    # -- waiting ---------------------------------------------------------------------------------------

    def _block(self, record: Any) -> _Awaited:
        """The caller waits; its record is pickled when there is room."""
        future = _Awaited(loop=self._loop)
        future.parcel = record
        future.place = self
        if self._timeout_s is not None:
            self._due(future)
        self._blocked.append(future)
        return future

    def _make_room(self) -> None:
        if self._limits.when_full == "reject":
            self._rejected += 1
            raise refused(self._name, self._why_full)
        while self._waiting:
            oldest = self._waiting.popleft()
            if oldest.done():
                self._gone -= 1
                continue
            self._waiting_bytes -= oldest.parcel.size
            self._dropped += 1
            oldest.set_exception(dropped(self._name, self._why_full))
            return

    @property
    def _why_full(self) -> str:
        limits = self._limits
        return (
            f"{len(self._waiting) - self._gone:,} records ({self._waiting_bytes:,} bytes) wait, with "
            f"max_waiting={limits.max_waiting:,} and max_waiting_bytes={limits.max_waiting_bytes:,}"
        )

    def _unblock(self) -> None:
        """Callers that were blocked, first come first served, while there is room."""
        while (
            self._blocked
            and len(self._waiting) - self._gone < self._max_waiting
            and self._waiting_bytes < self._max_waiting_bytes
        ):
            future = self._blocked.popleft()
            if future.done():
                continue
            try:
                parcel = dumps_arguments(future.parcel, {"the record": future.parcel})
            except CallError as error:
                unsendable(future, error)
                continue
            future.parcel = parcel
            self._waiting.append(future)
            self._waiting_bytes += parcel.size

    def given_up(self, future: _Awaited) -> None:
        """Its caller does not want it any more; it waits here, for a batch or for room."""
        if isinstance(future.parcel, Parcel):
            self._waiting_bytes -= future.parcel.size
            self._gone += 1
        future.parcel = None
        if self._gone > _PRUNE and 2 * self._gone > len(self._waiting):
            self._waiting = deque(future for future in self._waiting if not future.done())
            self._gone = 0
        if self._blocked and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._begin)

    # -- batches ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._scheduled = False
        if self._crew.closed:  # in the same turn: `fail` tells them
            return
        self._unblock()
        if self._waiting:
            self._crew.feed_from(self)

    def feed(self) -> None:
        """Form batches while lanes have room (`tidemill.engine.crew.Feeder`)."""
        self._unblock()
        if self._passed_over_s is None:
            self._passed_over_s = self._time()
        while self._waiting:
            in_lanes = self._crew.calls.in_flight()
            in_flight = [0] if self._is_passed_over() else in_lanes
            slack_s = inf if self._timeout_s is None else self._waiting[0].deadline_s - self._loop.time()
            records = self._batcher.records(
                waiting=len(self._waiting), in_flight=in_flight, slack_s=slack_s, one_lane=True
            )
            if not records:
                return
            self._send(self._taken(records), alone=min(in_lanes, default=1) == 0)
            if self._blocked:
                self._unblock()
        self._passed_over_s = None
        self._crew.feed_no_more(self)

    def _is_passed_over(self) -> bool:
        """Whether others have kept all lanes full for a while: then one batch stands in line with their calls."""
        since_s = self._passed_over_s
        return not self._batches and since_s is not None and self._time() - since_s > _PATIENCE_S

    def _taken(self, records: int) -> list[_Awaited]:
        if self._waiting_bytes > self._batcher.limits.max_bytes:
            sizes = (0 if future.parcel is None else future.parcel.size for future in self._waiting)
            records = self._batcher.fitting(sizes, records)
        taken = [self._waiting.popleft() for _ in range(records)]
        batch = [future for future in taken if future.parcel is not None]
        self._gone -= len(taken) - len(batch)
        for future in batch:
            self._waiting_bytes -= future.parcel.size
        return batch

    def _send(self, records: list[_Awaited], *, alone: bool = False) -> None:
        if records:
            self._batcher.sent(len(records))
            self._passed_over_s = now_s = self._time()
            self._records += len(records)
            self._sent_batches += 1
            batch = _Batch(self, records, now_s if alone else None)
            self._batches[batch] = None
            parcels = [future.parcel for future in records]
            batch.request = Request(self._name, self._sent, parcels, batch.settle, listed=True)
            batch.call = self._crew.submit(batch.request, kept=True)

    def cancel(self, call: int) -> None:
        """Nobody waits for a batch any more."""
        self._crew.cancel(call)

    def ended(self, batch: _Batch, outcome: Sequence[Answer] | Exception) -> bool:
        """A batch came back, or will not; True when its records are to be sent again."""
        self._batches.pop(batch, None)
        if len(batch.records) < 2:
            return False
        if isinstance(outcome, Exception):
            return isinstance(outcome, LaneDied)
        return bool(outcome) and isinstance(outcome[0].data, Discarded)

    def again(self, records: list[_Awaited]) -> None:
        """The process died with these in one batch, or its results found no memory here: each goes alone now, and the one that
        kills, or whose result is too large, fails alone.
        """
        for future in records:
            if not future.done():
                self._send([future])

    def measured(self, records: int, busy_s: float, sent_s: float | None) -> None:
        """A batch took so long in its lane; ``sent_s`` is when it went, None when it waited there behind another."""
        travel_s = None if sent_s is None else self._loop.time() - sent_s - busy_s
        self._batcher.measured(records, busy_s, travel_s=travel_s)

    def fail(self, error: Exception) -> Iterator[None]:
        """The lanes are closing: tell those who wait (`tidemill.engine.crew.Holder`)."""
        while self._waiting or self._blocked:
            future = (self._waiting or self._blocked).popleft()
            if not future.done():
                future.set_exception(own(error))
            yield
        self._waiting_bytes = self._gone = 0

    # -- timeouts --------------------------------------------------------------------------------------

    def _due(self, future: _Awaited) -> None:
        """All have the same timeout, so they fall due in the order of their calls, and one timer will do."""
        future.deadline_s = self._time() + self._timeout_s  # type: ignore[operator]
        if self._timer is None:
            self._timer = self._loop.call_at(future.deadline_s, self._expire)

    def _expire(self) -> None:
        """A turn of the loop has some of them: whoever made many calls at once waits for all of their ends in one."""
        now_s, next_s, left = self._loop.time(), inf, _ENDS_A_TURN
        for records in [*(batch.records for batch in self._batches), self._waiting, self._blocked]:
            for future in list(records) if records and records[0].deadline_s <= now_s else records:
                if future.done():
                    continue
                if future.deadline_s > now_s or not left:
                    next_s = min(next_s, future.deadline_s)
                    break
                left -= 1
                self._timed_out += 1
                future.set_exception(
                    TimeoutError(f"{self._name}: no result within {self._timeout_s} s; the record was given up.")
                )
                future.place.given_up(future)
        self._timer = None if next_s == inf else self._loop.call_at(next_s, self._expire)


class _Batch:
    """Records in one call. It is stopped only when nobody waits for any of them."""

    __slots__ = ("_of", "_sent_s", "_wanted", "call", "records", "request")

    request: Request

    def __init__(self, of: Batched, records: list[_Awaited], sent_s: float | None) -> None:
        self._of = of
        self._sent_s = sent_s
        """When it went to a lane that was idle; None when it waits behind another."""
        self._wanted = len(records)
        self.records = records
        self.call = 0
        for future in records:
            future.place = self

    def given_up(self, future: _Awaited) -> None:
        """The caller of one of them does not want it any more."""
        self._wanted -= 1
        if not self._wanted:
            self._of.cancel(self.call)
            self._of.ended(self, ())

    def settle(self, outcome: Sequence[Answer] | Exception) -> None:
        """Each record's end to its own caller, whoever of the others is gone."""
        records = self.records
        if self._of.ended(self, outcome):
            self._of.again(records)
            return
        self.records = []  # they know their batch, and it them no longer
        request = self.request
        del self.request  # it knows this batch: a cycle would keep what was sent for the garbage collector
        if isinstance(outcome, Exception):
            for future in records:
                settle(future, outcome)
            return
        self._of.measured(len(records), request.busy_ns * 1e-9, self._sent_s)
        for future, answer in zip(records, outcome, strict=True):
            settle(future, answer)
