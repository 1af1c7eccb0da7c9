"""W1: how fast, against plain Python, the same kernels without an engine, and a bare Parquet writer.

The rate is counted from the first record accepted to the last row written, and leaves out the start of processes; for
Parquet the end is the end of the run, with the file closed, published and every process gone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import tidemill as tm
from bench import _common, _w1
from bench._common import Table, lag_text, median, spread

_MILLION = 1e6


def measure(options: argparse.Namespace, table: Table) -> None:
    w1 = _w1.W1.of(options.records)
    oracle = _w1.Fold()
    _w1.inline_kernel(w1, oracle)
    cores = options.lanes
    _check_straight()
    names = ("python", "kernel", "straight", "tidemill", "parquet", "pyarrow")
    rates: dict[str, list[float]] = {name: [] for name in names}
    lags = []
    print(f"W1: {len(w1):,} records, {_w1.SENSORS:,} sensors, random arrival, {cores} lanes; M records/s")
    for number in range(1, options.runs + 1):
        rates["python"].append(_w1.inline_python(w1, min(100_000, len(w1))))
        rates["kernel"].append(_w1.inline_kernel(w1))
        rates["straight"].append(_w1.inline_straight(w1))
        whole, rate, report = _to_checksum(w1, oracle, cores)
        rates["tidemill"].append(rate)
        lags.append(report.loop_lag)
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
            rates["pyarrow"].append(_bare_writer(w1, Path(folder)))
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
            rate, parquet = _to_parquet(w1, oracle, Path(folder), cores)
            rates["parquet"].append(rate)
        lags.append(parquet.loop_lag)
        print(
            f"  run {number}: " + ", ".join(f"{name} {each[-1] / _MILLION:.2f}" for name, each in rates.items()),
            f"\n         whole run with start {whole:.2f} s (first slab after {report.start_s:.2f} s); "
            f"lanes busy {', '.join(f'{lane.busy:.2f}' for lane in report.lanes)}; "
            f"batch p50 {report.batch_records.p50:,}; latency p99 {report.latency.p99_ms:.0f} ms; "
            f"{lag_text(report.loop_lag)}",
            flush=True,
        )
    _rows(table, rates, cores)
    table.note("loop lag in these runs, worst", _common.worst_lag(lags))


def _rows(table: Table, rates: dict[str, list[float]], cores: int) -> None:
    def ratios(above: str, below: str, times: int = 1) -> list[float]:
        return [a / (times * b) for a, b in zip(rates[above], rates[below], strict=True)]

    for name, what in (
        ("python", "plain Python, inline"),
        ("kernel", "strict kernels, inline, one core"),
        ("straight", "a straightforward strict loop, inline, one core"),
        ("tidemill", "tidemill, to a checksum"),
        ("pyarrow", "bare pyarrow writer"),
        ("parquet", "tidemill, to Parquet"),
    ):
        each = [rate / _MILLION for rate in rates[name]]
        table.note(f"W1, {what}", f"{median(each):.2f} M records/s{spread(each)}")
    each = ratios("tidemill", "python")
    table.at_least("W1 / plain Python inline", median(each), 80, shown="{:.0f}x", note=spread(each, "{:.0f}"))
    each = ratios("tidemill", "kernel", cores)
    table.at_least(f"W1 / ({cores} cores x strict kernels inline)", median(each), 0.45, note=spread(each))
    each = ratios("tidemill", "straight", cores)
    table.at_least(f"W1 / ({cores} cores x straightforward strict loop)", median(each), 0.75, note=spread(each))
    each = ratios("parquet", "pyarrow")
    table.at_least("W1 to Parquet / bare pyarrow writer", median(each), 0.4, note=spread(each))


def _check_straight() -> None:
    """The straightforward loop makes the kernels' numbers, but for their last bits."""
    import numpy as np

    w1 = _w1.W1.of(100_000)
    kernels, straight = _Columns(), _Columns()
    _w1.inline_kernel(w1, kernels)
    _w1.inline_straight(w1, straight)
    for name, made in straight.joined().items():
        np.testing.assert_allclose(made, kernels.joined()[name], rtol=1e-9, atol=1e-12, err_msg=name)


def _to_checksum(w1: _w1.W1, oracle: _w1.Fold, lanes: int) -> tuple[float, float, tm.Report]:
    async def run() -> tuple[float, tm.Report]:
        source = _w1.Gated(list(w1.batches()))
        _, report = await _w1.flow(source, w1.plan(), tm.sinks.Callback(fold.add), lanes=lanes)
        return source.began, report

    fold = _w1.Fold()
    started = time.perf_counter()
    began, report = asyncio.run(run())
    whole = time.perf_counter() - started
    if fold.digest() != oracle.digest() or fold.rows != len(w1):
        raise SystemExit("W1: the checksum of tidemill's output is not the oracle's")
    return whole, len(w1) / (fold.ended - began), report


def _to_parquet(w1: _w1.W1, oracle: _w1.Fold, folder: Path, lanes: int) -> tuple[float, tm.Report]:
    async def run() -> tuple[float, float, tm.Report]:
        source = _w1.Gated(list(w1.batches()))
        sink = tm.sinks.Parquet(folder / "w1.parquet")
        ended, report = await _w1.flow(source, w1.plan(), sink, lanes=lanes)
        return source.began, ended, report

    began, ended, report = asyncio.run(run())
    _check_file(folder / "w1.parquet", oracle)
    return len(w1) / (ended - began), report


def _check_file(path: Path, oracle: _w1.Fold) -> None:
    """The numbers in the file are the oracle's, in every bit and in order."""
    from pyarrow import parquet

    table = parquet.read_table(path)
    right = oracle.digest()
    numbers = [name for name in table.column_names if str(table.schema.field(name).type) == "double" and name in right]
    fold = _w1.Fold()
    fold.add_columns({name: table[name].to_numpy() for name in numbers})
    if fold.rows != oracle.rows or len(numbers) < 6 or any(fold.digest()[name] != right[name] for name in numbers):
        raise SystemExit("W1: what is in the Parquet file is not what the oracle has")


def _bare_writer(w1: _w1.W1, folder: Path) -> float:
    """pyarrow alone, one core, with the sink's options, over a finished table of the same rows."""
    import pyarrow as pa
    from pyarrow import parquet

    from tidemill.sinks.parquet_file import COMPRESSION_LEVEL

    columns = _Columns()
    _w1.inline_kernel(w1, columns)
    arrays = columns.arrays(w1)
    table = pa.table(arrays)
    began = time.perf_counter()
    with parquet.ParquetWriter(
        folder / "bare.parquet",
        table.schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=["sensor"],
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=131_072)
    return len(w1) / (time.perf_counter() - began)


class _Columns(_w1.Fold):
    """All output columns, kept."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, list] = {}

    def add_columns(self, columns: dict) -> None:
        for name, values in columns.items():
            self._parts.setdefault(name, []).append(values)

    def joined(self) -> dict:
        import numpy as np

        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def arrays(self, w1: _w1.W1) -> dict:
        import pyarrow as pa

        made = {name: pa.array(column) for name, column in self.joined().items()}
        made["sensor"] = pa.DictionaryArray.from_arrays(made["sensor"], pa.array(w1.texts.tolist()))
        return made


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--lanes", type=int, default=resolved_lanes(None))
    _common.main(measure, parser, runs=5)
