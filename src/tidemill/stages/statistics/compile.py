"""``python -m tidemill.stages.statistics.compile``: compile the kernels ahead of the first run."""

from __future__ import annotations

import sys

from tidemill.stages.statistics.compiled import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
