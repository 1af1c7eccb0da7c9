"""Looking at a run while it goes on, and doing what follows: a source is connected anew, the service manager is told, the run
is ended.

What follows is decided in `tidemill.core`; here it is performed. The event loop is where all of it happens: a run
whose loop is held is overseen by whoever waits for its word.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tidemill.clock import Clock
from tidemill.core.complaint import Complaint
from tidemill.core.dead_rate import DeadRate, MaxDead
from tidemill.core.heartbeat import Heartbeat
from tidemill.core.patience import ConnectAnew, GiveUp, Patience
from tidemill.core.rejections import MostlyDead, Rejections
from tidemill.engine.health import STALL_S, Health, is_ready, judged, stalls
from tidemill.engine.limiting import limiting
from tidemill.engine.metrics import Statistics
from tidemill.engine.service_manager import ServiceManager
from tidemill.errors import OutsideError, PlanError, Stalled, TidemillError, TooManyDead
from tidemill.letters import DeadLetter
from tidemill.printable import in_one_line

__all__ = ["Oversight", "Terms"]

LOOK_S: Final = 1.0
"""How often a run is looked at; a look takes a millisecond or two of the loop."""
_SAMPLE: Final = 300
"""Characters of why a record was refused that a line of the log shows."""
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class Terms:
    """What a run is to bear; see `tidemill.run`. Raises `PlanError` for what is no such term."""

    stall_after: float | None = None
    silent_after: float | None = None
    max_dead: MaxDead | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("stall_after", self.stall_after), ("silent_after", self.silent_after)):
            if seconds is not None and not seconds > 0:
                raise PlanError(f"{name}={seconds!r} must be more than 0 seconds.")

    @property
    def limit_s(self) -> float:
        """Seconds without progress after which a run is not well."""
        return STALL_S if self.stall_after is None else self.stall_after

    def judged(self, statistics: Statistics | None) -> Health:
        """Whether the run progresses."""
        return judged(statistics, self.limit_s, self.silent_after)


class Oversight:
    """Of one run. ``read`` says how it is, None before it has begun; ``connect_anew`` and ``stop`` are what can be done."""

    def __init__(
        self,
        terms: Terms,
        clock: Clock,
        *,
        read: Callable[[], Statistics | None],
        connect_anew: Callable[[str], None],
        stop: Callable[[], None],
        manager: ServiceManager | None = None,
    ) -> None:
        self._terms, self._clock = terms, clock
        self._manager = manager
        self._heartbeat = Heartbeat(None if manager is None else manager.watchdog_s)
        self._read, self._connect_anew, self._stop = read, connect_anew, stop
        self._complaint = Complaint()
        self._patience = Patience()
        self._dead = None if terms.max_dead is None else DeadRate(terms.max_dead, clock.monotonic_ns())
        self._rejections = Rejections()
        self._came_up_to = 0
        """Position of the input."""
        self._reached: dict[str, int] = {}
        """The same of the dead letters of a stage, and of sources under the empty text."""
        self._before: dict[str, int] = {}
        """The same, by the attempts before this one."""
        self.mostly_dead: tuple[MostlyDead, ...] = ()
        """Who gives little else than dead letters, as of the last look."""
        self._verdict: TidemillError | None = None
        self.ending = ""
        """Why the run is ended from here, without names that came from outside; empty while it is not."""

    async def watch(self) -> None:
        """Look, until cancelled: then the run is over, or nearly so."""
        watchdog_s = None if self._manager is None else self._manager.watchdog_s
        every_s = LOOK_S if watchdog_s is None else min(LOOK_S, watchdog_s / 4)
        try:
            while True:
                await asyncio.sleep(every_s)
                self.look()
        finally:
            self.stopping()

    def look(self) -> None:
        """One look at the run, and what follows from it."""
        self.mostly_dead = tuple(self._rejections.look(self._clock.monotonic_ns()))
        statistics = self._read()
        self._tell_log(statistics)
        self._tell_dead(statistics)
        self._tell_manager(statistics)
        self._end_stalled(statistics)
        self._end_dead(statistics)

    def begin_again(self) -> None:
        """Another attempt begins: what it comes to again was counted."""
        self._before = dict(self._reached)

    def came(self, records: int, source: str, up_to: int | None) -> None:
        """So many have come in, up to this position of the input, where some may have come in an attempt before."""
        if up_to is not None:
            records = min(records, max(up_to - self._came_up_to, 0))
            self._came_up_to = max(self._came_up_to, up_to)
        self._rejections.came(records, source)

    def buried(self, letter: DeadLetter) -> None:
        """A record has become a dead letter."""
        if not self._is_new(letter):
            return
        self._rejections.buried(letter.reason_code, letter.reason, source=letter.source, stage=letter.stage)
        if self._dead is not None:
            self._dead.buried(letter.reason_code, sensor=letter.key, source=letter.source)

    def _is_new(self, letter: DeadLetter) -> bool:
        """Whether no attempt has come so far. Within one, letters of a source and of each stage need be in no order."""
        if letter.position is None:
            return True
        by = letter.stage or ""
        self._reached[by] = max(self._reached.get(by, -1), letter.position)
        return letter.position > self._before.get(by, -1)

    def made(self, rows: int, stage: str) -> None:
        """So many rows that stages had made came to this one."""
        self._rejections.made(rows, stage)

    def buried_row(self, letter: DeadLetter) -> None:
        """A row that a stage had made has become a dead letter; it was no record, and ``max_dead`` is of records."""
        self._rejections.buried_row(letter.reason_code, letter.reason, letter.stage)

    def stopping(self) -> None:
        """The run is being stopped: whoever waits for it should know now, and not at the next look."""
        if self._manager is not None:
            said = self._heartbeat.look(self._clock.monotonic_ns(), progresses=True, stopping=True)
            self._manager.tell(said)

    @contextlib.contextmanager
    def last_word(self) -> Iterator[None]:
        """Around the run: raises why it was ended from here. What the way out of a stalled run met with is its cause."""
        try:
            with contextlib.nullcontext() if self._manager is None else contextlib.closing(self._manager):
                yield
        except OutsideError as error:
            if self._verdict is None:
                raise
            raise self._verdict from error
        if self._verdict is not None:
            raise self._verdict

    def _tell_log(self, statistics: Statistics | None) -> None:
        if statistics is None or statistics.stopping:
            return
        health = self._terms.judged(statistics)
        wrong = health.wrong
        said = self._complaint.look(wrong, self._clock.monotonic_ns())
        if said:
            fields = {"pipeline": statistics.name}
            if statistics.mostly_dead:
                fields["newest_dead_letter"] = in_one_line(statistics.mostly_dead[0].sample, longest=_SAMPLE)
            _log.log(logging.WARNING if wrong else logging.INFO, "%s", said, extra=fields)

    def _tell_dead(self, statistics: Statistics | None) -> None:
        """Of who gives little else the log says so already; a run that ends by itself says at its end which it had."""
        if statistics is None or not any(source.live for source in statistics.source_flows):
            return
        mostly = {one.who for one in self.mostly_dead}
        for said, sample in self._rejections.news(self._clock.monotonic_ns(), besides=mostly):
            newest = in_one_line(sample, longest=_SAMPLE)
            _log.warning("%s", said, extra={"pipeline": statistics.name, "newest_dead_letter": newest})

    @property
    def dead(self) -> dict[tuple[str, str], int]:
        """How many dead letters there are, by culprit and reason code, as of the last look."""
        return dict(self._rejections.dead)

    def _tell_manager(self, statistics: Statistics | None) -> None:
        if self._manager is None:
            return
        terms = self._terms
        health = terms.judged(statistics)
        said = self._heartbeat.look(
            self._clock.monotonic_ns(),
            progresses=not stalls(statistics, terms.limit_s, terms.silent_after),
            ready=is_ready(statistics).ready,
            stopping=statistics is not None and statistics.stopping,
            status=[*health.wrong, limiting(statistics)][0],
        )
        self._manager.tell(said)

    def _end_stalled(self, statistics: Statistics | None) -> None:
        terms = self._terms
        stalled = stalls(statistics, math.inf if terms.stall_after is None else terms.stall_after, terms.silent_after)
        match self._patience.look(stalled, self._clock.monotonic_ns()):
            case ConnectAnew(sources, said):
                _log.warning("%s: connecting anew", said, extra={"sources": ",".join(sources)})
                for source in sources:
                    self._connect_anew(source)
            case GiveUp(said):
                self._end(said, Stalled(f"the run does not progress, and ends itself: {said}."))
            case None:
                pass

    def _end_dead(self, statistics: Statistics | None) -> None:
        if self._dead is None or statistics is None or statistics.stopping:
            return
        found = self._dead.look(statistics.records_in, self._clock.monotonic_ns())
        if found is not None:
            self._end(found.said, TooManyDead(f"{found.said}, and the run ends itself; {found.lead}."))

    def _end(self, said: str, verdict: TidemillError) -> None:
        self._verdict, self.ending = verdict, said
        _log.info("the run ends itself: stopping")  # whoever waits for it is told why at its end
        self._stop()
