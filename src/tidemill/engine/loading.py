"""Reading a pipeline file without starting what stands at its foot.

A file may end in ``tm.run(pipeline)`` so that ``python plant.py`` works. ``tidemill run plant.py`` executes the same
file only to find the pipeline: inside `loading`, a call of ``tm.run`` or ``tm.serve`` ends the file at that line, and
every name above it is usable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["LoadedFar", "loading", "stop_if_loading"]

# A context variable, not a global: tasks started by the file inherit it, and code after `loading` never sees it.
_loading: ContextVar[bool] = ContextVar("tidemill_loading", default=False)


class LoadedFar(BaseException):
    """The file has been read as far as its own ``tm.run`` or ``tm.serve``; not an error."""

    def __init__(self, pipeline: object = None) -> None:
        super().__init__("the pipeline file was read as far as its own tm.run or tm.serve")
        self.pipeline = pipeline
        """What the file wanted to run; a file need not name its pipeline."""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """While open, `stop_if_loading` raises.

    >>> with loading():
    ...     stop_if_loading("the pipeline")
    Traceback (most recent call last):
    tidemill.engine.loading.LoadedFar: the pipeline file was read as far as its own tm.run or tm.serve
    >>> stop_if_loading()
    """
    token = _loading.set(True)
    try:
        yield
    finally:
        _loading.reset(token)


def stop_if_loading(pipeline: object = None) -> None:
    """Called first by everything that would start a run; raises `LoadedFar` while a file is being read."""
    if _loading.get():
        raise LoadedFar(pipeline)
