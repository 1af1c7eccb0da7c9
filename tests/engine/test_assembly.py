"""Assembly against a list of rows: any rows to any lanes, any survivors, each column by any way back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import DTYPES, Column
from tidemill.engine.assembly import Share, assemble
from tidemill.formats.packed import Packer, Unpacker, packed_bytes
from tidemill.kinds import Kinds
from tidemill.lanes.wire import Output, Result, Slot
from tidemill.rows import batch_of_rows
from tidemill.schema import Kind

KINDS = {"feature": Kind.FLOAT, "flag": Kind.BOOL, "label": Kind.TEXT, "more": Kind.OBJECT}
MADE = {"feature": float, "flag": lambda n: n % 2 == 0, "label": lambda n: f"L{n}", "more": lambda n: [n]}


class Slab:
    """What the lanes do with a slab, done by hand."""

    def __init__(self, count):
        self.buffer = bytearray(1 << 14)
        packer = Packer(self.buffer)
        self.slots = {
            name: Slot(name, kind.value, packer.reserve(count * DTYPES[kind].itemsize))
            for name, kind in KINDS.items()
            if kind in (Kind.FLOAT, Kind.BOOL)
        }

    def share(self, rows, survivors, ways, *, always_tell=False):
        """One lane's result: ``ways`` says for each column how it comes back, or where from."""
        outputs, framed = [], {}
        for name, way in ways.items():
            if way == "slab":
                slot = self.slots[name]
                dtype = DTYPES[KINDS[name]]
                whole = np.frombuffer(self.buffer, dtype, (len(self.buffer) - slot.at) // dtype.itemsize, slot.at)
                whole[survivors] = [MADE[name](n) for n in survivors]
                outputs.append(Output(name, "slab"))
            elif way == "frame":
                items = [MADE[name](n) for n in survivors]
                framed[name], _ = Kinds({name: KINDS[name]}).column(name, items)
                outputs.append(Output(name, "frame"))
            else:
                outputs.append(Output(name, "carried", way))
        payload = bytearray(packed_bytes(framed) + 4 * len(rows) + 256)
        packer = Packer(payload)
        told = always_tell or len(survivors) < len(rows)
        kept_at = packer.array(np.array(survivors, np.int32)) if told else -1
        packed = packer.batch(Batch(framed, rows=len(survivors))) if framed else None
        result = Result(1, 0, outputs, packed, kept_at, len(survivors), [], {}, None)
        return Share(np.array(rows, np.int32), result, bytes(payload))


def input_batch(count, *, origin):
    rows = [{"sensor": f"S{n % 3}", "value": n if n % 2 else float(n), "unit": None} for n in range(count)]
    batch, _ = batch_of_rows(rows, Kinds())
    if not origin:
        batch.origin, batch.origin_names = None, frozenset()
    batch.time_ns = np.arange(count, dtype=np.int64)
    return rows, batch


way_of = {
    "feature": st.sampled_from(["slab", "frame", None]),
    "flag": st.sampled_from(["slab", "frame", None]),
    "label": st.sampled_from(["frame", None]),
    "more": st.sampled_from(["frame", None]),
}


@given(data=st.data(), count=st.integers(1, 12), lanes=st.integers(1, 3), origin=st.booleans())
@settings(deadline=None, max_examples=150)
def test_assembly_equals_a_list_of_rows(data, count, lanes, origin, told):
    """The surviving rows come out in input order with their own values, whichever lane had them and however it sent them."""
    rows, batch = input_batch(count, origin=origin)
    owners = data.draw(st.lists(st.integers(0, lanes - 1), min_size=count, max_size=count))
    keeps = data.draw(st.one_of(st.just([True] * count), st.lists(st.booleans(), min_size=count, max_size=count)))
    same_ways = data.draw(st.booleans())
    common = {name: data.draw(way) for name, way in way_of.items()}
    slab = Slab(count)
    shares, expected = [], {}
    for lane in range(lanes):
        mine = [row for row in range(count) if owners[row] == lane]
        if not mine:
            continue
        alive = [row for row in mine if keeps[row]]
        made = common if same_ways else {name: data.draw(way) for name, way in way_of.items()}
        ways = {name: name for name in batch.columns} | {name: way for name, way in made.items() if way}
        shares.append(slab.share(mine, alive, ways, always_tell=data.draw(st.booleans())))
        for row in alive:
            expected[row] = {**rows[row], **{name: MADE[name](row) for name, way in made.items() if way}}
    out = assemble(batch, shares, list(slab.slots.values()), slab.buffer, Unpacker())
    assert out.time.tolist() == sorted(expected)
    in_order = [expected[row] for row in sorted(expected)]
    assert told(out.to_rows()) == told(in_order), "each with its own fields in its lane's order"


@given(data=st.data(), origin=st.booleans())
def test_columns_may_go_and_change_places(data, origin, told):
    """A plan that drops, renames and replaces columns has just those, in its order."""
    rows, batch = input_batch(6, origin=origin)
    slab = Slab(6)
    ways = {"unit": "sensor", "feature": "slab", "value": "value"}
    keep = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
    shares = [slab.share(mine, [row for row in mine if keep[row]], ways) for mine in ([0, 2, 4], [1, 3, 5])]
    out = assemble(batch, shares, list(slab.slots.values()), slab.buffer, Unpacker())
    expected = [
        {"unit": row["sensor"], "feature": float(n), "value": row["value"]} for n, row in enumerate(rows) if keep[n]
    ]
    if expected:
        assert told(out.to_rows()) == told(expected)
    assert len(out) == len(expected)


def test_a_lane_that_kept_nothing():
    """One lane lost all its rows, the other none: exactly the other's come out."""
    _, batch = input_batch(4, origin=False)
    slab = Slab(4)
    ways = {name: name for name in batch.columns} | {"feature": "slab"}
    shares = [slab.share([0, 1], [], {}), slab.share([2, 3], [2, 3], ways)]
    out = assemble(batch, shares, list(slab.slots.values()), slab.buffer, Unpacker())
    assert out["feature"].tolist() == [2.0, 3.0]


def test_nothing_survived():
    """No rows, and no error."""
    _, batch = input_batch(2, origin=False)
    assert len(assemble(batch, [Slab(2).share([0, 1], [], {})], [], bytearray(8), Unpacker())) == 0


def test_untouched_columns_are_not_copied():
    """When every row survives, what was carried is the input's own column, and results are views of the slab."""
    _, batch = input_batch(4, origin=False)
    slab = Slab(4)
    ways = {name: name for name in batch.columns} | {"feature": "slab"}
    shares = [slab.share([0, 3], [0, 3], ways), slab.share([1, 2], [1, 2], ways)]
    out = assemble(batch, shares, list(slab.slots.values()), slab.buffer, Unpacker())
    assert all(out.columns[name] is column for name, column in batch.columns.items())
    assert np.shares_memory(out["feature"], np.frombuffer(slab.buffer, np.uint8))
    assert isinstance(out.columns["feature"], Column)
