"""The old name of `tidemill.engine.backpressure`, until its last importer, `engine/crew.py`, has the new one."""

from tidemill.engine.backpressure import Door

__all__ = ["Door"]
