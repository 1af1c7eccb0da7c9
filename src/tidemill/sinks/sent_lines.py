"""What sinks have in common that send rows somewhere as lines: `TCP`, `UDP` and `HTTP`."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from typing import Any, Final, Protocol

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Schema
from tidemill.sinks.base import SinkStatistics
from tidemill.sinks.line_sink import LineSink
from tidemill.sinks.sent import Sent

__all__ = ["Sender", "SentLines"]

_FORMATS: Final = ("ndjson", "influx")


class Sender(Protocol):
    """One way to a server. All calls block, and come from one thread; each may raise `OutsideError` and `InputError`."""

    def send(self, lines: bytes) -> None:
        """Take whole lines; wait while as much is under way as may be."""

    def drain(self) -> None:
        """Return when everything that was taken is where the sink's guarantee says."""

    def close(self) -> None:
        """Let go; what is under way is nobody's any more."""

    def give_up(self) -> None:
        """The one call that may come from another thread: whatever blocks ends soon, with an error."""


class SentLines(LineSink):
    """Sends rows as lines; what it sends with is made by `_sender`, and tells `_sent` what came of them."""

    def __init__(self, format: str, **options: Any) -> None:  # noqa: A002 - the user's word
        if format not in _FORMATS:
            raise PlanError(f'format={format!r} of {type(self).__name__} is not one of "ndjson", "influx".')
        super().__init__(format, **options)
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
        if self._opened_sender is not None:
            with self._opened() as sender:
                sender.drain()
                sender.close()
            self._opened_sender = None

    def give_up(self) -> None:
        if (sender := self._opened_sender) is not None:
            sender.give_up()

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
            if self._opened_sender is sender:  # else somebody has opened it anew, while this one had been given up
                self._opened_sender = None
            sender.close()
            raise
