"""Code that lanes cannot import, there and back."""

from __future__ import annotations

import functools
import sys
from typing import ClassVar

import cloudpickle
import pytest

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Reading:
    seen: ClassVar[int] = 0

    def __init__(self, value: int) -> None:
        self.value = value
        Reading.seen += 1

    def doubled(self) -> int:
        return self.value * 2


class NoSensor(Exception):
    hint = "none yet"


def missing() -> None:
    raise NoSensor


async def test_an_answer_changes_no_class_of_the_application(one: tm.Lanes) -> None:
    """What an object or an error that comes back is of stays as it is here, whatever it was when it was sent."""
    assert type(await one.run(Reading, 1)) is Reading
    with pytest.raises(NoSensor):
        await one.run(missing)
    method, Reading.seen, NoSensor.hint = Reading.doubled, 50, "look at the cable"
    assert (await one.run(Reading, 21)).doubled() == 42
    with pytest.raises(NoSensor):
        await one.run(missing)
    assert (Reading.seen, Reading.doubled, NoSensor.hint) == (50, method, "look at the cable")


async def test_a_class_that_a_lane_has_is_brought_up_to_date(one: tm.Lanes) -> None:
    """As it is sent: an argument shows what its class is like at the call."""

    class Limit:
        value = 1

    for value in (1, 2):
        Limit.value = value
        assert await one.run(lambda limit: limit.value, Limit()) == value


@pytest.mark.parametrize("how", ["itself", "its_user", "in_a_stream"])
async def test_a_function_with_a_cache_goes_too(one: tm.Lanes, how: str) -> None:
    """It, and one that calls it."""

    @functools.lru_cache(maxsize=100)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    def next_to(n: int) -> int:
        return fibonacci(n) + 1

    match how:
        case "itself":
            assert await one.run(fibonacci, 50) == 12586269025
        case "its_user":
            assert await one.run(next_to, 50) == 12586269026
        case "in_a_stream":
            assert [number async for number in one.stream(next_to, [10, 50])] == [56, 12586269026]
