"""``python -m tests.chaos [NAME...] [--long] [--seed N] [--strikes N]``: campaigns by name, or all of them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaigns import CAMPAIGNS, SEED, campaign


def main() -> int:
    """Run what is asked for; 1 if a campaign failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument("--long", action="store_true", help="the sizes for a release, not those for every change")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first round; a failure names its own")
    parser.add_argument("--strikes", type=int, help="how many, instead")
    asked = parser.parse_args()
    failed = 0
    for name in asked.names or CAMPAIGNS:
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
        try:
            figures = campaign(name, folder, long=asked.long, seed=asked.seed, strikes=asked.strikes)
        except AssertionError as error:
            failed += 1
            sys.stderr.write(f"{name}: {error}\n")
        else:
            failed += bool(figures.failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
