"""Servers for lines that do as a test says: over TCP, one connection after the other, and over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Post", "TCPServer", "WebServer", "read_all", "read_post", "reset", "take", "tcp_server", "web_server"]

READ = 1 << 16


@dataclass
class TCPServer:
    """``came`` is what each connection has brought so far."""

    port: int = 0
    came: list[bytearray] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released at the end of each connection."""

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[bytes]:
        """Whole ones, of all connections."""
        return [line for each in self.came for line in bytes(each).split(b"\n")[:-1]]


Serve = Callable[[Any, bytearray], None]


def read_all(connection: Any, came: bytearray) -> None:
    """Until the other side has said all."""
    while data := connection.recv(READ):
        came += data


def read_post(connection: Any, came: bytearray, *, body: bool = True) -> None:
    """One post, or its head alone."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += _more(connection, READ if body else 1)
    start = head.index(b"\r\n\r\n") + 4
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    while body and len(head) < start + length:
        head += _more(connection, READ)
    came += head


def _more(connection: Any, size: int) -> bytes:
    data: bytes = connection.recv(size)
    if not data:
        raise ConnectionResetError
    return data


def reset(connection: socket.socket) -> None:
    """End it with what has not been read thrown away."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextlib.contextmanager
def tcp_server(*serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[TCPServer]:
    """Serves the first connection with the first, and so on; the last serves all that follow."""
    made = TCPServer()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made.port = listening.getsockname()[1]

        def run() -> None:
            number = 0
            while True:
                try:
                    connection: Any = listening.accept()[0]
                except OSError:
                    return
                came = bytearray()
                made.came.append(came)
                with contextlib.suppress(OSError), connection:
                    connection.settimeout(120)
                    if tls is not None:
                        connection = tls.wrap_socket(connection, server_side=True)
                    serve[min(number, len(serve) - 1)](connection, came)
                    connection.close()
                number += 1
                made.ended.release()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield made
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(120)


@dataclass(frozen=True)
class Post:
    """What was posted."""

    path: str
    headers: dict[str, str]
    lines: list[bytes]


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class WebServer:
    """``answer`` decides; ``posts`` are all, ``taken`` the lines of those that were answered with 2xx."""

    answer: Callable[[Post], Answer | None]
    port: int = 0
    scheme: str = "http"
    posts: list[Post] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)

    taken: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/write?db=features"


def take(_post: Post) -> Answer:
    return 204, {}, b""


@contextlib.contextmanager
def web_server(
    answer: Callable[[Post], Answer | None] = take, *, tls: ssl.SSLContext | None = None
) -> Iterator[WebServer]:
    """An answer of None ends the connection without one."""
    made = WebServer(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            post = Post(self.path, dict(self.headers), body.splitlines(keepends=True))
            made.posts.append(post)
            made.connections.add(self.client_address)
            found = made.answer(post)
            if found is None:
                self.close_connection = True
                return
            status, headers, told = found
            if 200 <= status < 300:
                made.taken += post.lines
            self.send_response(status)
            for name, value in {"Content-Length": str(len(told)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            """It is quiet."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """A client that goes away is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_port
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            made.scheme = "https"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join(120)
