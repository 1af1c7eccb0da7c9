"""Connections whose other side may be gone without a word: the system finds out."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["keep_alive"]

_PROBES: Final = 5
"""Without an answer, after which the other side is gone."""


def keep_alive(connection: socket.socket, *, within_s: int) -> None:
    """Have the system end the connection within about so many seconds when the other side is gone; what a listening socket accepts
    is asked too. Where it cannot be told how soon, it is as soon as the system likes.

    >>> with socket.socket() as connection:
    ...     keep_alive(connection, within_s=30)
    ...     connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) > 0
    True
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every_s = max(within_s // (2 * _PROBES), 1)
    for option, value in (("TCP_KEEPIDLE", within_s // 2), ("TCP_KEEPINTVL", every_s), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
