"""To wait for the first of several things."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["first_of"]


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of them has ended; the others are cancelled then, and have ended, too.

    >>> asyncio.run(first_of(asyncio.sleep(0), asyncio.Event().wait()))
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
