"""Which records come too late, or find no room to wait for the watermark, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.durations import shown
from tidemill.errors import PlanError
from tidemill.letters import LATE, TOO_MANY_OPEN, Reject
from tidemill.stages.options import whole_number
from tidemill.stages.state import StageState

__all__ = ["check_waiting", "late", "out_of_room", "turned_away"]


def check_waiting(late: object, choices: Sequence[str], max_waiting: object, *, stage: str, what: str) -> int:
    """``max_waiting``, a number of ``what``, as a Python int; raises `PlanError` unless it is one, and ``late`` a choice."""
    if late not in choices:
        told = ", ".join(f'"{choice}"' for choice in choices)
        raise PlanError(f"{stage}: late={late!r} is not one of {told}.")
    must = f"be a number of {what}, 1 or more"
    return whole_number(max_waiting, name=f"{stage}: max_waiting", must=must, least=1)


def late(state: StageState, thresholds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each record of the batch, whether the watermark just before it had reached its threshold."""
    too_late: NDArray[np.bool_] = state.marks[state.places] >= thresholds
    return too_late


def turned_away(
    batch: Batch, state: StageState, too_late: NDArray[np.bool_], option: str, *, why: str = ""
) -> tuple[list[Reject], dict[str, int]]:
    """What becomes of the records that are ``too_late`` by the option ``late``: rejects, or how many are gone as late."""
    if option != "dead_letter":
        return [], {"late": int(np.count_nonzero(too_late))}
    behind = state.marks[state.places] - batch.time
    rows = np.flatnonzero(too_late).tolist()
    return [Reject(row, LATE, f"{why}it came {shown(int(behind[row]))} behind the watermark") for row in rows], {}


def out_of_room(rows: NDArray[np.intp], most: int, what: str) -> list[Reject]:
    """The rejects of these records, for which there is no room to wait."""
    told = f"{most:,} {what}, its max_waiting, wait in the lane already"
    return [Reject(row, TOO_MANY_OPEN, told) for row in rows.tolist()]
