"""Whether and where a run shows over HTTP how it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidemill.errors import OutsideError, PlanError
from tidemill.sources.listening import is_loopback

if TYPE_CHECKING:
    from tidemill.engine.pages import Seen

__all__ = ["DEFAULT_ADDRESS", "Address", "Showing", "address_of"]

DEFAULT_ADDRESS: Final = "127.0.0.1:9464"
"""Where exporters of metrics are looked for; loopback only."""
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def address_of(text: str) -> Address:
    """``HOST:PORT``, ``[HOST]:PORT``, or a port of loopback. Raises `PlanError` for anything else.

    >>> address_of("0.0.0.0:9100").port, address_of("9100").host, address_of("[::1]:0").host
    (9100, '127.0.0.1', '::1')
    """
    found = re.fullmatch(r"(?:(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:\[\]/@]+)):)?([0-9]{1,5})", text)
    if found is None or int(found[3]) > 65_535:
        raise PlanError(
            f"metrics={text!r} must be HOST:PORT, such as {DEFAULT_ADDRESS}, or a port; 0 takes a free one."
        )
    return Address(found[1] or found[2] or "127.0.0.1", int(found[3]))


class Showing:
    """Of one run: ``asked`` is False for no pages, True for the default address, which others may hold, or an address.
    Raises `PlanError` for one that other machines reach, unless it is ``exposed``."""

    def __init__(self, asked: bool | str, *, exposed: bool = False) -> None:
        self._may_fail = asked is True
        self._address = None if asked is False else address_of(DEFAULT_ADDRESS if asked is True else asked)
        if self._address is not None and not self._address.loopback and not exposed:
            raise PlanError(
                f"metrics={asked!r} can be reached from other machines, and the pages ask for no password and encrypt nothing; "
                "write metrics_exposed=True (--metrics-exposed) if only the plant reaches it, or show them on 127.0.0.1."
            )
        self.url = ""
        """Where the pages are; empty while there are none."""

    @contextlib.asynccontextmanager
    async def of(self, see: Callable[[], Seen]) -> AsyncIterator[None]:
        """While open, the pages are there; ``see`` is called on the event loop.

        Raises `OutsideError` when the address that was asked for cannot be listened on; a run that was not asked for one
        goes on without.
        """
        if self._address is None:
            yield
            return
        from tidemill.engine.page_server import PageServer

        try:
            server = PageServer(self._address, asyncio.get_running_loop(), see)
        except OutsideError as error:
            if not self._may_fail:
                raise
            _log.warning("%s The run goes on.", error)
            yield
            return
        self.url = server.address.url
        try:
            self._tell()
            yield
        finally:
            self.url = ""
            await asyncio.to_thread(server.close)

    def _tell(self) -> None:
        from tidemill.engine.exposition import missing_library

        _log.info("/metrics and /healthz are on %s", self.url)
        if missing := missing_library():
            level = logging.INFO if self._may_fail else logging.WARNING
            _log.log(level, "%s. /healthz and /readyz are there without it", missing)
