"""The parent's side of the fork server and of its children; everything on the event loop, nothing blocks it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from tidemill.errors import EngineError
from tidemill.lanes.forkserver import Exited, Kill, Loaded, Preload, Preloaded, Spawn, Spawned
from tidemill.lanes.framing import FrameReader, Payload, frame
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import FromLane, Message

__all__ = ["Exit", "ForkServer", "ProcessChannel"]

_BYTES_PER_TURN: Final = 256 * 1024
"""Socket bytes written to one child per turn of the loop, and about as many read, so that large ones cannot hold it."""
_TURN_S: Final = 0.0005
"""Time per turn spent on what one child says, so that many small results cannot hold it either."""

_log = logging.getLogger("tidemill")

_replies = msgspec.msgpack.Decoder(Loaded | Preloaded | Spawned | Exited)
_encode = msgspec.msgpack.Encoder().encode

_ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
# glibc gives the arrays of one slab back to the kernel and takes them again, zeroed, for the next: a quarter of a
# lane's time. These let a process keep up to 256 MB that it has freed. Read when the process starts.
_KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
}


@dataclass(frozen=True)
class Exit:
    """How a child ended."""

    signal: int | None
    code: int | None

    @classmethod
    def of(cls, status: int) -> Exit:
        """From what ``os.waitpid`` gave."""
        if os.WIFSIGNALED(status):
            return cls(os.WTERMSIG(status), None)
        return cls(None, os.WEXITSTATUS(status))

    def __str__(self) -> str:
        import signal

        if self.signal is not None:
            return f"killed by {signal.Signals(self.signal).name}"
        return f"exit code {self.code}"


class ProcessChannel:
    """A child and its private socket.

    ``received`` gets each message with its payload, ``died`` how the process ended, after the last of its messages.
    """

    def __init__(
        self,
        server: ForkServer,
        child: int,
        parent_end: socket.socket,
        received: Callable[[FromLane, Payload], None],
        died: Callable[[Exit], None],
    ) -> None:
        self._server = server
        self._child = child
        self._socket = parent_end
        self._received = received
        self._died = died
        self._reader = FrameReader(to_lane=False)
        self._unsent: deque[memoryview] = deque()
        self._loop = asyncio.get_running_loop()
        self._exit: Exit | None = None
        self._armed = False  # whether the loop tells us when the socket takes more
        self._gathering = False  # whether what is sent waits for the end of this turn
        self._eof = False
        self._told = False
        self.pid: int | None = None
        self.gone = asyncio.Event()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    def send(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """Hand a message to the child, in order.

        The first of a turn of the loop goes at once, so that the child can begin; those that follow it in the same turn
        go together at its end. What the socket does not take at once follows as it drains.
        """
        if self._eof:
            return
        parts = frame(message, payload)
        if self._armed or self._gathering:
            self._unsent.extend(map(memoryview, parts))
            return
        self._gathering = True
        self._loop.call_soon(self._gathered)
        if len(parts) == 1:
            try:
                sent = self._socket.send(parts[0])
            except OSError:  # full, or the child is gone: see below
                sent = 0
            if sent < len(parts[0]):
                self._unsent.append(memoryview(parts[0])[sent:])
                self._writable()
            return
        self._unsent.extend(map(memoryview, parts))
        self._writable()

    def _gathered(self) -> None:
        self._gathering = False
        if self._unsent and not self._armed:
            self._writable()

    def _writable(self) -> None:
        """Write what waits, up to the bound of a turn."""
        left = _BYTES_PER_TURN
        try:
            while self._unsent and left > 0:
                sent = self._socket.sendmsg(list(islice(self._unsent, 64)))
                left -= sent
                while self._unsent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = self._unsent[0][sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # the child is gone; the reader notices
            self._unsent.clear()
        if bool(self._unsent) is not self._armed:
            self._armed = bool(self._unsent)
            if self._armed:
                self._loop.add_writer(self._socket, self._writable)
            else:
                self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        """Take what is there, up to the bounds of a turn."""
        count = self._read()
        if count is None:
            return
        if not count:
            self._ended()
        elif not self._deliver(_TURN_S):
            self._loop.remove_reader(self._socket)
            self._loop.call_soon(self._deliver_more)

    def _read(self) -> int | None:
        """How many bytes came: 0 at the end, None when there are none yet."""
        try:
            count = self._socket.recv_into(self._reader.room())
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return 0
        self._reader.came(count)
        return count

    def _deliver_more(self) -> None:
        """What was left of the last read; then listen again."""
        if self._eof or self._told:
            return
        if not self._deliver(_TURN_S):
            self._loop.call_soon(self._deliver_more)
        elif not self._eof:
            self._loop.add_reader(self._socket, self._readable)

    def _deliver(self, seconds: float) -> bool:
        """Hand on the complete messages, for about so long; False when some are left."""
        until = self._loop.time() + seconds
        messages = self._reader.messages()
        while True:
            try:
                message, payload = next(messages)
            except StopIteration:
                return True
            except ValueError as error:
                self._distrust(error)
                return True
            self._received(message, payload)  # type: ignore[arg-type]
            if self._reader.pending and self._loop.time() >= until:
                return False

    def _distrust(self, error: ValueError) -> None:
        """What it writes is no message of ours: something in it has got hold of its socket. Nothing more can be read."""
        _log.error("process %s wrote what is no message (%s), and is killed", self.pid, error)
        self.kill()
        self._ended()

    def _ended(self) -> None:
        self._eof = True
        self._unsent.clear()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._end()

    def exited(self, status: int, *, reaped: bool = True) -> None:
        """It ended. When it was ``reaped``, what it wrote is all there: processes that it started may keep the socket
        open and would hide the end.
        """
        self._exit = Exit.of(status)
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
        self._server.kill(self._child)

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


class ForkServer:
    """Starts the server process, asks it to fork, and is told of exits."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._channels: dict[int, ProcessChannel] = {}
        self._next = 0
        self._loaded: asyncio.Future[Loaded] | None = None
        self._preloaded: asyncio.Future[Preloaded] | None = None
        self._closing = False
        self.alive = True
        """False once the process has ended by itself: nothing can be forked any more."""

    async def start(self) -> Loaded:
        """Start the process and wait until it is ready to fork."""
        self.begin()
        return await self.wait_ready()

    def begin(self) -> None:
        """Start the process; its imports go on while the caller does other things."""
        import fcntl  # not on Windows, where this module is imported all the same

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**_KEPT_MEMORY, **os.environ, **_ONE_THREAD, "PYTHONPATH": path}
        with theirs:
            control = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)  # no standard stream, though some may be closed
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                [sys.executable, "-m", "tidemill.lanes.forkserver", str(control)],
                pass_fds=[control],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except OSError:
            ours.close()
            raise
        finally:
            os.close(control)
        ours.setblocking(False)
        self._control = ours
        loop = asyncio.get_running_loop()
        self._loaded = loop.create_future()
        loop.add_reader(ours, self._readable)

    async def wait_ready(self) -> Loaded:
        """Wait until it can fork."""
        assert self._loaded is not None
        return await self._loaded

    def _readable(self) -> None:
        assert self._control is not None
        assert self._loaded is not None
        try:
            data = self._control.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        match _replies.decode(data):
            case Loaded() as loaded:
                self._loaded.set_result(loaded)
            case Preloaded() as preloaded:
                if self._preloaded is not None and not self._preloaded.done():
                    self._preloaded.set_result(preloaded)
            case Spawned(child, pid):
                if child in self._channels:
                    self._channels[child].pid = pid
            case Exited(child, status):
                channel = self._channels.pop(child, None)
                if channel is not None:
                    channel.exited(status)

    def _lost(self) -> None:
        """The server ended. Its children end with it; each is then reported as killed."""
        assert self._control is not None
        assert self._loaded is not None
        asyncio.get_running_loop().remove_reader(self._control)
        self.alive = False
        if not self._loaded.done():
            self._loaded.set_exception(EngineError("the fork server ended before it was ready; see its message above"))
        if self._preloaded is not None and not self._preloaded.done():
            self._preloaded.set_exception(EngineError("the fork server ended while it loaded the plan's modules"))
        for channel in list(self._channels.values()):
            channel.exited(9, reaped=False)

    async def preload(self, pickled: bytes, *, kernels: bool = False) -> Preloaded:
        """Have the server import what unpickling this imports, and the kernels, before it forks again."""
        assert self._control is not None
        memory = Shared("preload", max(len(pickled), 1))
        memory.buffer[: len(pickled)] = pickled
        self._ask(_encode(Preload(len(pickled), kernels)), [memory.fd])
        memory.close()
        self._preloaded = asyncio.get_running_loop().create_future()
        return await self._preloaded

    def spawn(
        self,
        role: str,
        memories: Sequence[int],
        received: Callable[[FromLane, Payload], None],
        died: Callable[[Exit], None],
        *,
        nice: int = 0,
    ) -> ProcessChannel:
        """Fork a child with these memories; messages can be sent to it at once."""
        assert self._control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        self._next += 1
        try:
            self._ask(_encode(Spawn(self._next, role, nice)), [theirs.fileno(), *memories])
        except EngineError:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = ProcessChannel(self, self._next, ours, received, died)
        self._channels[self._next] = channel
        return channel

    def _ask(self, request: bytes, memories: list[int]) -> None:
        assert self._control is not None
        try:
            socket.send_fds(self._control, [request], memories)
        except OSError as error:
            raise EngineError("the fork server was killed, and with it every process that it had started") from error

    def kill(self, child: int) -> None:
        """SIGKILL a child, if it lives."""
        if self._control is not None and child in self._channels:
            with contextlib.suppress(OSError):
                self._control.send(_encode(Kill(child)))

    async def abandon(self) -> None:
        """The loop that heard them was closed: end the server, and with it its children, from another loop."""
        if self._process is None or self._control is None:
            return
        for channel in self._channels.values():
            channel.abandon()
        self._channels.clear()
        self._control.close()
        self._control = None
        process, self._process = self._process, None
        await asyncio.to_thread(process.wait)

    async def aclose(self) -> None:
        """End the server; children that are left are killed by it."""
        if self._process is None or self._control is None:
            return
        with contextlib.suppress(ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = None
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        process, self._process = self._process, None
        await asyncio.to_thread(process.wait)
