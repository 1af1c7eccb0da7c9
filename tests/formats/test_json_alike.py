"""NDJSON whose lines are like the first: what machine code reads is what msgspec reads, or is left to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.formats import alike_kernel, json_alike
from tidemill.formats.edge import Edge
from tidemill.formats.json_alike import JsonAlike
from tidemill.formats.json_lines import decode_json_lines
from tidemill.kinds import Kinds
from tidemill.rows import RowsByField, joined
from tidemill.schema import Kind
from tidemill.stages.statistics.compiled import interpreted_kernels, load_kernels

INTERPRETED = interpreted_kernels()["read_alike"]
"""Plain Python, which checks each index."""


@pytest.fixture(scope="module", params=["interpreted", "compiled"])
def read(request: pytest.FixtureRequest) -> Any:
    return INTERPRETED if request.param == "interpreted" else load_kernels()["read_alike"]


def shown(rows: Sequence[dict[str, Any]]) -> list[list[tuple[str, str, str]]]:
    """Rows so that order, type and each bit of a float tell them apart."""
    return [[(name, type(item).__name__, repr(item)) for name, item in row.items()] for row in rows]


def block_of(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def read_by_msgspec(block: bytes) -> list[list[tuple[str, str, str]]]:
    rows, bad = decode_json_lines(block)
    assert not bad
    return shown(rows)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=6).map(
    lambda text: f'"{text}"'
)
digits = st.text("0123456789", min_size=1, max_size=24)
whole_numbers = st.integers(-(10**24), 10**24).map(str) | st.sampled_from(["0", "-0", "9007199254740993", str(2**63)])
numbers = (
    whole_numbers
    | st.floats(allow_nan=False, allow_infinity=False).map(repr).filter(lambda text: "inf" not in text)
    | st.builds("{}.{}".format, whole_numbers, digits)
    | st.builds("{}{}{}".format, whole_numbers, st.sampled_from(["e", "E", ".5e+", ".25E-"]), st.integers(0, 99))
    | st.sampled_from(
        ["-0.0", "0.1", "1e-400", "4.35", "1.7976931348623157e308", "5e-324", "0.000001", "123456789.125"]
    )
)
truths = st.sampled_from(["true", "false"])
names = st.lists(texts, min_size=1, max_size=5, unique=True)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,", ":"), (",\t", ":\t ")])


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Lines whose values are of the same sort, or null; in the first line, three at most, each of which may take another try."""
    fields = draw(names)
    sorts = [draw(st.sampled_from([texts, numbers, truths])) for _ in fields]
    comma, colon = draw(separators)
    lines = []
    for line in range(draw(st.integers(1, 6))):
        values = [draw(sort | st.just("null") if line or place < 3 else sort) for place, sort in enumerate(sorts)]
        pairs = (f"{name}{colon}{value}" for name, value in zip(fields, values, strict=True))
        lines.append(f"{{{comma.join(pairs)}}}".encode())
    return lines * draw(st.integers(1, 3))


@given(lines=alike())
def test_lines_like_the_first_are_read_and_alike(read: Any, lines: list[bytes]) -> None:
    """Names, order, types, and values to the last bit are those that msgspec gives."""
    made = JsonAlike().read(block_of(lines), read)
    assert made is not None
    assert shown(made) == read_by_msgspec(block_of(lines))


bits = st.sampled_from(
    [
        b'"',
        b"\n",
        b"\r",
        b"\\",
        b",",
        b":",
        b"{",
        b"}",
        b"n",
        b"0",
        b"-",
        b".",
        b"e",
        b" ",
        b"\xff",
        b"\x00",
        b"tru",
        b"9",
    ]
)


@given(
    lines=alike(),
    changes=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), bits | st.binary(max_size=2)), min_size=1, max_size=3
    ),
)
def test_what_is_otherwise_is_left_alone(lines: list[bytes], changes: list[tuple[int, int, bytes]]) -> None:
    """Whatever bytes come: what both readers read is one, compiled and not, and neither looks beyond the block."""
    block = block_of(lines)
    for at, cut, put in changes:
        block = block[: at % len(block)] + put + block[at % len(block) + cut :]
        block = block or b"\n"
    found = [JsonAlike().read(block, one) for one in (INTERPRETED, load_kernels()["read_alike"])]
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None and found[1] is not None:
        assert shown(found[0]) == shown(found[1]) == read_by_msgspec(block)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1,"b":"x\\n"}', b'{"a":1}', b'{"b":"x","a":1}', b'{"a":01,"b":"x"}', b'{"a":1.,"b":"x"}', b'{"a":.5,"b":"x"}',
        b'{"a":+1,"b":"x"}', b'{"a":1e,"b":"x"}', b'{"a":--1,"b":"x"}', b'{"a":-,"b":"x"}', b'{"a":1e999,"b":"x"}', b'{"a":NaN,"b":"x"}',
        b'{"a":' + b"9" * 70 + b',"b":"x"}', b'{"a":true,"b":"x"}', b'{"a":1,"b":2}', b'{"a":nul,"b":"x"}', b'{"a":1,"b":"x"}x',
        b'{"a":1,"b":"x"', b'{"a":1,"b":"x', b'{"a":1,"b":"\xff"}', b'{"a":1,"b":"\t"}', b'{"a":1,"b":["x"]}', b"", b'{"a":', b"n", b'{"a":1_0,"b":"x"}',
        b'{"a":1,"b":"x"}\r', b'{"a":"1","b":"x"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", [1, 3])
def test_one_line_of_another_kind_leaves_the_block_to_others(read: Any, line: bytes, at: int) -> None:
    """In the middle and at the end; the lines that follow are read as before."""
    usual = [b'{"a":1,"b":"x"}', b'{"a":2.5,"b":"y"}', b'{"a":null,"b":"z"}']
    reader = JsonAlike()
    assert reader.read(block_of([*usual[:at], line, *usual[at:]]), read) is None
    assert reader.read(block_of(usual)[:-1], read) is None
    assert reader.read(b"", read) is reader.read(b"\n", read) is None
    made = reader.read(block_of(usual), read)
    assert made is not None
    assert shown(made) == read_by_msgspec(block_of(usual))


@pytest.mark.parametrize(
    "first",
    [
        b'{"a":{"b":1}}',
        b'{"a":["b","c","d"]}',
        b'{"a":1,"a":2}',
        b'{"\\u0061":1}',
        b"{}",
        b'["a",1]',
        b'{"a":"' + b"x" * 20_000 + b'"}',
        b'"a"',
        b"{",
        b'{"a" 1}',
    ],
)
def test_a_first_line_that_is_no_flat_object_is_left_to_others(read: Any, first: bytes) -> None:
    assert JsonAlike().read(block_of([first] * 3), read) is None


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"s":"S1","v":[],"v":5}', b'{"s":"S2","v":[],"v":6}'],
        [b'{"s":[],"v":1,"s":"S1"}', b'{"s":[],"v":1,"s":"S2"}'],
        [b'{"a":{},"a":7}', b'{"a":{},"a":8}'],
        [b'{"a":1,"b":2,"a":3}', b'{"a":1,"b":2,"a":3}'],
    ],
)
def test_a_name_that_comes_twice_is_left_to_others(read: Any, lines: list[bytes]) -> None:
    """Also where its first value has nothing in it."""
    assert JsonAlike().read(block_of(lines), read) is None


def test_what_was_refused_teaches_no_kind(read: Any) -> None:
    """A block in which a line is none, and one of nulls alone, say nothing of what a field holds."""
    reader, edge = JsonAlike(), Edge(arrival=True)
    nulls, numbers = [b'{"sensor":"S1","v":null}'] * 3, [b'{"sensor":"S1","v":1}'] * 3
    assert reader.read(block_of([*nulls, *numbers, b"{oops"]), read) is None
    made = reader.read(block_of(nulls), read)
    assert made is not None
    edge.rows(made, parsed=True)
    batch, letters = edge.rows(reader.read(block_of([b'{"sensor":"S1","v":"text"}'] * 3), read) or [], parsed=True)
    assert not letters
    assert batch.to_rows() == [{"sensor": "S1", "v": "text"}] * 3


def test_fields_that_are_null_at_first_are_one_shape(read: Any) -> None:
    """Whichever of them are: the tables of texts stay, and a block is read again a few times at most."""
    reader = JsonAlike()
    tables = set()
    for turn in range(30):
        values = [b"null" if turn >> place & 1 else b"%d.5" % place for place in range(5)]
        block = block_of([b'{"s":"S%d","a":%s,"b":%s,"c":%s,"d":%s,"e":%s}' % (line, *values) for line in range(4)])
        made = reader.read(block, read)
        assert made is not None
        assert shown(made) == read_by_msgspec(block)
        tables.add(id(made.values[0].texts))  # type: ignore[union-attr]
    assert len(tables) == 1
    late = block_of(
        [b'{"a":null,"b":null,"c":null,"d":null,"e":null,"f":null}'] * 3
        + [b'{"a":1,"b":"x","c":true,"d":2,"e":"y","f":3}']
    )
    made = reader.read(late, read)
    assert made is not None
    assert shown(made) == read_by_msgspec(late)


def test_no_room_is_made_for_values_that_cannot_be_there(read: Any) -> None:
    """One line of many fields and then ends of lines alone would be gigabytes."""

    def refused(*_: Any) -> None:
        raise AssertionError

    wide = b"{" + b",".join(b'"f%d":1' % place for place in range(60)) + b"}\n"
    assert JsonAlike().read(wide + b"\n" * 100_000, refused) is None


def test_numbers_of_many_digits_are_read_in_one_piece(read: Any) -> None:
    """Seventeen digits, which Python writes, times in nanoseconds, and what no float holds."""
    lines = [b'{"v":%r,"t":%d}' % (number / 7, 1_700_000_000_000_000_000 + number) for number in range(50)]
    made = JsonAlike().read(block_of([*lines, b'{"v":1e300,"t":9007199254740993}']), read)
    assert made is not None
    assert shown(made) == read_by_msgspec(block_of([*lines, b'{"v":1e300,"t":9007199254740993}']))


def test_several_shapes_take_turns(read: Any) -> None:
    """Each has its texts; more of them than are remembered change nothing."""
    reader = JsonAlike()
    for turn in range(3):
        for shape in range(20):
            block = block_of([b'{"s":"S%d","f%d":%d}' % (turn + line, shape, line) for line in range(3)])
            made = reader.read(block, read)
            assert made is not None
            assert shown(made) == read_by_msgspec(block)


def test_texts_that_come_again_share_one_table(read: Any) -> None:
    """Whoever has seen the table need not look at its texts again; it grows with what is new."""
    reader = JsonAlike()
    first, again = (reader.read(block_of([b'{"s":"S1"}', b'{"s":"S2"}']), read) for _ in range(2))
    more = reader.read(block_of([b'{"s":"S3"}', b'{"s":"S1"}']), read)
    assert first is not None and again is not None and more is not None  # noqa: PT018 - for the type checker
    assert first.values[0].texts is again.values[0].texts  # type: ignore[union-attr]
    assert more.values[0].texts.tolist() == ["S1", "S2", "S3"]  # type: ignore[union-attr]


def test_texts_that_do_not_come_again_fill_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free text, or a time as text: when the table is full of texts that came once, it is kept no longer."""
    reader = JsonAlike()
    read = load_kernels()["read_alike"]
    each = alike_kernel.TEXTS // 2
    for turn in range(4):
        block = block_of([b'{"s":"S%d","t":"%d"}' % (line % 5, turn * each + line) for line in range(each)])
        made = reader.read(block, read)
        assert made is not None
        assert shown(made) == read_by_msgspec(block)
    assert made is not None
    assert [type(values).__name__ for values in made.values] == ["Column", "list"]
    odd = block_of([b'{"s":"S1","t":"\xc3\xbc"}', b'{"s":"S2","t":null}', b'{"s":"S1","t":""}'])
    made = reader.read(odd, read)
    assert made is not None
    assert shown(made) == read_by_msgspec(odd)
    assert reader.read(block_of([b'{"s":"S1","t":"\xff"}']), read) is None


def test_texts_that_come_again_among_more_than_there_is_room_for(read: Any) -> None:
    """The table begins anew; one text that is longer than it is read too."""
    reader = JsonAlike()
    long = b"x" * (alike_kernel.LETTERS // 3)
    for turn in range(12):
        block = block_of([b'{"s":""}', *[b'{"s":"%d%s"}' % (turn // 3, long)] * 2])
        made = reader.read(block, read)
        assert made is not None
        assert shown(made) == read_by_msgspec(block)
    block = block_of([b'{"s":""}', b'{"s":"%s"}' % (long * 4)])
    made = JsonAlike().read(block, read)
    assert made is not None
    assert shown(made) == read_by_msgspec(block)


def test_texts_that_are_made_to_meet_in_one_place_of_the_table_are_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knew how the table is kept, and where its hashes begin, could not make each look at it a long one."""
    monkeypatch.setattr(json_alike, "_SEED", 2_166_136_261)
    numbers = np.arange(10**7, 10**7 + 3 * 300 * alike_kernel.PLACES // 2, dtype=np.uint64)
    hashed = np.full(len(numbers), 2_166_136_261, np.uint64)
    for power in range(7, -1, -1):
        digit = numbers // np.uint64(10**power) % np.uint64(10) + np.uint64(ord("0"))
        hashed = (hashed ^ digit) * np.uint64(16_777_619) & np.uint64(0xFFFF_FFFF)
    meeting = numbers[(hashed ^ (hashed >> np.uint64(15))) & np.uint64(alike_kernel.PLACES - 1) == 0][:300]
    assert len(meeting) == 300
    block = block_of([b'{"s":"%d"}' % number for number in meeting.tolist()])
    made = JsonAlike().read(block, load_kernels()["read_alike"])
    assert made is not None
    assert shown(made) == read_by_msgspec(block)
    assert type(made.values[0]) is list


def test_machine_code_writes_where_it_may() -> None:
    """Around each of its arrays stands what nobody may touch."""
    read = load_kernels()["read_alike"]
    guarded: list[tuple[np.ndarray[Any, Any], Any]] = []

    def among_guards(*arguments: Any) -> None:
        given = []
        for argument in arguments:
            if not isinstance(argument, np.ndarray):
                given.append(argument)
                continue
            around = np.full(argument.size + 64, 77, argument.dtype)
            around[32:-32] = argument.reshape(-1)
            given.append(around[32:-32])
            guarded.append((around, argument))
        read(*given)
        for around, argument in guarded:
            assert (around[:32] == 77).all()
            assert (around[-32:] == 77).all()
            if argument.flags.writeable:
                argument.reshape(-1)[:] = around[32:-32]
        guarded.clear()

    reader = JsonAlike()
    for last in (
        b'{"a":1,"b":"x"}',
        b'{"a":1,"b":"x',
        b'{"a":-',
        b'{"a":n',
        b'{"a":1,"b":"x"}{',
        b'{"a":1' + b"0" * 99,
    ):
        block = block_of([b'{"a":0.1,"b":"S%d"}' % line for line in range(50)] + [last])
        made = reader.read(block, among_guards)
        assert (made is None) == (last != b'{"a":1,"b":"x"}')


cells = st.sampled_from([1.5, 2, None, -0.0, 10**25, 2**53 + 1])


@given(
    items=st.lists(
        st.tuples(st.sampled_from(["S1", "", "S2", None]), cells, st.booleans() | st.none()), min_size=1, max_size=8
    ),
    kinds=st.dictionaries(
        st.sampled_from(["value", "on", "sensor"]),
        st.sampled_from([Kind.FLOAT, Kind.INT, Kind.TEXT, Kind.BOOL, Kind.TIME]),
    ),
)
def test_columns_become_what_dicts_become(read: Any, items: list[tuple[Any, Any, Any]], kinds: dict[str, Kind]) -> None:
    """Kinds that are declared and learned, records that fit no kind or name no sensor, and what is shown of those: all alike."""
    rows = [{"sensor": "S0", "time": 5, "value": 1, "on": True}]
    rows += [{"sensor": sensor, "time": 5, "value": value, "on": on} for sensor, value, on in items]
    block = block_of([json.dumps(row).encode() for row in rows])
    made = JsonAlike().read(block, read)
    assert made is not None
    one, other = Edge(columns=kinds), Edge(columns=kinds)
    batch, letters = one.rows(made, parsed=True)
    expected, expected_letters = other.rows(decode_json_lines(block)[0], parsed=True)
    assert shown(batch.to_rows()) == shown(expected.to_rows())
    assert list(letters) == list(expected_letters)
    assert one.kinds.learned == other.kinds.learned


def test_rows_of_columns_are_a_sequence_of_dicts() -> None:
    """Of several with the same fields and kinds one is made; with others, of lists."""
    kinds = Kinds()
    some = RowsByField(("a", "b"), [kinds.column("a", [1, 2.5, None])[0], kinds.column("b", ["x", "y", "z"])[0]])
    assert (
        list(some) == [some[0], some[1], some[2]] == [{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}, {"a": None, "b": "z"}]
    )
    assert list(some[1:]) == list(some)[1:]
    assert list(some[2:1]) == []
    both = joined([some, some[:1]])
    assert isinstance(both, RowsByField)
    assert list(both) == [*some, some[0]]
    mixed = joined([some, RowsByField(("a", "b"), [[True], some[:1].values[1]])])
    assert list(mixed) == [*some, {"a": True, "b": "x"}]


ODD = [
    b'{"a":1,"b":"x"}', b'{"b":"x","a":1}', b'{"a":"x","b":1}', b'{"a":1,"a":"x","b":"x"}', b'{"a":1,"b":"x","b":"y"}', b'{"a":1}',
    b'{"a":1}{"b":"x"}', b'{"a":1,"b":"x"}{"a":1,"b":"x"}', b"", b" ", b'{"a":1,', b'"b":"x"}', b'{"a":1,"b":"x"', b'{"a":1,"c":"x"}',
    b'{"a":{"c":1},"b":"x"}', b'{"a":[1],"b":"x"}', b'["a","b","x"]', b'"a"', b'{"a":1,"b":"\xff"}', b'{"\xff":1,"b":"x"}',
    b'{"a":1,"b":"\\n"}', b'{"a":NaN,"b":"x"}', b'{"a":1e999,"b":"x"}', b'{"a":' + b"9" * 70 + b',"b":"x"}', b'{"a" :1,"b":"x"}',
    b'{"a":1,"b":":"}', b'{"a":1,"b":"},{"}', b'{"a":"b","b":1}', b'{"b":"a","a":1}', b'{"a":"a","a":1}', b'{"a":1,"b":"x"} ',
    b'\r{"a":1,"b":"x"}', b'{"a":1,"b":"x"},', b'{"a":007,"b":"x"}', b'{"a":1,"b":"\t"}', b"{}", b"null",
]  # fmt: skip


@given(
    odd=st.lists(st.sampled_from(ODD), max_size=6),
    usual=st.integers(0, 20),
    at=st.integers(0, 20),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_what_is_of_no_one_shape_is_left_to_the_reader_of_lines(
    read: Any, odd: list[bytes], usual: int, at: int, end: bytes
) -> None:
    """Names in another order, twice, missing, or more; lines that are none: a block with any of these is as it is without us."""
    lines = [b'{"a":1,"b":"x"}'] * usual
    lines[at:at] = odd
    block = b"".join(line + end for line in lines)
    made = JsonAlike().read(block, read)
    rows, bad = decode_json_lines(block)
    assert made is None or (shown(made), []) == (shown(rows), bad)


@given(order=st.permutations(["ab", "ac", "bb", "bc", "abc"]), at=st.integers(0, 199))
def test_another_order_of_names_is_seen_wherever_it_is(read: Any, order: list[str], at: int) -> None:
    """Even of names of one length, in one line of many."""
    usual = dict.fromkeys(["ab", "ac", "bb", "bc", "abc"], 1)
    lines = [json.dumps(usual, separators=(",", ":")).encode()] * 200
    lines[at] = json.dumps(dict.fromkeys(order, 1), separators=(",", ":")).encode()
    made = JsonAlike().read(block_of(lines), read)
    assert (made is not None) == (order == list(usual))


def test_what_changes_its_shape_again_and_again_is_tried_less_and_less_often(kernels_loaded: None) -> None:
    """A look in vain costs as much as a fifth of the reading; steady lines are found again after at most 64 blocks."""
    reader = JsonAlike()
    mixed = block_of([b'{"a":1}', b'{"b":1}'] * 800)
    steady = block_of([b'{"a":1}'] * 1600)
    assert [reader.rows(mixed) for _ in range(200)] == [None] * 200
    found = [place for place in range(64) if reader.rows(steady) is not None]
    assert found
    assert found == list(range(found[0], 64))
    assert reader.rows(steady) is not None


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
    assert list(letters) == list(expected_letters)
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
