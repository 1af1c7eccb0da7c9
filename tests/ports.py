"""Ports of loopback for servers that begin later, or again: nobody else on the machine is given one while no server is there."""

from __future__ import annotations

import socket

__all__ = ["HeldPort"]


class HeldPort:
    """Of TCP, until it is closed. A server that sets ``SO_REUSEADDR``, as all do, may listen there all the same."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Others may have it."""
        self._socket.close()
