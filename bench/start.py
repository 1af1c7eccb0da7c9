"""How long things take to begin: the command, the import, and the engine up to its first slab."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import _common
from bench._common import Table, median, spread, timed

_IMPORT = "import time; t = time.perf_counter(); import tidemill; print(time.perf_counter() - t)"
_RUN = "from bench import start; start.one_run()"


def measure(options: argparse.Namespace, table: Table) -> None:
    command = Path(sys.executable).with_name("tidemill")
    _once([str(command), "--version"])
    whole = [timed(lambda: _once([str(command), "--version"]))[0] for _ in range(options.runs)]
    bare = [timed(lambda: _once([sys.executable, "-c", "pass"]))[0] for _ in range(options.runs)]
    imports = [float(_once([sys.executable, "-c", _IMPORT])) for _ in range(options.runs)]
    table.at_most("tidemill --version", median(whole), 0.25, unit="s", note=spread(whole))
    table.at_most("import tidemill", median(imports), 0.2, unit="s", note=spread(imports))
    table.note("  of which Python alone (python -c pass)", f"{median(bare):.3f} s{spread(bare, '{:.3f}')}")

    _engine()  # fills the cache of kernels
    runs = [_engine() for _ in range(options.runs)]
    starts = [run["start_s"] for run in runs]
    table.at_most("engine start to first slab, kernels cached", median(starts), 0.8, unit="s", note=spread(starts))
    kernels = [run["cold_s"] for run in runs]
    table.note("  of which loading the kernels", f"{median(kernels):.2f} s{spread(kernels)}")
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as cache:
        cold = _engine(XDG_CACHE_HOME=cache)
    table.note(
        "engine start, cold: kernels compiled first", f"{cold['start_s']:.1f} s, {cold['cold_s']:.1f} of it compiling"
    )
    lags = [run["loop_lag"]["max_ms"] for run in runs]
    table.note("loop lag in these starts, worst", f"max {max(lags):.1f} ms")


def one_run() -> None:
    """In a fresh process: a short W1; prints its report."""
    import tidemill as tm
    from bench._w1 import W1

    w1 = W1.of(20_000)
    pipeline = tm.Pipeline(tm.sources.Records(w1.batches()), w1.plan(), tm.sinks.Callback(len))
    print(tm.run(pipeline).to_json())


def _engine(**environment: str) -> dict:
    report: dict = json.loads(_once([sys.executable, "-c", _RUN], **environment))
    if report["rows_out"] != 20_000 or report["kernels"] != "compiled":
        raise SystemExit(f"this run is none to measure: {report}")
    return report


def _once(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    _common.main(measure, argparse.ArgumentParser(description=__doc__), runs=5)
