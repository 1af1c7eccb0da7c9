"""Connections to servers that rows are sent to: made, and made again with growing pauses."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from tidemill.core.backoff import Backoff, level_of_try
from tidemill.errors import InputError, OutsideError
from tidemill.keep_alive import keep_alive
from tidemill.tls import no_tls

__all__ = ["ANSWER_S", "PATIENCE_S", "PROGRESS_S", "Patience", "connected", "patiently"]

ANSWER_S: Final = 10.0
"""In which a server must answer to each of: the connection, TLS, a greeting."""
PROGRESS_S: Final = 30.0
"""A connection over which a server takes, or acknowledges, nothing for so long is given up, and made again."""
PATIENCE_S: Final = 10.0
"""For how long a server that is away is tried again here; then the run begins again at its last checkpoint."""
_GONE_S: Final = 30
"""In which a server that is gone without a word is noticed."""
T = TypeVar("T")


def connected(host: str, port: int, tls: ssl.SSLContext | None, server: object) -> socket.socket:
    """A connection that is kept alive; its timeout is `ANSWER_S`. ``server`` is what people know it by.

    Raises `OutsideError` when it is not to be reached, `InputError` for a certificate that is not trusted.
    """
    try:
        made = socket.create_connection((host, port), ANSWER_S)
    except TimeoutError:
        raise OutsideError(f"{server} does not answer.") from None
    except (OSError, UnicodeError) as error:
        raise OutsideError(f"{server} cannot be reached: {getattr(error, 'strerror', None) or error}.") from None
    try:
        keep_alive(made, within_s=_GONE_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made if tls is None else tls.wrap_socket(made, server_hostname=host)
    except BaseException as error:
        made.close()
        if isinstance(error, ssl.SSLError):
            raise InputError(f"{no_tls(server, error)}.") from None
        if isinstance(error, OSError):
            during = " during TLS" if tls is not None else ""
            raise OutsideError(f"{server} ended the connection{during}: {error.strerror or error}.") from None
        raise


class Patience:
    """Waits with growing pauses for a server that is away, `PATIENCE_S` at most without progress in between; connections that
    end soon, again and again, are not made ever faster. ``tried`` is told of each try, as a sink tells of it."""

    def __init__(self, given_up: threading.Event | None = None, tried: Callable[[str], None] = lambda _: None) -> None:
        self._given_up = given_up or threading.Event()
        """Ends a pause."""
        self._tried = tried
        self._backoff = Backoff(0.1, 5.0)
        self._since: float | None = None

    @property
    def level(self) -> int:
        """Of the log, for the connection that is lost now."""
        return level_of_try(self._backoff.brief + 1)

    def connected(self) -> None:
        self._backoff.connected(time.monotonic_ns())

    def progressed(self) -> None:
        """The server does what it is asked for."""
        if self._since is not None:
            self._tried("")
        self._since = None

    def failed(self, error: OutsideError) -> None:
        """Return when it is time for another try, and not before the server wants to be asked again; raises the error when it is
        time to give up."""
        self._tried(str(error))
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        wait_s = max(self._backoff.failed(time.monotonic_ns()), error.after_s)
        if now + wait_s > self._since + PATIENCE_S:
            raise error
        if self._given_up.wait(wait_s):
            raise error


def patiently(
    attempt: Callable[[], T], given_up: threading.Event | None = None, tried: Callable[[str], None] = lambda _: None
) -> T:
    """What the attempt returns, as soon as one does not raise `OutsideError`; that of the last once it is given up."""
    patience = Patience(given_up, tried)
    while True:
        try:
            made = attempt()
        except OutsideError as error:
            patience.failed(error)
        else:
            patience.progressed()
            return made
