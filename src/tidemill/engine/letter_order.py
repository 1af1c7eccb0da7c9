"""Dead letters in input order, whatever slabs and turns of the loop they came from.

A source's letter and an intake's are known before the records ahead of them have been through the lanes. In a run that
keeps state they wait for these, so that a checkpoint at a position has all letters up to it, and none behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import itemgetter

from tidemill.letters import DeadLetter

__all__ = ["LetterOrder"]

_index = itemgetter(0)


class LetterOrder:
    """Holds letters until they are released, and hands them on by the input index of their records, all at once.

    >>> told = []
    >>> order = LetterOrder(lambda letters: told.extend(letter.position for letter in letters))
    >>> for index in (7, 3, 9):
    ...     order.add(DeadLetter("raised", "why", {}, position=index))
    >>> order.release(8)
    >>> told
    [3, 7]
    """

    def __init__(self, hand_on: Callable[[Sequence[DeadLetter]], None]) -> None:
        self._hand_on = hand_on
        self._held: list[tuple[int, DeadLetter]] = []
        self._in_order = True
        self._released = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, letter: DeadLetter) -> None:
        """One of a record, which has an index, or behind that of one; one without either comes behind what was released last."""
        index = letter.behind if letter.position is None else letter.position
        if index is None:
            index = self._released
        if self._held and index < self._held[-1][0]:
            self._in_order = False
        self._held.append((index, letter))

    def release(self, position: int | None) -> None:
        """Hand on those of the inputs up to this position; None for all."""
        if not self._in_order:
            self._held.sort(key=_index)  # those of one index stay as they came
            self._in_order = True
        count = len(self._held) if position is None else bisect_left(self._held, position, key=_index)
        if count:
            released = [letter for _, letter in self._held[:count]]
            del self._held[:count]
            self._hand_on(released)
        if position is not None:
            self._released = max(self._released, position)
