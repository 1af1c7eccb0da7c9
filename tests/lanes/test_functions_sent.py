"""Which function a number stands for: the one that was given, whatever happens at the same time."""

from __future__ import annotations

import gc
from typing import Any

from tidemill.engine.functions_sent import FunctionsSent


def first() -> None: ...


def second() -> None: ...


class Alike(type):
    """Classes that say that they equal each other."""

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, Alike)

    def __hash__(cls) -> int:
        return 1


class A(metaclass=Alike): ...


class B(metaclass=Alike): ...


def test_another_thread_may_ask_while_one_asks() -> None:
    """For another function, between the look at which was the last and the look at what was made of it."""
    functions = FunctionsSent()
    sent = functions.of(first)

    last = functions._last

    def meanwhile() -> Any:
        functions._last = last
        functions.of(second)
        return first

    functions._last = (meanwhile, last[1])
    assert functions.of(first) is sent


def test_classes_that_equal_each_other_are_two() -> None:
    functions = FunctionsSent()
    made, other = functions.of(A), functions.of(B)
    assert made is not other
    assert functions.of(A) is made


def test_what_the_application_let_go_is_not_kept() -> None:
    functions = FunctionsSent()
    for number in range(100):
        functions.of(lambda n=number: n)  # type: ignore[misc]
    gc.collect()
    assert len(functions._sent) <= 1
