"""The address of a server that takes lines over TCP or UDP."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from tidemill.errors import PlanError

__all__ = ["Server", "server_of"]


@dataclass(frozen=True)
class Server:
    """Where it listens, and how people know it."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def server_of(url: object, example: str, *schemes: str) -> Server:
    """The server of a URL that has one of these schemes and a port. Raises `PlanError`.

    >>> print(server_of("tcp://[::1]:8094", "tcp://HOST:PORT", "tcp", "tls"))
    tcp://[::1]:8094
    >>> server_of("plant-db:8094", "tcp://HOST:PORT", "tcp", "tls")
    Traceback (most recent call last):
    tidemill.errors.PlanError: 'plant-db:8094' is no address for lines; write tcp://HOST:PORT.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    more = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password) if host else ()
    if not host or not port or parts.scheme not in schemes or any(more):
        raise PlanError(f"{url!r} is no address for lines; write {example}.")
    return Server(parts.scheme, host, port)
