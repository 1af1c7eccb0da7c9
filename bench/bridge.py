"""tm.Lanes against the pools of Python: small calls, rows, large arrays, the loop's lag, a kill, and the pipeline.

Every row is a ratio of two things measured in turn in this run, the median over the runs with the lowest and the
highest behind it; every line also says what CPU time a call takes in the parent and in the workers.

    python -m bench.bridge                          all of it, in about five minutes
    python -m bench.bridge --quick                  the same with less of everything, in about one
    python -m bench.bridge --only light rows        some parts
    python -m bench.bridge --profile light20        one case for some seconds, to look at with a profiler
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import _bridge_bare, _bridge_calls, _bridge_limits, _bridge_profile, _bridge_rows, _common
from bench._bridge_calls import Sides
from bench._common import Table, attempt

_WITH_BOTH: dict[str, Callable[[Sides, Table], Awaitable[None]]] = {
    "light": _bridge_calls.light,
    "executor": _bridge_calls.executor,
    "round": _bridge_calls.round_trip,
    "books": _bridge_calls.books,
    "batched": _bridge_calls.batched,
    "bare": _bridge_bare.bare,
    "arrays": _bridge_limits.arrays,
}
"""Parts that have the lanes and the pool open side by side."""

_PARTS = (*_WITH_BOTH, "lag", "recovery", "pipeline", "rows")


def measure(options: argparse.Namespace, table: Table) -> None:
    if options.profile:
        _bridge_profile.profile(options)
        return
    if options.quick:
        options.runs, options.seconds = min(options.runs, 2), 0.03
        options.kills, options.lag_seconds, options.w1_records = 12, 1.5, 500_000
    for part in options.only:
        print(f"-- {part}", flush=True)
        if part in _WITH_BOTH:
            asyncio.run(_both(part, options, table))
        elif part == "lag":
            asyncio.run(_bridge_calls.open_sides(options, lambda sides: _bridge_limits.lag(sides, table, options)))
        elif part == "recovery":
            asyncio.run(_bridge_limits.recovery(table, options))
        elif part == "pipeline":
            _bridge_limits.pipeline(options, table)
        else:
            _bridge_rows.measure(options, table)


async def _both(part: str, options: argparse.Namespace, table: Table) -> None:
    """A part whose lanes cannot even be opened is a row, too."""

    async def open_and_measure() -> None:
        await _bridge_calls.open_sides(options, lambda sides: _WITH_BOTH[part](sides, table))

    await attempt(table, part, open_and_measure, seconds=300)


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=resolved_lanes(None))
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, metavar="PART", help=", ".join(_PARTS))
    parser.add_argument("--quick", action="store_true", help="less of everything, without the slow peers")
    parser.add_argument(
        "--seconds", type=float, default=0.1, help="of one pass (default 0.1); of a profile (3 at least)"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--plot", type=Path, help="draw efficiency by batch size into this file (.svg)")
    parser.add_argument("--profile", metavar="CASE", help=", ".join(_bridge_profile.CASES))
    parser.set_defaults(lag_seconds=8.0, w1_records=2_000_000)
    _common.main(measure, parser, runs=5)
