"""A child's socket, as the parent's loop writes to it: when a message goes, and which go together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tidemill.lanes.channel import ProcessChannel
from tidemill.lanes.framing import frame
from tidemill.lanes.wire import Forget, Returned

ANSWER = b"".join(frame(Returned(1, 1_000, [False], [2]), b"ok"))


def bytes_of(*functions: int) -> bytes:
    return b"".join(part for function in functions for part in frame(Forget(function)))


class Child:
    """The other end, and the channel to it."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair()
        self.end.setblocking(False)
        self.said: asyncio.Queue[object] = asyncio.Queue()
        self.channel = ProcessChannel(
            ours, lambda: None, lambda *message: self.said.put_nowait(message), lambda _: None
        )

    def has_got(self) -> bytes:
        """All that is there now."""
        try:
            return self.end.recv(1 << 16)
        except BlockingIOError:
            return b""


@pytest.fixture
async def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.channel.close()
    made.end.close()


async def test_a_child_with_nothing_to_do_gets_a_message_at_once(child: Child) -> None:
    """Before the turn of the loop ends; and again each time when it has said something."""
    for _ in range(2):
        child.channel.send(Forget(7))
        assert child.has_got() == bytes_of(7)
        child.end.send(ANSWER)
        await child.said.get()


async def test_what_follows_in_a_turn_goes_together_at_its_end(child: Child) -> None:
    """In order, also what is sent in later turns before the child has said anything."""
    for function in (1, 2, 3):
        child.channel.send(Forget(function))
    assert child.has_got() == bytes_of(1)
    await asyncio.sleep(0)
    assert child.has_got() == bytes_of(2, 3)
    for function in (4, 5):
        child.channel.send(Forget(function))
    assert child.has_got() == b""
    await asyncio.sleep(0)
    assert child.has_got() == bytes_of(4, 5)


@pytest.mark.parametrize("sizes", [[], [-2], [4, -2]])
async def test_an_answer_of_no_parts_or_of_less_than_none_ends_the_child(child: Child, sizes: list[int]) -> None:
    """It is no message of ours: nobody is told of it, and nothing more is read."""
    killed = asyncio.Event()
    child.channel._kill = killed.set  # type: ignore[method-assign]
    child.end.send(b"".join(frame(Returned(1, 1_000, [False] * len(sizes), sizes), b"ok")))
    await killed.wait()
    assert child.said.empty()
