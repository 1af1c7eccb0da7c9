"""Slabs that all lanes are through with, in input order: their dead letters, their rows, and their place in the books."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.core.plan import Plan
from tidemill.engine.assembly import Share, assemble, assemble_made
from tidemill.engine.burials import Burials
from tidemill.engine.filling import Filler, Slab
from tidemill.engine.lane import Lane
from tidemill.engine.learned import Learned
from tidemill.engine.metrics import Counts
from tidemill.engine.slabs import Slabs
from tidemill.formats.packed import Unpacker
from tidemill.lanes.wire import KindsFixed

__all__ = ["Finished", "Finishing"]

_log = logging.getLogger("tidemill")
_TURN_NS = 500_000
"""In which slabs are finished, before others have their turn of the loop."""
_MOST_PIECES = 4
"""Pieces of one slab's output that are on their way to the sinks: the rest stays as it came until these are taken."""


@dataclass(frozen=True)
class Finished:
    """A slab's output or, where stages made very many rows, a piece of it; in input order, and what must be known to deliver
    it."""

    batch: Batch
    arrivals: list[tuple[int, int]]
    """Of the slab's records; none before the last piece is out."""
    position: int
    """Up to where in the input the slab and those before it reach. Whoever commits this position has all pieces: no commit comes
    between them."""
    freed: Callable[[], None]


class _Leaving:
    """A slab's output on its way to the sinks."""

    def __init__(self) -> None:
        self.pieces = 0
        """Emitted, and not taken by all sinks."""
        self.is_whole = False


class Finishing:
    """Finishes slabs in steps, a part of a millisecond of them in a turn of the loop: a slow lane's word may free a dozen slabs at once, and
    one may have thousands of dead letters, or of rows that stages made.

    ``emit`` gets each slab's output; ``emitted`` is called behind the last piece of a slab with its number, ``freed`` with its number and
    memory when the sinks have taken all of it. ``fail`` gets the error that ends the run.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        lanes: Sequence[Lane],
        slabs: Slabs,
        filler: Filler,
        learned: Learned,
        burials: Burials,
        unpacker: Unpacker,
        counters: dict[str, int],
        clock: Clock,
        emit: Callable[[Finished], None],
        emitted: Callable[[int], None],
        freed: Callable[[int, int], None],
        fail: Callable[[BaseException], None],
        defer: Callable[[Callable[[], None]], object],
    ) -> None:
        self._plan, self._lanes, self._slabs, self._filler = plan, lanes, slabs, filler
        self._learned, self._burials, self._unpacker, self._clock = learned, burials, unpacker, clock
        self._emit, self._emitted, self._freed = emit, emitted, freed
        self._fail, self._defer = fail, defer
        self.counts = Counts()
        self.counters = counters
        self.done = 0
        """Up to where in the input everything has left the lanes."""
        self.is_half_out = False
        """Whether the sinks have some of a slab's rows and not all: no commit may come between them."""
        self._ready: deque[tuple[int, Slab]] = deque()
        self._steps: Iterator[None] | None = None  # the rest of what is to be done with the first of these
        self._made_out = 0  # of the first of these, rows without a record that are with the sinks
        self._waits = False  # for a sink, before the next of them
        self._closed = False

    def add(self, slabs: Sequence[tuple[int, Slab]]) -> None:
        """All lanes are through with these, by number, and with all before them."""
        first = not self._ready
        self._ready.extend(slabs)
        if first:
            self._finish_some()

    def close(self) -> None:
        """Finish no more; what is half out stays so, and is never committed."""
        self._closed = True

    def made_left(self) -> int:
        """Rows that stages made without a record, and that were not handed to the sinks."""
        return sum(share.made_rows() for _, slab in self._ready for share in slab.shares.values()) - self._made_out

    def _finish_some(self) -> None:
        until = self._clock.monotonic_ns() + _TURN_NS
        while self._ready and not self._closed:
            try:
                finished = self._finish_more(*self._ready[0])
            except Exception as error:  # noqa: BLE001 - a callback has nobody to raise to
                self._fail(error)
                return
            if finished:
                self._ready.popleft()
                self._made_out = 0
            if self._waits:
                return
            if not finished or (self._ready and self._clock.monotonic_ns() >= until):
                self._defer(self._finish_some)
                return

    def _finish_more(self, number: int, slab: Slab) -> bool:
        """The next step with this slab; whether it was the last."""
        self._steps = self._steps or self._finish(number, slab)
        for _ in self._steps:
            return False
        self._steps = None
        return True

    def _finish(self, number: int, slab: Slab) -> Iterator[None]:
        """None of its rows goes before its dead letters."""
        shares, has_learned = self._learned.learn([slab.shares[lane] for lane in sorted(slab.shares)])
        if has_learned:
            for lane in self._lanes:
                lane.send(KindsFixed(self._learned.kinds))
        dead = yield from self._burials.of(slab, shares)
        left = len(slab.taken.batch) - dead  # records that did not come out
        leaving, batch, made = _Leaving(), None, 0
        for piece in self._assembled(slab, shares):
            if piece is None:
                yield
                continue
            if batch is None:
                self._learned.probe(slab.taken.batch, shares, piece[0])
                self._filler.learn(slab, piece[0])
            else:
                self.is_half_out = True
                self._emit_piece(number, slab, batch, made, leaving)
                self._waits = leaving.pieces >= _MOST_PIECES
                yield
            batch, made = piece
            left -= len(batch) - made
        assert batch is not None
        self.counts.book(left, [share.result.gone for share in shares])
        for share in shares:
            for what, times in share.result.counts.items():
                if what not in self.counters:
                    self._tell_of(what)
                self.counters[what] = self.counters.get(what, 0) + times
        self.done = slab.taken.end
        leaving.is_whole = True
        self._emit_piece(number, slab, batch, made, leaving)
        self.is_half_out = False
        self._emitted(number)

    def _assembled(self, slab: Slab, shares: list[Share]) -> Iterator[tuple[Batch, int] | None]:
        """The slab's rows, and how many of them stages made without a record; in pieces, where there are such, which come in
        steps."""
        batch, buffer = slab.taken.batch, self._slabs.buffer(slab.memory)
        if all(share.result.made is None for share in shares):
            yield assemble(batch, shares, slab.results, buffer, self._unpacker), 0
        else:
            yield from assemble_made(batch, shares, slab.results, buffer, self._unpacker)

    def _emit_piece(self, number: int, slab: Slab, batch: Batch, made: int, leaving: _Leaving) -> None:
        """Count rows of the slab, and hand them to the sinks; its memory is free when they have taken all of them."""

        def taken() -> None:
            leaving.pieces -= 1
            if leaving.is_whole and not leaving.pieces:
                self._freed(number, slab.memory)
            elif self._waits:
                self._waits = False
                self._defer(self._finish_some)

        self.counts.rows_from_records += len(batch) - made
        self.counts.emitted += made
        self._made_out += made
        leaving.pieces += 1
        arrivals = slab.taken.arrivals if leaving.is_whole else []
        self._emit(Finished(batch, arrivals, slab.taken.end, taken))

    def _tell_of(self, what: str) -> None:
        """A stage has counted something for the first time; which of them is not known here."""
        hints = list(filter(None, (stage.hint(what) for stage in self._plan.stages)))
        if hints:
            _log.warning("%s, which the report counts: %s", what, "; or ".join(hints))
