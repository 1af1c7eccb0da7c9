"""What the tests of `tidemill.Lanes` share: open lanes for a whole file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

import tidemill as tm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[tm.Lanes]:
    """Two lanes."""
    async with tm.Lanes(2) as lanes:
        yield lanes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one() -> AsyncIterator[tm.Lanes]:
    """One lane, so that calls queue."""
    async with tm.Lanes(1) as lanes:
        yield lanes
