"""The laws that every stage keeps, one function each, and `check_stage`, which tries a stage on all of them.

What a stage owes follows from what it says of itself: a row for each record, or fewer (`Stage.drops`), or rows of its own
making (`Stage.absorbs`, `Stage.follows_watermark`), which come out in one order wherever batches end.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import cloudpickle
import numpy as np

from tidemill.batch import Batch
from tidemill.core.differences import first_difference
from tidemill.core.keys import KeyTable
from tidemill.core.moving import Saved, moved_objects, placed, restore, saved_arrays
from tidemill.core.trial import MADE, Made, Trial, cut_at, lag_of, layout
from tidemill.engine.entrance import run
from tidemill.engine.lent import overwrite
from tidemill.engine.pipeline import Pipeline
from tidemill.engine.plan import Plan
from tidemill.errors import PlanError, StageError
from tidemill.interchange import from_table, to_pandas
from tidemill.lanes.memory import Shared
from tidemill.sources.records import Records
from tidemill.stages.base import Stage
from tidemill.stages.map import Map
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.state import StateMemory
from tidemill.testing.list_sink import ListSink
from tidemill.testing.subject import HOLES, LawBroken, Subject, emptied

__all__ = ["LAWS", "check_map", "check_stage"]

_MANY_KEYS: Final = 1_000_000
_MOST_STATE: Final = 1 << 36
"""Bytes of address space that the law of many sensors asks for at most; hardly any of them are touched."""
_BLOCK: Final = 1 << 20
_CUTS: Final = 12  # of two pieces each, where there are more places to cut than that


def check_stage(
    stage: Stage,
    *,
    batch: Any = None,
    key: str = "sensor",
    time: str | None = None,
    tz: str = "UTC",
    oracle: Callable[[Any], Any] | None = None,
    tolerance: float = 1e-9,
    lanes: int = 2,
) -> None:
    """Try a stage on every law; raises `LawBroken` (an AssertionError) with the first one that it breaks.

    One stage: a plan or a list of several is refused with a `PlanError`.

    ``batch``      records to try it on: a DataFrame, an Arrow table, a list of dicts or a `Batch`, a few hundred at
                   most, for each of them is a batch of its own too. Made up by default, with ``sensor``, ``time`` and
                   ``value``; a function that needs other columns must be given records that have them
    ``key``, ``time``, ``tz``  as of `Plan.apply`
    ``oracle``     what the stage should compute, said in another way: gets the records of one sensor as a pandas
                   DataFrame in order of arrival, and returns a DataFrame or dict of columns with as many rows as the
                   stage gives for that sensor. The columns it returns are compared, within ``tolerance``
                   (relative, or absolute below 1)
    ``lanes``      processes of the run that `Plan.apply` is compared with; 0 leaves processes out

    The laws: it leaves the batch that it is given alone; it gives the same each time; it is pickled and works the same; state that is copied goes on the same, also after a slab that was left
    half done is rolled back, and in another number of lanes; where batches are cut changes nothing, nor which other sensors come between, nor arrays
    that are overwritten behind it; columns come out as `Stage.bind` says; every record is accounted for; missing values
    (NaN, null, absent), empty batches and single records do no harm; sensors up to slot 999,999 are the same as the
    first; the oracle says the same; and `Plan.apply` gives what a run gives. All but the oracle to the last bit.

    >>> from tidemill.stages.rolling import Rolling
    >>> check_stage(
    ...     Rolling("value", window=3, stats=["max"]),
    ...     oracle=lambda frame: {"value_max_3": frame["value"].rolling(3, min_periods=1).max()},
    ...     lanes=0,
    ... )
    """
    subject = Subject.of(stage, batch, key=key, time=time, tz=tz)
    for law, holds in LAWS.items():
        hold(subject, law, holds)
    if oracle is not None:
        hold(subject, "the oracle", equals_its_oracle, oracle, tolerance)
    hold(subject, "apply", applies_as_it_runs, key, time, tz, lanes)


def check_map(fn: Callable[..., Any] | Stage, **options: Any) -> None:
    """`check_stage` for a function of `Map` (or a stage around one): that it is row-wise, above all.

    A function that looks at its neighbours in the batch gives other values whenever the batch is another:

    >>> check_map(lambda batch: {"far": batch["value"] - batch["value"].mean()}, lanes=0)
    Traceback (most recent call last):
    tidemill.testing.subject.LawBroken: Map(<lambda>) breaks the law of splits: cut before ...
    """
    check_stage(Map(fn) if callable(fn) and not isinstance(fn, Stage) else fn, **options)


def hold(subject: Subject, law: str, holds: Callable[..., None], *more: Any) -> None:
    """Try one law; an exception that is not the user's choice breaks it too."""
    subject.law = law
    try:
        holds(subject, *more)
    except (LawBroken, PlanError, StageError):
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise LawBroken(f"{subject.stage.name} breaks the law of {law}: {told}.") from error


# -- the stage and its records -----------------------------------------------------------------------------


def takes_records(subject: Subject) -> None:
    """A function that fails on every record would keep all other laws."""
    if not len(subject.batch):
        raise PlanError(f"batch= holds no records to try {subject.stage.name} on.")
    dead = subject.whole.dead
    if dead and len(dead) == len(subject.batch):
        raise PlanError(
            f"{subject.stage.name} rejected all {len(dead)} records, so nothing can be told of it; give batch= with "
            f"records that it is made for. The first: {dead[0].reason}."
        )


def input_is_left_alone(subject: Subject) -> None:
    """The batch that it is given may be another stage's too, or the user's own table."""
    assert subject.whole
    found = first_difference(subject.batch, subject.given)
    row = int(np.argmax(subject.batch.time != subject.given.time))
    if found is not None:
        row, what = found.row, str(found)
    elif subject.batch.time[row] != subject.given.time[row]:
        what = "the time of the record is another"
    else:
        return
    subject.fail(f"it changes the batch that it is given: record {row} (sensor {subject.sensor(row)!r}): {what}")


def repeats_itself(subject: Subject) -> None:
    """The same records give the same values, as those of a slab do that is worked on again: no clock, no chance."""
    subject.require_same("it gives other values each time: a second time", subject.trial().feed_all([subject.batch]))


def is_picklable(subject: Subject) -> None:
    """It is sent to lanes, and works there as it does here."""
    try:
        copy: Stage = pickle.loads(cloudpickle.dumps(subject.stage))  # noqa: S301 - our own bytes
    except Exception as error:  # noqa: BLE001 - whatever a class raises that cannot be pickled
        subject.fail(f"it cannot be sent to a lane: {type(error).__name__}: {error}")
    subject.require_same("in a copy that was sent", subject.trial(copy).feed_all([subject.batch]))


def columns_are_declared(subject: Subject) -> None:
    """What comes out are the columns that `Stage.bind` says, of their kinds, in their order."""
    declared, came = subject.stage.bind(subject.schema), subject.whole.batch.schema
    for field in declared:
        if field.name not in came:
            own = subject.batch.columns.get(field.name)
            if own is not None and not own.has_values:
                continue  # a field that no record has
            subject.fail(f"column {field.name!r} is declared and did not come out")
        kind = came[field.name].kind
        if field.kind is not None and kind is not field.kind and not subject.whole.batch.columns[field.name].is_missing:
            told = kind.value if kind else "unknown"
            subject.fail(f"column {field.name!r} is declared as {field.kind.value} and came as {told}")
    extra = [name for name in came.names if name not in declared]
    if extra and not declared.open:
        subject.fail(f"column {extra[0]!r} came out and is not declared")
    order = [name for name in came.names if name in declared]
    if order != [name for name in declared.names if name in came]:
        subject.fail(f"the columns come as {', '.join(order)}, and are declared as {declared}")


def records_are_accounted_for(subject: Subject) -> None:
    """A row for each record that is not rejected, in order, with its sensor and time; dropping stages may drop."""
    made, batch = subject.whole, subject.batch
    own = made.rows[made.rows != MADE]
    steps = np.diff(own)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        subject.fail(f"row {row} is of record {own[row]}, behind the row of record {own[row - 1]}")
    dead = {letter.row for letter in made.dead}
    both = dead & set(own.tolist())
    if both:
        subject.fail(f"record {min(both)} came out and was rejected too")
    gone = set(range(len(batch))) - dead - set(own.tolist())
    if gone and not subject.stage.drops and not subject.stage.absorbs:
        subject.fail(f"record {min(gone)} did not come out and was not rejected, of a stage that drops none")
    for row, record in enumerate(made.rows.tolist()):
        sensor = str(made.batch.keys[made.batch.key[row]])
        if record == MADE and sensor not in subject.keys:
            subject.fail(f"row {row} is of a sensor {sensor!r} that no record has")
        if record != MADE and (sensor, made.batch.time[row]) != (subject.sensor(record), batch.time[record]):
            subject.fail(f"the row of record {record} has not its sensor and time")


# -- state ---------------------------------------------------------------------------------------------------


def state_is_restored(subject: Subject) -> None:
    """A snapshot, in another lane, goes on as if nothing had happened; so does what was left when a slab broke off."""
    for place in _places(len(subject.batch), 3):
        first, rest = cut_at(subject.batch, [place])
        lane = subject.trial()
        began = lane.feed(first)
        other = subject.trial(
            pickle.loads(cloudpickle.dumps(subject.stage)),  # noqa: S301 - our own bytes
            buffer=_copied(lane.buffer),
            kinds=lane.learned,
            objects=lane.objects,
            fed=place,
        )
        how = f"restored before record {place}"
        subject.require_same(how, Made.joined([began, other.feed_all([rest])]))
        lane.feed(rest, commit=False)
        successor = subject.trial(buffer=lane.buffer, kinds=lane.learned, objects=lane.objects, fed=place)
        how = f"rolled back to record {place}"
        subject.require_same(how, Made.joined([began, successor.feed_all([rest])]))


def _copied(buffer: Any) -> Any:
    """Of memory that is hardly used and all zero elsewhere: what was never touched stays so, in the copy too."""
    made = np.zeros(len(buffer), np.uint8)
    for start in range(0, len(buffer), _BLOCK):
        block = buffer[start : start + _BLOCK]
        if block.any():
            made[start : start + _BLOCK] = block
    return made


def state_moves(subject: Subject) -> None:
    """What was kept in some lanes goes on in another number of them."""
    stage, rows = subject.stage, len(subject.batch)
    for lanes, now in ((3, 2), (1, 3)):
        old = [subject.trial(keys=keys) for keys in _spread(subject.keys, lanes)]
        made = [_share(subject, lane, 0, rows // 2) for lane in old]
        arrays = [saved_arrays(number, lane.memory, len(lane.keys)) for number, lane in enumerate(old)]
        saved = Saved(lanes, [stage.state_fields()], subject.keys, dict(chain.from_iterable(arrays)))
        places = placed(lanes, subject.keys, KeyTable(now, max(len(subject.keys), 1)), now)
        memories = []
        for keys in _spread(subject.keys, now):
            own = layout(stage, len(keys), rows)
            memories.append(StateMemory(own, np.zeros(own.total_bytes, np.uint8)))
        restore(saved, places, [stage], memories, [0])
        objects = moved_objects([ObjectStates.joined(lane.objects) for lane in old], places)
        kinds = {0: {name: kind for lane in old for name, kind in lane.learned.get(0, {}).items()}}
        for keys, memory, states in zip(_spread(subject.keys, now), memories, objects, strict=True):
            options = {"buffer": memory.buffer, "objects": [states], "kinds": kinds, "fed": rows // 2}
            lane = subject.trial(keys=keys, **options)
            made.append(_share(subject, lane, rows // 2, rows))
            if stage.follows_watermark:
                made.append(lane.finish())
        for key in subject.keys:
            own_rows = np.flatnonzero(subject.batch.keys[subject.batch.key] == key)
            got = Made.joined([part.of_sensor(key, own_rows) for part in made])
            how = f"moved from {lanes} lanes into {now} before record {rows // 2}"
            subject.require_same(how, got, subject.whole.of_sensor(key, own_rows))


def _spread(keys: Sequence[str], lanes: int) -> list[list[str]]:
    """The sensors of each lane."""
    table = KeyTable(lanes, max(len(keys), 1))
    table.enter(keys)
    return [table.names(lane).tolist() for lane in range(lanes)]


def _share(subject: Subject, lane: Trial, start: int, stop: int) -> Made:
    """What a lane makes of its share of these records."""
    mine = np.isin(subject.batch.keys[subject.batch.key], lane.keys)
    own = np.flatnonzero(mine[start:stop]) + start
    return lane.feed(subject.batch.take(own), records=own, slab=(start, stop))


def slots_do_not_matter(subject: Subject) -> None:
    """Sensors spread over a million slots of state fare as in the first few."""
    each = layout(subject.stage, 1, 1).bytes_per_key
    most = min(_MANY_KEYS, _MOST_STATE // max(each, 1))
    slots = np.linspace(0, most - 1, len(subject.keys)).astype(int).tolist()
    if len(set(slots)) < len(slots):
        return
    memory = Shared("law", layout(subject.stage, most, len(subject.batch)).total_bytes)
    try:
        made = subject.trial(slots=slots, buffer=memory.buffer).feed_all([subject.batch])
    finally:
        memory.close()
    subject.require_same(f"with the sensors in slots up to {slots[-1]:,}", made)


# -- batches -------------------------------------------------------------------------------------------------


def splits_change_nothing(subject: Subject) -> None:
    """Cut anywhere, in random pieces, record by record, with empty batches between."""
    rows = len(subject.batch)
    for place in _places(rows, _CUTS):
        made = subject.trial().feed_all(cut_at(subject.batch, [place]))
        subject.require_same(f"cut before record {place}", made)
    random = np.random.default_rng(rows)
    for _ in range(3):
        places = np.sort(random.integers(0, rows + 1, 6)).tolist()
        made = subject.trial().feed_all(cut_at(subject.batch, places))
        subject.require_same(f"cut before the records {', '.join(map(str, places))}", made)
    singles = subject.trial().feed_all(cut_at(subject.batch, range(1, rows)))
    subject.require_same("record by record", singles)


def neighbours_change_nothing(subject: Subject) -> None:
    """Each sensor alone, and the sensors one after the other, give what they gave mixed."""
    codes = subject.batch.key
    for code in dict.fromkeys(codes.tolist()):
        own, lane = np.flatnonzero(codes == code), subject.trial()
        made = [lane.feed(subject.batch.take(own), records=own)]
        if subject.stage.follows_watermark:
            made.append(lane.finish())
        expected = subject.whole.of_sensor(str(subject.batch.keys[code]), own)
        subject.require_same("without other sensors", Made.joined(made), expected)
    if subject.stage.follows_watermark:
        return  # in another order the watermark is another
    order = np.argsort(codes, kind="stable")
    turned = subject.trial(keys=subject.keys[::-1]).feed(subject.batch.take(order), records=order)
    subject.require_same("one sensor after the other", turned.by_record())


def arrays_are_only_lent(subject: Subject) -> None:
    """What it keeps must be copied: the arrays of a batch are overwritten once it has been worked on."""
    pieces = cut_at(subject.batch, _places(len(subject.batch), 2))
    subject.require_same("with the arrays overwritten behind it", subject.trial().feed_all(_lent(pieces)))


def _lent(pieces: Sequence[Batch]) -> Iterator[Batch]:
    for piece in pieces:
        lent = piece.take(np.arange(len(piece)))
        yield lent
        for column in lent.columns.values():
            overwrite(column.values)
        if lent.time_ns is not None:
            overwrite(lent.time_ns)


def empty_batches_do_no_harm(subject: Subject) -> None:
    """Before all records, and when there are none at all; the columns are as declared then too."""
    empty = subject.batch.slice(0, 0)
    subject.require_same("behind an empty batch", subject.trial().feed_all([empty, subject.batch]))
    nothing = subject.on(empty)
    if len(nothing.whole.batch):
        subject.fail(f"{len(nothing.whole.batch)} rows came of no records")
    if not subject.stage.runs_user_code:  # nobody's function is called with nothing
        columns_are_declared(nothing)


def missing_values_do_no_harm(subject: Subject) -> None:
    """No value in any column that it reads, said in three ways; then as in any batch, cut or whole."""
    reads = subject.stage.reads()
    names = [name for name in subject.batch.names if reads is None or name in reads]
    for word, tag in HOLES.items():
        without, how = subject.on(emptied(subject.batch, names, tag)), f"with {word} in {', '.join(names)}"
        try:
            records_are_accounted_for(without)
        except StageError:
            continue  # on_error="stop", as the user chose
        except Exception as error:
            raise LawBroken(f"{subject.stage.name}, {how}: {error}") from error
        columns_are_declared(without)
        singles = without.trial().feed_all(cut_at(without.batch, range(1, len(without.batch))))
        without.require_same(f"{how}, record by record", singles)


# -- other ways to say it --------------------------------------------------------------------------------------


def equals_its_oracle(subject: Subject, oracle: Callable[[Any], Any], tolerance: float) -> None:
    """Sensor by sensor."""
    for key in subject.keys:
        own = np.flatnonzero(subject.batch.keys[subject.batch.key] == key)
        made = subject.whole.of_sensor(key, own)
        told = oracle(to_pandas(subject.batch.take(own)))
        expected = from_table(_table(told) if isinstance(told, Mapping) else told)
        if len(expected) != len(made.batch):
            rows = f"{len(made.batch)} rows of sensor {key!r}, and {len(expected)} by the oracle"
            subject.fail(f"it made {rows}")
        found = first_difference(made.batch, expected, tolerance=tolerance)
        if found is not None:
            record = made.rows[found.row]
            which = f"record {record}" if record != MADE else f"row {found.row} of its own"
            subject.fail(f"{which} (sensor {key!r}): {found}")


def applies_as_it_runs(subject: Subject, key: str, time: str | None, tz: str, lanes: int) -> None:
    """`Plan.apply`, a run inline and a run with lanes give the same rows."""
    dead = {letter.row for letter in subject.whole.dead}
    alive = np.array([row for row in range(len(subject.batch)) if row not in dead], np.intp)
    rows = subject.batch.take(alive).to_rows()
    plan = Plan(subject.stage)
    lag = f"{lag_of(subject.batch)}ns"
    with warnings.catch_warnings():
        # of sensors that a table does not have, and of records that come late: they are in there on purpose
        warnings.simplefilter("ignore", RuntimeWarning)
        applied = plan.apply(rows, key=key, time=time, tz=tz, lag=lag)
    for count in dict.fromkeys((0, lanes)):
        sink = ListSink()
        run(Pipeline(Records(rows, key=key, time=time, tz=tz), plan, sink, lag=lag), lanes=count)
        where = f"a run with lanes={count}"
        if len(sink.rows) != len(applied):
            subject.fail(f"{where} made {len(sink.rows)} rows, and Plan.apply {len(applied)}")
        if not applied:
            continue
        found = first_difference(from_table(sink.rows), from_table(applied))
        if found is not None:
            subject.fail(f"in row {found.row} of {where}, {found} by Plan.apply")


LAWS: Final[Mapping[str, Callable[[Subject], None]]] = {
    "records": takes_records,
    "input": input_is_left_alone,
    "repetition": repeats_itself,
    "pickling": is_picklable,
    "the schema": columns_are_declared,
    "rows": records_are_accounted_for,
    "splits": splits_change_nothing,
    "interleaving": neighbours_change_nothing,
    "restoring": state_is_restored,
    "moving": state_moves,
    "lent arrays": arrays_are_only_lent,
    "empty batches": empty_batches_do_no_harm,
    "missing values": missing_values_do_no_harm,
    "many sensors": slots_do_not_matter,
}
"""All that need nothing but a stage and records, by the name that a failure gives."""


# -- pieces --------------------------------------------------------------------------------------------------


def _places(rows: int, most: int) -> list[int]:
    """Where to cut: everywhere, or at so many places evenly."""
    return list(dict.fromkeys(np.linspace(min(rows, 1), max(rows - 1, 0), min(rows, most)).astype(int).tolist()))


def _table(columns: Mapping[str, Any]) -> Any:
    """A dict of columns, Series or arrays, as a DataFrame: one after the other, whatever their index is."""
    import pandas as pd

    return pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})
