"""tidemill beside stream engines: W1 throughput, W2 latency, W3 heavy functions, W5 cold start.

Each engine runs in an environment of its own (`make bench-peers`) and in each of its idioms, on the same records; what
it makes is compared with pandas before its number counts.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

import tidemill as tm
from bench import _common, _others, _streams_peers, _streams_w1, _w1
from bench._common import Table, Wrong, median, spread
from bench._streams_peers import IDIOMS, KINDS, Absent, Idiom
from bench._streams_w1 import Readings
from bench.peers import _w2, _w3

T = TypeVar("T")

_PARTS = ("throughput", "latency", "heavy", "start")
_INPUTS = {
    f"{keys} {sensors:,}": (sensors, keys == "Zipf") for sensors in (1_000, 10_000) for keys in ("uniform", "Zipf")
}
_RATES = (5_000, 20_000, 50_000)
_MILLION = 1e6
_LONGER_S = 0.05
"""W3 also with batches that work so long: what a batch costs is then spread over more records."""


def measure(options: argparse.Namespace, table: Table) -> None:
    for part in options.only or _PARTS:
        {"throughput": _throughput, "latency": _latency, "heavy": _heavy, "start": _start}[part](options, table)


def _quietest(call: Callable[[], T], options: argparse.Namespace) -> tuple[T, float]:
    return _others.quietest(call, options.others, options.tries)


# -- W1 ----------------------------------------------------------------------------------------------------


def _throughput(options: argparse.Namespace, table: Table) -> None:
    for name in options.inputs or _INPUTS:
        sensors, zipf = _INPUTS[name]
        readings = Readings.of(max(options.records, 4 * options.peer_records), sensors, zipf)
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
            readings.write(Path(folder))
            _one_input(name, readings, Path(folder), options, table)


def _one_input(name: str, readings: Readings, folder: Path, options: argparse.Namespace, table: Table) -> None:
    """tidemill just before and after each peer, so that a machine that slows down slows both."""
    own: list[float] = []
    rates: dict[Idiom, list[float]] = {}
    ratios: dict[Idiom, list[float]] = {}
    for idiom in [idiom for idiom in IDIOMS if not options.peers or idiom.peer in options.peers]:
        try:
            pairs, error, share = _beside(idiom, readings, folder, options)
        except (Absent, Wrong) as problem:
            table.note(f"W1 {name}, {idiom.what}", str(problem))
            continue
        own += [mine for mine, _ in pairs]
        rates[idiom] = [peers / _MILLION for _, peers in pairs]
        ratios[idiom] = [mine / peers for mine, peers in pairs]
        shown = f"{median(rates[idiom]):.3f}{spread(rates[idiom], '{:.3f}')}"
        print(
            f"W1 {name}: {idiom.what} [{idiom.kind}]: {shown} M records/s, error {error:.0e}; tidemill / it "
            f"{median(ratios[idiom]):.0f}x{spread(ratios[idiom], '{:.0f}')}; others had {share:.0%}",
            flush=True,
        )
        table.note(f"W1 {name}, {idiom.what}, M records/s", f"{shown}; others had {share:.0%}")
    millions = [rate / _MILLION for rate in own]
    if own:
        table.note(f"W1 {name}, tidemill, M records/s", f"{median(millions):.2f}{spread(millions)}")
    for kind in KINDS:
        of_kind = [idiom for idiom in rates if idiom.kind == kind]
        if of_kind:
            best = max(of_kind, key=lambda idiom: median(rates[idiom]))
            note = f"{spread(ratios[best], '{:.0f}')}: {best.peer}"
            table.at_least(
                f"W1 {name}, tidemill / best peer, {kind}", median(ratios[best]), 100, shown="{:.1f}x", note=note
            )


def _beside(
    idiom: Idiom, readings: Readings, folder: Path, options: argparse.Namespace
) -> tuple[list[tuple[float, float]], float, float]:
    """Pairs of tidemill's rate and the peer's, the peer's largest error, and the worst share that others had.

    A peer that needs to be warm makes its runs in one process, with tidemill before and after; else each run is a process.
    """
    records = min(int(options.peer_records * idiom.records), len(readings))
    at_once = options.runs if idiom.warm_s else 1

    def turn() -> tuple[list[tuple[float, float]], float]:
        own = [_streams_w1.tidemill(readings, options.records, options.lanes)[0] for _ in range(2)]
        rates, error, _ = _streams_peers.w1(idiom, readings, folder, records, at_once)
        own += [_streams_w1.tidemill(readings, options.records, options.lanes)[0] for _ in range(2)]
        return [(median(own), rate) for rate in rates], error

    turns = [_others.quietest(turn, options.others, options.tries) for _ in range(options.runs // at_once)]
    pairs = [pair for (made, _), _ in turns for pair in made]
    return pairs, max(error for (_, error), _ in turns), max(share for _, share in turns)


# -- W2 ----------------------------------------------------------------------------------------------------


def _latency(options: argparse.Namespace, table: Table) -> None:
    for rate in _RATES:
        for _ in range(options.latency_runs):
            what = f"W2 {rate:,} records/s, tidemill"
            (told, report), share = _quietest(lambda: asyncio.run(_paced(rate, options)), options)  # noqa: B023
            _latency_row(table, what, told, share, 10 if rate == _RATES[-1] else None)
            print(
                f"  batch p50 {report.batch_records.p50:,}; lanes busy {', '.join(f'{x.busy:.2f}' for x in report.lanes)}"
            )
        for peer in ("streamz", "bytewax"):
            what = f"W2 {rate:,} records/s, {peer}"
            try:
                told, share = _quietest(
                    lambda: _streams_peers.started(peer, f"{peer}_w2", rate, options.seconds),  # noqa: B023
                    options,
                )
                _latency_row(table, what, told, share, None)
            except (Absent, Wrong) as problem:
                table.note(what, str(problem))


def _latency_row(table: Table, what: str, told: dict[str, Any], share: float, target: float | None) -> None:
    lag = "" if told["lag_p99"] is None else f"; loop lag p99 {told['lag_p99']:.2f}"
    beside = (
        f" p99 (p50 {told['p50']:.2f}, p99.9 {told['p999']:.2f}, max {told['max']:.1f} ms{lag}); others had {share:.0%}"
    )
    if target is None:
        table.note(what, f"{told['p99']:.2f} ms{beside}")
    else:
        table.at_most(what, told["p99"], target, unit="ms", note=beside)
    print(what, table.rows[-1].measured, sep=": ", flush=True)


async def _paced(rate: float, options: argparse.Namespace) -> tuple[dict[str, Any], tm.Report]:
    """W1's stages; from the moment at which a record was due to the call of the sink's function."""
    pace = _w2.Pace(rate, options.seconds)
    names = [f"S{number}" for number in range(_w2.SENSORS)]
    late: list[np.ndarray] = []

    async def records() -> AsyncIterator[dict[str, Any]]:
        while not pace.over:
            for number in pace.due():
                value, created = pace.values[number], pace.created(number)
                yield {"sensor": names[pace.sensors[number]], "value": value, "created": created}
            await asyncio.sleep(_w2.TICK_S)

    def take(batch: tm.Batch) -> None:
        late.append(time.perf_counter() - batch["created"])

    flat = Readings(*(np.zeros(0),) * 3, mu=np.full(_w2.SENSORS, 20.0), sd=np.full(_w2.SENSORS, 60.0))
    source = _w1.Gated(records())
    _, report = await _w1.flow(source, _streams_w1.plan(flat), tm.sinks.Callback(take), lanes=options.lanes)
    made = np.concatenate(late)
    if len(made) != pace.count:
        raise SystemExit(f"W2: {len(made):,} rows for {pace.count:,} records")
    return {**_w2.told(made), "lag_p99": report.loop_lag.p99_ms}, report


# -- W3 ----------------------------------------------------------------------------------------------------


def smoothed(records: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    return [{**record, "smoothed": _w3.heavy(record["value"], rounds)} for record in records]


def _heavy(options: argparse.Namespace, table: Table) -> None:
    for name, rounds in _w3.ROUNDS.items():
        inline = _w3.inline(_w3.records_of(max(300_000 // rounds, 10)), rounds)
        count = int(inline * options.heavy_seconds * options.lanes)
        records = _w3.records_of(count)
        what = f"W3 {name} of pure Python, rate / (lanes x inline)"
        for target_s in (tm.Limits().target_s, _LONGER_S):
            efficiencies, shares = _heavy_runs(records, rounds, target_s, options)
            longer = "" if target_s != _LONGER_S else f", limits=Limits(target_s={target_s:g})"
            table.at_least(what + longer, median(efficiencies), 0.95, note=spread(efficiencies))
            table.note("  inline's CPU time / that of loop and lanes", f"{median(shares):.2f}{spread(shares)}")
        try:
            each = [_heavy_peer(records, rounds, options) for _ in range(options.runs)]
            table.note(
                "  the same, Bytewax, a process per core, nothing between them", f"{median(each):.2f}{spread(each)}"
            )
        except (Absent, Wrong) as problem:
            table.note("  the same, Bytewax", str(problem))


def _heavy_runs(
    records: list[dict[str, Any]], rounds: int, target_s: float, options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Of lanes x inline, and of all CPU time."""
    efficiencies, shares = [], []
    for _ in range(options.runs):
        (inline, rate, spent_s), share = _quietest(lambda: _inline_and_own(records, rounds, target_s, options), options)
        efficiencies.append(rate / (options.lanes * inline))
        shares.append(len(records) / inline / spent_s)
        print(
            f"W3: inline {1e6 / inline:.0f} us, batches of {1e3 * target_s:.0f} ms: of lanes x inline {efficiencies[-1]:.3f}, of "
            f"all CPU time {shares[-1]:.3f}; others had {share:.0%}",
            flush=True,
        )
    return efficiencies, shares


def _heavy_peer(records: list[dict[str, Any]], rounds: int, options: argparse.Namespace) -> float:
    inline = _w3.inline(records[: max(len(records) // 8, 10)], rounds)
    told, _ = _quietest(
        lambda: _streams_peers.started("bytewax", "bytewax_w3", rounds, len(records), options.lanes), options
    )
    rate: float = told["rows"] / told["seconds"][0]
    return rate / (options.lanes * inline)


def _inline_and_own(
    records: list[dict[str, Any]], rounds: int, target_s: float, options: argparse.Namespace
) -> tuple[float, float, float]:
    some = records[: max(len(records) // 8, 10)]
    before = _w3.inline(some, rounds)
    limits = tm.Limits(target_s=target_s)
    rate, spent_s = asyncio.run(_heavy_own(records, rounds, limits, options.lanes))
    return (before + _w3.inline(some, rounds)) / 2, rate, spent_s


async def _heavy_own(records: list[dict[str, Any]], rounds: int, limits: tm.Limits, lanes: int) -> tuple[float, float]:
    """Records per second, and CPU seconds of loop and lanes, from the first record accepted to the last row."""
    ended, rows, spent_s = 0.0, 0, 0.0
    processes: list[psutil.Process] = []

    def take(batch: tm.Batch) -> None:
        nonlocal ended, rows, spent_s
        rows += len(batch)
        if rows == len(records):
            ended, spent_s = time.perf_counter(), _cpu_s(processes)

    source = _w1.Gated(records)
    plan = tm.Plan(tm.MapRows(functools.partial(smoothed, rounds=rounds)))
    async with tm.serve(tm.Pipeline(source, plan, tm.sinks.Callback(take)), lanes=lanes, limits=limits) as run:
        processes += [psutil.Process(), *(psutil.Process(lane.pid) for lane in run.statistics().lanes)]
        before_s = _cpu_s(processes)
        source.gate.set()
        await run.wait()
    if rows != len(records):
        raise SystemExit(f"W3: {rows:,} rows for {len(records):,} records")
    return rows / (ended - source.began), spent_s - before_s


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


# -- W5 ----------------------------------------------------------------------------------------------------


def _start(options: argparse.Namespace, table: Table) -> None:
    """From the start of a process to its first row, of 1,000 records."""
    readings = Readings.of(1_000, 1_000, zipf=False)
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        readings.write(Path(folder))
        _first_output(folder)  # fills the cache of kernels
        times = [_quietest(lambda: _first_output(folder), options)[0] for _ in range(options.runs)]
        table.note("W5 process start to first row, tidemill", f"{median(times):.2f} s{spread(times)}")
        for name in ("streamz", "bytewax", "pathway", "pyflink"):
            idiom = next(idiom for idiom in IDIOMS if idiom.peer == name)
            cold = Idiom(name, idiom.idiom, idiom.what, workers=idiom.workers)
            what = f"W5 process start to first row, {name}"
            try:
                times = [
                    _quietest(lambda: _streams_peers.w1(cold, readings, Path(folder), 1_000)[2], options)[0]  # noqa: B023
                    for _ in range(options.runs)
                ]
                table.note(what, f"{median(times):.2f} s{spread(times)}")
            except (Absent, Wrong) as problem:
                table.note(what, str(problem))


def _first_output(folder: str) -> float:
    spawned = time.clock_gettime(time.CLOCK_MONOTONIC)
    command = [sys.executable, "-m", "bench._streams_first", folder, "1000"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    first: float = json.loads(done.stdout.splitlines()[-1])["first_at"]
    return first - spawned


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_PARTS, help="these parts")
    parser.add_argument("--inputs", nargs="+", choices=_INPUTS, help="these inputs of W1")
    parser.add_argument("--peers", nargs="+", help="these peers in W1")
    parser.add_argument("--records", type=int, default=2_000_000, help="W1, tidemill")
    parser.add_argument(
        "--peer-records", type=int, default=300_000, help="W1, a peer; slow ones get half, fast ones more"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="W2, each rate")
    parser.add_argument("--latency-runs", type=int, default=1, help="W2, runs of tidemill")
    parser.add_argument("--heavy-seconds", type=float, default=5.0, help="W3, each run")
    parser.add_argument("--others", type=float, default=0.1, help="measure again when others had more of the cores ..")
    parser.add_argument("--tries", type=int, default=3, help=".. so often at most, and keep the quietest")
    parser.add_argument("--lanes", type=int, default=resolved_lanes(None))
    _common.main(measure, parser, runs=3)
