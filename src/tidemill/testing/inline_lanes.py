"""`InlineLanes`: lanes without processes."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tidemill.engine.batched import Batched
from tidemill.engine.call_process import Request
from tidemill.engine.lanes import Lanes
from tidemill.engine.lent import lending

__all__ = ["InlineLanes"]


class InlineLanes(Lanes):
    """`tidemill.Lanes` without processes: for the tests of programs that use lanes.

    Every call runs on the loop's thread when its turn comes, in order, so breakpoints and coverage see it; nothing can
    stop a function, and a function that ends its process ends the test. Arrays are lent for the call: behind it they
    are overwritten, so that a function that keeps a view of one is caught. (Those of `keyed` are left alone: to keep
    something is what its objects are for.)

    >>> import asyncio
    >>> async def main():
    ...     async with InlineLanes() as lanes:
    ...         return await lanes.run(sum, [1, 2, 3])
    >>> asyncio.run(main())
    6
    """

    def __init__(self) -> None:
        super().__init__(0)
        self._lending: weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = weakref.WeakKeyDictionary()

    def batched(self, fn: Callable[[list[Any]], Sequence[Any]], **options: Any) -> Batched:
        return super().batched(self._lender(fn), **options)

    def _request(self, fn: Callable[..., Any], *rest: Any) -> Request:
        return super()._request(self._lender(fn), *rest)

    def _lender(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The same one each time for a plain function, so that it is still sent once."""
        if not isinstance(fn, types.FunctionType):
            return lending(fn) if callable(fn) else fn
        return self._lending.get(fn) or self._lending.setdefault(fn, lending(fn))
