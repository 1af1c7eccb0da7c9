"""The watch over the fork server: silence is counted in looks, while a word is owed and nothing excuses it."""

from __future__ import annotations

import asyncio

import pytest

from tidemill.lanes.server_watch import ServerWatch

LOOKS = 12


class Watched:
    """A server by word of mouth: ``answers`` when it is asked, ``owes`` until it was asked so often."""

    def __init__(self, *, asked_until: int, answers: bool = False, excused: bool = False) -> None:
        self.asked, self.until, self.answers = 0, asked_until, answers
        self.silent, self.over = False, asyncio.Event()
        self.watch = ServerWatch(
            0, LOOKS, owes=self.owes, excused=lambda: excused, ask=self.ask, silent=self.found_silent
        )

    def owes(self) -> bool:
        if self.asked == self.until:
            self.over.set()
        return self.asked < self.until

    def ask(self) -> None:
        self.asked += 1
        if self.answers:
            self.watch.heard()

    def found_silent(self) -> None:
        self.silent = True
        self.over.set()


async def test_one_that_says_nothing_is_found() -> None:
    """After so many looks, having been asked at each but the last."""
    watched = Watched(asked_until=1000)
    watched.watch.begin()
    await watched.over.wait()
    assert watched.silent
    assert watched.asked == LOOKS


@pytest.mark.parametrize("how", ["answers", "excused"])
async def test_one_that_answers_or_waits_for_the_machine_is_left_alone(how: str) -> None:
    """However long it owes the word."""
    watched = Watched(asked_until=5 * LOOKS, **{how: True})  # type: ignore[arg-type]
    watched.watch.begin()
    await watched.over.wait()
    assert not watched.silent


async def test_nothing_is_looked_at_while_nothing_is_owed() -> None:
    """One look, and no timer is left; what is owed later is counted from the beginning."""
    watched = Watched(asked_until=LOOKS - 1)
    for _ in range(3):
        watched.asked = 0
        watched.over.clear()
        watched.watch.begin()
        await watched.over.wait()
        assert watched.watch._timer is None
    assert not watched.silent
    watched.watch.begin()
    watched.watch.end()
    watched.watch.begin()
    assert watched.watch._timer is None or watched.watch._timer.cancelled()
