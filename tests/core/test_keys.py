"""The key table: codes, lanes, slots, and what each lane was told."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.column import Column, object_array
from tidemill.core import keys
from tidemill.core.keys import UNKNOWN, KeyTable, in_turn, lanes_by_bytes, lanes_of, place
from tidemill.errors import InputError, PlanError
from tidemill.schema import Kind


def keyed(*names):
    return Column.of_texts(list(names))


@pytest.mark.parametrize(("key", "of_2", "of_3", "of_7"), [("S1", 0, 0, 4), ("S2", 0, 2, 0), ("plant/ü", 1, 0, 1)])
def test_places_by_bytes_are_pinned(key, of_2, of_3, of_7):
    """They are the same in every version: states on disk that an older one wrote depend on them."""
    assert (place(key.encode(), 2), place(key.encode(), 3), place(key.encode(), 7)) == (of_2, of_3, of_7)
    assert lanes_by_bytes([key], 7).tolist() == lanes_by_bytes([(key, "temp")], 7).tolist() == [of_7]


def test_turns_are_pinned():
    """The lane of the so manieth key is the same in every version: states on disk depend on it."""
    assert [in_turn(number, 3) for number in range(12)] == [0, 1, 2, 2, 0, 1, 2, 0, 1, 1, 2, 0]


@given(keys=st.integers(0, 3_000), lanes=st.integers(1, 9), period=st.integers(2, 12))
def test_lanes_have_as_many_keys_of_every_kind(keys, lanes, period):
    """No lane has more than one more than another; and of sensors whose kinds follow a pattern, about as many of each kind."""
    turns = in_turn(np.arange(keys), lanes)
    assert turns.tolist() == [in_turn(number, lanes) for number in range(keys)]
    counts = np.bincount(turns, minlength=lanes)
    assert counts.max() - counts.min() <= 1
    of_a_kind = np.bincount(turns[::period], minlength=lanes)
    assert of_a_kind.max() - of_a_kind.min() <= 6 + 2.5 * (keys / period) ** 0.5  # three times what chance alone makes


@given(batches=st.lists(st.lists(st.text(max_size=3), max_size=20), max_size=6), lanes=st.integers(1, 4))
def test_codes_follow_the_rows(batches, lanes):
    """Codes are given in the order of rows, stay, and lead to the lane whose turn it was, and the key's own slot there."""
    table = KeyTable(lanes, 1000)
    expected = {}
    for names in batches:
        for name in names:
            expected.setdefault(name, len(expected))
        codes = table.encode(keyed(*names))
        assert codes.dtype == np.int32
        assert codes.tolist() == [expected[name] for name in names]
    assert len(table) == len(expected)
    every = np.arange(len(expected), dtype=np.int32)
    owners, slots = table.lanes(every), table.slots(every)
    assert owners.tolist() == [in_turn(code, lanes) for code in range(len(expected))]
    assert owners.tolist() == lanes_of(table.entries(), lanes).tolist()
    for lane in range(lanes):
        assert slots[owners == lane].tolist() == list(range(int((owners == lane).sum())))


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(1, 60), max_size=10), st.integers(1, 10))
def test_the_keys_taken_do_not_depend_on_batches(rows, cuts, max_keys):
    """With one table of texts or many, and cut anywhere, a full key table holds the first keys in row order."""
    texts = np.array([f"S{n}" for n in range(9, -1, -1)], object)
    values = np.array(rows, np.int32)
    names = [texts[row] for row in rows]
    expected = {name: code for code, name in enumerate(dict.fromkeys(names)) if code < max_keys}
    shared, own = KeyTable(1, max_keys), KeyTable(1, max_keys)
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    for start, stop in itertools.pairwise(bounds):
        told = [expected.get(name, UNKNOWN) for name in names[start:stop]]
        assert shared.encode(Column(keyed("").kind, values[start:stop], texts=texts)).tolist() == told
        assert own.encode(keyed(*names[start:stop])).tolist() == told


@given(
    texts=st.lists(st.sampled_from([f"S{n}" for n in range(60)]) | st.just("\ud800"), max_size=120),
    steps=st.integers(1, 7),
    max_keys=st.integers(0, 70),
)
def test_parts_have_few_keys_that_are_new(texts, steps, max_keys):
    """As many as were asked for, but for the last; nothing is learned by the look, and parts learn what the whole does."""
    at_once, in_parts = KeyTable(3, max_keys), KeyTable(3, max_keys)
    distinct = list(dict.fromkeys(texts))
    codes = np.array([*map(distinct.index, texts), -1], np.int32)
    names = object_array(distinct)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_NEW_AT_ONCE", steps)
        starts = in_parts.starts(Column(Kind.TEXT, codes, texts=names))
    assert not len(in_parts)
    parts = list(itertools.pairwise([*starts, len(codes)]))
    known, new = {-1}, []
    for start, stop in parts:
        new.append(len(set(codes[start:stop].tolist()) - known))
        known.update(codes[start:stop].tolist())
    assert all(count == steps for count in new[:-1])
    assert new[-1] <= steps
    told = [in_parts.encode(Column(Kind.TEXT, codes[start:stop], texts=names)).tolist() for start, stop in parts]
    assert [*itertools.chain(*told)] == at_once.encode(Column(Kind.TEXT, codes, texts=names)).tolist()
    assert in_parts.entries() == at_once.entries()


def test_texts_that_no_row_uses_are_no_keys():
    """A source's table may name sensors that never spoke; they take no place."""
    table = KeyTable(1, 2)
    texts = keyed("never", "S1", "S2")
    assert table.encode(Column(texts.kind, np.array([2, 1, -1], np.int32), texts=texts.texts)).tolist() == [0, 1, -1]
    assert table.untold(0) == (0, ["S2", "S1"])


def test_the_table_grows_and_ends():
    """It takes max_keys keys, far beyond its first size, and knows no other; a key it has stays known."""
    table = KeyTable(3, 5000)
    names = [f"S{n}" for n in range(6000)]
    codes = table.encode(keyed(*names))
    assert codes[:5000].tolist() == list(range(5000))
    assert set(codes[5000:].tolist()) == {UNKNOWN}
    assert len(table) == 5000
    assert table.code("S4999") == 4999
    assert table.code("new") == UNKNOWN
    assert sorted(table.lanes(codes[:5000]).tolist()) == sorted(in_turn(number, 3) for number in range(5000))


def test_no_text_and_broken_text_are_no_keys():
    """A row without a key, and a key that UTF-8 cannot hold, have no code and take no place."""
    table = KeyTable(2, 10)
    texts = keyed("\ud800", "S1")
    assert table.encode(Column(texts.kind, np.array([-1, 0, 1], np.int32), texts=texts.texts)).tolist() == [-1, -1, 0]
    assert len(table) == 1


def test_recycled_tables_are_not_confused():
    """Hundreds of short-lived tables of texts, whose addresses come again, are each read for what they hold."""
    table = KeyTable(1, 10_000)
    for turn in range(300):
        names = [f"S{turn % 7}", f"T{turn}"]
        assert table.encode(keyed(*names)).tolist() == [table.code(name) for name in names]


def test_each_lane_is_told_each_of_its_keys_once():
    """New keys are told once, in the order of their slots; a lane that was replaced is told all of them again."""
    table = KeyTable(2, 100)
    first = [f"S{n}" for n in range(10)]
    table.encode(keyed(*first))
    mine = [name for number, name in enumerate(first) if in_turn(number, 2) == 0]
    assert table.untold(0) == (0, mine)
    assert table.untold(0) == (len(mine), [])
    table.encode(keyed("S3", "S77", "S78", "S79"))
    more = [name for number, name in enumerate(("S77", "S78", "S79"), 10) if in_turn(number, 2) == 0]
    assert table.untold(0) == (len(mine), more)
    table.forget_telling(0)
    assert table.untold(0) == (0, mine + more)
    assert table.untold(1)[0] == 0


def test_statistics_say_how_many_there_are():
    """Of all, of each lane, and of how many it takes."""
    table = KeyTable(lanes=2, max_keys=3)
    table.encode(Column.of_texts(["a", "b", "c", "d"]))
    statistics = table.statistics()
    assert (statistics.keys, statistics.max_keys, sum(statistics.by_lane)) == (3, 3, 3)
    assert statistics.by_lane == (1, 2)


placed = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "A", None]), st.sampled_from(["A", "B", "C", "", None])), max_size=20
    ),
    max_size=6,
)


@given(batches=placed, lanes=st.integers(1, 4), max_keys=st.integers(1, 12), shared=st.booleans())
def test_sensors_of_devices_follow_the_rows(batches, lanes, max_keys, shared):
    """Whatever the batches and their tables of texts: a device before its sensors, in its lane, told by both names."""
    table = KeyTable(lanes, max_keys)
    expected = {}
    names = np.array(["b", "A", "a", "unused"], object), np.array(["", "C", "B", "A"], object)

    def enter(name):
        if name not in expected and len(expected) < max_keys:
            expected[name] = len(expected)
        return expected.get(name, UNKNOWN)

    def column(texts, own):
        known = own.tolist() if shared else list(dict.fromkeys(text for text in texts if text is not None))
        codes = [known.index(text) if text is not None else -1 for text in texts]
        return Column(Kind.TEXT, np.array(codes, np.int32), texts=own if shared else object_array(known))

    for rows in batches:
        told = []
        for sensor, device in rows:
            own = enter((device, device)) if sensor is not None and device else UNKNOWN
            code = enter((device, sensor)) if own != UNKNOWN else UNKNOWN
            told.append((code, own if code != UNKNOWN else UNKNOWN))
        sensors, devices = (column([row[place] for row in rows], names[place]) for place in (0, 1))
        codes, owners = table.encode_placed(sensors, devices)
        assert codes.dtype == owners.dtype == np.int32
        assert list(zip(codes.tolist(), owners.tolist(), strict=True)) == told
    every = np.arange(len(expected), dtype=np.int32)
    owners = list(dict.fromkeys(device for device, _ in expected))
    assert table.lanes(every).tolist() == [in_turn(owners.index(device), lanes) for device, _ in expected]
    assert table.lanes(every).tolist() == lanes_of(table.entries(), lanes).tolist()
    for (_, sensor), lane, slot in zip(expected, table.lanes(every), table.slots(every), strict=True):
        assert table.names(int(lane))[slot] == sensor


def test_broken_text_names_no_device():
    """Nor a sensor of one; the other name is not spoilt by it."""
    table = KeyTable(2, 10)
    codes, devices = table.encode_placed(keyed("a", "\ud800", "a"), keyed("\ud800", "A", "A"))
    assert codes.tolist() == [-1, -1, 1]
    assert devices.tolist() == [-1, -1, 0]


def test_the_table_grows_with_devices():
    """Beyond its first size, with each sensor's device."""
    table = KeyTable(3, 10_000)
    devices = [f"D{n % 1000}" for n in range(3000)]
    codes, owners = table.encode_placed(keyed(*[f"S{n % 3}" for n in range(3000)]), keyed(*devices))
    again = table.encode_placed(keyed(*[f"S{n % 3}" for n in range(3000)]), keyed(*devices))
    assert len(table) == 4000
    assert codes.tolist() == again[0].tolist()
    assert owners.tolist() == again[1].tolist()
    assert table.lanes(codes).tolist() == table.lanes(owners).tolist()


NAMES = st.lists(st.sampled_from(["a", "b", "c", "d", "ü"]), max_size=12)


@given(names=NAMES, devices=st.lists(st.sampled_from(["a", "x", "y"]), min_size=12, max_size=12), lanes=st.integers(1, 4),
       more=NAMES, placed=st.booleans())  # fmt: skip
def test_a_table_that_took_the_keys_of_another_is_as_that_one(names, devices, lanes, more, placed):
    """The same codes, lanes and slots; it goes on alike; and every lane is told of its keys from slot 0 on."""

    def encoded(table, keys):
        own = keyed(*keys)
        return (
            [part.tolist() for part in table.encode_placed(own, keyed(*devices[: len(keys)]))]
            if placed
            else table.encode(own).tolist()
        )

    table, other = KeyTable(lanes, 40), KeyTable(lanes, 40)
    encoded(table, names)
    for lane in range(lanes):
        table.untold(lane)
    other.enter(table.entries())
    assert other.entries() == table.entries()
    codes = np.arange(len(table), dtype=np.int32)
    assert other.lanes(codes).tolist() == table.lanes(codes).tolist()
    assert other.slots(codes).tolist() == table.slots(codes).tolist()
    assert [other.untold(lane) for lane in range(lanes)] == [(0, table.names(lane).tolist()) for lane in range(lanes)]
    assert encoded(other, more) == encoded(table, more)
    assert other.entries() == table.entries()


def test_keys_that_cannot_be_taken_are_refused():
    """More than there is room for, and what no table can have given."""
    with pytest.raises(PlanError, match=r"has 3 sensors, and max_keys=2"):
        KeyTable(2, 2).enter(["a", "b", "c"])
    for wrong in (["a", "a"], [("", "x")], ["a", "\ud800"], [("a", "a"), ("a", "\ud800")], [("\ud800", "a")]):
        with pytest.raises(InputError, match="the saved key table"):
            KeyTable(2, 9).enter(wrong)


SECOND = 1_000_000_000


@given(st.lists(st.tuples(st.integers(1, 29), st.sets(st.integers(0, 5))), max_size=80), st.integers(1, 3))
def test_live_are_those_that_had_a_record_lately(looks, lanes):
    """To within a tenth of the time; and slots are what they are without a look at the time."""
    table, plain = KeyTable(lanes, 100), KeyTable(lanes, 100)
    now, last = 0, {}
    for passed, sensors in looks:
        now += passed
        table.look(now * SECOND)
        names = [f"S{sensor}" for sensor in sorted(sensors)]
        codes = table.encode(keyed(*names))
        assert table.slots(codes).tolist() == plain.slots(plain.encode(keyed(*names))).tolist()
        last |= dict.fromkeys(names, now)
        assert sum(now - then < 240 for then in last.values()) <= table.live
        assert table.live <= sum(now - then <= 330 for then in last.values())


def test_a_sensor_that_speaks_again_is_live_again_and_those_of_a_checkpoint_are_so_at_first():
    """Nobody has fallen silent before the run could hear it."""
    table = KeyTable(2, 5_000)
    table.enter([f"S{number}" for number in range(3_000)])
    table.look(0)
    assert table.live == 3_000
    for second in range(0, 400, 20):
        table.look(second * SECOND)
        table.slots(table.encode(keyed("S7", "new")))
    assert table.live == 2
    assert table.slots(table.encode(keyed("S8")))[0] < 3_000
    assert table.live == 3
