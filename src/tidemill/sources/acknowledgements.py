"""Which lines of which connection are safe, once batches are: a decision, without sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

__all__ = ["Acknowledgements"]

Sender = TypeVar("Sender", bound=Hashable)

_MOST: Final = 65_536
"""Counts that are remembered; beyond, newer ones wait for one another."""


class Acknowledgements(Generic[Sender]):
    """Remembers with each batch how far it goes in the lines of each sender, until the batch is safe.

    Memory is bounded: with too many counts pending, a batch's are joined with those of the batch after it, and are safe
    when that one is: later, never earlier.

    >>> pending = Acknowledgements()
    >>> pending.yielded({"a": 10}), pending.yielded({"a": 20, "b": 5}), pending.yielded({"b": 6})
    (None, None, None)
    >>> pending.kept(2), pending.waiting
    ({'a': 20, 'b': 5}, True)
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._batches = 0
        self._counts = 0
        self._pending: deque[tuple[int, dict[Sender, int]]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether there are lines that are not safe yet."""
        return bool(self._pending)

    def yielded(self, counts: Mapping[Sender, int]) -> None:
        """The next batch: up to which line of each sender it goes, also when these were rejected."""
        self._batches += 1
        last = self._pending[-1][1] if self._pending and self._counts >= self._most else None
        if last is not None:
            self._pending.pop()
            self._counts -= len(last)
        made = {**(last or {}), **counts}
        if made:
            self._pending.append((self._batches, made))
            self._counts += len(made)

    def kept(self, batches: int) -> dict[Sender, int]:
        """So many batches are safe: the lines that are so since the last time, of each sender that has some."""
        safe: dict[Sender, int] = {}
        while self._pending and self._pending[0][0] <= batches:
            _, counts = self._pending.popleft()
            self._counts -= len(counts)
            safe.update(counts)
        return safe
