"""The small HTTP server beside a run: a thread that asks the event loop how it is, and answers by itself.

    client ──▶ thread ──call_soon_threadsafe──▶ loop: statistics, a fraction of a millisecond
                  ◀──────── frozen reading ────────┘
                  └─ judges and writes the text, off the loop

A loop that is held cannot answer; the thread can, and says so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import http.server
import io
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tidemill.engine.exposition import load_library
from tidemill.engine.pages import Page, Seen, page, refused
from tidemill.engine.showing import Address
from tidemill.errors import OutsideError

__all__ = ["PageServer"]

ANSWER_S: Final = 2.0
"""How long the event loop may take to say how it is; it takes a millisecond when nobody holds it."""
_CLIENT_S: Final = 5.0
"""How long a client may take to ask, and how long to take the answer."""
_CLIENTS: Final = 16
"""Clients at once. A further one gets the place of the one that has kept its thread waiting longest; where all wait for their
answer, it is turned away."""
_GONE_S: Final = 1.0
"""How long the thread of a client that is cut off may take to end; it takes a millisecond."""
_log = logging.getLogger("tidemill")


class PageServer:
    """Listens from when it is made, until `close`. Raises `OutsideError` when the address cannot be listened on.

    ``see`` is called on the event loop.
    """

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop, see: Callable[[], Seen]) -> None:
        self._loop, self._see, self._answer_s = loop, see, ANSWER_S
        self._server = _listening(address, self.answer)
        self.address = Address(address.host, self._server.server_address[1])
        """With the port that was taken."""
        self._thread = threading.Thread(target=self._serve, name="tidemill-pages", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        load_library()  # now, and not under the first scrape of a run at work
        self._server.serve_forever()

    def answer(self, target: str, accept: str) -> Page:
        """The page for a request; called in a client's thread."""
        try:
            return page(target, self._asked, accept=accept)
        except Exception:  # noqa: BLE001 - a thread has nobody to raise to
            _log.exception("the run could not say how it is: a fault of tidemill itself; please report it")
            return Page(500, "text/plain; charset=utf-8", b"a fault of tidemill itself; its traceback is in the log\n")

    def _asked(self) -> Seen:
        """What the loop says."""
        future: concurrent.futures.Future[Seen] = concurrent.futures.Future()

        def look() -> None:
            try:
                future.set_result(self._see())
            except Exception as error:  # noqa: BLE001 - raised where it was asked
                future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop has ended: it will not answer either
            self._loop.call_soon_threadsafe(look)
        try:
            return future.result(self._answer_s)
        except TimeoutError:
            raise TimeoutError(self._answer_s) from None

    def close(self) -> None:
        """Stop listening; blocks for a moment, but for no client."""
        self._server.wake()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listening(address: Address, answer: Callable[[str, str], Page]) -> _Server:
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return _Server(family, address, answer)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "is in use by another program"
        else:
            why = f"cannot be listened on: {error.strerror or error}"
        raise OutsideError(
            f"{address.host}:{address.port}, where the run was to show /metrics and /healthz, {why}; choose another with "
            'metrics="HOST:PORT" (--metrics; port 0 takes a free one), or none with metrics=False (--no-metrics).'
        ) from None


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of the library's five, a further one would try again after a second

    def __init__(self, family: int, address: Address, answer: Callable[[str, str], Page]) -> None:
        self.address_family = family
        self.answer = answer
        self.loopback = address.loopback
        self._room = threading.BoundedSemaphore(_CLIENTS)
        self._awaited: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__((address.host, address.port), _Handler)

    def wake(self) -> None:
        """Let ``serve_forever`` look up at once."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def awaits(self, client: socket.socket) -> None:
        """From now on a thread waits for this client, to ask or to take the answer."""
        with self._lock:
            self._awaited[client] = None

    def heard(self, client: socket.socket) -> None:
        """It waits no more; the client is not cut off."""
        with self._lock:
            self._awaited.pop(client, None)

    def _has_room(self) -> bool:
        if self._room.acquire(blocking=False):
            return True
        with self._lock:  # whoever closes a socket has said first that it is not waited for
            client = next(iter(self._awaited), None)
            if client is None:
                return False
            del self._awaited[client]
            with contextlib.suppress(OSError):  # it has left by itself
                client.shutdown(socket.SHUT_RDWR)
        return self._room.acquire(timeout=_GONE_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._has_room():
            self.shutdown_request(request)
            return
        self.awaits(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had, just when somebody wants to know what is wrong: then in this one
            self.process_request_thread(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def shutdown_request(self, request: Any) -> None:
        self.heard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's fault; anything else is ours."""
        _log.debug("a client of /metrics was not answered", exc_info=True)


class _Asked(io.RawIOBase):
    """What a client asks, when all of it comes in time: a timeout of the socket begins anew with each byte."""

    def __init__(self, client: socket.socket) -> None:
        self._client, self._until_s = client, time.monotonic() + _CLIENT_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._client.settimeout(max(self._until_s - time.monotonic(), 0.001))
        came = self._client.recv_into(buffer)
        if not came:  # the library would answer what is no whole request
            raise ConnectionAbortedError
        return came


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "tidemill"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Asked(self.connection))

    def do_GET(self) -> None:
        self._answered(with_body=True)

    def do_HEAD(self) -> None:
        self._answered(with_body=False)

    def _answered(self, *, with_body: bool) -> None:
        self.server.heard(self.connection)
        denied = refused(self.headers.get("Host", "")) if self.server.loopback else None
        made = denied or self.server.answer(self.path, self.headers.get("Accept", ""))
        self.server.awaits(self.connection)
        self.connection.settimeout(_CLIENT_S)
        self.send_response(made.status)
        self.send_header("Content-Type", made.content_type)
        self.send_header("Content-Length", str(len(made.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Tidemill", "run")  # by which `tidemill status` knows a run, behind a proxy too
        self.end_headers()
        if with_body:
            self.wfile.write(made.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's word
        """A scrape every few seconds is nothing to tell of."""
