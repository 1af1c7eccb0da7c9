"""`Lines`: standard input, a pipe or a file of lines, as they come."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tidemill import files
from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
from tidemill.formats.line_formats import INFLUX_SUFFIXES, LINE_FORMATS, line_format, set_up
from tidemill.formats.lines import LINE_LIMIT
from tidemill.schema import Field, Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import checked_limit, pieces
from tidemill.sources.heads import fields_at_head
from tidemill.sources.inbox import Inbox
from tidemill.sources.readers import Decoder, Delivery, LinesDecoder, Reader, decoder_for
from tidemill.sources.recorded import RecordedSource

__all__ = ["Lines"]

_SUFFIXES: Final = {".csv": "csv", **dict.fromkeys(INFLUX_SUFFIXES, "influx")}
_READ: Final = 1 << 15
_BUFFER: Final = 1 << 20

_Block = tuple[bytes | None, int, int]
"""What one read brought, and when; None at the end."""


class Lines(RecordedSource):
    """Lines of NDJSON, CSV or InfluxDB line protocol: ``"-"`` is standard input, else a file (also ``.gz``) or named pipe.

    ``format``     ``"ndjson"`` (default), ``"csv"``, whose first line names the columns, ``"influx"`` for line protocol,
                   or ``"telegraf-json"`` for Telegraf's JSON; unless given, the suffix says it (``.csv``, ``.influx``)
    ``precision``  ``"ns"``, ``"us"``, ``"ms"`` or ``"s"``: the unit of the timestamps of line protocol (default ``"ns"``)
                   and of Telegraf's JSON (default ``"s"``)
    ``key``        the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``       the field of its time (``"time"``; without that, its arrival)
    ``time_format``  the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``    kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                   one (UTC), as `Source` has them
    ``limit``      bytes of one line; a longer one is rejected and read over
    ``goes_on``    what writes into the pipe goes on with the next start of the run: with state, windows stay open when it is
                   closed, as when the run is stopped. Else its end is the end of the input

    Of line protocol and Telegraf's JSON, a record has the fields ``measurement``, one for each tag, ``time`` and one for each
    field. Its sensor is its tag or field ``sensor``, else its series: measurement and tags, sorted, as in
    ``cpu,cpu=cpu0,host=a``. ``key="{measurement}.{host}"`` makes it of others, which each record must have then.

    A record without the default time field gets the time of its arrival; of a file, that is when its reading began.
    Reads no more than 1 MiB ahead, so that the writer of a pipe waits. Ends with its input; a file ends where it did when
    its reading began. Of a file, the head is read before the run. Delivery: every line once, in order; a pipe cannot be
    read again, and with state what it brought is in the ingest log.
    """

    push = True
    arrival = True
    formats = ("csv", *LINE_FORMATS)
    looked_up_options = frozenset({"path"})

    def __init__(
        self,
        path: str | os.PathLike[str] = "-",
        *,
        format: str | None = None,  # noqa: A002 - the user's word
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        precision: str | None = None,
        limit: int = LINE_LIMIT,
        goes_on: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        if format not in (None, *self.formats):
            formats = ", ".join(f'"{one}"' for one in self.formats)
            raise PlanError(f"format={format!r} of Lines must be one of {formats}.")
        self.path = path
        if format is None:
            format = _SUFFIXES.get(files.suffix(path), "ndjson") if path != "-" else "ndjson"  # noqa: A001
        self.format = format
        self.precision = precision
        if format != "csv":
            set_up(self.edge, line_format(format, precision, source="Lines"))
        elif precision is not None:
            raise PlanError(f'precision={precision!r} of Lines is for format="influx" and "telegraf-json" alone.')
        self.limit = checked_limit(limit, "Lines")
        self.goes_on = goes_on
        self._schema: Schema | None = None

    @property
    def uses_kernels(self) -> bool:
        return self.format == "ndjson"

    def check(self) -> None:
        self.peek()

    def peek(self) -> Schema:
        """The fields at the head of a regular file; what a pipe will bring nobody knows."""
        if self.path == "-":
            return self.declared(more=True)
        tried = files.absolute(self.path)
        if not tried.exists():
            files.expand(self.path)  # raises, naming the path
        if tried.is_dir():
            raise InputError(
                f"{tried} is a folder, and Lines reads one file or pipe; for the recordings in it write Replay."
            )
        if not tried.is_file():
            return self.declared(more=True)
        if self._schema is None:
            seen = fields_at_head(tried, self.format, self.edge, limit=self.limit, make=self._made_for)
            fields = dict.fromkeys((*seen, *self.columns))
            self._schema = Schema((Field(name, self.edge.kinds.get(name)) for name in fields), open=not seen)
        return self._schema

    @property
    def reads(self) -> Sequence[Path]:
        return super().reads if self.path != "-" else [files.STANDARD_INPUT]

    def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        return self.unpaced(context) if self.seekable else self._piped(context)

    @property
    def seekable(self) -> bool:
        return self.path != "-" and files.absolute(self.path).is_file()

    def _recordings(self) -> list[tuple[Path, str]]:
        return [(path, self.format) for path in files.expand(self.path)]

    def _reader(self, path: Path, kind: str, size: int | None) -> Reader:
        made = self._made_for
        return Reader(
            path,
            kind,
            self.edge,
            limit=self.limit,
            known={},
            size=size,
            wall_ns=self._wall_ns,
            make=None if made is None else lambda begun: made(self.edge, begun=begun),
        )

    @property
    def _made_for(self) -> Callable[..., Decoder] | None:
        """Makes decoders that know the precision, where the format's name does not say all."""
        if self.precision is None:
            return None
        return partial(
            decoder_for, self.format, named=str(self.path), known={}, limit=self.limit, precision=self.precision
        )

    async def _piped(self, context: SourceContext) -> AsyncIterator[Batch]:
        """What comes from a pipe, or from standard input whatever that is."""
        own = self.path != "-"
        if not own and sys.stdin is None:
            raise InputError("standard input is closed, and Lines('-') reads it; give it a file or a pipe.")
        descriptor = self._opened() if own else sys.stdin.fileno()
        named = str(self.path) if own else "standard input"
        decoder = decoder_for(self.format, self.edge, named=named, limit=self.limit, precision=self.precision)
        self._connected = True
        try:
            blocks = _as_they_come(descriptor, context) if _waits(descriptor) else _of_file(descriptor, context)
            async for block, arrived_ns, wall_ns in blocks:
                for batch, letters in _deliveries(decoder, block, arrived_ns, wall_ns):
                    for piece in pieces(await self.accept(context, batch, letters)):
                        yield piece
                    await asyncio.sleep(0)
        finally:
            self._connected = False
            if own:
                os.close(descriptor)

    def _opened(self) -> int:
        """Without waiting for whoever will write into a named pipe: the loop is told of its end only after somebody has."""
        tried = files.absolute(self.path)
        try:
            descriptor = os.open(tried, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(f"{tried} cannot be read: {error.strerror or error}.") from None
        os.set_blocking(descriptor, not _waits(descriptor))  # what the loop cannot be told of is read in a thread
        return descriptor


def _deliveries(decoder: Decoder, block: bytes | None, arrived_ns: int, wall_ns: int) -> Iterator[Delivery]:
    """The records of each turn of the loop."""
    if isinstance(decoder, LinesDecoder):
        yield from decoder.parts(block, arrived_ns=arrived_ns, wall_ns=wall_ns)
    elif block is None:
        yield decoder.finish(arrived_ns=arrived_ns, wall_ns=wall_ns)
    else:
        yield decoder.feed(block, arrived_ns=arrived_ns, wall_ns=wall_ns)


def _waits(descriptor: int) -> bool:
    """Whether the loop can be told when there is something to read: not of a file, and not of /dev/null."""
    mode = os.fstat(descriptor).st_mode
    return not stat.S_ISREG(mode) and not (stat.S_ISCHR(mode) and not os.isatty(descriptor))


async def _of_file(descriptor: int, context: SourceContext) -> AsyncIterator[_Block]:
    while not context.stopping.is_set() and (block := await asyncio.to_thread(os.read, descriptor, _READ)):
        yield block, context.clock.monotonic_ns(), context.clock.wall_ns()
    yield None, context.clock.monotonic_ns(), context.clock.wall_ns()


async def _as_they_come(descriptor: int, context: SourceContext) -> AsyncIterator[_Block]:
    """Reads when there is something to read: the loop never waits, and no thread is left behind in a read."""
    loop = asyncio.get_running_loop()
    clock = context.clock

    def read() -> None:
        try:
            block = os.read(descriptor, _READ)
        except BlockingIOError:
            return
        except OSError:  # the terminal went away
            block = b""
        if block:
            inbox.put((block, clock.monotonic_ns(), clock.wall_ns()), len(block))
        else:
            pause()
            inbox.close()

    def pause() -> None:
        loop.remove_reader(descriptor)

    def resume() -> None:
        loop.add_reader(descriptor, read)

    inbox: Inbox[tuple[bytes, int, int]] = Inbox(_BUFFER, pause, resume)
    resume()
    try:
        async with inbox.until_stopping(context, pause):
            while await inbox.filled():
                for item in inbox.take(_READ):
                    yield item
        yield None, clock.monotonic_ns(), clock.wall_ns()
    finally:
        pause()
