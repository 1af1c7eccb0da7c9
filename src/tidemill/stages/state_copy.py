"""Copying a lane's state: what a checkpoint is made of, taken between two slabs."""

from __future__ import annotations

from typing import Any

from tidemill.stages.state import StateMemory

__all__ = ["copy_used"]


def copy_used(memory: StateMemory, target: Any, slots: int) -> None:
    """Copy the state of the first ``slots`` sensors to the same places of ``target``, a memory of the same layout."""
    copy = StateMemory(memory.layout, target)
    for fields, mine, theirs in zip(memory.layout.stages, memory.stages, copy.stages, strict=True):
        for name, field in fields.items():
            stop = None if field.per_lane else slots
            theirs[name][:stop] = mine[name][:stop]
