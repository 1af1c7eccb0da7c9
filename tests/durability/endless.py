"""A source that goes on behind its script."""

from __future__ import annotations

from collections.abc import AsyncIterator

import tidemill as tm
from tidemill.sources.base import SourceContext
from tidemill.testing import ScriptedSource


class Endless(ScriptedSource):
    """It waits for more behind its script, until the run is stopped."""

    finite = False

    async def stream(self, context: SourceContext) -> AsyncIterator[tm.Batch]:
        async for batch in super().stream(context):
            yield batch
        assert context.stopping is not None
        await context.stopping.wait()
