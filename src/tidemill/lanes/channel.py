"""A child process and its private socket, on the event loop: messages to it, messages from it, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tidemill.lanes.framing import Discarded, FrameReader, Part, Payload, frame
from tidemill.lanes.wire import FromLane, Message, Partly, Returned

__all__ = ["Exit", "ProcessChannel"]

_BYTES_PER_TURN: Final = 256 * 1024
"""Socket bytes written to one child per turn of the loop, and about as many read, so that large ones cannot hold it."""
_TURN_S: Final = 0.0002
"""Time per turn spent on what one child says, so that many small results cannot hold it either."""

_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class Exit:
    """How a child ended."""

    signal: int | None
    code: int | None
    error: int = 0
    """Of the system, if it could not be forked: then there was no child."""
    why: str = ""
    """Where more is known than the signal."""

    @classmethod
    def of(cls, status: int, error: int = 0, why: str = "") -> Exit:
        """From what ``os.waitpid`` gave, or the number of the system's error."""
        if error:
            return cls(None, None, error)
        if os.WIFSIGNALED(status):
            return cls(os.WTERMSIG(status), None, why=why)
        return cls(None, os.WEXITSTATUS(status))

    def __str__(self) -> str:
        if self.error:
            return f"could not be forked ({os.strerror(self.error)})"
        if self.why:
            return self.why
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        return f"exit code {self.code}"


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class ProcessChannel:
    """A child and its private socket.

    ``received`` gets each message with its payload, which of an answer to a call may be `Discarded`, ``died`` how the process
    ended, after the last of its messages. ``cut_off`` is called when the socket has ended before it is known how the process did.
    """

    def __init__(
        self,
        parent_end: socket.socket,
        kill: Callable[[], None],
        received: Callable[[FromLane, Payload], None],
        died: Callable[[Exit], None],
        *,
        cut_off: Callable[[], None] = lambda: None,
    ) -> None:
        self._kill = kill
        self._told_cut_off = cut_off
        self._socket = parent_end
        self._received = received
        self._died = died
        self._reader = FrameReader(to_lane=False)
        self._unsent: deque[Part] = deque()
        self._loop = asyncio.get_running_loop()
        self._exit: Exit | None = None
        self._armed = False  # whether the loop tells us when the socket takes more
        self.drained = 0
        """How often a socket that was full took more."""
        self._caught_up: Callable[[], None] | None = None
        self._at_work = False  # whether it was sent something since it last said anything
        self._cut_off = (
            False  # whether nothing more is written: it would be taken for the rest of a frame that broke off
        )
        self._delivering = False  # whether messages of the last read wait for the next turn; nothing more is read then
        self._eof = False
        self._told = False
        self.pid: int | None = None
        self.gone = asyncio.Event()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    def send(self, message: Message, *payload: Part) -> None:
        """Hand a message to the child, in order.

        A child that was sent nothing since it last said something gets it at once, so that it can begin. Else it has what to
        do: all that one turn of the loop sends goes together at its end. What the socket does not take then follows as it drains.
        """
        if self._cut_off:
            return
        parts = frame(message, *payload)
        if self._unsent or self._at_work:
            if not self._unsent:
                self._loop.call_soon(self._gathered)
            self._unsent += parts
            return
        self._at_work = True
        if len(parts) == 1:
            try:
                sent = self._socket.send(parts[0])
            except OSError:  # full, or the child is gone: see below
                sent = 0
            if sent < len(parts[0]):
                self._unsent.append(memoryview(parts[0])[sent:])
                self._writable()
            return
        self._unsent += parts
        self._writable()

    def once_caught_up(self, told: Callable[[], None]) -> bool:
        """Whether messages wait here for the child to read; then ``told`` is called when it has, once."""
        if self._armed:
            self._caught_up = told
        return self._armed

    def _gathered(self) -> None:
        if self._unsent and not self._armed:
            self._writable()

    def _writable(self) -> None:
        """Write what waits, up to the bound of a turn."""
        self.drained += self._armed
        left = _BYTES_PER_TURN
        try:
            while self._unsent and left > 0:
                sent = self._socket.sendmsg(list(islice(self._unsent, 64)))
                left -= sent
                while self._unsent and sent >= (size := len(self._unsent[0])):
                    self._unsent.popleft()
                    sent -= size
                if sent:
                    self._unsent[0] = memoryview(self._unsent[0])[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except (BrokenPipeError, ConnectionResetError):  # the child is gone; the reader notices
            self._unsent.clear()
        except OSError as error:  # what it has of a frame it would wait for the rest of for ever
            if self._socket.fileno() < 0:
                return  # as in `_read`
            _log.error("process %s cannot be written to (%s), and is killed", self.pid, error)
            self._unsent.clear()
            self._cut_off = True
            self.kill()
        if bool(self._unsent) is not self._armed:
            self._armed = bool(self._unsent)
            if self._armed:
                self._loop.add_writer(self._socket, self._writable)
            else:
                self._loop.remove_writer(self._socket)
                told, self._caught_up = self._caught_up, None
                if told is not None:
                    told()

    def _readable(self) -> None:
        """Take what is there, up to the bounds of a turn."""
        if self._delivering:  # to stop listening for a turn would cost two calls of the system
            return
        count = self._read()
        if count is None:
            return
        if not count:
            self._ended()
        elif not self._deliver(_TURN_S):
            self._delivering = True
            self._loop.call_soon(self._deliver_more)

    def _read(self) -> int | None:
        """How many bytes came: 0 at the end, None when there are none yet."""
        try:
            count = self._socket.recv_into(self._reader.room())
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            # Where the application has forked, the copy's end is closed, and the loop that it shares does not know of that.
            return 0 if self._socket.fileno() >= 0 else None
        self._reader.came(count)
        self._at_work = False
        return count

    def _deliver_more(self) -> None:
        """What was left of the last read."""
        if self._eof or self._told or self._socket.fileno() < 0:  # as in `_read`; these tell of memory that has gone on
            return
        self._delivering = False
        if not self._deliver(_TURN_S):
            self._delivering = True
            self._loop.call_soon(self._deliver_more)

    def _deliver(self, seconds: float) -> bool:
        """Hand on the complete messages, for about so long; False when some are left."""
        until = time.monotonic() + seconds
        messages = self._reader.messages()
        while True:
            try:
                message, payload = next(messages)
            except StopIteration:
                return True
            except ValueError as error:
                self._distrust(error)
                return True
            if isinstance(payload, Discarded) and not isinstance(message, (Partly, Returned)):
                self._distrust(f"a frame of {len(payload)} bytes, for which there is no memory")
                return True
            self._received(message, payload)  # type: ignore[arg-type]
            if self._reader.pending and time.monotonic() >= until:
                return False

    def _distrust(self, why: ValueError | str) -> None:
        """What it writes is no message of ours: something in it has got hold of its socket. Nothing more can be read."""
        _log.error("process %s wrote what is no message (%s), and is killed", self.pid, why)
        self.kill()
        self._ended()

    def _ended(self) -> None:
        self._eof = self._cut_off = True
        self._unsent.clear()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        if self._exit is None:
            self._told_cut_off()
        self._end()

    @property
    def awaits_word(self) -> bool:
        """Whether it is still to be said that it was forked, or how it ended."""
        return self.pid is None or (self._eof and self._exit is None)

    def exited(self, status: int, error: int = 0, *, why: str = "", reaped: bool = True) -> None:
        """It ended. When it was ``reaped``, what it wrote is all there: processes that it started may keep the socket
        open and would hide the end.
        """
        if self._told:
            return
        self._exit = self._exit or Exit.of(status, error, why)
        if reaped and not self._eof:
            self._deliver(float("inf"))  # what was read before and not handed on
        while reaped and not self._eof:
            if self._read():
                self._deliver(float("inf"))
            else:
                self._ended()
        self._end()

    def _end(self) -> None:
        """Both signs of death are in: its socket was read to the end, and its exit status is known."""
        if self._eof and self._exit is not None and not self._told:
            self._told = True
            self._socket.close()
            self.gone.set()
            self._died(self._exit)

    def kill(self) -> None:
        """SIGKILL it, if it lives."""
        self._kill()

    def close(self) -> None:
        """Hear no more of it."""
        if not self._told:
            self._told = True
            if not self._eof:
                self._loop.remove_reader(self._socket)
                self._loop.remove_writer(self._socket)
            self._socket.close()

    def abandon(self) -> None:
        """The loop that heard it was closed: only the socket is left to be closed."""
        self._told = True
        self._socket.close()
