"""Messages of a broker, as they come in a few seconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill import sources
from tidemill.clock import SystemClock
from tidemill.errors import InputError, OutsideError
from tidemill.formats.brokers import broker_of
from tidemill.letters import DeadLetter
from tidemill.printable import counted
from tidemill.sources.base import SourceContext

__all__ = ["Heard", "heard"]

_MOST: Final = 20_000
"""Messages that are enough, however many seconds are left."""
_CONNECT_S: Final = 10.0


@dataclass
class Heard:
    """What came."""

    messages: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    """Topic, arrival in nanoseconds, and the reading as a record."""
    unread: Counter[str] = field(default_factory=Counter)
    """Of what is no reading: why, and how often."""

    @property
    def topics(self) -> Counter[str]:
        """How many came on each topic."""
        return Counter(topic for topic, _, _ in self.messages)


def heard(url: str, password: str | None, topic: str, seconds: float) -> Heard:
    """What is published to ``topic`` in so many seconds, and what the broker has retained; ``password`` unless the address has it.

    Raises `OutsideError` when no broker answers, `InputError` when it refuses, or nothing comes, saying what to give.
    """
    source = sources.MQTT(url, topic, password=password, key="{topic}", retained="take")
    source.check()
    found = asyncio.run(_heard(source, url, seconds))
    if not found.messages:
        why = found.unread.most_common(1)
        unread = f" Of {counted(found.unread.total(), 'message')} none was a reading: {why[0][0]}." if why else ""
        raise InputError(
            f"nothing was heard of {broker_of(url)} on {topic!r} in {seconds:g} s.{unread} "
            f"Listen longer with --seconds, or to other topics with --topic 'plant/#'."
        )
    return found


async def _heard(source: sources.MQTT, url: str, seconds: float) -> Heard:
    found = Heard()
    clock = SystemClock()

    def reject(letter: DeadLetter) -> None:
        if (
            isinstance(letter.raw, dict) and letter.key is not None
        ):  # of other kinds than those before: a reading all the same
            found.messages.append((letter.key, clock.wall_ns(), letter.raw))
        else:
            found.unread[letter.reason] += 1
        enough()

    def enough() -> None:
        if len(found.messages) + found.unread.total() >= _MOST:
            context.stopping.set()

    context = SourceContext(clock, reject, tells_kept=False)
    subscribed = asyncio.ensure_future(source.wait_subscribed())
    ending = asyncio.ensure_future(_end(subscribed, context, seconds))
    try:
        async for batch in source.stream(context):
            topics = batch.keys[batch.key].tolist()
            found.messages += zip(topics, batch.time.tolist(), batch.to_rows(), strict=True)
            enough()
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
    if not subscribed.done() or subscribed.cancelled():
        raise OutsideError(f"no broker answers at {broker_of(url)}; check the address, and that it runs.")
    return found


async def _end(subscribed: asyncio.Future[None], context: SourceContext, seconds: float) -> None:
    """Stop listening so many seconds after the broker has taken the subscription, or when it does not."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            await subscribed
        await context.clock.sleep(seconds)
    except TimeoutError:
        pass
    context.stopping.set()
