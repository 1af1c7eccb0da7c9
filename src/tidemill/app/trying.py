"""``tidemill check --input``: the stages tried on the first records of a recording, each in a lane.

    records ──▶ lane: stage 1 ──▶ rows ──▶ lane: stage 2 ──▶ rows ...
                  five rows, rejects, and of a function: does it look at its neighbours?

User code runs in the lane alone, so that a crash or a hang is a sentence here.
"""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import cloudpickle

from tidemill.app.hints import hint_for, hint_for_objects, hint_for_windows, stages_named
from tidemill.batch import Batch
from tidemill.column import ABSENT, Column
from tidemill.core.neighbours import Habit, habit_of, whole_of
from tidemill.core.trial import MADE, Made
from tidemill.engine.lanes import Lanes
from tidemill.errors import LaneDied, StageError
from tidemill.formats.json_lines import time_texts
from tidemill.lanes.channel import Exit
from tidemill.letters import WRONG_LENGTH
from tidemill.printable import counted, printable
from tidemill.schema import Kind
from tidemill.stages.aggregate import Aggregate
from tidemill.stages.base import Stage
from tidemill.stages.functions import own_name
from tidemill.stages.keyed import Keyed
from tidemill.stages.map_windows import MapWindows
from tidemill.stages.rolling import Rolling

__all__ = ["Tried", "table_of", "told", "try_stages"]

_log = logging.getLogger("tidemill")

SINGLES: Final = 1_000
"""Records that a function is given one by one, at most .."""
SINGLES_S: Final = 10.0
""".. and for this long."""
PATIENCE_S: Final = 120.0
"""A stage that is not through with the records by then has hung."""
_CALLS: Final = 10
"""Of a function, with as many records as there are: more than it gets whole, in halves, and by new objects."""
ROWS_SHOWN: Final = 5
_FOR_MEMORY: Final = stages_named("Keyed", "scan")
_CELL: Final = 28  # characters: a time to the microsecond fits
_LINE: Final = 130  # characters of a table


@dataclass(frozen=True)
class Tried:
    """What became of the records in one stage; all text, since values of a user's classes stay in the lane."""

    name: str
    entered: int
    left: int
    rejected: tuple[str, ...]
    """One sentence for each reason."""
    table: tuple[str, ...]
    """The first rows."""
    habit: Habit | None = None
    """None of a stage that runs no user code."""
    tried: str = ""
    """In which batches the function was tried."""
    change: str = ""
    """The first record that came out otherwise, if one did."""
    hint: str = ""

    @property
    def hopeless(self) -> bool:
        """Every record was rejected."""
        return bool(self.rejected) and not self.left

    @property
    def passed(self) -> bool:
        """Nothing speaks against it."""
        return self.habit in (None, Habit.ROW_WISE) and not self.hopeless


def try_stages(
    stages: Sequence[Stage], batch: Batch, *, lanes: int | None, tell: Callable[[int, Tried], None]
) -> list[Tried]:
    """Each stage on what those before it left; inline with ``lanes=0``, else in one lane.

    ``tell`` is given the number of each, and what became of it, as soon as that is known.

    Raises `StageError` naming the stage when it ends its process, does not end, or stops the run as it was told to.
    """
    return asyncio.run(_try_stages(stages, batch, 0 if lanes == 0 else 1, tell))


async def _try_stages(
    stages: Sequence[Stage], batch: Batch, lanes: int, tell: Callable[[int, Tried], None]
) -> list[Tried]:
    tried: list[Tried] = []
    async with Lanes(lanes) as crew:
        for number, stage in enumerate(stages, 1):
            one, batch = await _try_one(crew, stage, batch)
            tell(number, one)
            tried.append(one)
    return tried


async def _try_one(crew: Lanes, stage: Stage, batch: Batch) -> tuple[Tried, Batch]:
    patience_s, records = _patience_s(stage), counted(len(batch), "record")
    later = asyncio.get_running_loop().call_later(
        stage.budget_s, _log.warning, "%s is being tried on %s, for more than %g s", stage.name, records, stage.budget_s
    )
    try:
        return await crew.run(_try_stage, cloudpickle.dumps(stage), batch, timeout=patience_s)
    except LaneDied as died:
        how = Exit(died.signal, died.code) if (died.signal, died.code) != (None, None) else died.args[0]
        words = f". It wrote last: {died.stderr}" if died.stderr else ""
        raise StageError(f"{_whose(stage)} ended the process it ran in ({how}), with {records}{words}") from died
    except TimeoutError:
        hung = f"{_whose(stage)} was not through with {records} in {patience_s:g} s; try fewer with --records"
        if patience_s < PATIENCE_S:
            hung += (
                f". A run would stop a call after {stage.deadline_s:g} s, its deadline_s, and go on without the record"
            )
        raise StageError(f"{hung}.") from None
    finally:
        later.cancel()


def _patience_s(stage: Stage) -> float:
    """How long a stage may take: of one whose calls have a deadline, as long as calls that keep to it do.

    One that calls its function for each record has as long as any other.
    """
    if stage.deadline_s is None or stage.narrows_itself or stage.follows_watermark:
        return PATIENCE_S
    return min(PATIENCE_S, SINGLES_S + _CALLS * stage.deadline_s)


def _whose(stage: Stage) -> str:
    """The stage, and its functions where its name does not say them."""
    functions = [own_name(fn) for fn in _functions_of(stage)]
    unsaid = [name for name in dict.fromkeys(functions) if name not in stage.name and name != "<lambda>"]
    return f"{stage.name}, which calls {' and '.join(unsaid)}," if unsaid else stage.name


def _functions_of(stage: Stage) -> list[Any]:
    """The user's functions, or classes, that it calls."""
    match stage:
        case Rolling():
            return [stat for stat in stage.stats if callable(stat)]
        case Aggregate():
            return [stat for _, stat in stage.wanted.values() if callable(stat)]
        case Keyed():
            return [stage.factory]
    fn = getattr(stage, "fn", None)
    return [] if fn is None else [fn]


def _try_stage(sent: bytes, batch: Batch) -> tuple[Tried, Batch]:
    """Runs in a lane."""
    stage: Stage = pickle.loads(sent)  # noqa: S301 - our own parent's bytes
    made = whole_of(stage, batch)
    reasons = Counter((letter.reason_code, letter.reason) for letter in made.dead)
    rejected = tuple(f"{count:,} rejected as {code}: {reason}" for (code, reason), count in reasons.most_common(3))
    tried = Tried(stage.name, len(batch), len(made.batch), rejected, tuple(table_of(made.batch)))
    if len(made.dead) == len(batch) > 0:
        lengths = all(letter.reason_code == WRONG_LENGTH for letter in made.dead)
        tried = replace(tried, hint=hint_for(*_functions_of(stage)) if lengths else "")
    elif stage.runs_user_code and len(batch):
        tried = _with_habit(tried, stage, sent, batch, made)
    return tried, made.batch


def _with_habit(tried: Tried, stage: Stage, sent: bytes, batch: Batch, made: Made) -> Tried:
    until_s: float | None = None

    def more() -> bool:
        """From the first single record on: the whole and the halves have no part in it."""
        nonlocal until_s
        now_s = time.perf_counter()
        until_s = now_s + SINGLES_S if until_s is None else until_s
        return now_s < until_s

    found = habit_of(
        stage,
        batch,
        made,
        singles=SINGLES,
        more=more,
        remade=lambda: _Remaking(sent).stage(),
    )
    how = f"{counted(found.records, 'record')} whole, in halves, and {found.singles:,} one by one"
    change = ""
    if found.change is not None:
        record = found.change.record
        sensor = "" if record == MADE else f" (sensor {batch.keys[batch.key[record]]!r})"
        change = f"{found.change.subject}{sensor}, {found.how}: {found.change.what}"
    hint = _hint(found.habit, stage)
    return replace(tried, habit=found.habit, tried=how, change=change, hint=hint)


class _Remaking(pickle.Unpickler):
    """The stage as it was sent: what its functions keep in the user's file, in classes and in objects is as it was then.

    That tells memory from chance, but not of a generator of random numbers, which remembers too: it gives the same again.
    """

    def __init__(self, sent: bytes) -> None:
        super().__init__(io.BytesIO(sent))
        self._by_chance = False

    def find_class(self, module: str, name: str, /) -> Any:
        self._by_chance |= module == "random" or module.startswith("numpy.random.")
        return super().find_class(module, name)

    def stage(self) -> Stage | None:
        made: Stage = self.load()
        return None if self._by_chance else made


def _hint(habit: Habit, stage: Stage) -> str:
    functions = _functions_of(stage)
    match habit:
        case Habit.NEIGHBOURS if isinstance(stage, MapWindows | Rolling):
            return hint_for_windows(*functions)
        case Habit.NEIGHBOURS if isinstance(stage, Keyed):
            return hint_for_objects(*functions)
        case Habit.NEIGHBOURS:
            return hint_for(*functions)
        case Habit.MEMORY if isinstance(stage, Keyed):
            return (
                "It keeps something outside its sensors' own states, in a class or a module, which a lane that is replaced "
                "forgets: keep it in the object of the sensor, or in the state of tm.scan."
            )
        case Habit.MEMORY:
            return (
                "What it keeps in an object or a module, a lane that is replaced forgets: use "
                f"{_FOR_MEMORY}, which is kept for each sensor."
            )
        case Habit.KINDS:
            return (
                "Its values are of several kinds, and which it is to be, the first batch says: return one kind, or declare it"
                + (', as adds={"column": float}; adds={"column": object} takes any.' if hasattr(stage, "adds") else ".")
            )
        case Habit.DIGITS:
            return "Its last digits depend on the size of the batch: tm.Map(function, tile=256) fixes the size."
        case Habit.CHANCE:
            return (
                "Let what it computes depend on the record alone: a fixed seed, the record's own time. For what it is to know "
                f"of earlier records, use {_FOR_MEMORY}."
            )
        case Habit.ROW_WISE:
            return ""


# -- text ----------------------------------------------------------------------------------------------------


def told(number: int, one: Tried) -> Iterator[tuple[str, str]]:
    """Label and text of each line: rows, rejects, the verdict, five rows."""
    yield (
        f"stage {number}",
        f"{one.name}: {counted(one.left, 'row')} of {counted(one.entered, 'record')}{_verdict(one)}",
    )
    for sentence in (one.change, *one.rejected, one.hint):
        if sentence:
            yield "", sentence
    for line in one.table:
        yield "", f"  {line}"


def _verdict(one: Tried) -> str:
    match one.habit:
        case None:
            return "; IT REJECTED THEM ALL" if one.hopeless else ""
        case Habit.ROW_WISE:
            return f"; the same for {one.tried}"
        case Habit.NEIGHBOURS:
            return "; IT LOOKS AT ITS NEIGHBOURS IN THE BATCH"
        case Habit.MEMORY:
            return "; IT REMEMBERS EARLIER BATCHES"
        case Habit.KINDS:
            return "; THE KINDS OF WHAT IT RETURNS DEPEND ON THE BATCH"
        case Habit.DIGITS:
            return "; ITS LAST DIGITS DEPEND ON THE BATCH"
        case Habit.CHANCE:
            return "; IT GIVES OTHER VALUES EACH TIME"


def table_of(batch: Batch) -> list[str]:
    """The first rows as aligned text: as many columns as fit, the last ones first, for these are the stages' own."""
    head = batch.slice(0, ROWS_SHOWN)
    columns = {name: [_cut(name), *map(_cut, _cells(column))] for name, column in head.columns.items()}
    widths = {name: max(map(len, cells)) for name, cells in columns.items()}
    room = _LINE
    names: list[str] = []
    for name in reversed(columns):
        room -= widths[name] + 2
        if room < 0:
            break
        names.insert(0, name)
    left_out = len(columns) - len(names)
    more = [f"(and {left_out} column{'s' * (left_out > 1)} before these)"] if left_out else []
    rows = zip(*([cell.ljust(widths[name]) for cell in columns[name]] for name in names), strict=True)
    return ["  ".join(row).rstrip() for row in rows] + more


def _cells(column: Column) -> Iterator[str]:
    items = column.to_list() if column.kind is not Kind.TIME else time_texts(column)
    for item in items:
        if item is None or item is ABSENT:
            yield "null" if item is None else "-"
        else:
            yield f"{item:.10g}" if isinstance(item, float) else str(item)


def _cut(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
