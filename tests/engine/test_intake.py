"""The intake: input order, back-pressure, one kind per column over all sources, and putting back."""

import asyncio
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.keys import KeyTable
from tidemill.engine.intake import SLICE_BYTES, SLICE_RECORDS, Beginning, Intake, IntakeStatistics
from tidemill.engine.pieces import SLICE_PIECES
from tidemill.errors import EngineError
from tidemill.kinds import Kinds
from tidemill.letters import AT_A_TIME, MALFORMED, NO_KEY, TOO_MANY_KEYS, WRONG_TYPE, DeadLetter
from tidemill.rows import batch_of_rows
from tidemill.schema import Asked, Kind


class Desk:
    """An intake, its key table, what it rejected, and how often it called."""

    def __init__(self, *, max_keys=1000, **marks):
        self.keys = KeyTable(2, max_keys)
        self.letters = []
        self.calls = 0
        self.intake = Intake(self.keys, reject=self.letters.extend, arrived=self._arrived, **marks)

    def _arrived(self):
        self.calls += 1


def batch_of(rows, *, arrived_ns=0, declared=None):
    batch, rejects = batch_of_rows(rows, Kinds(declared))
    assert not rejects
    batch.origin, batch.origin_names = None, frozenset()
    batch.key_column = Column.of_texts([row.get("sensor", "S") for row in rows])
    batch.time_ns = np.zeros(len(batch), np.int64)
    batch.arrived_ns = arrived_ns
    return batch


def numbered(count, first=0, **more):
    return [{"sensor": f"S{n % 3}", "n": float(n)} | more for n in range(first, first + count)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 9)),
        st.tuples(st.just("take"), st.floats(0, 1)),
        st.tuples(st.just("take and put back"), st.tuples(st.floats(0, 1), st.floats(0, 1))),
    ),
    max_size=30,
)


@given(steps)
@settings(deadline=None)
def test_records_leave_in_input_order(steps):
    """Any puts, takes and put-backs: each record leaves once, in order, with its key, its index and its arrival."""

    async def session():
        desk = Desk()
        intake = desk.intake
        put, arrived, taken = 0, [], 0

        def check(piece):
            count = len(piece.batch)
            assert piece.index(0) == taken
            assert piece.batch["n"].tolist() == list(map(float, range(taken, taken + count)))
            assert piece.codes.tolist() == [n % 3 for n in range(taken, taken + count)]
            assert [ns for records, ns in piece.arrivals for _ in range(records)] == arrived[taken : taken + count]

        for number, (what, how) in enumerate(steps, 1):
            if what == "put":
                assert await intake.put(batch_of(numbered(how, put), arrived_ns=number), "test") == how
                put += how
                arrived += [number] * how
            elif intake.waiting:
                share, kept = how if isinstance(how, tuple) else (how, 1.0)
                piece = intake.take(max(1, round(share * intake.waiting)))
                check(piece)
                if what == "take and put back" and len(piece.batch) > 1:
                    piece = intake.put_back(piece, min(max(1, round(kept * len(piece.batch))), len(piece.batch) - 1))
                    check(piece)
                taken += len(piece.batch)
            assert (intake.taken, intake.waiting) == (taken, put - taken)
            assert desk.calls == sum(what == "put" for what, _ in steps[:number])
        while intake.waiting:
            piece = intake.take(1)
            check(piece)
            taken += 1
        assert taken == put
        assert intake._bytes == pytest.approx(0, abs=1e-6)

    asyncio.run(session())


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_high_mark_stops_a_source_and_the_low_mark_lets_it_go():
    """Full at the high mark, soft by one slice; it takes again only when less than half is left."""
    desk = Desk(high_records=10)
    for n in range(2):
        await desk.intake.put(batch_of(numbered(5, 5 * n)), "test")
    waiting = asyncio.ensure_future(desk.intake.put(batch_of(numbered(5, 10)), "test"))
    await turns()
    assert not waiting.done()
    desk.intake.take(5)
    await turns()
    assert not waiting.done(), "half full is not yet low"
    desk.intake.take(1)
    assert await waiting == 5
    assert desk.intake.waiting == 9


@pytest.mark.parametrize(
    "rows",
    [
        [{"s": "x" * 1000} for _ in range(20)],
        [{"s": f"{n}" * 500} for n in range(20)],
        [{"s": [n]} for n in range(200)],
    ],
)
async def test_bytes_count_too(rows):
    """Long texts and nested values fill the intake long before their number does."""
    desk = Desk(high_bytes=10_000)
    batch = batch_of(rows)
    shared = len({str(row) for row in rows}) == 1
    await desk.intake.put(batch, "test")
    second = asyncio.ensure_future(desk.intake.put(batch, "test"))
    await turns()
    assert second.done() is shared, "a text that all records share is held once"
    desk.intake.take(desk.intake.waiting)
    await second


async def test_a_large_batch_enters_in_slices():
    """A batch far beyond the high mark enters slice by slice, waiting in between; nothing larger is handled at once."""
    count = 3 * SLICE_RECORDS + 5
    batch = Batch(
        {},
        rows=count,
        key=Column(batch_of([{}]).key_column.kind, np.zeros(count, np.int32), texts=np.array(["S"], object)),
    )
    desk = Desk(high_records=SLICE_RECORDS)
    putting = asyncio.ensure_future(desk.intake.put(batch, "test"))
    taken = []
    while not putting.done() or desk.intake.waiting:
        await turns()
        assert desk.intake.waiting <= SLICE_RECORDS
        taken.append(len(desk.intake.take(desk.intake.waiting).batch))
    assert taken == [SLICE_RECORDS] * 3 + [5]
    assert await putting == count


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        ([{"s": f"{n:04d}" * 250} for n in range(40)], 12),
        ([{"s": [n, {"a": "x" * 100}]} for n in range(40)], 13),
        ([{"s": "x" * 1000} for n in range(40)], 40),
        ([{"s": 1.0 * n} for n in range(40)], 40),
        ([{"s": f"{n}" * 99_999} for n in range(3)], 1),
    ],
)
async def test_what_must_be_encoded_bounds_a_slab(rows, most):
    """Different texts and objects make a slab end early, with one record at least; numbers and repeated texts do not."""
    desk = Desk()
    for start in range(0, len(rows), 8):
        await desk.intake.put(batch_of(rows[start : start + 8]), "test")
    out, counts = [], []
    while desk.intake.waiting:
        taken = desk.intake.take(desk.intake.waiting, 11_000)
        out += taken.batch.to_rows()
        counts.append(len(taken.batch))
        assert taken.text_bytes < 11_001 or counts[-1] == 1
    assert out == rows
    assert max(counts) <= most
    assert len(counts) > 1 or most == 40


async def test_small_batches_of_a_source_can_be_joined_to_twice_their_size():
    """A slab may double in size though each of its source's batches is half of it: else slabs could never outgrow them."""
    desk = Desk()
    for _ in range(4):
        await desk.intake.put(batch_of(numbered(10)), "source")
    assert [len(desk.intake.take(wanted).batch) for wanted in (20, 19)] == [20, 10]


async def test_a_slab_of_many_small_batches_is_as_large_as_it_may_be():
    """They are joined anyway; slabs that end early, at a little more than half, would grow by a little each time."""
    desk = Desk()
    for _ in range(20):
        await desk.intake.put(batch_of(numbered(4)), "source")
    assert [len(desk.intake.take(wanted).batch) for wanted in (34, 40)] == [34, 40]


@pytest.mark.parametrize("one_table", [True, False])
async def test_joining_reads_of_one_record_takes_no_more_for_each_the_more_they_are(one_table):
    """A sink has stood still, and what came meanwhile waits as it came. Each looks at itself, and not at all others."""

    async def calls_for(reads):
        desk, kinds = Desk(high_records=10 * SLICE_PIECES), Kinds()
        for n in range(reads):
            batch = batch_of_rows([{"sensor": "S", "state": "on" if one_table else f"{n}"}], kinds)[0]
            batch.key_column, batch.time_ns = batch.columns["sensor"], np.zeros(1, np.int64)
            await desk.intake.put(batch, "s")
        calls = 0

        def count(_frame, event, _argument):
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            assert len(desk.intake.take(reads).batch) == reads
        finally:
            sys.setprofile(None)
        return calls

    assert await calls_for(SLICE_PIECES) < 2.5 * await calls_for(SLICE_PIECES // 2)


async def test_of_reads_of_one_record_a_slab_has_so_many_as_one_turn_of_the_loop_can_join():
    """The rest waits for the next, and nothing gets lost in between."""
    desk = Desk(high_records=10 * SLICE_PIECES)
    for row in numbered(2 * SLICE_PIECES + 1):
        await desk.intake.put(batch_of([row]), "s")
    slabs = [desk.intake.take(desk.intake.waiting) for _ in range(3)]
    assert [len(slab.batch) for slab in slabs] == [SLICE_PIECES, SLICE_PIECES, 1]
    assert slabs[0].turns == 1.0
    assert desk.intake.empty


async def test_a_turn_of_the_loop():
    """Many records fill a turn, and so do few with much to encode."""
    desk = Desk()
    await desk.intake.put(batch_of([{"s": f"{n}" + "x" * (SLICE_BYTES // 8)} for n in range(4)]), "test")
    assert 0.5 < desk.intake.take(4).turns < 0.6
    await desk.intake.put(batch_of(numbered(4)), "test")
    assert desk.intake.take(4).turns < 0.01


async def test_joining_leaves_unused_texts_behind():
    """Slices of large batches are joined by the texts they use, not by the tables they share."""
    texts = [f"{n:05d}" * 10 for n in range(8000)]
    desk = Desk()
    for start, rows in ((0, 8), (4000, 12)):
        half = batch_of([{"s": text} for text in texts[start : start + 4000]])
        await desk.intake.put(half.slice(10, 10 + rows), "test")
    column = desk.intake.take(20).batch.columns["s"]
    assert column.to_list() == texts[10:18] + texts[4010:4022]
    assert len(column.texts) == 20


async def test_a_column_has_one_kind_over_all_sources():
    """What another source calls by the same name and is of another kind is rejected record by record; nulls pass."""
    desk = Desk()
    await desk.intake.put(batch_of([{"v": None, "w": "a"}, {"v": 1.5, "w": "b"}]), "one")
    second = [{"v": "x", "w": "c"}, {"v": None, "w": "d"}, {"w": "e"}, {"v": "y", "w": "f"}]
    assert await desk.intake.put(batch_of(second), "two") == 2
    assert await desk.intake.put(batch_of([{"v": None, "w": None}]), "two") == 1
    out = []
    while desk.intake.waiting:
        out += desk.intake.take(desk.intake.waiting).batch.to_rows()
    assert out == [
        {"v": None, "w": "a"},
        {"v": 1.5, "w": "b"},
        {"v": None, "w": "d"},
        {"w": "e"},
        {"v": None, "w": None},
    ]
    told = "field 'v' is float and this record has text"
    assert [(x.reason_code, x.reason, x.raw, x.source) for x in desk.letters] == [
        (WRONG_TYPE, told, second[0], "two"),
        (WRONG_TYPE, told, second[3], "two"),
    ]


async def test_what_is_asked_of_a_column_holds_for_the_first_that_comes_too():
    """A record in the log may have come when less was asked, or have been taken for what the column is."""
    desk = Desk(asked={"value": Asked((Kind.FLOAT, Kind.INT), "as it is declared")})
    await desk.intake.put(batch_of([{"sensor": "S", "value": "n/a"}]), "log")
    await desk.intake.put(batch_of([{"sensor": "S", "value": 1.5}]), "log")
    (letter,) = desk.letters
    assert letter.reason == "field 'value' has to be float or int, as it is declared, and this record has text"
    assert desk.intake.take(1).batch.to_rows() == [{"sensor": "S", "value": 1.5}]
    assert desk.intake.kinds_at(2) == {"sensor": "text", "value": "float"}


async def test_a_column_of_anything_takes_values_of_any_kind():
    """Such as of another source, or records of the log that came before it was declared; the wrong fields of a record are others."""
    desk = Desk(beginning=Beginning(kinds={"v": "object", "w": "float"}))
    rows = [{"v": 1, "w": 1.5}, {"v": None, "w": 2.5}, {"w": 3.5}]
    await desk.intake.put(batch_of(rows), "log")
    await desk.intake.put(batch_of([{"v": "FAULT", "w": "x"}, {"v": "FAULT", "w": None}]), "two")
    out = []
    while desk.intake.waiting:
        out += desk.intake.take(desk.intake.waiting).batch.to_rows()
    assert out == [*rows, {"v": "FAULT", "w": None}]
    assert [letter.reason for letter in desk.letters] == ["field 'w' is float and this record has text"]


async def test_a_column_of_numbers_takes_whole_ones_as_what_it_is():
    """A float knows which of its values came as ints: where another source, or a declaration since, says that they are ints, these
    are taken; those that are none are told, and no other field of their records."""
    desk = Desk(beginning=Beginning(kinds={"n": "int", "v": "float"}))
    rows = [{"n": 3, "v": 1.5}, {"n": 2.0, "v": 2}, {"n": None, "v": 2}, {"n": 2**60 + 1, "v": 1.5}, {"v": 1}]
    await desk.intake.put(batch_of(rows), "log")
    await desk.intake.put(batch_of([{"n": 4, "v": 5}], declared={"n": Kind.INT, "v": Kind.INT}), "two")
    out = []
    while desk.intake.waiting:
        out += desk.intake.take(desk.intake.waiting).batch.to_rows()
    assert out == [rows[0], *rows[2:], {"n": 4, "v": 5}]
    assert [type(row["n"]) for row in out if row.get("n") is not None] == [int, int, int]
    assert [(letter.reason, letter.raw) for letter in desk.letters] == [
        ("field 'n' is int and this record has float", rows[1])
    ]


async def test_what_is_declared_holds_for_the_first_that_comes_too():
    """The log may hold records of before, while no checkpoint knows of their columns."""
    desk = Desk(beginning=Beginning(declared={"n": "int", "v": "object"}))
    rows = [{"n": 3, "v": 1.5}, {"n": 4, "v": "FAULT"}]
    await desk.intake.put(batch_of(rows[:1]), "log")
    await desk.intake.put(batch_of(rows[1:], declared={"n": Kind.INT, "v": Kind.OBJECT}), "log")
    out = []
    while desk.intake.waiting:
        out += desk.intake.take(desk.intake.waiting).batch.to_rows()
    assert out == rows
    assert desk.letters == []
    assert desk.intake.kinds_at(2) == {"n": "int", "v": "object"}


async def taken_one_by_one(reads, **marks):
    """Rows with the columns of their slab, of so many records a slab as there are, or fewer."""
    desk = Desk(fills=True, **marks)
    for rows in reads:
        await desk.intake.put(batch_of(rows), "test")
    slabs = []
    while desk.intake.waiting:
        slabs.append(desk.intake.take(desk.intake.waiting).batch)
    return slabs


async def test_a_slab_has_every_column_that_came_up_to_its_records():
    """Absent where it did not come, and of its kind; reads that bring a column begin a slab, so that none before knows of it."""
    reads = [[{"sensor": "a", "n": 1.0}], [{"sensor": "a", "v": 2.5}], [{"sensor": "b"}], [{"sensor": "b", "n": 3.0}]]
    slabs = await taken_one_by_one(reads)
    assert [set(slab.names) for slab in slabs] == [{"sensor", "n"}, *[{"sensor", "n", "v"}] * (len(slabs) - 1)]
    assert [row for slab in slabs for row in slab.to_rows()] == [row for rows in reads for row in rows]
    assert {slab.column("v").kind for slab in slabs[1:]} == {Kind.FLOAT}
    alone = await taken_one_by_one(reads[2:], beginning=Beginning(kinds={"sensor": "text", "v": "float"}))
    assert set(alone[0].names) == {"sensor", "v"}


async def test_a_column_of_nulls_has_come_too():
    """With its first value it becomes one of that kind, for the records from there on."""
    slabs = await taken_one_by_one([[{"v": None}], [{"n": 1.0}], [{"v": 2.0}], [{"n": 2.0}]])
    assert [set(slab.names) for slab in slabs] == [{"v"}, {"v", "n"}, {"v", "n"}]
    assert [slab.column("v").kind for slab in slabs] == [Kind.OBJECT, Kind.OBJECT, Kind.FLOAT]


async def test_what_had_come_by_then_is_told_of_any_position():
    """A checkpoint is of a position that the intake is beyond."""
    desk = Desk()
    for row in ({"n": 1.0, "x": None}, {"v": 2.5}, {"x": "late"}):
        await desk.intake.put(batch_of([row]), "test")
    assert [desk.intake.kinds_at(position) for position in (1, 2, 3)] == [
        {"n": "float"},
        {"n": "float", "v": "float"},
        {"n": "float", "v": "float", "x": "text"},
    ]
    assert [desk.intake.empty_at(position) for position in (0, 1, 3)] == [{}, {"x": "object"}, {}]


async def test_ever_new_fields_do_not_make_slabs_ever_wider():
    """Of columns that did not come with them slabs get some thousand at most, and a bounded number of places."""
    desk = Desk(fills=True)
    for start in range(0, 3_000, 1_000):
        await desk.intake.put(batch_of([{f"f{n}": 1.0 for n in range(start, start + 1_000)}]), "test")
    await desk.intake.put(batch_of(numbered(2_000)), "test")
    widths = []
    while desk.intake.waiting:
        slab = desk.intake.take(desk.intake.waiting).batch
        widths.append((len(slab), len(slab.columns)))
    assert widths == [(1, 1_000), (1, 2_000), (1, 2_024), (1_024, 1_026), (976, 1_026)]


async def test_only_the_wrong_fields_are_named():
    """A dead letter for a changed type names the record's own wrong fields, not its neighbours'."""
    desk = Desk()
    await desk.intake.put(batch_of([{"v": 1.5, "w": True}]), "one")
    await desk.intake.put(batch_of([{"v": "x", "w": None}, {"v": None, "w": 2.5}]), "two")
    assert [letter.reason for letter in desk.letters] == [
        "field 'v' is float and this record has text",
        "field 'w' is bool and this record has float",
    ]


async def test_keys_that_cannot_be_taken():
    """Too many sensors, a sensor without a name, one whose name is no text: each is a dead letter with its own reason."""
    desk = Desk(max_keys=2)
    names = ["S1", "S2", "S3", "S1", "\ud800"]
    batch = batch_of([{"sensor": name} for name in names])
    batch.key_column.values[3] = -1
    assert await desk.intake.put(batch, "test") == 2
    assert [(x.reason_code, x.raw["sensor"]) for x in desk.letters] == [
        (TOO_MANY_KEYS, "S3"),
        (NO_KEY, "S1"),
        (MALFORMED, "\ud800"),
    ]
    assert "already has 2 sensors" in desk.letters[0].reason
    assert await desk.intake.put(batch_of([{"sensor": "S9"}]), "test") == 0
    assert desk.intake.waiting == 2


@pytest.mark.parametrize(
    ("place_by", "good", "bad"),
    [
        (None, {"sensor": "A"}, lambda n: {"sensor": f"S{n}"}),
        ("pump", {"sensor": "A", "pump": "A"}, lambda n: {"sensor": "A", "pump": f"P{n}"}),
        (None, {"sensor": "A", "v": None}, lambda n: {"sensor": "A", "v": "text"}),
    ],
    ids=["sensors", "devices", "kinds"],
)
async def test_a_flood_of_rejected_records_enters_in_parts(place_by, good, bad):
    """Others have their turn after some letters, and what enters then has its place between the parts."""
    count = 5 * AT_A_TIME
    desk = Desk(max_keys=1, place_by=place_by)
    await desk.intake.put(batch_of([{"sensor": "A", "pump": "A", "v": 1.5}]), "one")
    rows = [(bad(n) if n % 4 else good) | {"n": n} for n in range(count)]
    putting = asyncio.ensure_future(desk.intake.put(batch_of(rows), "two"))
    told = most = 0
    while not putting.done():
        await asyncio.sleep(0)
        most, told = max(most, len(desk.letters) - told), len(desk.letters)
        if 0 < told <= AT_A_TIME:
            desk.intake.refuse([DeadLetter(MALFORMED, "why", {"n": "between"})])
            told += 1
    assert 0 < most <= AT_A_TIME
    assert (await putting, len(desk.keys)) == (count // 4, 1)
    by_place = {letter.position: letter.raw["n"] for letter in desk.letters}
    while desk.intake.waiting:
        taken = desk.intake.take(desk.intake.waiting)
        by_place |= {taken.index(row): raw.get("n", "first") for row, raw in enumerate(taken.batch.to_rows())}
    in_order = [by_place[place] for place in range(count + 2)]
    assert in_order.index("between") < count
    assert [n for n in in_order if n != "between"] == ["first", *range(count)]


async def test_letters_are_told_when_the_records_before_them_wait():
    """Else nothing would seem to be in flight, and a letter would count as done before the records ahead of it."""
    desk = Desk(max_keys=1)
    waiting = []
    desk.intake._reject = lambda letters: waiting.append(desk.intake.waiting)
    await desk.intake.put(batch_of([{"sensor": "A"}, {"sensor": "B"}]), "test")
    assert waiting == [1]


async def test_a_batch_without_keys_is_our_fault():
    """Every source gives its batches keys."""
    with pytest.raises(EngineError, match="source test made a batch without keys"):
        await Desk().intake.put(Batch({}, rows=1), "test")


async def test_nothing_is_nothing():
    """An empty batch enters as nothing and wakes nobody."""
    desk = Desk()
    assert await desk.intake.put(batch_of([]), "test") == 0
    assert (desk.calls, desk.intake.waiting) == (0, 0)


async def test_statistics_say_what_waits_and_whether_sources_do():
    """Before, at the high mark, and after all was taken."""
    desk = Desk(high_records=10)
    assert desk.intake.statistics() == IntakeStatistics(0, 10, 0, 0, full=False)
    await desk.intake.put(batch_of(numbered(10)), "test")
    full = desk.intake.statistics()
    assert (full.waiting, full.taken, full.full) == (10, 0, True)
    assert full.waiting_bytes > 80
    desk.intake.take(10)
    assert desk.intake.statistics() == IntakeStatistics(0, 10, 0, 10, full=False)


@pytest.mark.parametrize("at_a_time", [7, 5_000])
async def test_records_that_are_refused_take_no_places_of_sensors(at_a_time):
    """However many new sensors come at a time: those that follow find all places free."""
    desk = Desk(max_keys=10)
    await desk.intake.put(batch_of([{"sensor": "S", "other": 1.0}]), "good")
    wrong = batch_of([{"sensor": f"B{number}", "other": "text"} for number in range(5_000)])
    for start in range(0, len(wrong), at_a_time):
        assert await desk.intake.put(wrong.slice(start, min(start + at_a_time, len(wrong))), "bad") == 0
    assert len(desk.keys) == 1
    assert await desk.intake.put(batch_of([{"sensor": f"H{number}", "other": 1.0} for number in range(9)]), "good") == 9
    assert {letter.reason_code for letter in desk.letters} == {WRONG_TYPE}


async def test_sensors_get_their_places_in_the_order_in_which_records_enter():
    """Of a batch with very many new ones, those behind what another source brings meanwhile come after it."""
    desk = Desk(max_keys=5_001)
    many = batch_of([{"sensor": f"M{number}"} for number in range(5_000)])
    entering = asyncio.ensure_future(desk.intake.put(many, "many"))
    await asyncio.sleep(0)
    assert 0 < desk.intake.entered < 5_000
    before = desk.intake.entered
    await desk.intake.put(batch_of([{"sensor": "between"}]), "another")
    await entering
    assert desk.keys.entries().index("between") == before
    assert desk.intake.entered == len(desk.keys) == 5_001
