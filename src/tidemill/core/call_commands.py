"""What `core.calls` wants done; each outcome is its next event."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Command", "Dropped", "Hung", "Interrupt", "Lost", "Send", "Steal", "TimedOut"]


@dataclass(slots=True)
class Send:
    """Send the call to the lane."""

    lane: int
    call: int


@dataclass(slots=True)
class Interrupt:
    """Nobody wants the call any more: revoke it, or stop the lane when it runs it; then say what came of it."""

    lane: int
    call: int


@dataclass(slots=True)
class Steal:
    """The call should run elsewhere: revoke it; then say `revoked`, or nothing when it was started."""

    lane: int
    call: int


@dataclass(slots=True)
class TimedOut:
    """Tell the caller; the work is being stopped."""

    call: int


@dataclass(slots=True)
class Lost:
    """Tell the caller that the lane died while it ran this call."""

    call: int


@dataclass(slots=True)
class Dropped:
    """Tell the caller that the call was dropped unstarted, for newer ones."""

    call: int


@dataclass(slots=True)
class Hung:
    """The lane begins nothing of what it was sent: kill it; then say `died`."""

    lane: int


Command = Send | Interrupt | Steal | TimedOut | Lost | Dropped | Hung
