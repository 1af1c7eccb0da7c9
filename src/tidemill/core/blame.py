"""Who is to blame for a dead lane, and what its replacement must do differently.

A lane leaves a crash cursor: the slab, the stage and, while it works row by row, the row. After a first death inside
a user's function the replacement goes through that stage row by row; the second death names the row, which goes to
the dead letters alone. A kill by SIGKILL that we did not send may have come from outside (an operator, the memory
of the machine): the slab is first tried again as it was, and a row must be struck twice before it is blamed, so that
killing lanes at random costs neither a record nor the time to look for one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tidemill.letters import DEADLINE, KILLED

__all__ = ["Blame", "BlameStatistics", "Cursor", "Death", "Orders", "TooManyDeaths"]

_SIGKILL: Final = 9
_FRUITLESS_DEATHS: Final = 5
"""Deaths in a row without one committed slab, none of them in a user's function, before the run gives up."""
_FRUITLESS_KILLS: Final = 20
"""The same where every one of them was a kill from outside, which says nothing of us: a retry may well succeed."""


class TooManyDeaths(Exception):
    """The lane dies again and again outside any user's function; ``from_outside`` when somebody has killed it each time."""

    def __init__(self, how: str, *, from_outside: bool) -> None:
        super().__init__(how)
        self.from_outside = from_outside


@dataclass(frozen=True)
class Cursor:
    """Where the lane was; ``slab`` 0 and ``stage`` or ``row`` -1 mean "nowhere in particular"."""

    slab: int
    stage: int
    row: int


@dataclass(frozen=True)
class Death:
    """How a lane ended."""

    cursor: Cursor
    signal: int | None
    """The signal that ended it, if one did."""
    exit_code: int | None
    ours: bool
    """Whether we killed it, because a stage's deadline had passed."""
    in_user_code: bool
    """Whether the cursor's stage runs a function of the user's."""

    def __str__(self) -> str:
        if self.ours:
            return "its deadline passed"
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return f"exit code {self.exit_code}"


@dataclass
class Orders:
    """What the replacement must do differently in one slab."""

    isolate: set[int] = field(default_factory=set)
    """Stages to go through row by row."""
    quarantine: dict[int, dict[int, tuple[str, str]]] = field(default_factory=dict)
    """Stage -> row of the lane's share -> (reason code, reason): set aside before that stage sees it."""


@dataclass(frozen=True)
class BlameStatistics:
    """How a lane's record of deaths is."""

    deaths: int
    """Since the beginning."""
    fruitless: int
    """Deaths in a row, outside of any function, without a committed slab between them."""
    suspects: tuple[int, ...]
    """Slabs in which a lane died and that are not through yet."""


class Blame:
    """One lane's record of deaths.

    >>> blame = Blame()
    >>> crash = Death(Cursor(slab=4, stage=2, row=-1), 11, None, ours=False, in_user_code=True)
    >>> blame.died(crash).isolate
    {2}
    >>> crash = Death(Cursor(slab=4, stage=2, row=7), 11, None, ours=False, in_user_code=True)
    >>> blame.died(crash).quarantine
    {2: {7: ('killed_lane', 'the record killed its lane: killed by signal 11')}}
    """

    def __init__(self) -> None:
        self._orders: dict[int, Orders] = {}
        self._struck: dict[Cursor, int] = {}
        self._tried_again: set[int] = set()
        self._fruitless = 0
        self._by_itself = False
        """Whether any of these deaths was no kill from outside."""
        self._deaths = 0

    def orders(self, slab: int) -> Orders:
        """What applies to this slab."""
        return self._orders.get(slab, Orders())

    def statistics(self) -> BlameStatistics:
        """How it is, now."""
        return BlameStatistics(self._deaths, self._fruitless, tuple(self._orders))

    def committed(self, slab: int) -> None:
        """The slab is through; its orders are void."""
        self._fruitless, self._by_itself = 0, False
        if self._orders.pop(slab, None) is not None:
            self._tried_again.discard(slab)
            self._struck = {cursor: times for cursor, times in self._struck.items() if cursor.slab != slab}

    def died(self, death: Death) -> Orders:
        """Take note of a death; the orders for the slab it happened in. Raises `TooManyDeaths`."""
        cursor = death.cursor
        self._deaths += 1
        from_outside = death.signal == _SIGKILL and not death.ours
        if not cursor.slab or not death.in_user_code:
            self._fruitless += 1
            self._by_itself |= not from_outside
            if self._fruitless >= (_FRUITLESS_DEATHS if self._by_itself else _FRUITLESS_KILLS):
                raise TooManyDeaths(str(death), from_outside=not self._by_itself)
            return self.orders(cursor.slab)
        orders = self._orders.setdefault(cursor.slab, Orders())
        if from_outside and cursor.slab not in self._tried_again:
            self._tried_again.add(cursor.slab)
            return orders
        if cursor.row < 0 or cursor.stage not in orders.isolate:
            orders.isolate.add(cursor.stage)
            return orders
        self._struck[cursor] = self._struck.get(cursor, 0) + 1
        if self._struck[cursor] >= (2 if from_outside else 1):
            code, verb = (DEADLINE, "was stopped") if death.ours else (KILLED, "killed its lane")
            reason = f"the record {verb}: {death}"
            orders.quarantine.setdefault(cursor.stage, {})[cursor.row] = (code, reason)
        return orders
