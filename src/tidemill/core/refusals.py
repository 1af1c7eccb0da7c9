"""Requests that a listener did not take: how many, and who guesses at its token."""

from __future__ import annotations

from typing import Final

__all__ = ["Refusals"]

_GUESSES: Final = 10
"""Wrong tokens of one host within a minute that are answered as a mistake is."""
_MINUTE_NS: Final = 60 * 10**9
_HOSTS: Final = 10_000
"""That are remembered; of more, those are forgotten that began first."""


class Refusals:
    """Counts what is refused, and wrong tokens by the host that shows them.

    A right token is taken whatever its host has shown before: behind one address may be a whole plant, and one device in it with
    an old token must not silence the others. So nothing is gained by a pause, and a token is as safe as it is long.

    >>> refusals = Refusals()
    >>> [refusals.wrong_token("10.0.0.7", now_ns=0) for _ in range(12)].count(True)
    10
    >>> refusals.wrong_token("10.0.0.7", now_ns=60_000_000_000)
    True
    >>> refusals.tell(now_ns=60_000_000_000)
    '13 requests showed a wrong token, the last from 10.0.0.7'
    """

    def __init__(self) -> None:
        self.count = 0
        """Requests that were refused, for whatever reason."""
        self.last = ""
        """What the sender of the last one was told."""
        self._wrong: dict[str, tuple[int, int]] = {}  # by host: since when, how often
        self._new = 0
        self._last_host = ""
        self._told_ns: int | None = None

    def refused(self, said: str) -> None:
        """One more, whose sender was told this."""
        self.count += 1
        self.last = said

    def wrong_token(self, host: str, now_ns: int) -> bool:
        """Whether the host may be told so; False when it has shown too many within a minute."""
        self._new += 1
        self._last_host = host
        since, times = self._wrong.get(host, (now_ns, 0))
        if now_ns - since >= _MINUTE_NS:
            since, times = now_ns, 0
        self._wrong[host] = since, times + 1
        if len(self._wrong) > _HOSTS:
            del self._wrong[next(iter(self._wrong))]
        return times < _GUESSES

    def tell(self, now_ns: int) -> str | None:
        """What is to be told of wrong tokens since it was told last; None while that is too fresh, or nothing."""
        if not self._new or (self._told_ns is not None and now_ns - self._told_ns < _MINUTE_NS):
            return None
        many = "1 request" if self._new == 1 else f"{self._new:,} requests"
        self._new, self._told_ns = 0, now_ns
        return f"{many} showed a wrong token, the last from {self._last_host}"
