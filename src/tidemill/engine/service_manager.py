"""The way to the service manager that has started this process, such as systemd: one datagram for each message."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["ServiceManager", "service_manager"]

_log = logging.getLogger("tidemill")


class ServiceManager:
    """Listens at ``address``, and waits for a sign of life for ``watchdog_s``, None for none."""

    def __init__(self, address: str, watchdog_s: float | None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._unsent = ""
        self._has_failed = False

    def tell(self, message: str) -> None:
        """Never waits and raises nothing. What there is no room for at the other end goes before the next message."""
        message = "\n".join(part for part in (self._unsent, message) if part)
        self._unsent = ""
        if not message:
            return
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), self._address)
        except BlockingIOError:
            lasting = [line for line in message.split("\n") if line in ("READY=1", "STOPPING=1")]
            self._unsent = "\n".join(lasting)
        except OSError as error:
            if not self._has_failed:
                _log.warning("the service manager cannot be told how the run is: %s", error.strerror or error)
            self._has_failed = True

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()


def service_manager(environment: Mapping[str, str] = os.environ) -> ServiceManager | None:
    """The one that the environment names, in the way of ``sd_notify(3)`` and ``sd_watchdog_enabled(3)``; None without one.

    >>> service_manager({}) is None
    True
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    if address[0] not in "/@":
        _log.warning(
            "NOTIFY_SOCKET=%s is no socket of this machine: no service manager is told how the run is", address
        )
        return None
    watchdog_s = None
    if environment.get("WATCHDOG_PID", str(os.getpid())) == str(
        os.getpid()
    ):  # else it is another process that is watched
        period = environment.get("WATCHDOG_USEC", "")
        watchdog_s = int(period) / 1e6 if period.isascii() and period.isdecimal() and int(period) > 0 else None
    return ServiceManager("\0" + address[1:] if address[0] == "@" else address, watchdog_s)
