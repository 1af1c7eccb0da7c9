"""Several inputs into one order, by time, without holding more than a block of each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch

__all__ = ["Merge"]


class Merge:
    """Merges inputs by the running maximum of each one's times.

    Each input keeps its own order, also where its clock steps back: such a record goes directly behind the one
    before it. Records of one time come in the order of the inputs. Memory: one block of each input.
    """

    def __init__(self, inputs: int) -> None:
        self._blocks: list[Batch | None] = [None] * inputs
        self._times: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * inputs
        self._last = [np.iinfo(np.int64).min] * inputs
        self._open = [True] * inputs
        self._gone = [0] * inputs

    def wanting(self) -> list[int]:
        """The inputs to read next: without them no record can go."""
        return [place for place, block in enumerate(self._blocks) if block is None and self._open[place]]

    def last(self, place: int) -> int:
        """The running maximum of an input's times so far."""
        return self._last[place]

    def gone(self, place: int) -> int:
        """Records of the block added last that have gone."""
        return self._gone[place]

    def wants(self, place: int) -> bool:
        """Whether no record can go without the next ones of this input."""
        return self._blocks[place] is None and self._open[place]

    def add(self, place: int, block: Batch, *, gone: int = 0) -> None:
        """The next records of an input, the first ``gone`` of which have gone before."""
        self._gone[place] = gone
        if not len(block):
            return
        times = np.maximum.accumulate(block.time)
        times = np.maximum(times, self._last[place])
        self._last[place] = int(times[-1])
        if gone < len(block):
            self._blocks[place], self._times[place] = block.slice(gone, len(block)), times[gone:]

    def begin(self, place: int, last: int) -> None:
        """Before the first `add` of an input that goes on: the running maximum of its times up to there."""
        self._last[place] = last

    def finish(self, place: int) -> None:
        """An input has ended."""
        self._open[place] = False

    def take(self) -> tuple[Batch, NDArray[np.int64]] | None:
        """The records that can go, and their merging times; None when inputs are wanting, or all is done."""
        if self.wanting():
            return None
        waiting = [place for place, block in enumerate(self._blocks) if block is not None]
        if not waiting:
            return None
        bounding = [place for place in waiting if self._open[place]]
        if not bounding:
            return self._cut({place: len(self._times[place]) for place in waiting})
        bound = min(bounding, key=lambda place: (self._last[place], place))
        until = self._last[bound]
        return self._cut(
            {
                place: int(np.searchsorted(self._times[place], until, "right" if place <= bound else "left"))
                for place in waiting
            }
        )

    def _cut(self, ends: dict[int, int]) -> tuple[Batch, NDArray[np.int64]]:
        parts, times = [], []
        for place, end in ends.items():
            block = self._blocks[place]
            assert block is not None
            if end:
                parts.append(block.slice(0, end))
                times.append(self._times[place][:end])
                self._gone[place] += end
            if end == len(block):
                self._blocks[place], self._times[place] = None, np.empty(0, np.int64)
            elif end:
                self._blocks[place], self._times[place] = block.slice(end, len(block)), self._times[place][end:]
        if len(parts) == 1:
            return parts[0], times[0]
        merged = np.concatenate(times)
        order = np.argsort(merged, kind="stable")
        return Batch.concat(parts).take(order), merged[order]
