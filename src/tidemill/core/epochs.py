"""Epochs: when sinks commit, when a checkpoint is taken, and when it may be published.

    every interval   the sinks are told to commit what they have: their rows become visible
    every epoch      a barrier goes behind the last slab; each lane copies its state there. The checkpoint may be published
                     once every lane has copied and every sink has committed up to the barrier: then nothing before it is
                     ever needed again

Rules of this file: one barrier at a time; numbers and positions grow; nothing here knows what a checkpoint contains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tidemill.errors import EngineError

__all__ = ["NEARLY_FULL", "Epochs", "EpochsStatistics"]

NEARLY_FULL: Final = 0.9
"""Share of the log's room above which it is told to be filling up, and checkpoints are pressed."""

_SHARE: Final = 10
"""A checkpoint is begun no sooner than so many times what writing the last one took, so that it takes a tenth of the time
at most. Waiting for a sink costs nothing: after an hour of that the next is not ten hours away."""


@dataclass
class _Barrier:
    number: int
    position: int
    begun_ns: int
    lanes: set[int]
    """Lanes that have not copied."""
    passed: bool = False
    """Whether every slab before it has left the lanes."""
    writing: bool = False
    write_ns: int = 0
    """When that began."""


@dataclass(frozen=True)
class EpochsStatistics:
    """How the epochs are."""

    published: int
    """The number of the newest checkpoint."""
    position: int
    """The input that it covers."""
    seconds: float
    """How long it took, from the barrier until it was published."""
    under_way: bool
    """Whether there is a barrier."""


class Epochs:
    """The checkpoints of one run.

    >>> epochs = Epochs(lanes=1, sinks=1, interval_ns=10, number=0, position=0, now_ns=0)
    >>> epochs.due(5, 100), epochs.due(10, 100)
    (False, True)
    >>> epochs.begin(100, 10), epochs.copied(0), epochs.committed(0, 100), epochs.pass_barrier()
    (1, None, None, None)
    >>> epochs.writable
    True
    """

    def __init__(
        self,
        *,
        lanes: int,
        sinks: int,
        interval_ns: int,
        number: int,
        position: int,
        now_ns: int,
        records: int | None = None,
    ) -> None:
        self._lanes = lanes
        self._interval = interval_ns
        self._records = records
        self._number = number
        self._position = position
        self._last_ns = now_ns
        self._took_ns = self._wrote_ns = 0
        self._commits_ns = now_ns
        self._told = position
        self._sinks = [0] * sinks
        self._barrier: _Barrier | None = None

    def statistics(self) -> EpochsStatistics:
        """How they are, now."""
        return EpochsStatistics(self._number, self._position, self._took_ns / 1e9, self._barrier is not None)

    @property
    def position(self) -> int:
        """The input that the newest checkpoint covers."""
        return self._position

    # -- sinks -------------------------------------------------------------------------------------------

    def commit_due(self, now_ns: int, position: int) -> bool:
        """Whether the sinks should commit, having been given all up to ``position``; it counts as told. Not while slabs
        have still to pass a barrier: there they will commit anyway.
        """
        if position <= self._told or now_ns - self._commits_ns < self._interval or self.waits_at is not None:
            return False
        self.told(now_ns, position)
        return True

    def told(self, now_ns: int, position: int) -> None:
        """The sinks were told to commit up to there."""
        self._commits_ns, self._told = now_ns, position

    def committed(self, sink: int, position: int) -> None:
        """A sink has committed up to there."""
        self._sinks[sink] = max(self._sinks[sink], position)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def due(self, now_ns: int, position: int, *, pressed: bool = False) -> bool:
        """Whether a barrier should go behind what was handed out, which reaches up to ``position``.

        ``pressed``: the log is nearly full, and lets go only of what no checkpoint needs that is kept. Then one is due at
        once, and another at the same position, since no input comes by which it could grow.
        """
        if self._barrier is not None or position < self._position or (position == self._position and not pressed):
            return False
        passed = now_ns - self._last_ns
        enough = self._records is not None and position - self._position >= self._records
        return (pressed or enough or passed >= self._interval) and passed >= _SHARE * self._wrote_ns

    def begin(self, position: int, now_ns: int) -> int:
        """A barrier stands there; the number of its checkpoint."""
        if self._barrier is not None:
            raise EngineError(f"checkpoint {self._barrier.number} is under way")
        self._barrier = _Barrier(self._number + 1, position, now_ns, set(range(self._lanes)))
        return self._barrier.number

    def copied(self, lane: int) -> None:
        """A lane has copied its state at the barrier."""
        if self._barrier is not None:
            self._barrier.lanes.discard(lane)

    @property
    def waits_at(self) -> int | None:
        """Where the barrier stands that not all slabs have passed."""
        return None if self._barrier is None or self._barrier.passed else self._barrier.position

    def pass_barrier(self) -> None:
        """Every slab before the barrier has left the lanes, and is with the sinks."""
        if self._barrier is not None:
            self._barrier.passed = True

    @property
    def writable(self) -> bool:
        """Whether the checkpoint may be written and published."""
        barrier = self._barrier
        return (
            barrier is not None
            and not barrier.writing
            and barrier.passed
            and not barrier.lanes
            and all(position >= barrier.position for position in self._sinks)
        )

    def write(self, now_ns: int) -> int:
        """It is being written; its number."""
        assert self._barrier is not None
        self._barrier.writing, self._barrier.write_ns = True, now_ns
        return self._barrier.number

    def published(self, now_ns: int) -> None:
        """It has its name, and is on the disk."""
        barrier, self._barrier = self._barrier, None
        if barrier is None or not barrier.writing:
            raise EngineError("a checkpoint was published that nobody wrote")
        self._number, self._position = barrier.number, barrier.position
        self._took_ns, self._wrote_ns = now_ns - barrier.begun_ns, now_ns - barrier.write_ns
        self._last_ns = now_ns

    def validate(self) -> None:
        """Raise `EngineError` when the epochs contradict themselves; called after every step in tests."""
        barrier = self._barrier
        if barrier is not None and (barrier.number != self._number + 1 or barrier.position < self._position):
            raise EngineError("a barrier stands behind what was published")
        if barrier is not None and barrier.writing and (barrier.lanes or not barrier.passed):
            raise EngineError("a checkpoint is written before its lanes have copied")
