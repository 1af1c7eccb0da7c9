"""What every source is."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.configured import Configured
from tidemill.errors import PlanError
from tidemill.letters import DeadLetter
from tidemill.named import Named
from tidemill.schema import Asked, Kind, Schema

__all__ = ["Source", "SourceContext", "SourceStatistics", "at_once"]


async def at_once() -> None:
    """Nothing is worth waiting for."""


@dataclass(frozen=True)
class SourceContext:
    """What the engine lends a source while it runs."""

    clock: Clock
    reject: Callable[[DeadLetter], None]
    """Hand over a record that cannot become one; it is counted and goes to the dead letters."""
    held: Callable[[int], None] = lambda _: None
    """Tell how long the application's own code held the loop, in nanoseconds; the report shows it apart."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the run wants to end: stop reading from outside, yield what has been read, return."""
    gather: Callable[[], Awaitable[None]] = at_once
    """Wait as long as nothing is gained by yielding early, such as while the disk is busy with what came before. A source
    that gathers what is pushed to it has fewer and larger batches that way."""
    tells_kept: bool = True
    """Whether a source that `acknowledges` is told what is kept. Without state nobody tells it: what was pulled from it is
    all that can be known."""


@dataclass(frozen=True)
class SourceStatistics:
    """How a source is."""

    name: str
    connected: bool
    records: int
    """Records yielded so far."""
    rejected: int
    """Records handed to the dead letters so far."""
    connections: int = 0
    skipped: int = 0
    """What came and was passed over as the source's options say: messages that a broker had retained."""
    tries: int = 0
    """Times it has tried to connect, in vain, since it was connected last."""
    trouble: str = ""
    """Why it is not connected, in a few words for a person, without secrets; empty where it is, or does not know."""
    turned_away: int = 0
    """Connections that were not taken, because there were too many."""
    last_away: str = ""
    """From where the last of these was, and what there was too much of."""
    refused: int = 0
    """Requests that were not taken, and answered why."""
    lost: int = 0
    """What was lost before it could be read, as far as the system tells: datagrams for which there was no room."""
    dials: bool = False
    """It opens its connection itself: a run that hears nothing ends its stream, and begins another."""


class Source(Named, Configured, abc.ABC):
    """Where records come from.

    ``key``      the field that names the sensor (default ``sensor``), or a template over fields and what the source
                 knows: ``"{line}/{machine}"``, ``"{stem}"``
    ``time``     the field that holds the event time (default ``time``; push sources without it use the arrival)
    ``columns``  kinds of fields that are not to be learned: ``{"n": int}``; what a field of kind ``"time"`` holds is read as
                 event times are. ``object`` takes values of any kind: ``{"status": object}`` where it is a number here and a
                 text there, ``{"sensor": object}`` where some sensors are named by numbers. ``float`` keeps one a number that is
                 mostly none in a recording: records without a number there are dead letters. Of
                 records that come one by one, 4,096 names of fields are learned; one that brings another is a dead letter
    ``tz``       the zone in which times without one are read (default UTC); of a Parquet file or a DataFrame in every column of
                 timestamps, which hold the moments that are meant. Of an hour that happens twice it is the first; in one that is skipped, the
                 offset before the change holds
    """

    push: ClassVar[bool] = False
    """Records come when they like; a record without a time gets its arrival's."""
    finite: ClassVar[bool] = True
    """The source ends by itself."""
    makes: ClassVar[bool] = False
    """It makes its records itself, when it likes: nobody waits for it, so it is not begun before the lanes are ready,
    and no record of it is born into a queue. Other sources are begun at once, so that their reading is under way."""

    def __init__(
        self,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        for option, given in (("key", key), ("time", time), ("tz", tz)):
            if given is not None and (not isinstance(given, str) or not given):
                hint = ""
                if (
                    option == "key"
                    and isinstance(given, tuple | list)
                    and all(isinstance(field, str) for field in given)
                ):
                    hint = f"; several fields are one as key={'/'.join(f'{{{field}}}' for field in given)!r}"
                raise PlanError(f"{option}={given!r} of {type(self).__name__} must be a name{hint}.")
        self.key = key
        self.time = time
        if columns is not None and not isinstance(columns, Mapping):
            raise PlanError(
                f"columns={columns!r} of {type(self).__name__} must be a dict of fields and their kinds, "
                'such as {"value": float}.'
            )
        self.columns: dict[str, Kind] = {field: Kind.of(kind) for field, kind in (columns or {}).items()}
        self.tz = tz

    @property
    def reads(self) -> Sequence[Path]:
        """The files that it reads, as far as it reads any. Raises `InputError` when they are not there."""
        return ()

    def check(self) -> None:
        """Refuse at start what cannot work, with the name of the culprit: a missing file, a busy port."""

    def peek(self) -> Schema:
        """What is known of the records before the first is read."""
        return Schema(open=True)

    def ask(self, asked: Mapping[str, Asked], needed: Collection[str]) -> None:
        """What the plan requires of columns that are not known yet: a record whose value is another is to be rejected, even the
        first. ``needed`` are those that stages compute with."""

    @property
    def uses_kernels(self) -> bool:
        """Whether it reads quicker in a process that has loaded the compiled kernels."""
        return False

    @property
    def otherwise(self) -> str | None:
        """What it knows of a record without the default key field that names its sensor: ``"peer"``, ``"topic"``, ``"series"``."""
        return None

    def run_begins(self) -> None:
        """A run with it begins; called on its loop."""

    def run_ended(self) -> None:
        """The run has ended, whether it came to `stream` or not: nobody should wait for anything of it."""

    goes_on: bool = False
    """Where its stream ends, the next start of the run brings more: with state, its end is a stop, and no end of input."""

    @property
    def seekable(self) -> bool:
        """Whether `seek` can make it continue anywhere: it gives the same records and rejects in the same order each
        time, however they are cut into batches."""
        return False

    def offset(self) -> Any:
        """Where `stream` stands: behind the batch yielded last and the rejects handed over so far. Made of dicts, lists,
        texts and ints; what was returned is not changed later."""
        raise PlanError(f"source {self.name} cannot say where it stands, since it cannot go back there.")

    def beginning(self, wall_ns: int) -> Any:
        """The offset before the first record, were the stream to begin now, at this time of the wall clock; None where there
        is nothing to say of that."""
        return None

    def seek(self, offset: Any) -> None:
        """Before `stream`: let it go on at ``offset``, which a source of the same options gave.

        Raises `InputError` when what lies there is not what it was, saying what is different and what to do.
        """
        raise PlanError(f"source {self.name} cannot go on where another one stood.")

    @property
    def acknowledges(self) -> bool:
        """Whether it wants to be told what is `kept`. It yields empty batches too then, after rejects alone."""
        return False

    @property
    def promises(self) -> bool:
        """Whether its senders are promised that what it acknowledges is safe, so that it cannot run without state."""
        return False

    def kept(self, batches: int) -> None:
        """The first ``batches`` batches yielded by `stream` (counted since its start, empty ones too), and the rejects
        handed over before each of them, are safe. Called on the event loop."""

    @property
    def accepted(self) -> int:
        """Records that it has made so far, those of a block too whose rejects are handed over first."""
        return 0

    def explain(self) -> str:
        """When nothing came through: why, with what was seen and the option to try."""
        return ""

    def doubt(self, batch: Batch) -> str:
        """When the next records, which came through, were perhaps not meant to be taken as they were: once, why, and the
        option to try."""
        return ""

    def nothing_yet(self) -> str:
        """When it is connected and nothing at all has come for a while: a few words on what it waits for; empty for a source of
        which that says nothing."""
        return ""

    @abc.abstractmethod
    def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        """Yield batches, each with its key, time and ``arrived_ns``, never holding the loop for more than about a
        millisecond between awaits. Not pulling is the engine's back-pressure: a source reads no further than a
        bounded buffer ahead of what was pulled."""

    @abc.abstractmethod
    def statistics(self) -> SourceStatistics:
        """A frozen reading."""
