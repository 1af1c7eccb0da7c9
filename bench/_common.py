"""What the benchmarks share: a clean environment, repeated measurements, and one table of targets."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# They choose OpenBLAS kernels when NumPy is loaded; a number measured under them is not this machine's.
_TUNING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Wrong(Exception):
    """A result was not the right one, so that its number does not count."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None
    """None where nothing was promised."""


@dataclass
class Table:
    """The results of one script."""

    rows: list[Row] = field(default_factory=list)

    def at_least(self, what: str, value: float, target: float, *, shown: str = "{:.2f}", note: str = "") -> None:
        self._add(what, shown.format(value) + note, f">= {target:g}", met=value >= target)

    def at_most(self, what: str, value: float, target: float, *, unit: str, note: str = "") -> None:
        self._add(what, f"{value:.2f} {unit}{note}", f"<= {target:g} {unit}", met=value <= target)

    def below(self, what: str, value: float, target: float, *, shown: str, note: str = "") -> None:
        self._add(what, shown.format(value) + note, "<= " + shown.format(target), met=value <= target)

    def note(self, what: str, measured: str) -> None:
        self.rows.append(Row(what, measured))

    def wrong(self, what: str, why: str) -> None:
        self._add(what, f"WRONG: {why}", "", met=False)

    def _add(self, what: str, measured: str, target: str, *, met: bool) -> None:
        self.rows.append(Row(what, measured, target, met=met))


async def attempt(table: Table, what: str, measured: Callable[[], Awaitable[T]], *, seconds: float = 60) -> T | None:
    """What ``measured`` gives; None, and a row that says why, when it cannot be had or takes more than ``seconds``."""
    try:
        return await asyncio.wait_for(measured(), seconds)
    except Wrong as error:
        table.wrong(what, str(error)[:160])
    except Exception as error:  # noqa: BLE001 - one row fails, not the table
        table.note(what, f"not there yet: {type(error).__name__}: {str(error)[:160]}")
    print(table.rows[-1].what, table.rows[-1].measured, sep=": ", flush=True)
    return None


def table_text(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with aligned columns."""
    head = ("what", "measured", "target", "met")
    lines = [(row.what, row.measured, row.target, {True: "yes", False: "NO", None: ""}[row.met]) for row in rows]
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(4)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, lines)])


def machine() -> str:
    """One line: what the numbers were measured on."""
    import numpy as np

    with Path("/proc/cpuinfo").open(encoding="utf-8") as info:
        models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    load = os.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model or platform.machine()}, {platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, NumPy {np.__version__}; "
        f"load before: {load:.1f}"
    )


def spread(values: Sequence[float], shown: str = "{:.2f}") -> str:
    """The runs' range, to stand behind their median."""
    if len(values) < 2:
        return ""
    return f" ({shown.format(min(values))}..{shown.format(max(values))}, {len(values)} runs)"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def lag_text(lag: Any) -> str:
    """Loop lag as every benchmark prints it."""
    return f"loop lag p50 {lag.p50_ms:.2f}, p99 {lag.p99_ms:.2f}, max {lag.max_ms:.1f} ms of {lag.samples:,} timers"


def worst_lag(lags: Sequence[Any]) -> str:
    """The worst p99 and maximum over some runs."""
    return f"p99 {max(lag.p99_ms for lag in lags):.2f}, max {max(lag.max_ms for lag in lags):.1f} ms"


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the function returned."""
    start = time.perf_counter()
    made = function()
    return time.perf_counter() - start, made


def main(measure: Callable[[argparse.Namespace, Table], None], parser: argparse.ArgumentParser, *, runs: int) -> None:
    """Run one script: print where and how it measures, then its table."""
    parser.add_argument("--runs", type=int, default=runs, help=f"repetitions of everything (default {runs})")
    parser.add_argument("--rows", type=Path, help="also write the table's rows to this file, as JSON")
    options = parser.parse_args()
    _leave_tuning()
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name if module is not None else Path(sys.argv[0]).stem
    print(f"# python -m {name} {' '.join(sys.argv[1:])}".rstrip())
    print(f"# {machine()}", flush=True)
    table = Table()
    measure(options, table)
    if table.rows:
        print(table_text(table.rows), flush=True)
    if options.rows:
        options.rows.write_text(json.dumps([asdict(row) for row in table.rows]))


def _leave_tuning() -> None:
    """Start again without the variables that tune NumPy's BLAS: it read them when it was loaded."""
    present = [name for name in _TUNING if name in os.environ]
    for name in present:
        del os.environ[name]
    if present and "numpy" in sys.modules:
        os.execv(sys.executable, sys.orig_argv[:1] + sys.orig_argv[1:])
