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
from tidemill.schema import Kind
from tidemill.sources.base import Source, SourceContext

__all__ = ["Recording", "read_first"]


@dataclass(frozen=True)
class Recording:
    """The beginning of what a source brings."""

    batch: Batch
    rejected: int
    """Records that could not become one, up to the last of the batch."""
    reason: str
    """Why the first of these could not."""

    def __str__(self) -> str:
        batch = self.batch
        first, last = time_texts(Column(Kind.TIME, np.array([batch.time.min(), batch.time.max()])))
        sensors = len(set(batch.key.tolist()))
        told = f"the first {len(batch):,} records, of {sensors:,} sensors, {first} to {last}"
        return (
            f"{told}; {self.rejected:,} before the last of them were rejected: {self.reason}" if self.rejected else told
        )


def read_first(source: Source, most: int) -> Recording:
    """At most so many records; raises `InputError` when there is none, saying why."""
    return asyncio.run(_read_first(source, most))


async def _read_first(source: Source, most: int) -> Recording:
    letters: list[DeadLetter] = []
    parts: list[Batch] = []
    context = SourceContext(SystemClock(), letters.append)
    stream = source.stream(context)
    async for batch in stream:
        if len(batch):
            parts.append(batch.slice(0, most - sum(map(len, parts))))
        if sum(map(len, parts)) >= most:
            break
    context.stopping.set()
    await stream.aclose()  # type: ignore[attr-defined] # of an asynchronous generator, as every source's is
    if not parts:
        raise InputError(source.explain() if letters else f"{source.name} has no records to check with.")
    return Recording(Batch.concat(parts), len(letters), letters[0].reason if letters else "")
