"""The first records of a recording, read as a run reads them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.column import Column
from tidemill.errors import InputError
from tidemill.formats.json_lines import time_texts
from tidemill.letters import DeadLetter
from tidemill.printable import counted
from tidemill.schema import Kind
from tidemill.sources.base import Source, SourceContext

__all__ = ["Recording", "Rejected", "read_first"]


class Rejected:
    """Counts dead letters, by their reason codes; remembers the first reason of each."""

    def __init__(self) -> None:
        self.count = 0
        self._by_code: dict[str, tuple[int, str]] = {}

    def add(self, letter: DeadLetter) -> None:
        """One more."""
        self.count += 1
        count, first = self._by_code.get(letter.reason_code, (0, letter.reason))
        self._by_code[letter.reason_code] = count + 1, first

    @property
    def told(self) -> list[str]:
        """A sentence for each reason code, the most frequent first."""
        found = sorted(self._by_code.items(), key=lambda item: -item[1][0])
        return [f"{count:,} rejected as {code}: {first}" for code, (count, first) in found]


@dataclass(frozen=True)
class Recording:
    """The beginning of what a source brings."""

    batch: Batch
    rejected: Rejected
    """What could not become a record, up to the last of the batch."""

    def __str__(self) -> str:
        batch = self.batch
        first, last = time_texts(Column(Kind.TIME, np.array([batch.time.min(), batch.time.max()])))
        sensors = counted(len(set(batch.key.tolist())), "sensor")
        told = f"the first {counted(len(batch), 'record')}, of {sensors}, {first} to {last}"
        return f"{told}; rejected on the way: {self.rejected.count:,}" if self.rejected.count else told


def read_first(source: Source, most: int) -> Recording:
    """At most so many records; raises `InputError` when there is none, saying why."""
    return asyncio.run(_read_first(source, most))


async def _read_first(source: Source, most: int) -> Recording:
    rejected = Rejected()
    parts: list[Batch] = []
    context = SourceContext(SystemClock(), rejected.add)
    stream = source.stream(context)
    async for batch in stream:
        if len(batch):
            parts.append(batch.slice(0, most - sum(map(len, parts))))
        if sum(map(len, parts)) >= most:
            break
    context.stopping.set()
    await stream.aclose()  # type: ignore[attr-defined] # of an asynchronous generator, as every source's is
    if not parts:
        raise InputError(source.explain() if rejected.count else f"{source.name} has no records to check with.")
    return Recording(Batch.concat(parts), rejected)
