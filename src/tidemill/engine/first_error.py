"""Of the errors of a group of tasks, the one to tell."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

__all__ = ["first_error", "one_error"]


@contextlib.asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """Around a TaskGroup: raises the first leaf of what it raises."""
    try:
        yield
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a group: the others followed from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
