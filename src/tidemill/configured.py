"""What is made with options: a reference in one, ``${env:NAME}`` or ``${file:PATH}``, is looked up or refused."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from tidemill.annotations import signature_of
from tidemill.errors import InputError, PlanError
from tidemill.secret import SecretText, refers

__all__ = ["Configured", "looked_up"]


class Configured:
    """Never takes a reference for the text itself, whoever writes the class: its constructor sees what `looked_up_options`
    refer to, and those of `secret_options` as they were written. In all other options a reference is refused.

    Raises `PlanError` for one that is refused, or is none; `InputError` for one to something that is not there.

    >>> class Place(Configured):
    ...     looked_up_options = frozenset({"path"})
    ...     def __init__(self, path: str, *, tz: str = "UTC") -> None:
    ...         self.path = path
    >>> os.environ["PLANT_LINE"] = "7"
    >>> Place("lines/${env:PLANT_LINE}").path
    'lines/7'
    >>> Place("lines", tz="${env:ZONE}")
    Traceback (most recent call last):
    tidemill.errors.PlanError: tz= of Place takes no ${env:NAME} or ${file:PATH}; write the text itself. They are for path=.
    """

    looked_up_options: ClassVar[frozenset[str]] = frozenset()
    """Where it is and who it is there: references in them are looked up once, when it is made. What they stand for is shown
    as if it had been written out."""
    secret_options: ClassVar[frozenset[str]] = frozenset()
    """Who may use it: it looks these up itself, each as a `SecretText`, late, and never shows what they stand for."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _looking_up(cls.__init__)  # type: ignore[method-assign] # it does the same


def _looking_up(init: Callable[..., None]) -> Callable[..., None]:
    """The same constructor, of which one that it calls in turn may look again: what was looked up refers to nothing."""
    signature = signature_of(init)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])  # without self
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # named by whom they are handed on to

    @functools.wraps(init)
    def made(self: Configured, *arguments: Any, **options: Any) -> None:
        if any(map(_refers, arguments)) or any(map(_refers, options.values())):
            bound = signature.bind(*arguments, **options)
            for name, given in bound.arguments.items():
                if _refers(given) and signature.parameters[name].kind not in unnamed:
                    bound.arguments[name] = _option(type(self), name, given)
            init(self, *bound.args, **bound.kwargs)
        else:
            init(self, *arguments, **options)

    return made


def _option(of: type[Configured], name: str, given: Any) -> Any:
    if name in of.secret_options:
        return given
    option = f"{name}= of {of.__name__}"
    if name not in of.looked_up_options or isinstance(given, Mapping):
        taken = ", ".join(f"{one}=" for one in sorted(of.looked_up_options | of.secret_options))
        where = f" They are for {taken}." if taken else ""
        raise PlanError(f"{option} takes no ${{env:NAME}} or ${{file:PATH}}; write the text itself.{where}")
    if isinstance(given, str):
        return looked_up(given, option)
    if isinstance(given, os.PathLike):
        return Path(looked_up(os.fsdecode(given), option))
    return [looked_up(text, option) if isinstance(text, str) else text for text in given]


def looked_up(text: str, option: str) -> str:
    """The text with what its references stand for; ``option`` is what errors call it."""
    found = SecretText(text, option).resolved()
    if refers(found):
        raise InputError(f"{option} refers to something that refers to something else; keep there what it stands for.")
    return found


def _refers(given: Any) -> bool:
    return any(map(refers, _texts(given)))


def _texts(given: Any) -> Iterator[str]:
    """The texts of an option; rows of an application are none, however many they are."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, os.PathLike):
        yield os.fsdecode(given)
    elif isinstance(given, Mapping):
        yield from (text for pair in given.items() for text in pair if isinstance(text, str))
    elif isinstance(given, list | tuple) and given and isinstance(given[0], str):
        yield from (text for text in given if isinstance(text, str))
