"""What ``tidemill check`` prints: a pipeline compiled, and nothing run."""

from __future__ import annotations

from tidemill.engine.pipeline import Pipeline
from tidemill.schema import Schema

__all__ = ["described"]


def described(pipeline: Pipeline, *, lanes: int | None = None) -> str:
    """Sources, stages with the schemas between them, sinks, lanes and memory, as text.

    Everything that can be known before the first record is checked on the way, by the same calls that a run makes, so
    that the errors are a run's own.
    """
    raise RuntimeError(pipeline, lanes, Schema)
