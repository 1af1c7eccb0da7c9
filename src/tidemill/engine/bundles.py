"""The calls of a stream on their way to the lanes: several to a message, as many as their cost allows.

A call alone costs the parent some 100 us, most of it for the message and the waking. So calls wait here and go as a bundle
that keeps a lane busy for a few milliseconds. Each keeps its own result, error and death: a bundle
is run call by call, what is finished is known whatever the next one does to its process (`tidemill.lanes.finished`), and what
was not begun runs elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from tidemill.core.batching import Batcher, Limits
from tidemill.engine.call_process import Request
from tidemill.engine.crew import CLOSED, Crew
from tidemill.engine.endings import settle, settler, unsendable
from tidemill.engine.functions_sent import SentFunction
from tidemill.errors import CallError
from tidemill.lanes.call_codec import Answer, Parcel

__all__ = ["Bundles", "OneByOne"]

_MOST: Final = 64
_BYTES: Final = 96 << 10
"""Of the arguments of a bundle, and of its results, about: what is larger goes alone, and through the arena."""
_LOOK_S: Final = 0.02
"""After so long, the results of a bundle that are finished are taken, though another of its calls goes on."""


_Waiting = tuple["asyncio.Future[Any]", Parcel]
"""A call that was not sent: its future, and its arguments."""


class OneByOne:
    """The calls of a stream that cannot go together: each with a time of its own, or a callable that travels with it."""

    def __init__(self, crew: Crew, check: Callable[[], object], request: Callable[[Any, Any], Request]) -> None:
        self._crew, self._check, self._request = crew, check, request
        self._calls: dict[asyncio.Future[Any], int] = {}

    def submit(self, value: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._check()
            self._calls[future] = self._crew.submit(self._request(value, settler(future)), kept=True)  # by the window
        except CallError as error:  # at its place in the order, like every other
            unsendable(future, error)
        else:
            future.add_done_callback(lambda done: self._calls.pop(done, None))
        return future

    def abandon(self) -> None:
        calls, self._calls = self._calls, {}
        for future, call in calls.items():
            self._crew.cancel(call)
            future.cancel()  # an error that is still being copied would be one that nobody has seen


class Bundles:
    """Of one stream (`tidemill.engine.stream`): ``submit`` gives each value's future, ``abandon`` stops all that is left.

    It has as many bundles under way as keep each lane busy and one behind it; among the calls of others they stand in line
    as every call does.
    """

    def __init__(
        self,
        crew: Crew,
        check: Callable[[], object],
        function: SentFunction,
        pack: Callable[[Any], Parcel],
        window: int,
    ) -> None:
        self._crew, self._check, self._function, self._pack = crew, check, function, pack
        crew.holders.add(self)
        self._lanes = len(crew.lanes)
        # Each lane may have one behind the one it works on.
        most = max(1, min(_MOST, window // (2 * self._lanes)))
        self._batcher = Batcher(Limits(max_records=most, max_bytes=_BYTES), start=1)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._under_way: dict[_Bundle, None] = {}
        self._scheduled = self._abandoned = False
        self._looking: asyncio.TimerHandle | None = None
        self._result_bytes = 0.0
        """Of one call, lately."""

    def submit(self, value: Any) -> asyncio.Future[Any]:
        """Call the function with the value as soon as a lane has room; the future is the call's own."""
        future = self._loop.create_future()
        try:
            self._check()
            self._waiting.append((future, self._pack(value)))
        except CallError as error:  # at its place in the order, like every other
            unsendable(future, error)
            return future
        if not self._scheduled:
            self._scheduled = True
            self._crew.lines[self] = None
            self._loop.call_soon(self._begin)  # whatever else is submitted in this turn goes along
        return future

    def abandon(self) -> None:
        """Nobody asks for results any more."""
        self._abandoned = True
        self._waiting.clear()
        for bundle in list(self._under_way):
            self._crew.cancel(bundle.call)
            del bundle.request
        self._under_way.clear()
        self._crew.lines.pop(self, None)
        if self._looking is not None:
            self._looking.cancel()

    def waiting_calls(self) -> tuple[int, int]:
        """Calls that wait here, and bytes of their arguments (`tidemill.engine.crew.Line`)."""
        return len(self._waiting), sum(parcel.size for _, parcel in self._waiting)

    # -- out -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._scheduled = False
        if not self._crew.closed:  # in the same turn; else `fail` tells them
            self._send_some()

    def _send_some(self) -> None:
        while self._waiting and not self._abandoned:
            held, more = divmod(len(self._under_way), self._lanes)
            in_flight = [held + (lane < more) for lane in range(self._lanes)]
            records = self._batcher.records(waiting=len(self._waiting), in_flight=in_flight, one_lane=True)
            if not records:
                return
            taken = self._taken(records)
            self._batcher.sent(len(taken))
            self._send(taken)

    def _taken(self, records: int) -> list[_Waiting]:
        if self._result_bytes > 1:
            records = max(1, min(records, int(_BYTES / self._result_bytes)))
        records = self._batcher.fitting((parcel.size for _, parcel in self._waiting), records)
        return [self._waiting.popleft() for _ in range(records)]

    def _send(self, calls: list[_Waiting]) -> None:
        bundle = _Bundle(self, [future for future, _ in calls])
        parcels = [parcel for _, parcel in calls]
        bundle.request = Request(self._function.call_name, self._function, parcels, bundle.settle)
        self._under_way[bundle] = None
        bundle.call = self._crew.submit(bundle.request, kept=True)  # its bounds are the stream's window
        if self._looking is None and len(calls) > 1:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    # -- back ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """What is finished of bundles that are still under way."""
        self._looking = None
        several = [bundle for bundle in self._under_way if len(bundle.calls) > 1]
        for bundle in several:
            bundle.tell(0, bundle.request.finished)
            if (found := self._crew.finished(bundle.call)) is not None:
                bundle.tell(*found)
        if several:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    def ended(self, bundle: _Bundle, outcome: Sequence[Answer] | Exception) -> None:
        """It came back, or will not."""
        if bundle not in self._under_way:  # the stream was left while its large result was being copied
            return
        del self._under_way[bundle]
        request = bundle.request
        del bundle.request  # it knows the bundle: what was sent should be gone now, and not with the next collection
        if isinstance(outcome, Exception):
            bundle.tell(0, request.finished)
            self._lost(bundle, request, outcome)
        else:
            answers = [*request.finished, *outcome]
            size = sum(map(_size, answers)) / len(answers)
            self._result_bytes += 0.5 * (size - self._result_bytes)
            self._batcher.measured(len(answers), request.busy_ns * 1e-9)
            bundle.tell(0, answers)
            self._again(bundle, request, len(answers))  # those before them took long
        if not self._crew.closed:
            self._send_some()

    def _lost(self, bundle: _Bundle, request: Request, error: Exception) -> None:
        known = len(request.finished)
        left = bundle.calls[known:]
        if request.struck == "here":
            if left:  # else it died when all were finished
                settle(left[0], error)  # it ran; those behind it were not begun
                self._again(bundle, request, known + 1)
            return
        for future in left:  # any of them may have been run
            settle(future, error)
        if not (request.struck or request.unsent or self._crew.closed):  # no process can be had
            for _ in self.fail(error):
                pass

    def _again(self, bundle: _Bundle, request: Request, first: int) -> None:
        """Calls from this one on were not begun: they come before all others."""
        if self._crew.closed:
            for future in bundle.calls[first:]:
                settle(future, CallError(CLOSED))
            return
        calls = zip(bundle.calls[first:], request.parcels[first:], strict=True)
        self._waiting.extendleft(reversed(list(calls)))

    def fail(self, error: Exception) -> Iterator[None]:
        """What waits here will not be run either (`tidemill.engine.crew.Holder`)."""
        while self._waiting:
            settle(self._waiting.popleft()[0], error)
            yield


class _Bundle:
    """Calls that went together."""

    __slots__ = ("_of", "call", "calls", "request")

    request: Request

    def __init__(self, of: Bundles, calls: list[asyncio.Future[Any]]) -> None:
        self._of = of
        self.calls = calls
        self.call = 0

    def tell(self, first: int, answers: Sequence[Answer]) -> None:
        """These calls have these answers; one that was told before is not told again."""
        for future, answer in zip(self.calls[first:], answers, strict=False):
            settle(future, answer)

    def settle(self, outcome: Sequence[Answer] | Exception) -> None:
        self._of.ended(self, outcome)


def _size(answer: Answer) -> int:
    return len(answer.data) + (0 if answer.block is None else answer.block.nbytes)
