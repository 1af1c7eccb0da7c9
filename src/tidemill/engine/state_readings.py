"""How the state on disk is, told at any moment of a run: also while no attempt has opened its sinks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidemill.engine.metrics import StateStatistics

if TYPE_CHECKING:
    from tidemill.engine.keeper import Keeper
    from tidemill.engine.saving import Saving

__all__ = ["read_state"]


def read_state(keeper: Keeper, saving: Saving | None, now_ns: int) -> StateStatistics:
    """``saving`` is that of the present attempt; None until it has got so far. While a sink is away, none does, and the log
    fills: that must be seen."""
    kept = StateStatistics(
        checkpoint=keeper.number,
        position=keeper.position,
        behind=max(keeper.reached - keeper.position, 0),
        checkpoint_s=0.0,
        checkpoint_age_s=max(now_ns - keeper.published_ns, 0) / 1e9,
        interval_s=keeper.state.checkpoint_s,
    )
    if saving is not None:
        epochs, since = saving.epochs.statistics(), saving.waiting_since_ns
        kept = replace(
            kept,
            checkpoint=epochs.published,
            position=epochs.position,
            behind=max(saving.reached - epochs.position, 0),
            checkpoint_s=epochs.seconds,
            waiting_s=0.0 if since is None else max(now_ns - since, 0) / 1e9,
        )
    journal = keeper.journal
    if journal is None:
        return kept
    log = journal.statistics()
    return replace(
        kept,
        log_bytes=journal.log.statistics().bytes,
        log_waiting=log.waiting,
        log_seconds_left=log.seconds_left,
        log_full=log.full,
        log_room_bytes=log.room_bytes,
        log_filled=journal.log.filled,
        log_why_full=journal.log.why_full() if log.full else "",
    )
