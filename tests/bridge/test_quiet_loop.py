"""The event loop in asyncio's debug mode, which complains of callbacks that hold it."""

from __future__ import annotations

import asyncio
import sys

import cloudpickle
import numpy as np
import pytest

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.timeout(100)


@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_no_callback_is_slow_while_large_results_flow(caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Ten megabytes at a time from both lanes, among small calls, records and streams: asyncio has nothing to say."""

    def large(number: int) -> object:
        return bytes(10_000_000) if kind == "bytes" else np.full(1_250_000, number, float)

    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0.1
        async with tm.Lanes(2) as lanes:
            predict = lanes.batched(lambda values: [-value for value in values])
            await asyncio.gather(lanes.run(large, 0), lanes.run(large, 0))  # imports are not what is watched
            caplog.clear()
            flows = [asyncio.create_task(lanes.run(large, number)) for number in range(20)]
            stream = [value async for value in lanes.stream(abs, range(200))]
            records = await asyncio.gather(*map(predict, range(200)))
            assert stream == list(range(200))
            assert records == [-number for number in range(200)]
            for flow in flows:
                assert len(await flow) in {10_000_000, 1_250_000}  # type: ignore[arg-type]

    asyncio.run(main(), debug=True)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
