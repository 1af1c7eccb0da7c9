"""How a call ends for the future that its caller awaits."""

from __future__ import annotations

import asyncio
from typing import Any

from tidemill.errors import CallError, LaneDied
from tidemill.lanes.call_codec import Answer

__all__ = ["own", "settle"]


def settle(future: asyncio.Future[Any], answer: Answer | Exception) -> None:
    """Give a future its value or its error; nothing when its caller gave up."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(own(answer))
        return
    try:
        value = answer.value()
    except Exception as error:  # noqa: BLE001 - the call's own error, or a BadResult
        future.set_exception(error)
    else:
        future.set_result(value)


def own(error: Exception) -> Exception:
    """An error of one's own for each caller: tracebacks must not pile up on a shared one."""
    if isinstance(error, LaneDied):
        return LaneDied(str(error), error.signal, error.code)
    return type(error)(str(error)) if isinstance(error, (CallError, TimeoutError)) else error
