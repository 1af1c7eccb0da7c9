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


def server_of(url: object, of: str, *schemes: str) -> Server:
    """The server of a URL that has one of these schemes and a port. Raises `PlanError` that does not show it: somebody may have
    written a password into it, which has no place there.

    >>> print(server_of("tcp://[::1]:8094", "TCP", "tcp", "tls"))
    tcp://[::1]:8094
    >>> server_of("plant-db:8094", "TCP", "tcp", "tls")
    Traceback (most recent call last):
    tidemill.errors.PlanError: The address of TCP(...) must be tcp://HOST:PORT or tls://HOST:PORT, and no more than that.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    more = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password) if host else ()
    if not host or not port or parts.scheme not in schemes or any(more):
        forms = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
        raise PlanError(f"The address of {of}(...) must be {forms}, and no more than that.")
    return Server(parts.scheme, host, port)
