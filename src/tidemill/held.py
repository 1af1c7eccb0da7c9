"""The application's own code on the event loop: how long it holds it at a stretch, and whose a cancel is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

__all__ = ["Held", "is_cancelled"]

T = TypeVar("T")


class Held(Generic[T]):
    """Awaits ``work``; ``tell`` is given the nanoseconds of each of its steps, which end where it waits.

    >>> import asyncio
    >>> async def work():
    ...     await asyncio.sleep(0)
    ...     return "done"
    >>> ticks, steps = iter([0, 5, 100, 107]), []
    >>> async def main():
    ...     return await Held(work(), ticks.__next__, steps.append)
    >>> asyncio.run(main()), steps
    ('done', [5, 7])
    """

    def __init__(self, work: Awaitable[T], now: Callable[[], int], tell: Callable[[int], None]) -> None:
        self._work = work
        self._now = now
        self._tell = tell

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        resume: Callable[[], Any] = steps.__next__
        while True:
            began = self._now()
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                self._tell(self._now() - began)
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001 - a cancel, and whatever else is thrown in, is the work's
                resume = _throwing(steps, error)
            else:
                resume = _sending(steps, sent)


def is_cancelled() -> bool:
    """Whether somebody ends the present task, such as a log that has failed, though it may have met with an error too; else a
    CancelledError is of the code that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _throwing(steps: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


def _sending(steps: Any, value: Any) -> Callable[[], Any]:
    return lambda: steps.send(value) if value is not None else next(steps)
