"""Between a sink and its PostgreSQL server: a line that stops at the one message at which something is to happen."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

WINDOWS: Final = ("copying", "position", "before", "unanswered")
"""Of a commit, by the message that is held: rows behind the first ones or the word that there are no more; the position; the
word COMMIT on its way to the server; the server's word that it is done."""
_MOST_BYTES: Final = 1 << 30
_NAMING: Final = b"set_config('application_name'"


def _received(reader: BinaryIO) -> tuple[bytes, bytes] | None:
    """The next message, by its kind and whole; None at the end."""
    head = reader.read(5)
    if len(head) < 5:
        return None
    kind, length = struct.unpack("!cI", head)
    assert 4 <= length < _MOST_BYTES, f"no message of PostgreSQL: {head!r}"
    rest = reader.read(length - 4)
    return (kind, head + rest) if len(rest) == length - 4 else None


class Line:
    """One connection of a sink, and the way its transaction has gone."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.commits = 0
        """That the server has answered; the first one is of the epoch, without rows."""
        self.go = threading.Event()
        """Set when what is held may go on."""
        self.telling = threading.Event()
        """Set just before the sink is told, after what was held, that the server is ready for the next: it may answer at once."""
        self.ready = threading.Event()
        """Set when the sink was told, after what was held, that the server is ready for the next."""
        self.went_on = threading.Event()
        """Set when the sink has sent something after that."""
        self._copied = 0

    def window(self, kind: bytes, message: bytes) -> str | None:
        """Which one a message of either side stands in."""
        match kind:
            case b"d":
                self._copied += 1  # the first one is the header
                return "copying" if self._copied > 2 else None
            case b"c":
                return "copying"
            case b"P" if b"UPDATE" in message and b"SET position" in message:
                return "position"
            case b"Q" if message[5:] == b"COMMIT\0":
                return "before"
            case b"C" if message[5:] == b"COMMIT\0":
                self._copied = 0
                self.commits += 1
                return "unanswered"
        return None

    @property
    def answer_read(self) -> bool:
        """Whether the sink has read the answer that was held; of what it has asked since, it reads some only at its next commit."""
        return self.ready.is_set() and (self.went_on.is_set() or not self._unread)

    @property
    def _unread(self) -> bool:
        """Whether the sink has not read all that it was sent."""
        ours, its = (f"{end[1]:04X}" for end in (self.client.getsockname(), self.client.getpeername()))
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, here, there, _, queues, *_ = line.split()
            if here.endswith(f":{its}") and there.endswith(f":{ours}"):
                return int(queues.partition(":")[2], 16) > 0
        return False

    def cut(self) -> None:
        """For both sides; what is held is lost."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Between:
    """Listens on ``port`` and hands on to a server, message by message; without TLS."""

    def __init__(self, server: int) -> None:
        self.server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.pooled = False
        """Whether sessions lose their names, as behind a pooler: a later start does not find those of earlier ones."""
        self._wanted: tuple[str, int] | None = None
        self._passed_over: list[Line] = []
        """Lines of earlier starts: an answer may come on them to somebody who was killed."""
        self._held: Line | None = None
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    # -- what the harness asks for -------------------------------------------------------------------------

    @property
    def held(self) -> Line | None:
        """The line on which a message is held."""
        return self._held

    def hold(self, window: str, commits: int, *, of_a_new_line: bool = False) -> None:
        """The first message in that window on a line that has so many commits behind it, and perhaps is not there yet."""
        with self._lock:
            self._passed_over = list(self._lines) if of_a_new_line else []
            self._wanted = (window, commits)
            self._held = None

    def pass_on(self) -> None:
        """What is held goes on its way; nothing else will be held."""
        with self._lock:
            self._wanted = None
            if self._held is not None:
                self._held.go.set()

    def cut(self) -> None:
        """What is held is lost, with its line."""
        if self._held is not None:
            self._held.cut()
        self.pass_on()

    def close(self) -> None:
        """Cut all lines."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.pass_on()
        for line in self._lines:
            line.cut()
            line.go.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        for line in self._lines:
            line.client.close()
            line.server.close()

    # -- lines -----------------------------------------------------------------------------------------------

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.server))
                except OSError:  # it is being started again
                    client.close()
                    continue
                self._lines.append(line := Line(client, server))
                self._start(self._carry, line, client, server)
                self._start(self._carry, line, server, client)

    def _carry(self, line: Line, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source.makefile("rb") as reader:
            if source is line.client:
                (length,) = struct.unpack("!I", reader.read(4).rjust(4, b"\0"))
                target.sendall(struct.pack("!I", length) + reader.read(max(length - 4, 0)))
            naming = False
            while (received := _received(reader)) is not None:
                kind, message = received
                if source is line.client and line.telling.is_set():
                    line.went_on.set()
                commits = line.commits
                if (window := line.window(kind, message)) is not None:
                    self._hold_up(line, window, commits)
                if naming and kind == b"B" and self.pooled:
                    message = message.replace(b"tidemill ", b"a pooler ")
                naming = _NAMING in message
                if kind == b"Z":
                    line.telling.set()
                target.sendall(message)
                if kind == b"Z":
                    line.ready.set()
        line.cut()

    def _hold_up(self, line: Line, window: str, commits: int) -> None:
        with self._lock:
            if self._wanted is None or self._wanted[0] != window or commits < self._wanted[1]:
                return
            if line in self._passed_over:
                return
            self._wanted = None
            line.go.clear()
            line.telling.clear()
            line.ready.clear()
            line.went_on.clear()
            self._held = line
        line.go.wait()
