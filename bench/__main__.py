"""``make bench``: every benchmark in a process of its own, and one table of what was promised.

``python -m bench throughput load`` runs only these; ``streams`` runs only when it is named. It ends with 0 whatever was
measured: a missed target is a line in the table, a benchmark that could not be run is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench._common import Row, table_text

_ALL = (
    "start",
    "throughput",
    "classic_bridge",
    "load",
    "recovery",
    "loop_lag",
    "onnx",
    "bridge",
    "window_functions",
    "keyed",
    "durability",
    "edges",
)
_ASKED = ("streams", "stages")
"""Only when named: half an hour each; `streams` wants what `make bench-peers` makes."""


def main(names: list[str]) -> int:
    known = (*_ALL, *_ASKED)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failed = []
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        for name in names or _ALL:
            path = Path(folder) / f"{name}.json"
            done = subprocess.run([sys.executable, "-m", f"bench.{name}", "--rows", str(path)], check=False)
            if done.returncode:
                failed.append(name)
            if path.exists():
                rows += [Row(**row) for row in json.loads(path.read_text())]
            print(flush=True)
    print(table_text(rows))
    if failed:
        print(f"could not be measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
