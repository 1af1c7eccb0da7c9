"""The part of state memory that is in use: what a checkpoint takes, and nothing else (decision 43)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from tidemill.stages.state import StageState, StateField, StateMemory

__all__ = ["copy_used", "used_parts", "used_rows"]


def copy_used(memory: StateMemory, target: Any, slots: int) -> None:
    """Copy what is used of ``memory`` to the same places of ``target``, a writable buffer of the same size.

    A lane that has the target's file descriptor writes the `used_parts` through that: the first copy then takes half the
    time, since no page of the target has to be mapped.
    """
    view = memoryview(target).cast("B")
    for at, part in used_parts(memory, slots):
        view[at : at + len(part)] = part


def used_parts(memory: StateMemory, slots: int) -> Iterator[tuple[int, memoryview]]:
    """What is used of ``memory``, as bytes, and where each part lies in it.

    ``slots`` is how many key slots the lane has been told of. To be called between two slabs, when none is open. The header
    and the undo log are not among the parts: who reads a copy begins with none. A ``per_lane`` field is never touched
    beyond what its stage has written.
    """
    offsets, _ = memory.layout.offsets()
    for fields, places, state in zip(memory.layout.stages, offsets, memory.stages, strict=True):
        for name, rows in used_rows(fields, state, slots):
            used = state[name][:rows]
            if used.nbytes:
                yield places[name], used.data.cast("B")


def used_rows(
    fields: Mapping[str, StateField], arrays: StageState | Mapping[str, NDArray[Any]], slots: int
) -> Iterator[tuple[str, int]]:
    """Of each field of one stage, how many rows from the first on are in use.

    >>> import numpy as np
    >>> fields = {
    ...     "ring": StateField("float64", (50,)),
    ...     "head": StateField("int64", (1, 2), per_lane=True),
    ...     "text0": StateField("uint8", (9,), per_lane=True, region=("head", 0)),
    ...     "text1": StateField("uint8", (9,), per_lane=True, region=("head", 1)),
    ... }
    >>> list(used_rows(fields, {"head": np.array([[1, 7]])}, slots=3))
    [('ring', 3), ('head', 1), ('text0', 0), ('text1', 7)]
    """
    for name, field in fields.items():
        if not field.per_lane:
            yield name, slots
        elif field.region is None:
            yield name, field.shape[0]
        else:
            head, own = field.region
            region, count = arrays[head].ravel()[:2].tolist()
            yield name, count if region == own else 0
