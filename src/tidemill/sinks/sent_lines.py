"""What sinks have in common that send rows somewhere as lines: `TCP`, `UDP` and `HTTP`."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, SinkStatistics, Where
from tidemill.sinks.line_sink import LineSink

__all__ = ["REFUSED", "TOO_LARGE", "Sender", "Sent", "SentLines"]

REFUSED: Final = "(refused)"
"""Rows that the other side does not take, in ``left_out``."""
TOO_LARGE: Final = "(too large)"
"""Rows whose line is too large for it."""
_FORMATS: Final = ("ndjson", "influx")


@dataclass
class Sent:
    """What came of the lines so far."""

    rows: int = 0
    size: int = 0
    """Bytes of these."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that were not sent, or not taken, by what the sink calls the reason; read from another thread, never changed."""

    def went(self, lines: bytes) -> None:
        self.rows += lines.count(b"\n")
        self.size += len(lines)

    def came_back(self, lines: bytes, reason: str) -> None:
        """They had not gone, after all."""
        self.rows -= lines.count(b"\n")
        self.size -= len(lines)
        self.leave_out(reason, lines.count(b"\n"))

    def leave_out(self, reason: str, rows: int = 1) -> None:
        self.left_out = {**self.left_out, reason: self.left_out.get(reason, 0) + rows}


class Sender(Protocol):
    """One way to a server. All calls block, and come from one thread; each may raise `OutsideError` and `InputError`."""

    def send(self, lines: bytes) -> None:
        """Take whole lines; wait while as much is under way as may be."""

    def drain(self) -> None:
        """Return when everything that was taken is where the sink's guarantee says."""

    def close(self) -> None:
        """Let go; what is under way is nobody's any more."""


class SentLines(LineSink):
    """Sends rows as lines; what it sends with is made by `_sender`, and tells `_sent` what came of them."""

    def __init__(
        self,
        format: str,  # noqa: A002 - the user's word
        *,
        measurement: str | None,
        tags: Sequence[str] | None,
        time: str | None,
        precision: str | None,
        integers: bool,
        where: Where | str | None,
        columns: Sequence[str] | None,
        if_exists: IfExists,
        name: str | None,
    ) -> None:
        if format not in _FORMATS:
            raise PlanError(f'format={format!r} of {type(self).__name__} is not one of "ndjson", "influx".')
        super().__init__(
            format,
            measurement=measurement, tags=tags, time=time, precision=precision, integers=integers,
            where=where, columns=columns, if_exists=if_exists, name=name,
        )  # fmt: skip
        self._sent = Sent()
        self._opened_sender: Sender | None = None

    @abc.abstractmethod
    def _sender(self) -> Sender:
        """Connected, where that can be said."""

    def open(self, schema: Schema) -> None:
        self.close()
        self._opened_sender = self._sender()

    def write(self, batch: Batch) -> None:
        with self._opened() as sender:
            if lines := self._encoded(batch) if len(batch) else b"":
                sender.send(lines)

    def flush(self) -> None:
        with self._opened() as sender:
            sender.drain()

    def close(self) -> None:
        sender, self._opened_sender = self._opened_sender, None
        if sender is not None:
            with contextlib.closing(sender):
                sender.drain()

    def statistics(self) -> SinkStatistics:
        """``bytes`` are those of the lines; ``left_out`` counts values that have no place in a line, and rows that were not
        sent or not taken."""
        return SinkStatistics(self.name, self._sent.rows, self._sent.size, {**self._unfit(), **self._sent.left_out})

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Sender]:
        """Whatever is raised, the connection is let go, and with it what is under way."""
        sender = self._opened_sender
        if sender is None:
            raise PlanError(f"sink {self.name} is not open.")
        try:
            yield sender
        except BaseException:
            self._opened_sender = None
            sender.close()
            raise
