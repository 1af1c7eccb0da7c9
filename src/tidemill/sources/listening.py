"""Sockets that wait for senders, and what keeps them from it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from weakref import WeakSet

from tidemill import files
from tidemill.clock import Clock
from tidemill.core.admission import Admission
from tidemill.errors import OutsideError, PlanError, RunEnded
from tidemill.first_of import first_of
from tidemill.formats.line_formats import LineFormat
from tidemill.keep_alive import keep_alive
from tidemill.sources.edged import EdgedSource

__all__ = [
    "ConnectedSource",
    "ListeningSource",
    "Reception",
    "bound",
    "checked_port",
    "is_loopback",
]

_BACKLOG: Final = 4_096
"""Senders that may wait for their connection to be taken."""
_ACCEPTED: Final = 16
"""Connections that are taken in one turn of the loop: after a blink of the network all of them come back at once."""
_HANDSHAKE_S: Final = 10.0
_RETRY_S: Final = 1.0
"""After which connections are taken again, when the system had nothing left for one."""
_SWEEP_S: Final = 5.0
_GONE_S: Final = 120
"""In which a sender that is gone without a word is noticed."""
_KEPT_FREE: Final = 128
"""Of the files that a process may open, the last: for the log, checkpoints, sinks, pages and lanes that are replaced."""
_OWN: Final = 16
"""Connections that each listener of a process may have, however many the others have."""
_log = logging.getLogger("tidemill")


class ListeningSource(EdgedSource):
    """A source that senders find at an address, ``host`` and a port, once it says that it has `_started`."""

    _form: LineFormat
    """Of what they send."""

    def __init__(self, host: str, port: int, **roles: Any) -> None:
        super().__init__(**roles)
        self.host = host
        self._wanted_port = checked_port(port, type(self).__name__)
        self._address: tuple[str, int] | None = None
        self._started = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def uses_kernels(self) -> bool:
        return self._form.uses_kernels

    @property
    def port(self) -> int:
        """The port listened on; before the run, the one asked for."""
        return self._address[1] if self._address is not None else self._wanted_port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return (self.host, self.port)

    def _listens(self, on: socket.socket) -> None:
        """What is sent there is taken from now on: the log says where."""
        self._address = on.getsockname()[:2]
        self._connected = True
        self._started.set()
        _log.info("source %s: listens on %s", self.name, self._shown_address(), extra={"source": self.name})

    def _shown_address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def wait_listening(self) -> tuple[str, int]:
        """Return the address once what is sent there is taken. Raises `RunEnded` when the run ends before."""
        await first_of(self._started.wait(), self._over.wait())
        if not self._started.is_set():
            raise RunEnded(f"the run has ended, and source {self.name} does not listen.")
        return self.address

    def run_begins(self) -> None:
        self._over.clear()

    def run_ended(self) -> None:
        self._over.set()


class _Door(socket.socket):
    """A listening socket whose connections leave the process the files that it needs for itself, however many such sockets
    and runs it has: a new file gets the lowest number that is free, and none of these connections one of the last numbers.
    Those without room, and those that ``admission`` does not take, are closed before anything is read, TLS included, and
    counted there; the others have left it when they are closed, whatever they had come to."""

    def __init__(self, family: int, kind: int, proto: int, admission: Admission) -> None:
        super().__init__(family, kind, proto)
        self._admission = admission
        _doors.add(self)
        self._spare: socket.socket | None = None
        """Given up to turn somebody away when all files are in use: else the loop would try, and complain, for ever."""
        self._take_spare()

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises `ConnectionAbortedError` where one is turned away."""
        try:
            return self._accepted()
        finally:  # it may have been given up for nobody
            self._take_spare()

    def _accepted(self) -> tuple[socket.socket, Any]:
        try:
            taken, address = super().accept()
            room = _leaves_room(taken.fileno(), self._admission)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or self._spare is None:
                raise
            self._spare.close()
            self._spare = None
            taken, address = super().accept()
            room = False
        host = str(address[0])
        if not room:
            self._admission.turn_away(host, _no_room())
        elif self._admission.enter(host):
            return _Taken(taken, self._admission, address), address
        taken.close()
        raise ConnectionAbortedError

    def _take_spare(self) -> None:
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = socket.socket()

    def close(self) -> None:
        _doors.discard(self)
        super().close()
        if self._spare is not None:
            self._spare.close()


class _Taken(socket.socket):
    """A connection that has entered; with the socket that it was."""

    def __init__(self, it: socket.socket, admission: Admission, address: Any) -> None:
        super().__init__(it.family, it.type, it.proto, fileno=it.detach())
        self._admission: Admission | None = admission
        self._address = address

    def getpeername(self) -> Any:
        """Known, too, when it has left again, and what it has sent is still to be read."""
        return self._address

    def close(self) -> None:
        self._leave()
        super().close()

    def detach(self) -> int:
        """So uvloop closes one."""
        self._leave()
        return super().detach()

    def _leave(self) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave(str(self._address[0]))


_doors: Final[WeakSet[_Door]] = WeakSet()
"""That are open, of all runs of this process."""


def _leaves_room(number: int, admission: Admission) -> bool:
    """Whether a file with this number is none of those that are for the process itself, nor, for a listener that has its own
    few connections, of those that are for the others'."""
    most = files.may_be_open()
    if most is None:
        return True
    room = most - min(_KEPT_FREE, most // 2)
    if admission.open >= _OWN:
        room -= min(_OWN * (len(_doors) - 1), room // 2)
    return number < room


def _no_room() -> str:
    return f"no more files may be opened by this process (ulimit -n {files.may_be_open()})"


class Reception:
    """Has a protocol that is ``made`` for each connection that a door takes, once it has agreed on ``tls``, until it is closed.
    Not asyncio's own server, since not each loop's asks the door: uvloop's accepts by itself."""

    def __init__(
        self, door: socket.socket, made: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._door, self._made, self._tls = door, made, tls
        self._handshake_s = None if tls is None else _HANDSHAKE_S
        self._beginning: dict[asyncio.Future[None], socket.socket] = {}
        self._closed = False
        door.setblocking(False)
        door.listen(_BACKLOG)
        self._open()

    def _open(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._door, self._take)

    def _take(self) -> None:
        for _ in range(_ACCEPTED):
            try:
                taken, _ = self._door.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                told = {"message": "a connection could not be taken", "exception": error}
                self._loop.call_exception_handler(told)
                self._loop.remove_reader(self._door)
                self._loop.call_later(_RETRY_S, self._open)
                return
            beginning = asyncio.ensure_future(self._begin(taken))
            self._beginning[beginning] = taken
            beginning.add_done_callback(self._beginning.pop)

    async def _begin(self, taken: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._made, taken, ssl=self._tls, ssl_handshake_timeout=self._handshake_s
            )
        except OSError:  # it has left again, or there is no agreement on TLS
            taken.close()
        except BaseException:
            taken.close()
            raise

    def close(self) -> None:
        """Take no more, and end those that have only begun."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._door)
        self._door.close()
        for taken in self._beginning.values():
            with contextlib.suppress(OSError):  # it has left
                taken.shutdown(socket.SHUT_RDWR)

    async def wait_closed(self) -> None:
        """Until those have ended."""
        if self._beginning:
            await asyncio.wait(self._beginning)


class ConnectedSource(ListeningSource):
    """One that senders connect to: no more than ``connections`` at a time, and ``per_host`` of these from one host. Those that
    are turned away are counted, and told of once in a while, whether anything else happens or not."""

    def __init__(self, host: str, port: int, *, connections: int, per_host: int | None, **roles: Any) -> None:
        super().__init__(host, port, **roles)
        source = type(self).__name__
        self._most = checked_count(connections, "connections", source)
        self._per_host = None if per_host is None else checked_count(per_host, "per_host", source)
        self._admission = Admission(connections, per_host, "")

    def _listening(self) -> socket.socket:
        """A new run's, with its admission. Of loopback, all are from one host, and ``per_host`` bounds nothing."""
        per_host = None if is_loopback(self.host) else self._per_host
        self._admission = Admission(self._most, per_host, f"connections={self._most}")
        door = bound(self.host, self._wanted_port, type(self).__name__, admission=self._admission)
        keep_alive(door, within_s=_GONE_S)
        return door

    @contextlib.asynccontextmanager
    async def _swept(self, clock: Clock) -> AsyncIterator[None]:
        """While inside, `_sweep` every few seconds."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_S)  # whatever the clock of the records says
                self._sweep(clock.monotonic_ns())

        sweeping = asyncio.ensure_future(sweep())
        try:
            yield
        finally:
            sweeping.cancel()

    def _sweep(self, now_ns: int) -> None:
        """Say who was turned away, and what else there is to tell."""
        for told in self._news(now_ns):
            if told is not None:
                _log.warning("source %s: %s", self.name, told, extra={"source": self.name})

    def _news(self, now_ns: int) -> list[str | None]:
        """Sentences, where there is something to tell that was not told lately."""
        return [self._admission.tell(now_ns)]


def checked_port(port: int, source: str) -> int:
    """A number of a port; raises `PlanError` for what is none."""
    if not isinstance(port, int) or not 0 <= port <= 65_535:
        raise PlanError(f"port={port!r} of {source} must be a number from 0 (any free port) to 65535.")
    return port


def checked_count(count: int, option: str, source: str) -> int:
    """A number of connections; raises `PlanError` for what is none."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise PlanError(f"{option}={count!r} of {source} must be a number of 1 or more.")
    return count


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(
    host: str,
    port: int,
    source: str,
    of: socket.SocketKind = socket.SOCK_STREAM,
    admission: Admission | None = None,
) -> socket.socket:
    """A socket bound to the address, of TCP unless ``of`` says else; with ``admission``, which counts whom it turns away, one
    whose connections leave this process its files. Raises `OutsideError` that says why there is none."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=of, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise OutsideError(f"{source} cannot listen on host {host!r}: {error.strerror or error}.") from None
    made: socket.socket | None = None
    try:
        made = socket.socket(family, kind, proto) if admission is None else _Door(family, kind, proto, admission)
        if of is socket.SOCK_STREAM:  # others would share the port, and each get some of what comes
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        if port and of is socket.SOCK_STREAM:
            made.listen(_BACKLOG)  # a port that another program listens on is refused only here on some systems
    except OSError as error:
        if made is not None:
            made.close()
        if error.errno == errno.EADDRINUSE:
            what = "is in use by another program; stop it or choose another port (0 takes a free one)"
        elif error.errno == errno.EACCES:
            what = "may not be used by this user; choose one above 1023"
        else:
            what = f"cannot be used: {error.strerror or error}"
        raise OutsideError(f"{source} port {port} on {host} {what}.") from None
    return made
