"""Python reads this at its start where the folder is in PYTHONPATH: in every process of a run that has a bug planted."""

import os

if planted := os.environ.get("TIDEMILL_PLANTED"):
    from tests.chaos.planted import PLANTED

    PLANTED[planted].plant()
