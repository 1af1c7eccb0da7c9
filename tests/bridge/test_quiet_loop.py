"""The event loop in asyncio's debug mode, which complains of callbacks that hold it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.engine import large_buffers, slices, staff

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.timeout(200)


@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_no_callback_of_ours_copies_much_while_large_results_flow(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Ten megabytes at a time to and from both lanes, among small calls, records and streams: a turn of the loop never
    copies more than some slices, of all of them together, however slow the machine is, and asyncio's debug mode has no
    error to report.
    """
    now = began = 0.0
    copied: list[int] = []

    def counted(source: object, target: memoryview) -> Iterator[None]:
        nonlocal now
        count = 0
        for _ in slices.copied(source, target):
            now += 0.0002  # what a slice takes, by a clock that only slices move
            count += 1
            yield
        copied.append(count)

    class Turns(slices.Turns):
        def __init__(self) -> None:
            super().__init__()
            self._loop.call_soon(self._turn)

        def _turn(self) -> None:
            """Once in each turn of the loop."""
            nonlocal began
            assert now - began <= 0.0013  # one that was scheduled, and one that found nothing under way
            began = now
            if not self._loop.is_closed():
                self._loop.call_soon(self._turn)

    monkeypatch.setattr(large_buffers, "copied", counted)
    monkeypatch.setattr(staff, "Turns", Turns)
    monkeypatch.setattr(slices, "monotonic", lambda: now)

    def large(number: int, _: object) -> object:
        return bytes(10_000_000) if kind == "bytes" else np.full(1_250_000, number, float)

    async def main() -> None:
        sent = large(0, None)
        failed: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        async with tm.Lanes(2) as lanes:
            predict = lanes.batched(lambda values: [-value for value in values])
            flows = [asyncio.create_task(lanes.run(large, number, sent)) for number in range(20)]
            assert [value async for value in lanes.stream(abs, range(200))] == list(range(200))
            assert await asyncio.gather(*map(predict, range(200))) == [-number for number in range(200)]
            for flow in flows:
                assert len(await flow) in {10_000_000, 1_250_000}  # type: ignore[arg-type]
        assert not failed

    asyncio.run(main(), debug=True)
    assert copied  # what found the arena full came through the socket, a read at a time
    assert set(copied) == {39}
