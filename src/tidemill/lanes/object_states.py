"""The states of a stage's objects, as they cross the border between processes."""

from __future__ import annotations

import numpy as np

from tidemill.lanes.wire import Objects
from tidemill.stages.object_states import ObjectStates

__all__ = ["received_states", "sent_states"]


def sent_states(stage: int, states: ObjectStates) -> Objects:
    """For a message."""
    return Objects(stage, states.slots.tobytes(), states.sizes.tobytes(), states.data)


def received_states(objects: Objects) -> ObjectStates:
    """From a message.

    >>> list(received_states(sent_states(0, ObjectStates.of({3: b"abc", 7: None}))))
    [(3, b'abc'), (7, None)]
    """
    return ObjectStates(np.frombuffer(objects.slots, np.int32), np.frombuffer(objects.sizes, np.int32), objects.data)
