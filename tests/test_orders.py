"""Field orders put together, against the records themselves."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.kinds import Kinds
from tidemill.rows import batch_of_rows

ROW = st.permutations("abcd").flatmap(lambda names: st.integers(1, 4).map(lambda n: dict.fromkeys(names[:n], 1.0)))


@given(parts=st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=4))
def test_parts_keep_the_orders_of_their_records(parts, told):
    """Whatever orders and fields the parts have, the whole gives back every record as it was."""
    batches = []
    for rows in parts:
        batch, _ = batch_of_rows(rows, Kinds())
        batch.origin = None
        batches.append(batch)
    assert told(Batch.concat(batches).to_rows()) == told([row for rows in parts for row in rows])


def test_a_table_that_is_shared_is_kept():
    """Slices of one batch, put together again, have its very table of orders."""
    batch, _ = batch_of_rows([{"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 1.0}], Kinds())
    assert Batch.concat([batch.slice(0, 1), batch.slice(1, 2)]).orders[1] is batch.orders[1]
