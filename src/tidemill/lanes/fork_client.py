"""The parent's side of the fork server: it asks for processes and hears of their ends; nothing blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from tidemill.errors import EngineError, OutsideError, TidemillError
from tidemill.lanes.channel import Exit, ProcessChannel
from tidemill.lanes.forkserver import HELD, Exited, Here, Kill, Loaded, Preload, Preloaded, Spawn, Spawned, Speak
from tidemill.lanes.framing import Payload
from tidemill.lanes.memory import write_at
from tidemill.lanes.platform import (
    above_standard_streams,
    activity,
    in_forked_child,
    message_pair,
    process_handle,
    sealed_memory,
)
from tidemill.lanes.server_watch import ServerWatch
from tidemill.lanes.wire import FromLane

__all__ = ["NO_ROOM", "PATIENCE_S", "ForkServer", "ended"]

PATIENCE_S: Final = 2.0
"""How long a run asks for a process that the system does not give, before it says so."""
NO_ROOM: Final = (
    "Its user, container or unit has as many processes and threads as it may (ulimit -u, pids.max, TasksMax), or no memory; "
    "end others, raise that limit, or use fewer lanes."
)
"""What is said where no process or thread can be had."""
_GRACE_S: Final = 5.0
"""How long the server has to end its children and itself, once it is told to."""
_ENDING_S: Final = 1.0
"""How long it may take to end once its socket is closed, which is a few system calls before."""

_FIRST_LOOK_S: Final = 1.0
_FIRST_LOOKS: Final = 120
"""The same before its first word, those at which it had worked left out: it is no Python interpreter, perhaps."""
_LOOK_S: Final = 0.25
_LOOKS: Final = 12
"""How often it is looked at while it owes a word, and how often in vain before it is ended (`ServerWatch`)."""
_LAST_S: Final = 1.0
"""How long the sockets of its children may stay open once it has ended, and they with it: what a child has started may hold them."""
_UNHEARD: Final = "did not respond (it was stopped, or the machine has no memory left for it), and was killed"

_FOR_NOW: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""Why it cannot be asked for something at this moment, though it lives."""

_log = logging.getLogger("tidemill")

_ours: weakref.WeakSet[socket.socket] = weakref.WeakSet()
"""This process's ends of all sockets. One that it forks must not hold them: the server would not hear of this one's end."""


def _close_ours() -> None:
    for end in list(_ours):
        end.close()


in_forked_child(_close_ours)

_CODE: Final = "import sys; sys.path[:] = {path}; from tidemill.lanes.forkserver import main; main({fd})"
"""What the server runs. Modules are found where the application finds them, and nowhere before."""

_replies = msgspec.msgpack.Decoder(Loaded | Preloaded | Spawned | Exited | Here)
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


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals that come meanwhile are heard afterwards; a process that is started here has them blocked, until it unblocks them
    itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkServer:
    """Starts the server process, asks it to fork, and is told of exits."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._channels: dict[int, ProcessChannel] = {}
        self._next = 0
        self._loaded: asyncio.Future[Loaded] | None = None
        self._preloaded: asyncio.Future[Preloaded] | None = None
        self._was_ready = False
        self._killed: set[int] = set()
        """Children that are to be killed and have not ended."""
        self._ticks = 0
        self._why = ""
        """Why it was killed by us; empty while it was not."""
        self._first_watch = ServerWatch(
            _FIRST_LOOK_S,
            _FIRST_LOOKS,
            owes=self._is_loading,
            excused=self._gets_on,
            ask=lambda: None,
            silent=self._never_heard,
        )
        self._watch = ServerWatch(
            _LOOK_S, _LOOKS, owes=self._owes, excused=self._is_excused, ask=self._speak, silent=self._unheard
        )
        self.alive = True
        """False once the process has ended by itself: nothing can be forked any more."""

    async def start(self) -> Loaded:
        """Start the process and wait until it is ready to fork."""
        self.begin()
        return await self.wait_ready()

    def begin(self) -> None:
        """Start the process; its imports go on while the caller does other things."""
        ours, theirs = message_pair()
        _ours.add(ours)
        environment = {**_KEPT_MEMORY, **os.environ, **_ONE_THREAD}
        try:
            with theirs:
                control = above_standard_streams(theirs)
        except OSError:
            ours.close()
            raise
        code = _CODE.format(path=ascii([entry for entry in sys.path if isinstance(entry, str)]), fd=control)
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # as multiprocessing does
        try:
            with signals_held():
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                    [sys.executable, *flags, "-c", code],
                    pass_fds=[control],
                    stdin=subprocess.DEVNULL,
                    # Where the application has none, a library that the new process loads may have its file where they would be.
                    stdout=subprocess.DEVNULL if sys.stdout is None else None,
                    stderr=subprocess.DEVNULL if sys.stderr is None else None,
                    env=environment,
                )
        except OSError as error:
            ours.close()
            if error.errno in (errno.EAGAIN, errno.ENOMEM):
                raise OutsideError(f"the process that forks lanes {Exit.of(0, error.errno)}. {NO_ROOM}") from error
            if error.filename == sys.executable:
                raise OutsideError(
                    f"the process that forks lanes cannot be started: {error.strerror}. {_executable()}"
                ) from error
            raise
        finally:
            os.close(control)
        ours.setblocking(False)
        self._control = ours
        loop = asyncio.get_running_loop()
        self._loaded = loop.create_future()
        loop.add_reader(ours, self._readable)
        self._first_watch.begin()

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
            if self._control.fileno() < 0:  # closed, since this process is a copy of the application
                return
            data = b""
        if not data:
            self._lost()
            return
        self._watch.heard()
        match _replies.decode(data):
            case Loaded() as loaded:
                self._was_ready = True
                if not self._loaded.done():
                    self._loaded.set_result(loaded)
            case Preloaded() as preloaded:
                if self._preloaded is not None and not self._preloaded.done():
                    self._preloaded.set_result(preloaded)
            case Spawned(child, pid):
                if child in self._channels:
                    self._channels[child].pid = pid
            case Exited(child, status, error):
                channel = self._channels.pop(child, None)
                self._killed.discard(child)
                if channel is not None:
                    channel.exited(status, error)

    # -- whether it listens ------------------------------------------------------------------------------------

    def _owes(self) -> bool:
        """Whether it has yet to say that it has forked a child, or that one has ended."""
        return bool(self._killed) or any(channel.awaits_word for channel in self._channels.values())

    def _is_excused(self) -> bool:
        """It imports, which takes as long as it takes, or waits for the machine."""
        return self._is_importing or self._is_at_work()

    def _is_at_work(self) -> bool:
        return self._process is not None and activity(self._process.pid)[0]

    def _gets_on(self) -> bool:
        """Whether it works, or has since this was last asked."""
        at_work, ticks = (False, 0) if self._process is None else activity(self._process.pid)
        before, self._ticks = self._ticks, ticks
        return at_work or ticks > before

    def _is_loading(self) -> bool:
        """Whether it has not said its first word."""
        return self._loaded is not None and not self._loaded.done()

    def _speak(self) -> None:
        """Have it say something; and what it was to do and did not."""
        for request in (*map(Kill, self._killed), Speak()):
            with contextlib.suppress(OSError):  # it has not read what it was sent before
                assert self._control is not None
                self._control.send(_encode(request))

    def _unheard(self) -> None:
        self._kill_it(_UNHEARD)

    def _never_heard(self) -> None:
        waits = "Or it waits for something at its start, in sitecustomize or a .pth file of its environment."
        self._kill_it(f"did not say that it had started, and was killed ({_executable()} {waits})")

    def _unwatched(self) -> None:
        """It has ended, or is to end."""
        self._first_watch.end()
        self._watch.end()

    def _kill_it(self, why: str) -> None:
        """It is of no use: with it all that it has started ends, and who uses it begins another."""
        assert self._process is not None
        self._why = why
        _log.error(
            "the process that forks lanes and sinks (%s) %s, with all that it had started", self._process.pid, why
        )
        self._process.kill()
        self._lost()  # a process that it has started may hold its end of the socket, which then tells nothing

    def _lost(self) -> None:
        """The server ended. Its children end with it; each is then reported as killed."""
        assert self._control is not None
        assert self._loaded is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._control)
        self._unwatched()
        self.alive = False
        if not self._loaded.done():
            self._loaded.set_exception(self.lost("before it was ready"))
            self._loaded.exception()  # nobody may wait for it: who asks for something is told
        if self._preloaded is not None and not self._preloaded.done():
            self._preloaded.set_exception(self.lost("while it loaded the plan's modules"))
        for channel in list(self._channels.values()):
            channel.exited(
                signal.SIGKILL, why=self._why and f"with the process that forks lanes, which {self._why}", reaped=False
            )
        loop.call_later(_LAST_S, self._hear_the_last)

    def _hear_the_last(self) -> None:
        """Of children that are gone, though somebody still has their sockets."""
        for channel in list(self._channels.values()):
            channel.exited(signal.SIGKILL)

    async def preload(self, pickled: bytes, *, kernels: bool = False) -> Preloaded:
        """Have the server import what unpickling this imports, and the kernels, before it forks again."""
        assert self._control is not None
        memory = sealed_memory("preload", max(len(pickled), 1))
        try:
            write_at(memory, 0, memoryview(pickled))
            self._ask(_encode(Preload(len(pickled), kernels)), [memory])
        finally:
            os.close(memory)  # the server has its own
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
        patience_s: float = 0.0,
    ) -> ProcessChannel:
        """Fork a child with these memories; messages can be sent to it at once. While the system has no process to give, it is
        asked again for so long; then the child has died of that."""
        assert self._control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        _ours.add(ours)
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        self._next += 1
        try:
            self._ask(_encode(Spawn(self._next, role, nice, patience_s)), [theirs.fileno(), *memories])
        except TidemillError:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = ProcessChannel(ours, partial(self.kill, self._next), received, died, cut_off=self._watch.begin)
        self._channels[self._next] = channel
        self._watch.begin()
        return channel

    def _ask(self, request: bytes, memories: list[int]) -> None:
        assert self._control is not None
        if not self.alive:
            raise self.lost()
        try:
            socket.send_fds(self._control, [request], memories)
        except OSError as error:
            if error.errno in _FOR_NOW:
                told = f"the process that forks lanes and sinks takes no request for now ({error.strerror}); is lanes= too high?"
                raise OutsideError(told) from error
            self.alive = False
            raise self.lost() from error

    def lost(self, when: str = "") -> TidemillError:
        """That it has ended, and how: by a signal it is somebody else's doing, and by itself a fault of ours."""
        assert self._process is not None
        if self._why:
            return OutsideError(
                f"the process that forks lanes and sinks ({self._process.pid}) {self._why}, with all that it had started."
            )
        with contextlib.suppress(subprocess.TimeoutExpired):  # its socket closes an instant before it has ended
            self._process.wait(_ENDING_S)
        code, at = self._process.returncode, f" {when}" if when else ""
        if code is not None and code < 0:
            return OutsideError(
                f"the process that forks lanes and sinks ({self._process.pid}) was {Exit(-code, None)}{at}, and every process "
                "that it had started with it; the system does that where no memory is left."
            )
        return EngineError(
            f"the fork server ended{at}{'' if code is None else f': {Exit(None, code)}'}; see its message above"
            f"{f'. {_executable()}' if code is not None and not self._was_ready else ''}"
        )

    def kill(self, child: int) -> None:
        """SIGKILL a child, if it lives."""
        if self._control is not None and child in self._channels:
            self._killed.add(child)
            self._watch.begin()
            with contextlib.suppress(OSError):
                self._control.send(_encode(Kill(child)))

    async def abandon(self) -> None:
        """The loop that heard them was closed: end the server, and with it its children, from another loop."""
        for channel in self._channels.values():
            channel.abandon()
        self._channels.clear()
        self._unwatched()
        await self.reap()

    async def aclose(self) -> None:
        """End the server; children that are left are killed by it."""
        if self._control is not None:
            with contextlib.suppress(ValueError, OSError):
                asyncio.get_running_loop().remove_reader(self._control)
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self._unwatched()
        await self.reap()

    async def reap(self) -> None:
        """End the process, or what is left of one that has ended; its children are heard to their end."""
        if self._process is None or self._control is None:
            return
        control, self._control = self._control, None
        process, self._process = self._process, None
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)  # the server hears it, whoever else may hold this end
        control.close()
        if self._is_importing:
            process.kill()  # an import may take for ever
        await _reaped(process)

    @property
    def _is_importing(self) -> bool:
        """Whether it has no children yet, and will not listen until it is done."""
        return any(
            answer is not None and (answer.cancelled() or not answer.done())
            for answer in (self._loaded, self._preloaded)
        )


def _executable() -> str:
    return f"It is started with the Python interpreter that sys.executable names, which is {sys.executable!r} here."


async def _reaped(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself, since its socket is closed, or is killed after the grace."""
    if process.returncode is not None:
        return  # its number may be another's by now
    try:
        async with asyncio.timeout(_GRACE_S):
            await ended(process.pid)
    except TimeoutError:
        pass
    except OSError:  # no descriptor is left
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    finally:  # also when nobody waits any more
        process.kill()
        process.wait()


async def ended(pid: int) -> None:
    """Return when the process has ended. Raises `ProcessLookupError` for one that is gone."""
    loop = asyncio.get_running_loop()
    handle = process_handle(pid)
    readable = asyncio.Event()
    loop.add_reader(handle, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
