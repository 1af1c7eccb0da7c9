"""What each process does before it takes calls: import modules, run the user's initializer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from tidemill.by_value import dumps_by_value
from tidemill.initialized import InitializedGlobals, initialized_here
from tidemill.lanes.parcels import unpack

__all__ = ["Imports", "Initializer", "NotImported", "begin"]


class NotImported(ImportError):
    """A module raised something at its import, which may be more than an error: ``sys.exit``."""


class Imports:
    """Unpickling it imports modules: for the fork server, before it forks."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = tuple(modules)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _imported, (self.modules,)


def _imported(modules: Sequence[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # sys.exit() too must not end who imports
            raise NotImported(
                f"the module {module!r} could not be imported ({type(error).__name__}: {error})"
            ) from error


class Initializer:
    """Unpickling it gives a function of the user's, which travels as those of calls do: pickle might send its name alone."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        return unpack, (dumps_by_value(self.function),)


def begin(modules: Sequence[str], initializer: Callable[..., object] | None, arguments: Sequence[Any]) -> None:
    """The first call of a process. What could not be imported in the fork server fails here, where it is reported."""
    _imported(modules)
    with (initialized_here.get() or InitializedGlobals()).kept():
        if initializer is not None:
            initializer(*arguments)
