"""How a call ends for the future that its caller awaits."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

from tidemill.errors import CallError, LaneDied
from tidemill.lanes.call_codec import Answer

__all__ = ["own", "settle", "settler", "tell", "unsendable", "value_of"]


def settle(future: asyncio.Future[Any] | concurrent.futures.Future[Any], outcome: Answer | Exception) -> None:
    """Give a future its value or its error; nothing when its caller gave up."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(own(outcome))
        return
    try:
        value = outcome.value()
    except Exception as error:  # noqa: BLE001 - the call's own error, or a BadResult
        future.set_exception(error.with_traceback(None))  # frames of ours would keep its arguments
    else:
        future.set_result(value)


def settler(future: asyncio.Future[Any]) -> Callable[[Sequence[Answer] | Exception], None]:
    """The same for a request of one call."""

    def done(outcome: Sequence[Answer] | Exception) -> None:
        settle(future, outcome if isinstance(outcome, Exception) else outcome[0])

    return done


def tell(settle: Callable[[Any], None], outcome: Sequence[Answer] | Exception) -> None:
    """Tell whoever made a call of its end. What that raises is reported as the loop reports it of its own callbacks: it must
    not keep others from being told.
    """
    try:
        settle(outcome)
    except Exception as error:  # noqa: BLE001 - reported
        told = {"message": "The end of a call could not be told.", "exception": error}
        asyncio.get_running_loop().call_exception_handler(told)


def value_of(outcome: Answer | Exception) -> Any:
    """The value that a lane sent; raises the call's own error."""
    if isinstance(outcome, Exception):
        raise own(outcome)
    return outcome.value()


def own(error: Exception) -> Exception:
    """An error of one's own for each caller: tracebacks must not pile up on a shared one."""
    if isinstance(error, LaneDied):
        return LaneDied(error.args[0], error.signal, error.code, error.stderr)
    if not isinstance(error, (CallError, TimeoutError)):
        return error
    copy = type(error)(str(error))
    copy.__cause__ = error.__cause__
    return copy


def unsendable(future: asyncio.Future[Any] | concurrent.futures.Future[Any], error: CallError) -> None:
    """Give a future the error of pickling, which is told by its message; the frames in its cause lead to the future."""
    error.__cause__ = error.__context__ = None
    future.set_exception(error.with_traceback(None))
