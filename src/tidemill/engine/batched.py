"""One awaited call a record, micro-batched underneath."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from tidemill.core.batching import Batcher, Limits
from tidemill.engine.call_process import Request
from tidemill.engine.crew import Crew
from tidemill.engine.functions_sent import SentFunction, name_of
from tidemill.errors import CallError, LaneDied
from tidemill.lanes.call_codec import Answer, Parcel, dumps_arguments

__all__ = ["Batched"]

MAX_BATCH_BYTES: Final = 16 << 20
"""Large records make small batches."""

_Record = tuple[Parcel, "asyncio.Future[Any]"]


class Batched:
    """``await batched(record)`` gives what the function made of that record; see `tidemill.Lanes.batched`.

    A batch is formed when a lane has room: of one record when all is quiet, of what has gathered meanwhile under load,
    divided between the lanes that are idle.
    """

    def __init__(
        self, crew: Crew, check: Callable[[], None], function: Callable[..., Any], sent: SentFunction, max_batch: int
    ) -> None:
        self._crew = crew
        self._check = check
        self._name = f"lanes.batched({name_of(function)})"
        self._function = function  # keeps its number
        self._sent = sent
        self._batcher = Batcher(Limits(max_records=max_batch))
        self._waiting: deque[_Record] = deque()
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    def __call__(self, record: Any) -> asyncio.Future[Any]:
        """Send a record; the future's result is its value, its exception its own error.

        Raises `CallError` at once when the record cannot be pickled or the lanes are closed.
        """
        self._check()
        parcel = dumps_arguments(record, {"the record": record})
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((parcel, future))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._begin)  # whatever else this turn of the loop sends goes along
        return future

    def _begin(self) -> None:
        self._scheduled = False
        if self._waiting:
            self._crew.feed_from(self)

    def feed(self) -> None:
        """Form batches while lanes have room (`tidemill.engine.crew.Feeder`)."""
        while self._waiting:
            in_flight = self._crew.calls.in_flight()
            if not in_flight:
                return
            idle = in_flight.count(0)
            share = -(-len(self._waiting) // idle) if idle else len(self._waiting)
            records = self._batcher.records(waiting=share, in_flight=in_flight, free_slabs=1)
            if not records:
                return
            batch = self._taken(records)
            self._send([record for record in batch if not record[1].done()])
        self._crew.feed_no_more(self)

    def _taken(self, records: int) -> list[_Record]:
        batch: list[_Record] = []
        room = MAX_BATCH_BYTES
        while records and self._waiting and (room > 0 or not batch):
            batch.append(self._waiting.popleft())
            room -= batch[-1][0].size
            records -= 1
        return batch

    def fail(self, error: Exception) -> None:
        """The lanes are closing."""
        while self._waiting:
            future = self._waiting.popleft()[1]
            if not future.done():
                future.set_exception(error)

    def _send(self, batch: list[_Record]) -> None:
        if batch:
            _Batch(self._crew, self._name, self._sent, self._batcher, batch).send()


class _Batch:
    """Records in one call. It is stopped only when nobody waits for any of them."""

    def __init__(self, crew: Crew, name: str, sent: SentFunction, batcher: Batcher, records: list[_Record]) -> None:
        self._crew = crew
        self._name = name
        self._sent = sent
        self._batcher = batcher
        self._records = records
        self._wanted = len(records)
        self._call = 0

    def send(self) -> None:
        parcels = [parcel for parcel, _ in self._records]
        self._call = self._crew.submit(Request(self._name, self._sent, parcels, self._settle, listed=True))
        for _, future in self._records:
            future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._wanted -= 1
        if not self._wanted:
            self._crew.cancel(self._call)  # no-op when it has ended

    def _settle(self, outcome: Sequence[Answer] | Exception) -> None:
        if isinstance(outcome, LaneDied) and len(self._records) > 1:
            self._one_by_one()
            return
        answers: Sequence[Answer | Exception] = (
            [outcome] * len(self._records) if isinstance(outcome, Exception) else outcome
        )
        for (_, future), answer in zip(self._records, answers, strict=True):
            settle(future, answer)

    def _one_by_one(self) -> None:
        """The process died with the batch: each record goes alone now, and the one that kills fails alone."""
        for parcel, future in self._records:
            future.remove_done_callback(self._done)
            if not future.done():
                _Batch(self._crew, self._name, self._sent, self._batcher, [(parcel, future)]).send()


def settle(future: asyncio.Future[Any], answer: Answer | Exception) -> None:
    """Give a future its value or its error; nothing when its caller gave up."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(_own(answer))
        return
    try:
        value = answer.value()
    except Exception as error:  # noqa: BLE001 - the call's own error, or a BadResult
        future.set_exception(error)
    else:
        future.set_result(value)


def _own(error: Exception) -> Exception:
    """An error of one's own for each caller: tracebacks must not pile up on a shared one."""
    if isinstance(error, LaneDied):
        return LaneDied(str(error), error.signal, error.code)
    return type(error)(str(error)) if isinstance(error, (CallError, TimeoutError)) else error
