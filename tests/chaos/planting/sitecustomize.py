"""Python reads this at its start where the folder is in PYTHONPATH: in every process of a run that has a bug planted."""

import os

if planted := os.environ.get("TIDEMILL_PLANTED_IN_RUNS"):
    from tests.chaos.planted_in_runs import PLANTED

    PLANTED[planted].plant()
