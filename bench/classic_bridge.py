"""A plain list[dict] function: tidemill's MapRows against run_in_executor with a ProcessPoolExecutor.

Every output row is compared with what the function returns inline: fields, their order, types and values.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

import tidemill as tm
from bench import _bridge, _common, _w1
from bench._common import Table, lag_text, median, spread

_SIZES = (20, 200, 2_000, 10_000)


def measure(options: argparse.Namespace, table: Table) -> None:
    records = _bridge.records_of(options.records)
    expected = _bridge.features(records)
    few = min(len(records), max(20_000, len(records) // 4))  # batches of 20 take long
    rates: dict[str, list[float]] = {}
    lags: dict[str, list[Any]] = {}
    print(f"{len(records):,} records of {_bridge.SENSORS} sensors, {options.lanes} workers; M records/s")
    for number in range(1, options.runs + 1):
        seconds, _ = _common.timed(lambda: _bridge.features(records))
        _add(rates, "inline", len(records) / seconds)
        for size in _SIZES:
            count = few if size < 200 else len(records)
            with ProcessPoolExecutor(options.lanes) as pool:
                rate, out, lag = asyncio.run(_bridge.bridge(pool, records[:count], size))
            _require_same(out, expected[:count])
            _add(rates, f"pool at {size}", rate)
            lags.setdefault(f"pool at {size}", []).append(lag)
            del out
        for name, flow in (("tidemill, rows", _rows), ("tidemill, columns", _columns)):
            rate, report = flow(records, expected, options.lanes)
            _add(rates, name, rate)
            lags.setdefault("tidemill", []).append(report.loop_lag)
            print(
                f"  run {number}: {name}: {rate / 1e6:.3f}; batch p50 {report.batch_records.p50:,}; lanes busy "
                f"{', '.join(f'{lane.busy:.2f}' for lane in report.lanes)}; {lag_text(report.loop_lag)}",
                flush=True,
            )
        print("         " + ", ".join(f"{name} {each[-1] / 1e6:.3f}" for name, each in rates.items()), flush=True)
    _table(table, rates, lags)


def _table(table: Table, rates: dict[str, list[float]], lags: dict[str, list[Any]]) -> None:
    for name, each in rates.items():
        ratios = [a / b for a, b in zip(each, rates["inline"], strict=True)]
        lag = f"; lag {_common.worst_lag(lags[name])}" if name in lags else ""
        table.note(f"list[dict], {name}", f"{median(each) / 1e6:.3f} M records/s, {median(ratios):.2f} of inline{lag}")
    table.note("list[dict], tidemill: loop lag, worst", _common.worst_lag(lags["tidemill"]))
    best = [max(each) for each in zip(*(rates[f"pool at {size}"] for size in _SIZES), strict=True)]
    for name, way, target in (("tidemill, rows", "dicts back", 5), ("tidemill, columns", "columnar sink", 6)):
        each = [a / b for a, b in zip(rates[name], rates["pool at 20"], strict=True)]
        table.at_least(f"MapRows, {way} / pool at 20", median(each), target, shown="{:.1f}x", note=spread(each))
    for name, way in (("tidemill, rows", "dicts back"), ("tidemill, columns", "columnar sink")):
        each = [a / b for a, b in zip(rates[name], best, strict=True)]
        table.at_least(f"MapRows, {way} / pool at its best", median(each), 1.5, shown="{:.2f}x", note=spread(each))


def _add(rates: dict[str, list[float]], name: str, rate: float) -> None:
    rates.setdefault(name, []).append(rate)


def _rows(records: list, expected: list, lanes: int) -> tuple[float, tm.Report]:
    out: list[dict[str, Any]] = []
    ended = 0.0

    def take(rows: list[dict[str, Any]]) -> None:
        nonlocal ended
        out.extend(rows)
        ended = time.perf_counter()

    began, report = asyncio.run(_flow(records, tm.sinks.Callback(take, rows=True), lanes))
    _require_same(out, expected)
    return len(records) / (ended - began), report


def _columns(records: list, expected: list, lanes: int) -> tuple[float, tm.Report]:
    names = ("value", "normalized", "feature")
    parts: list[list[np.ndarray]] = []
    ended = 0.0

    def take(batch: tm.Batch) -> None:
        nonlocal ended
        parts.append([batch[name].copy() for name in names] + [batch.codes("sensorId").copy()])
        ended = time.perf_counter()

    began, report = asyncio.run(_flow(records, tm.sinks.Callback(take), lanes))
    for place, name in enumerate(names):
        if np.concatenate([part[place] for part in parts]).tolist() != [row[name] for row in expected]:
            raise SystemExit(f"the column {name!r} is not what the function returns inline")
    return len(records) / (ended - began), report


async def _flow(records: list, sink: Any, lanes: int) -> tuple[float, tm.Report]:
    source = _w1.Gated(records, key="sensorId", time="timestamp")
    _, report = await _w1.flow(source, tm.Plan(tm.MapRows(_bridge.features)), sink, lanes=lanes)
    return source.began, report


def _require_same(out: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal in fields, order of fields, types and values of every record."""
    if len(out) != len(expected):
        raise SystemExit(f"{len(out):,} rows came out of {len(expected):,} records")
    for own, right in zip(out, expected, strict=True):
        if list(own.items()) != list(right.items()) or list(map(type, own.values())) != list(map(type, right.values())):
            raise SystemExit(f"a record came out changed: {own} is not {right}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--lanes", type=int, default=2)
    _common.main(measure, parser, runs=3)
