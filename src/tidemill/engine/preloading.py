"""What is loaded before the first record: the plan's modules, and the kernels, which are compiled once for a user and a version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from tidemill.core.plan import Plan
from tidemill.lanes.fork_client import ForkServer
from tidemill.lanes.forkserver import Preloaded
from tidemill.sources.base import Source
from tidemill.stages.statistics.compiled import load_kernels

__all__ = ["load_kernels_for", "preloaded"]

_LONG_S: Final = 2.0
"""Seconds after which a run says why it has not begun."""
_log = logging.getLogger("tidemill")


async def preloaded(server: ForkServer, pickled: bytes, plan: Plan, sources: Sequence[Source]) -> Preloaded:
    """Have the server load, before it forks lanes, what the pickled plan imports, and the kernels where lanes or live sources need
    them. The log says why that takes long, and what it means if lanes cannot have them."""
    kernels = plan.uses_kernels or any(source.uses_kernels and not source.finite for source in sources)
    loading = asyncio.ensure_future(server.preload(pickled, kernels=kernels))
    try:
        done, _ = await asyncio.wait([loading], timeout=_LONG_S)
        if not done:
            _log.info("getting ready; the first run of all compiles the kernels, which takes some ten seconds, once")
        loaded = await loading
    finally:
        loading.cancel()
    if loaded.reason and plan.uses_kernels:
        _log.warning("rolling statistics run interpreted, some 100 times slower: %s", loaded.reason)
    return loaded


async def load_kernels_for(sources: Sequence[Source]) -> None:
    """In this process too, for the sources that read quicker by them: where they are compiled already, as for the lanes."""
    if any(source.uses_kernels for source in sources):
        await asyncio.to_thread(load_kernels, compile_missing=False)
