"""Columns of objects of which some cannot be read."""

from __future__ import annotations

import pickle
import sys
import types
from collections import deque
from typing import Any, Self

import pytest

from tidemill.by_value import dumps
from tidemill.formats.unread import loads_items

READS = [True]


class Built:
    """Fails where its attributes are put in."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["fails"]:
            raise ValueError("no state")
        self.__dict__.update(state)


class Reduced:
    """Fails where it is called."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __reduce__(self) -> Any:
        return made, (self.fails,)


def made(fails: bool) -> Reduced:
    if fails:
        raise ValueError("no call")
    return Reduced(fails)


class New:
    """Fails where it is made."""

    def __new__(cls, fails: bool, *, named: bool = False) -> Self:
        if not READS[0] and fails:
            raise ValueError("no object")
        return super().__new__(cls)

    def __init__(self, fails: bool, *, named: bool = False) -> None:
        self.fails, self.named = fails, named

    def __getnewargs_ex__(self) -> Any:
        return ((self.fails,), {"named": True}) if self.named else ((self.fails,), {})


class Listed(list):  # type: ignore[type-arg]
    """Fails where it is made, before its items are put in."""

    def __new__(cls, *_: Any) -> Self:
        if not READS[0]:
            raise ValueError("no list")
        return super().__new__(cls)


@pytest.fixture(autouse=True)
def _reads():
    READS[0] = True
    yield
    READS[0] = True


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (Built, "ValueError: no state"),
        (Reduced, "ValueError: no call"),
        (New, "ValueError: no object"),
        (lambda fails: New(fails, named=True), "ValueError: no object"),
        (lambda fails: Listed([1, 2]) if fails else [], "ValueError: no list"),
    ],
)
@pytest.mark.parametrize("put", [lambda item: item, lambda item: {"deep": [1, (item,)]}, lambda item: deque([item])])
def test_the_others_are_read(of, told, put) -> None:
    """An item that fails, however deep it is in a record's value, is None and has a reason; its neighbours are as they were."""
    data = dumps([put(of(False)), put(of(True)), None, put(of(False)), "text", put(of(True))])
    READS[0] = False
    items, reasons = loads_items(data, 6)
    assert reasons == {1: told, 5: told}
    assert [type(item) for item in items] == [type(put(of(False)))] * 1 + [type(None)] * 2 + [
        type(items[0]),
        str,
        type(None),
    ]


def test_what_failed_fails_wherever_it_is(tmp_path) -> None:
    """One object in two records is in the reasons of both, though the pickle has it once."""
    bad = Built(True)
    assert loads_items(dumps([bad, [bad], 3]), 3) == (
        [None, None, 3],
        {0: "ValueError: no state", 1: "ValueError: no state"},
    )


def test_a_class_that_is_not_there() -> None:
    """A module that this process cannot import costs the items of its classes alone."""
    module = types.ModuleType("gone_tomorrow")
    module.Here = type("Here", (), {"__module__": "gone_tomorrow"})  # type: ignore[attr-defined]
    sys.modules["gone_tomorrow"] = module
    data = pickle.dumps([1, module.Here(), 2], 5)
    del sys.modules["gone_tomorrow"]
    items, reasons = loads_items(data, 3)
    assert items == [1, None, 2]
    assert reasons == {1: "ModuleNotFoundError: No module named 'gone_tomorrow'"}


class Key:
    def __init__(self) -> None:
        self.name = "k"

    def __hash__(self) -> int:
        return hash(self.name)  # of one without attributes it fails, as while it is read in a set

    def __eq__(self, other: object) -> bool:
        return self is other


def test_what_no_stand_in_helps_costs_the_column() -> None:
    """Where the failure is in a container's own work, all items of the column are unread: nothing is taken for what it is not."""
    key = Key()
    key.loop = {key}  # type: ignore[attr-defined]
    items, reasons = loads_items(pickle.dumps([key, 2], 5), 2)
    assert items == [None, None]
    assert set(reasons) == {0, 1}
