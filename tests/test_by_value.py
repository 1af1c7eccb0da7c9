"""Code that lanes cannot import, there and back."""

from __future__ import annotations

import abc
import enum
import functools
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

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


def same(value: Any) -> Any:
    return value


# -- classes that cannot be found by name, as those of a script ------------------------------------------


async def test_slots_are_slots_on_both_sides(one: tm.Lanes) -> None:
    """An object without a dict has none in a lane, and its answer can be read."""

    class Point:
        __slots__ = ("__at", "name")

        def __init__(self) -> None:
            self.__at, self.name = 3, "S1"

        @property
        def at(self) -> tuple[int, str]:
            return self.__at, self.name

    class NamedPoint(Point):
        __slots__ = ()

    @dataclass(slots=True)
    class Span:
        first: int
        rest: list[int] = field(default_factory=list)

    for point in Point(), NamedPoint():
        assert await one.run(lambda it: (it.at, hasattr(it, "__dict__")), point) == ((3, "S1"), False)
        back = await one.run(same, point)
        assert type(back) is type(point)
        assert back.at == point.at
    assert await one.run(same, Span(1, [2])) == Span(1, [2])


async def test_members_of_enumerations_have_their_attributes(one: tm.Lanes) -> None:
    """And their other names, in a lane; they come back as the same members."""

    class Level(enum.Enum):
        LOW = (1, "green")
        HIGH = (2, "red")
        WORST = HIGH

        def __init__(self, rank: int, colour: str) -> None:
            self.rank = rank
            self.colour = colour

    class Unit(enum.StrEnum):
        CELSIUS = "C", 273.15

        def __new__(cls, sign: str, zero: float) -> Self:
            made = str.__new__(cls, sign)
            made._value_, made.zero = sign, zero
            return made

        zero: float

    class Door(enum.Flag):
        READ = 1
        WRITE = 2
        BOTH = 3

    seen = await one.run(lambda: (Level.LOW.rank, Level["WORST"].colour, Unit.CELSIUS.zero, Door(3).name))
    assert seen == (1, "red", 273.15, "BOTH")
    for member in Level.WORST, Unit.CELSIUS, Door.BOTH:
        assert await one.run(same, member) is member


@pytest.mark.parametrize("how", ["other_data", "made_by_its_base"])
async def test_an_enumeration_that_cannot_be_made_anew_is_refused(one: tm.Lanes, how: str) -> None:
    """By its name, and with what to do."""

    class Letter(bytes, enum.Enum):
        A = 65

        def __new__(cls, number: int) -> Self:
            made = bytes.__new__(cls, [number])
            made._value_ = number
            return made

        __repr__ = object.__repr__

    class Coded(enum.Enum):
        def __new__(cls, number: int, text: str) -> Self:
            made = object.__new__(cls)
            made._value_ = number
            return made

    class Fault(Coded):
        NONE = 0, "none"

    member: enum.Enum = Letter.A if how == "other_data" else Fault.NONE
    with pytest.raises(tm.CallError, match=rf"{type(member).__name__}.* into a module"):
        await one.run(same, member)


async def test_a_class_registers_itself_once(one: tm.Lanes) -> None:
    """Neither its way to a lane nor an answer registers it anew, here or there; one that is made there registers itself there."""

    class Model:
        kinds: ClassVar[dict[str, type]] = {}
        order: ClassVar[list[str]] = []

        def __init_subclass__(cls, /, name: str) -> None:
            Model.kinds[name] = cls
            Model.order.append(name)

    class Linear(Model, name="linear"):
        def applied(self, x: int) -> int:
            return 2 * x

    class Recorded(type):
        made: ClassVar[list[str]] = []

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], *, about: str) -> Self:
            return super().__new__(cls, name, bases, body)

        def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], *, about: str) -> None:
            super().__init__(name, bases, body)
            Recorded.made.append(about)

    class Valve(metaclass=Recorded, about="valves"):
        pass

    def registered() -> tuple[int, bool, list[str], list[str]]:
        linear = Model.kinds["linear"]
        return linear().applied(4), linear is Linear, Model.order, Recorded.made

    def with_another() -> list[str]:
        class Quadratic(Model, name="quadratic"):
            pass

        return list(Model.kinds)

    for value in Linear(), Valve(), Linear(), Valve():
        assert type(await one.run(same, value)) is type(value)
    for seen in await one.run(registered), registered():
        assert seen == (8, True, ["linear"], ["valves"])
    assert await one.run(with_another) == ["linear", "quadratic"]
    assert Model.__subclasses__() == [Linear]


async def test_classes_that_are_equal_stay_apart(one: tm.Lanes) -> None:
    """Each comes back as itself."""

    class ByName(type):
        def __eq__(cls, other: object) -> bool:
            return isinstance(other, ByName) and cls.__name__ == other.__name__

        def __hash__(cls) -> int:
            return hash(cls.__name__)

    first, second = (ByName("Same", (), {"version": version}) for version in (1, 2))
    assert first == second
    for version, sent in ((1, first), (2, second), (1, first)):
        assert await one.run(lambda it: type(it).version, sent()) == version
        assert type(await one.run(same, sent())) is sent


async def test_a_cached_property_goes_too(one: tm.Lanes) -> None:
    """It is computed where it is first asked for."""

    class Room:
        asked = 0

        @functools.cached_property
        def volume(self) -> int:
            self.asked += 1
            return 20

    room = Room()
    assert await one.run(lambda it: (it.volume, it.volume, it.asked), room) == (20, 20, 1)
    assert (await one.run(same, room)).volume == 20


async def test_kinds_of_classes_that_come_back_as_they_are(one: tm.Lanes) -> None:
    """Whatever makes them, as the standard library does."""
    T = TypeVar("T")

    class Span(NamedTuple):
        first: int
        then: Any = None

        def doubled(self) -> int:
            return self.first * 2

    class Readable(abc.ABC):
        @abc.abstractmethod
        def read(self) -> int: ...

    class Port(Readable):
        other: type

        def read(self) -> int:
            return 7

    class Line:
        other = Port

    Port.other = Line

    @runtime_checkable
    class Reads(Protocol):
        def read(self) -> int: ...

    class Box(Generic[T]):
        __slots__ = ("held",)

        def __init__(self, held: T) -> None:
            self.held = held

    class NoSensor(Exception):
        def __init__(self, name: str, at: int = 0) -> None:
            super().__init__(name, at)
            self.name = name

    def seen(span: Span, port: Port, box: Box[int], error: NoSensor) -> tuple[Any, ...]:
        return span.then.doubled(), port.read(), isinstance(port, Reads), port.other.other is Port, box.held, error.name

    values = Span(1, Span(2)), Port(), Box(3), NoSensor("S1", 4)
    assert await one.run(seen, *values) == (4, 7, True, True, 3, "S1")
    for value, back in zip(values, await one.run(lambda *them: them, *values), strict=True):
        assert type(back) is type(value)
    assert await one.run(same, [Reads, Box[int], Port]) == [Reads, Box[int], Port]
