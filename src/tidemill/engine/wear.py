"""When a process has served long enough: by what it sent back, or by the memory that it has grown to."""

from __future__ import annotations

from typing import Final

from tidemill.engine.call_process import CallProcess
from tidemill.engine.making import Making
from tidemill.lanes.platform import resident_bytes

__all__ = ["is_worn"]

_RSS_CHECK_NS: Final = 20_000_000


def is_worn(process: CallProcess, making: Making, now_ns: int) -> bool:
    """Whether the process should be replaced; its memory is looked at now and then."""
    if making.recycle_after is not None and process.items >= making.recycle_after:
        return True
    if making.recycle_rss is None or now_ns - process.rss_at_ns < _RSS_CHECK_NS or process.channel is None:
        return False
    process.rss_at_ns = now_ns
    return resident_bytes(process.channel.pid) >= making.recycle_rss
