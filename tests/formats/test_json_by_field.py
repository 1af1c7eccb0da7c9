"""NDJSON of one shape, field by field: what is read is what `decode_json_lines` reads, or is left to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.formats import alike_kernel
from tidemill.formats.edge import Edge
from tidemill.formats.json_by_field import SMALLEST, JsonByField
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.line_formats import line_format
from tidemill.rows import RowsByField, joined
from tidemill.sources.blocks import turns_of
from tidemill.stages.statistics.compiled import load_kernels


@pytest.fixture(scope="module", autouse=True, params=["msgspec", "compiled"])
def read(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both as it is in a process that has loaded the compiled kernels, and in one that has not."""
    kernels = load_kernels()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(alike_kernel, "_in_use", [kernels["read_alike"]] if request.param == "compiled" else [])
        yield


plain_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=6)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_texts
)
names = st.lists(plain_texts, min_size=1, max_size=6, unique=True)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,", ":"), (",\t", ":\t ")])


@st.composite
def of_one_shape(draw: st.DrawFn) -> list[bytes]:
    """Lines of the same fields, in the same order, whose values are texts in the same places."""
    fields = draw(names)
    texts = [draw(st.booleans()) for _ in fields]
    apart = draw(separators)
    rows = draw(
        st.lists(
            st.tuples(*(plain_texts if text else scalars.filter(lambda item: type(item) is not str) for text in texts)),
            min_size=1,
            max_size=8,
        )
    )
    made = [
        json.dumps(dict(zip(fields, row, strict=True)), separators=apart, ensure_ascii=False).encode() for row in rows
    ]
    return made * draw(st.integers(1, 20))


def shown(rows: Sequence[dict[str, Any]]) -> list[list[tuple[str, str, str]]]:
    """Rows so that order, type and each bit of a float tell them apart."""
    return [[(name, type(item).__name__, repr(item)) for name, item in row.items()] for row in rows]


def block_of(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@given(of_one_shape())
def test_lines_of_one_shape_are_read_by_field_and_alike(lines: list[bytes]) -> None:
    """Names, order, types and values are those that are read line by line."""
    made = JsonByField(smallest=0).rows(block_of(lines))
    assert made is not None
    assert shown(made) == shown(decode_json_lines(block_of(lines))[0])


ODD = [
    b'{"a":1,"b":"x"}', b'{"b":"x","a":1}', b'{"a":"x","b":1}', b'{"a":1,"a":"x","b":"x"}', b'{"a":1,"b":"x","b":"y"}', b'{"a":1}',
    b'{"a":1}{"b":"x"}', b'{"a":1,"b":"x"}{"a":1,"b":"x"}', b"", b" ", b'{"a":1,', b'"b":"x"}', b'{"a":1,"b":"x"', b'{"a":1,"c":"x"}',
    b'{"a":{"c":1},"b":"x"}', b'{"a":[1],"b":"x"}', b'["a","b","x"]', b'"a"', b'{"a":1,"b":"\xff"}', b'{"\xff":1,"b":"x"}',
    b'{"a":1,"b":"\\n"}', b'{"a":NaN,"b":"x"}', b'{"a":1e999,"b":"x"}', b'{"a":' + b"9" * 70 + b',"b":"x"}', b'{"a" :1,"b":"x"}',
    b'{"a":1,"b":":"}', b'{"a":1,"b":"},{"}', b'{"a":"b","b":1}', b'{"b":"a","a":1}', b'{"a":"a","a":1}', b'{"a":1,"b":"x"} ',
    b'\r{"a":1,"b":"x"}', b'{"a":1,"b":"x"},', b'{"a":007,"b":"x"}', b'{"a":1,"b":"\t"}', b"{}", b"null",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(ODD), max_size=6),
    st.integers(0, 20),
    st.integers(0, 20),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_what_is_of_no_one_shape_is_left_to_the_reader_of_lines(
    odd: list[bytes], usual: int, at: int, end: bytes
) -> None:
    """Names in another order, twice, missing, or more; lines that are none: a block with any of these is as it is without us."""
    lines = [b'{"a":1,"b":"x"}'] * usual
    lines[at:at] = odd
    block = b"".join(line + end for line in lines)
    made = JsonByField(smallest=0).rows(block.replace(b"\r\n", b"\n"))
    rows, bad = decode_json_lines(block)
    assert made is None or (shown(made), []) == (shown(rows), bad)


@given(st.permutations(["ab", "ac", "bb", "bc", "abc"]), st.integers(0, 199))
def test_another_order_of_names_is_seen_wherever_it_is(order: list[str], at: int) -> None:
    """Even of names of one length, in one line of many."""
    usual = dict.fromkeys(["ab", "ac", "bb", "bc", "abc"], 1)
    lines = [json.dumps(usual, separators=(",", ":")).encode()] * 200
    lines[at] = json.dumps(dict.fromkeys(order, 1), separators=(",", ":")).encode()
    made = JsonByField(smallest=0).rows(block_of(lines))
    assert (made is not None) == (order == list(usual))


def test_what_changes_its_shape_again_and_again_is_tried_less_and_less_often() -> None:
    """A look in vain costs as much as a fifth of the reading; steady lines are found again after at most 64 blocks."""
    reader = JsonByField(smallest=0)
    mixed = block_of([b'{"a":1}', b'{"b":1}'] * 200)
    steady = block_of([b'{"a":1}'] * 400)
    assert [reader.rows(mixed) for _ in range(200)] == [None] * 200
    found = [place for place in range(64) if reader.rows(steady) is not None]
    assert found
    assert found == list(range(found[0], 64))
    assert reader.rows(steady) is not None


@dataclass
class Sent:
    """Lines of one sender."""

    lines: bytes
    known: dict[str, str]
    arrived_ns: int = 5
    wall_ns: int = 7


@pytest.mark.parametrize("key", [None, "{peer_host}/{sensor}"])
def test_many_senders_with_few_lines_each_are_read_together(key: str | None) -> None:
    """The batch is the one that each by itself would give, each row with what is known of its own sender and its arrival."""
    blocks = [
        Sent(b'{"sensor":"S%d","value":%d.5}\n{"sensor":"S%d","value":null}\n' % (n, n, n + 1), {"peer_host": f"h{n}"})
        for n in range(SMALLEST // 60)
    ]
    for number, block in enumerate(blocks):
        block.wall_ns = number
    (turn,) = turns_of(Edge(key=key, arrival=True), line_format("ndjson"), blocks, step=1 << 20)
    assert turn is not None
    together, letters = turn.batch, turn.letters
    edge, apart = Edge(key=key, arrival=True), []
    for block in blocks:
        batch, more = edge.rows(
            decode_json_lines(block.lines)[0],
            arrived_ns=5,
            wall_ns=block.wall_ns,
            known=[block.known] * 2,
            parsed=True,
        )
        apart.append(batch)
        letters += more
    assert not letters
    assert together.to_rows() == [row for batch in apart for row in batch.to_rows()]
    assert together.time.tolist() == [ns for batch in apart for ns in batch.time.tolist()]
    assert [together.keys[code] for code in together.key] == [
        batch.keys[code] for batch in apart for code in batch.key.tolist()
    ]
    assert together.orders is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["S1", "", "S2", None, 7]), st.sampled_from([1.5, 2, None, "x", True, 10**25])),
        min_size=1,
        max_size=12,
    )
)
def test_records_by_field_become_what_they_become_as_dicts(items: list[tuple[Any, Any]]) -> None:
    """Kinds that are learned, records that fit no kind or name no sensor, and what is shown of those: all alike."""
    rows = [{"sensor": sensor, "time": 5, "value": value} for sensor, value in items]
    by_field = RowsByField(
        ("sensor", "time", "value"), [list(column) for column in zip(*map(dict.values, rows), strict=True)]
    )
    one, other = Edge(), Edge()
    batch, letters = one.rows(by_field, parsed=True)
    expected, expected_letters = other.rows(rows, parsed=True)
    assert shown(batch.to_rows()) == shown(expected.to_rows())
    assert letters == expected_letters
    assert one.kinds.learned == other.kinds.learned


def test_rows_by_field_are_a_sequence_of_dicts() -> None:
    """Of several with the same fields one is made; with others, dicts."""
    some = RowsByField(("a", "b"), [[1, 2, 3], ["x", "y", "z"]])
    assert list(some) == [some[0], some[1], some[2]] == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "z"}]
    assert list(some[1:]) == list(some)[1:]
    both = joined([some, some[:1]])
    assert isinstance(both, RowsByField)
    assert list(both) == [*some, some[0]]
    assert joined([some, [{"a": 1}]]) == [*some, {"a": 1}]
    assert joined([]) == []
