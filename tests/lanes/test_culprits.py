"""What in a value cannot be sent is found by few looks, however large the value is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tidemill.by_value import dumps_by_value
from tidemill.errors import CallError
from tidemill.lanes.call_codec import dumps_function
from tidemill.lanes.culprits import culprit
from tidemill.lanes.parcels import pack

ROWS = 20_000


def counting() -> tuple[Any, list[int]]:
    """``pack``, and how many rows each call was given."""
    seen: list[int] = []

    def dumps(value: Any) -> object:
        seen.append(len(value) if isinstance(value, list | dict | tuple) else 1)
        return pack(value)

    return dumps, seen


@pytest.mark.parametrize("at", [0, 1, ROWS // 3, ROWS - 1])
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_one_bad_row_of_many_is_found_by_halves(at: int, kind: Any) -> None:
    """All together it looks at a few times as many rows as there are."""
    rows: list[Any] = [{"sensor": "S1", "value": 20.5} for _ in range(ROWS)]
    rows[at]["value"] = threading.Lock()
    value = dict(enumerate(rows)) if kind is dict else kind(rows)
    dumps, seen = counting()
    assert culprit(value, "argument 0", dumps) == f"argument 0[{at}]['value'], a lock,"
    assert sum(seen) < 3 * ROWS
    assert len(seen) < 50


def test_the_first_of_several_is_named() -> None:
    """As one reads them."""
    rows: list[Any] = list(range(1_000))
    rows[300] = rows[700] = threading.Lock()
    assert culprit(rows, "x") == "x[300], a lock,"


SAME = "a global"


def shadowing() -> Any:
    """A function that closes over a lock by the name of a global that a class inside of it means."""
    SAME = threading.Lock()

    def function() -> Any:
        class Inner:
            def look(self) -> Any:
                global SAME  # noqa: PLW0602 - past what is around it
                return SAME

        return SAME, Inner

    return function


def defaulting() -> Any:
    """A default by the name of a global that a class inside of the function means."""

    def function(SAME: Any = threading.Lock()) -> Any:  # noqa: B008 - that is what cannot be sent
        class Inner:
            def look(self) -> Any:
                global SAME  # noqa: PLW0602 - past what is around it
                return SAME

        return SAME, Inner

    return function


@pytest.mark.parametrize("make", [shadowing, defaulting])
def test_no_part_of_a_function_hides_another_of_its_name(make: Any) -> None:
    """What it closes over is named, whatever a class inside of it means by that name."""
    with pytest.raises(CallError, match="it closes over SAME, a lock "):
        dumps_function(make())
    assert culprit(make(), "x", dumps_by_value) == "SAME in x, a lock,"


def odd_signature(function: Any) -> None:
    function.__signature__ = "nonsense"


def wrapped_in_a_circle(function: Any) -> None:
    function.__wrapped__ = function


def odd_defaults(function: Any) -> None:
    function.__defaults__ = (1, *function.__defaults__)


@pytest.mark.parametrize("odd", [lambda _: None, odd_signature, wrapped_in_a_circle, odd_defaults])
def test_what_a_function_says_of_itself_keeps_nothing_from_being_named(odd: Callable[[Any], None]) -> None:
    """What it closes over, and its defaults, whatever its attributes are."""
    lock = threading.Lock()

    def closes() -> object:
        return lock

    def has(number: int = 1, mine: object = lock) -> object:
        return number, mine

    def has_named(*, number: int = 1, mine: object = lock) -> object:
        return number, mine

    for function, name in ((closes, "lock"), (has, "mine"), (has_named, "mine")):
        if odd is not odd_defaults or function is has:
            odd(function)
        with pytest.raises(CallError, match=rf"sent to a lane: it closes over {name}, a lock \("):
            dumps_function(function)


class Grouchy:
    """Can be pickled alone, and not beside another one."""

    packed = 0

    def __reduce__(self) -> Any:
        Grouchy.packed += 1
        if Grouchy.packed % 2 == 0:
            raise TypeError("not again")
        return Grouchy, ()


def test_what_cannot_be_told_by_its_parts_is_named_as_a_whole() -> None:
    """Rather than a part that is innocent, or none."""
    keys = {threading.Lock(): 1, **dict.fromkeys(range(100), 2)}
    assert culprit(keys, "x") == "x, a dict,"
    assert str(culprit([Grouchy(), Grouchy()], "x")).startswith("x")
