"""Sockets that wait for senders, and what keeps them from it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Final

from tidemill.errors import OutsideError, PlanError

__all__ = ["BACKLOG", "bound", "checked_port", "is_loopback"]

BACKLOG: Final = 4_096
"""Senders that may wait for their connection to be taken."""


def checked_port(port: int, source: str) -> int:
    """A number of a port; raises `PlanError` for what is none."""
    if not isinstance(port, int) or not 0 <= port <= 65_535:
        raise PlanError(f"port={port!r} of {source} must be a number from 0 (any free port) to 65535.")
    return port


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int, source: str, of: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket bound to the address, of TCP unless ``of`` says else. Raises `OutsideError` that says why there is none."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=of, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise OutsideError(f"{source} cannot listen on host {host!r}: {error.strerror or error}.") from None
    made = socket.socket(family, kind, proto)
    try:
        if of is socket.SOCK_STREAM:  # others would share the port, and each get some of what comes
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        if port and of is socket.SOCK_STREAM:
            made.listen(BACKLOG)  # a port that another program listens on is refused only here on some systems
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            what = "is in use by another program; stop it or choose another port (0 takes a free one)"
        elif error.errno == errno.EACCES:
            what = "may not be used by this user; choose one above 1023"
        else:
            what = f"cannot be used: {error.strerror or error}"
        raise OutsideError(f"{source} port {port} on {host} {what}.") from None
    return made
