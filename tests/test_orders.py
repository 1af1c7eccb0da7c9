"""Field orders put together, against the records themselves."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.formats.csv_lines import first_repeated
from tidemill.kinds import Kinds
from tidemill.orders import Part, joined, placed
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


class _Compared(str):
    """A name that counts how often names are compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    times = 0

    def __eq__(self, other):
        _Compared.times += 1
        return str.__eq__(self, other)


def test_of_thousands_of_columns_each_is_looked_up_and_not_searched_for():
    """Names are compared some times each, not each with each."""
    own, part = ([_Compared(f"c{number}") for number in range(2_000)] for _ in range(2))
    _Compared.times = 0
    assert placed(own, [part, part]) == part
    ids = np.zeros(3, np.int32)
    assert joined([Part(part, (ids, ((), tuple(own))), 3)] * 2, own[::-1])[1] == (tuple(own),)
    assert first_repeated([*own, *part]) == "c0"
    assert _Compared.times < 20 * len(own)
