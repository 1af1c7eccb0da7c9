"""The fork server: one small single-threaded process from which lanes and sink processes are forked in milliseconds.

It is started once per run (`fork_client`), loads NumPy and the kernels, and then forks on
request. Its children therefore never import the user's ``__main__``, inherit no thread, no lock and no descriptor of
the application, and share the loaded libraries' memory. It is the parent of its children, so a kill by process id
cannot hit a stranger: an id is free again only after it was reaped here. Each child leads a process group, so that the
programs that a function started end with it, unless they have a session of their own; and signals to the application's
group are for the application, which decides.

When the application dies, even by SIGKILL, the server reads the end of its socket, kills its children and leaves. While it
imports, when it reads nothing and has no children, the kernel kills it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from tidemill.lanes.platform import die_with_parent, dying_with_parent, ended_child, name_process

__all__ = [
    "HELD",
    "Exited",
    "Here",
    "Kill",
    "Loaded",
    "Preload",
    "Preloaded",
    "Spawn",
    "Spawned",
    "Speak",
    "inside_lane",
    "main",
]

HELD: Final = frozenset(number for number in signal.Signals if number.name in {"SIGINT", "SIGTERM", "SIGHUP"})
"""Signals that are for the application alone, though a Ctrl-C reaches the whole group: who starts the server blocks them for it,
since one that came in its first moments would end it."""
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.5
MAX_FDS: Final = 64
"""Descriptors of one spawn: the socket, the state memory and the slabs."""
_inside = False


class Spawn(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Fork a child; its descriptors come with the message: the socket, then its memories."""

    child: int
    role: str
    nice: int
    patience_s: float = 0.0
    """How long to go on trying while the system has no process to give."""


class Kill(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """SIGKILL a child, if it still lives."""

    child: int


class Speak(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Say that it listens."""


class Preload(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Unpickle the ``size`` bytes of the memory that comes along, for the modules that this imports; load the kernels
    if they are needed.

    So a lane and every replacement of it find the user's libraries loaded, and start in milliseconds.
    """

    size: int
    kernels: bool


class Loaded(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """The server is ready to fork."""


class Preloaded(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """What was asked for is loaded."""

    kernels: str = ""
    """"compiled" or "interpreted"; empty when they are not needed."""
    cold_s: float = 0.0
    """Seconds that the kernels took."""
    reason: str = ""
    """Why they are interpreted."""


class Here(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """The server listens."""


class Spawned(msgspec.Struct, array_like=True, tag=True, frozen=True):
    child: int
    pid: int


class Exited(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """A child was reaped: ``status`` as ``os.waitpid`` gave it."""

    child: int
    status: int
    error: int = 0
    """Of one that could not be forked, and so was not `Spawned`: the number of the system's error."""


_encode = msgspec.msgpack.Encoder().encode
_requests = msgspec.msgpack.Decoder(Spawn | Kill | Speak | Preload)


def inside_lane() -> bool:
    """Whether this process was started here, a lane's or a sink's: there are no lanes within lanes."""
    return _inside


def main(fd: int) -> None:
    """Serve until the application's end of the socket closes."""
    global _inside  # noqa: PLW0603 - true of the whole process and of its children, once
    _inside = True
    while (opened := os.open(os.devnull, os.O_RDWR)) < 3:  # a service may start with its standard streams closed
        os.set_inheritable(opened, True)
    os.close(opened)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the application decides; a Ctrl-C reaches the whole group
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # One of HELD that came before is overlooked too. What else the application has blocked may come to its whole group.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD | {signal.SIGCHLD})
    with dying_with_parent():
        _import_roles()
    name_process("tidemill-server")
    with socket.socket(fileno=fd) as control:
        server = _Server(control)
        server.tell(_encode(Loaded()))
        server.serve()


def _import_roles() -> None:
    """Import what every child needs."""
    import cloudpickle  # noqa: F401 - children unpickle with it

    import tidemill.lanes.call_main
    import tidemill.lanes.lane_main
    import tidemill.lanes.sink_main  # noqa: F401

    _freeze()


def _freeze() -> None:
    """Children must not copy pages just to count references in a collection."""
    import gc

    gc.collect()
    gc.freeze()


def _preload(pickled: bytes, *, kernels: bool) -> Preloaded:
    """Load the modules that a plan needs. What fails here fails again in the lane, where it is reported."""
    import pickle

    with _printing_to_stderr(), contextlib.suppress(BaseException):  # sys.exit() in a module must not end the server
        pickle.loads(pickled)  # noqa: S301 - our own parent's bytes
    loaded = Preloaded()
    if kernels:
        from tidemill.stages.statistics.compiled import load_kernels

        start = time.perf_counter()
        found = load_kernels()
        loaded = Preloaded(found.kind, time.perf_counter() - start, found.reason)
    _freeze()
    return loaded


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """What a module prints at its import must not get into the application's output."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # it may have closed the stream
            sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


@dataclass
class _Pending:
    """A child that is to be forked."""

    spawn: Spawn
    fds: list[int]
    until: float
    due: float = 0.0
    wait_s: float = _FIRST_WAIT_S

    def put_off(self, now: float) -> None:
        """Until a while later, which is twice as long each time."""
        self.due = min(now + self.wait_s, self.until)
        self.wait_s = min(2 * self.wait_s, _LONGEST_WAIT_S)


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pid -> child
        self._pending: list[_Pending] = []
        """Those for which the system had no process."""
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll(self._until_due_ms()):
                if fd == self._wake:
                    self._reap()
                elif not self._request():
                    self._leave()
                    return
            self._fork_due()

    def _request(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 4096, MAX_FDS)
        except ConnectionResetError:  # the application left without reading all we told it
            return False
        if not data:
            return False
        match _requests.decode(data):
            case Spawn() as spawn:
                self._fork(_Pending(spawn, fds, time.monotonic() + spawn.patience_s))
            case Kill(child):
                self._give_up(child)
                for pid, owner in self._children.items():
                    if owner == child:
                        _kill_group(pid)
            case Speak():
                self.tell(_encode(Here()))
            case Preload(size, kernels):
                with dying_with_parent():
                    if self._is_alone():
                        return False
                    loaded = _preload(os.pread(fds[0], size, 0), kernels=kernels)
                self.tell(_encode(loaded))
                _close(fds)
        return True

    def _is_alone(self) -> bool:
        """Whether the application is gone, though it has left requests."""
        poll = select.poll()
        poll.register(self._control, 0)
        return bool(poll.poll(0))

    def _until_due_ms(self) -> int | None:
        """Rounded up: a turn that comes too early would be one of many."""
        due = min((pending.due for pending in self._pending), default=None)
        return None if due is None else max(0, math.ceil((due - time.monotonic()) * 1000))

    def _fork_due(self) -> None:
        now = time.monotonic()
        due = [pending for pending in self._pending if pending.due <= now]
        self._pending = [pending for pending in self._pending if pending.due > now]
        for pending in due:
            self._fork(pending)

    def _fork(self, pending: _Pending) -> None:
        spawn, fds, server = pending.spawn, pending.fds, os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no process or no memory is left, for the moment: the others go on
            self._not_forked(pending, error)
            return
        if pid == 0:
            self._become(spawn, fds, server)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the child does so too: whichever comes first
        _close(fds)  # else a lane's death would not close its socket
        self._children[pid] = spawn.child
        self.tell(_encode(Spawned(spawn.child, pid)))

    def _not_forked(self, pending: _Pending, error: OSError) -> None:
        now = time.monotonic()
        if not pending.due:
            os.write(2, f"tidemill: a process could not be forked: {error}\n".encode())
        if now < pending.until:
            pending.put_off(now)
            self._pending.append(pending)
            return
        _close(pending.fds)
        self.tell(_encode(Exited(pending.spawn.child, 0, error.errno or errno.EAGAIN)))

    def _give_up(self, child: int) -> None:
        """Nobody wants it any more, if it waits for its process."""
        for pending in [one for one in self._pending if one.spawn.child == child]:
            self._pending.remove(pending)
            _close(pending.fds)
            self.tell(_encode(Exited(child, signal.SIGKILL)))

    def _become(self, spawn: Spawn, fds: list[int], server: int) -> None:
        """In the child: never returns."""
        code = 70
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # its group is its own
            self._control.close()
            os.close(self._wake)
            die_with_parent(server)
            name_process(f"tidemill-{spawn.role}")
            if spawn.nice:
                os.nice(spawn.nice)
            sys.setswitchinterval(0.0005)
            _reseed()
            if sys.breakpointhook is sys.__breakpointhook__ and "PYTHONBREAKPOINT" not in os.environ:
                sys.breakpointhook = _no_breakpoint
            _entry(spawn.role)(socket.socket(fileno=fds[0]), fds[1:])
            code = 0
        except (BrokenPipeError, ConnectionResetError):  # the application is gone: nobody to tell
            code = 0
        except BaseException:  # noqa: BLE001 - the last frame of this process
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):  # the user may have put other streams there, which do anything
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 512):
                pass
        while self._children and (pid := ended_child()) is not None:
            _kill_group(pid)  # what it left behind; before it is reaped, so that the number is still its own
            _, status = os.waitpid(pid, 0)
            child = self._children.pop(pid, None)
            if child is not None:
                self.tell(_encode(Exited(child, status)))

    def tell(self, data: bytes) -> None:
        """To the application, if it is still there."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(data)

    def _leave(self) -> None:
        """The application is gone: nobody will read what the children do."""
        for pid in self._children:
            _kill_group(pid)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _kill_group(pid: int) -> None:
    """SIGKILL to a child and to what it started."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _entry(role: str) -> Callable[[socket.socket, list[int]], None]:
    from tidemill.lanes import call_main, lane_main, sink_main

    return {"lane": lane_main.main, "sink": sink_main.main, "calls": call_main.main}[role]


def _no_breakpoint(*_: object, **__: object) -> None:
    raise RuntimeError("breakpoint() has no terminal in a lane; with lanes=0 (--lanes 0) it works")


def _reseed() -> None:
    """Else all children would draw the same numbers; the standard library's ``random`` sees to itself."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
