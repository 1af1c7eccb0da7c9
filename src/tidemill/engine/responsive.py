"""Settings of the interpreter for the time of a run, so that nothing of its own holds the event loop."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Final

__all__ = ["SWITCH_INTERVAL_S", "YOUNG_OBJECTS", "responsive"]

SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread may hold the interpreter while another waits: a decoding thread must not hold the loop."""
YOUNG_OBJECTS: Final = 10_000
"""Objects made before the collector looks at them: records come as thousands of dicts, none of them garbage."""


@contextlib.contextmanager
def responsive() -> Iterator[None]:
    """While open, neither another thread nor a full garbage collection (10 ms and more over all the application's
    objects) holds the loop for long; the settings are given back afterwards.

    An application that has frozen its objects itself, as another run in it has, keeps them frozen: to look through the rest is
    not worth its time.
    """
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(min(SWITCH_INTERVAL_S, interval))
    freezes = not gc.get_freeze_count()
    if freezes:
        gc.collect()
        gc.freeze()
    if thresholds[0]:
        gc.set_threshold(max(thresholds[0], YOUNG_OBJECTS), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if freezes:
            gc.unfreeze()
        sys.setswitchinterval(interval)
