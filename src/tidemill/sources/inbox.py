"""A bounded buffer between what is pushed in and the source that is pulled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from tidemill.sources.base import SourceContext

__all__ = ["Inbox"]

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """Items with their sizes. Above ``high`` it asks for a pause, below a quarter of that for more, until it is closed.

    The limit is soft: what was on its way when the pause was asked for still fits.
    """

    def __init__(self, high: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.size = 0
        self.paused = False
        self._high = high
        self._pause = pause
        self._resume = resume
        self._items: deque[tuple[Item, int]] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, item: Item, size: int) -> None:
        """Add an item and wake whoever waits; never blocks."""
        self._items.append((item, size))
        self.size += size
        if not self._wake.is_set():
            self._wake.set()
        if self.size > self._high and not self.paused:
            self.paused = True
            self._pause()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._wake.set()

    def take(self, most: int) -> list[Item]:
        """The oldest items, up to a size of ``most`` in all, and at least one when there is one."""
        taken: list[Item] = []
        room = most
        while self._items and (not taken or self._items[0][1] <= room):
            item, size = self._items.popleft()
            taken.append(item)
            room -= size
            self.size -= size
        if self.paused and not self._closed and self.size <= self._high // 4:
            self.paused = False
            self._resume()
        return taken

    async def filled(self) -> bool:
        """Wait for an item; False when it is empty and nothing more will come."""
        while not self._items and not self._closed:
            self._wake.clear()
            await self._wake.wait()
        return bool(self._items)

    async def growing(self, most: int, *, turns: int = 1) -> None:
        """Wait until so many turns of the loop have brought nothing more, or there is a size of ``most``: who sends fast is taken
        many at a time."""
        before = quiet = 0
        while self.size < most and not self.paused:
            quiet = quiet + 1 if self.size == before else 0
            if quiet == turns:
                return
            before = self.size
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def until_stopping(self, context: SourceContext, stop: Callable[[], object]) -> AsyncIterator[None]:
        """While inside: when the run wants to end, ``stop`` is called and the inbox closed."""

        async def watch() -> None:
            await context.stopping.wait()
            stop()
            self.close()

        watching = asyncio.ensure_future(watch())
        try:
            yield
        finally:
            watching.cancel()
