"""CSV: as the csv module reads it, typed once for the run, bad lines alone."""

from __future__ import annotations

import csv
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError
from tidemill.formats.csv_cells import learn_kind
from tidemill.formats.csv_encode import encode_csv
from tidemill.formats.csv_lines import CsvDecoder, parse_header
from tidemill.formats.edge import Edge
from tidemill.letters import BAD_TIME, INFINITE, MALFORMED, OVERSIZE, WRONG_TYPE, DeadLetter
from tidemill.schema import Kind

cells = st.text(st.sampled_from('ab1.,"\n é-'), max_size=6)


def decode(
    data: bytes, cuts: list[int] | None = None, **options: object
) -> tuple[list[dict[str, object]], list[DeadLetter]]:
    edge = Edge(key="k", time="t", columns=options.pop("columns", None))  # type: ignore[arg-type]
    decoder = CsvDecoder(edge, named="test.csv", **options)  # type: ignore[arg-type]
    rows: list[dict[str, object]] = []
    letters: list[DeadLetter] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or ()), len(data)]
    for start, stop in pairwise(edges):
        batch, more = decoder.feed(data[start:stop])
        rows += batch.to_rows()
        letters += more
    batch, more = decoder.finish()
    return rows + batch.to_rows(), [*letters, *more]


@given(
    st.lists(st.lists(cells, min_size=2, max_size=2), max_size=8),
    st.lists(st.integers(0, 300), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_texts_against_the_csv_module(table: list[list[str]], cuts: list[int], end: str, quoting: int) -> None:
    """Whatever the csv module writes is read back as the csv module reads it, however the bytes are cut."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=end, quoting=quoting)
    writer.writerow(["k", "t", "a", "b"])
    for row in table:
        writer.writerow(["S", "0", *row])
    rows, letters = decode(out.getvalue().encode(), cuts, columns={"a": Kind.TEXT, "b": Kind.TEXT})
    assert not letters
    read = list(csv.reader(io.StringIO(out.getvalue(), newline="")))[1:]
    expected = [[cell or None for cell in row[2:]] for row in read]
    assert [[row["a"], row["b"]] for row in rows] == expected


@given(st.binary(max_size=120), st.lists(st.integers(0, 120), max_size=4))
def test_any_bytes_are_rows_or_letters(data: bytes, cuts: list[int]) -> None:
    """No input raises, and the cuts change nothing."""
    data = b"k,t,a\nS,0,1\n" + data
    whole = decode(data)
    rows, letters = decode(data, cuts)
    assert repr(rows) == repr(whole[0])
    assert sorted(str(letter.raw) for letter in letters) == sorted(str(letter.raw) for letter in whole[1])


PIECES = ['"', ",", "a", "\n", "\r", "\r\n", ',"', '"\n', "S,1,b\n", "S,1,\rb\n", 'S,1,"x\ny"\n', "\r\r\n"]


@given(
    st.lists(st.sampled_from(PIECES), min_size=4, max_size=40).map("".join), st.lists(st.integers(0, 200), max_size=6)
)
def test_quotes_and_line_ends_touch_their_own_lines_alone(data: str, cuts: list[int]) -> None:
    """What becomes of a line does not depend on whether a quote stands in a line that is read along with it."""
    texts = {"t": Kind.TEXT, "a": Kind.TEXT}
    rows, letters = decode(b"k,t,a\n" + data.encode(), columns=texts)
    cut, more = decode(b"k,t,a\n" + data.encode(), cuts, columns=texts)
    assert cut == rows
    assert sorted(str(letter.raw) for letter in more) == sorted(str(letter.raw) for letter in letters)


LONG = "x" * 140_000
"""More than the csv module takes."""


@pytest.mark.parametrize("beside", ["", 'S,0,"q"\n'])
@pytest.mark.parametrize(
    ("cell", "text"),
    [("a\rb", "a\rb"), ("\r", "\r"), ('"a"\rb', "a\rb"), (LONG, LONG), (f'"{LONG}""{LONG}"', f'{LONG}"{LONG}')],
)
def test_a_cell_is_read_alike_beside_a_quoted_one(cell: str, text: str, beside: str) -> None:
    """A lone carriage return is text, and a cell may be as long as a line."""
    rows, letters = decode(f"k,t,a\nS,0,{cell}\r\n{beside}".encode(), columns={"a": Kind.TEXT})
    assert (rows[0]["a"], letters) == (text, [])


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ("S,0", MALFORMED, "2 cells"),
        ("S,0,1,2", MALFORMED, "4 cells"),
        ("S,0,hot", WRONG_TYPE, "text 'hot'"),
        ("S,0,inf", INFINITE, "infinite"),
        ("S,0,1e999", INFINITE, "infinite"),
        ("S,0,1_0", WRONG_TYPE, "text"),
        ("S,soon,1", WRONG_TYPE, "'t'"),
        ("S,,1", BAD_TIME, "nothing"),
        (",0,1", "no_key", "'k'"),
        ("S,0," + "1" * 300, OVERSIZE, "longer than 200"),
        ('S,0,"1', MALFORMED, ""),
    ],
)
def test_a_bad_line_goes_alone(line: str, code: str, word: str) -> None:
    """Each bad line is one letter with its cells, or its text and the header; the lines around it flow."""
    data = "k,t,a\n" + "S,0,1\n" * 3 + line + "\n" + "S,1,2\n" * 2
    rows, letters = decode(data.encode(), limit=200)
    if line == 'S,0,"1':  # what stands after an open quote is read as its text, and then as a line of its own
        assert len(rows) == 6
        return
    (letter,) = letters
    cells = dict(zip(("k", "t", "a"), line.split(","), strict=False))
    if code in (MALFORMED, OVERSIZE):
        assert letter.raw[:5] == line[:5]
        assert letter.header == (("k", "t", "a") if code == MALFORMED else ())
    else:
        assert {name: "" if item is None else str(item) for name, item in letter.raw.items()} == cells
    assert (letter.reason_code, word in letter.reason) == (code, True)
    assert len(rows) == 5


def test_bytes_that_are_not_utf8_are_one_letter() -> None:
    """A line in another encoding is rejected alone."""
    rows, letters = decode(b"k,t,a\nS,0,1\nS,0,\xff\nS,0,2\n")
    assert (len(rows), [letter.reason_code for letter in letters]) == (2, [MALFORMED])


def test_a_stray_quote_swallows_nobody() -> None:
    """A quote that never closes is given up after a bounded number of lines, each of which then stands for itself."""
    rows, letters = decode(b'k,t,a\nS,0,"x\n' + b"S,0,1\n" * 500)
    assert len(rows) + len(letters) == 501
    assert len(rows) >= 500


def test_numbers_keep_their_form() -> None:
    """Integers come back as integers beyond float64's precision too; empty and nan cells are null."""
    rows, letters = decode(b"k,t,a\nS,0,1\nS,0,1.0\nS,0,\nS,0,nan\nS,0,1234567890123456789\nS,0,-3\n")
    assert not letters
    assert [repr(row["a"]) for row in rows] == ["1", "1.0", "None", "None", "1234567890123456789", "-3"]


@pytest.mark.parametrize("before", ["", "S,0,\n"])
@pytest.mark.parametrize("long", ["7" * 65, "0" * 5_000 + "99999999999999999"])
def test_a_number_of_too_many_digits_is_rejected_alone(before: str, long: str) -> None:
    """Also one that Python refuses to read as an integer, and its letter has its cells; a small one may have any number of
    zeros before it."""
    rows, letters = decode(f"k,t,a\n{before}S,0,{long}\nS,0,{'0' * 5_000}6\nS,0,7\n".encode())
    assert [row["a"] for row in rows if row["a"] is not None] == [6, 7]
    assert [(letter.reason_code, letter.raw["a"]) for letter in letters] == [(MALFORMED, long)]


def test_the_key_is_text() -> None:
    """Sensor 007 is not sensor 7."""
    rows, _ = decode(b"k,t,a\n007,0,1\n")
    assert rows[0]["k"] == "007"


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.OBJECT])
def test_blanks_around_a_key_are_none_of_it(kind: Kind) -> None:
    """As around names of columns and in tables of sensors, so that the one finds the other; other texts keep theirs."""
    rows, letters = decode(b"t, k, n\n0, S1 , a\n1,S1,b\n2, ,c\n", columns={"k": kind, "n": Kind.TEXT})
    assert rows == [{"t": 0, "k": "S1", "n": " a"}, {"t": 1, "k": "S1", "n": "b"}]
    assert [letter.reason_code for letter in letters] == ["no_key"]


@pytest.mark.parametrize(
    ("time_format", "cell"),
    [("%d%m%Y%H%M%S", "01032024100000"), ("%d%m%Y%H%M%S", " 01032024100000"), ("%d%m%y.%H", "010324.10")],
)
def test_times_in_a_format_are_read_as_they_are_written(time_format: str, cell: str) -> None:
    """A time that looks like a number keeps its zeros, so that it is not read as another day or hour."""
    edge = Edge(key="k", time="t", time_format=time_format)
    batch, letters = CsvDecoder(edge, named="a.csv").feed(f"k,t\nS,{cell}\n".encode())
    assert (batch.time.tolist(), letters) == ([1_709_287_200_000_000_000], [])
    assert batch.to_rows() == [{"k": "S", "t": cell}]


def test_one_kind_for_the_run() -> None:
    """A column that began with numbers stays a number column in the next block and in the next file."""
    edge = Edge(key="k", time="t")
    first = CsvDecoder(edge, named="a.csv")
    first.feed(b"k,t,a\nS,0,1\n")
    _, letters = first.feed(b"S,0,x\n")
    assert "float" in letters[0].reason
    second = CsvDecoder(edge, named="b.csv")
    batch, letters = second.feed(b"k,t,a\nS,0,2\nS,0,y\n")
    assert (batch.schema["a"].kind, len(letters)) == (Kind.FLOAT, 1)


def test_kinds_are_learned_by_majority() -> None:
    """One odd cell does not make a column of numbers text."""
    assert learn_kind(["1", "2", "n/a", ""]) is Kind.FLOAT
    assert learn_kind(["a", "b", "3"]) is Kind.TEXT
    assert learn_kind(["", "nan"]) is None


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["007", "012"], Kind.TEXT),
        (["01234", "", "nan", "90210"], Kind.TEXT),
        (["0", "1"], Kind.FLOAT),
        (["0.5", "-0.5", "0"], Kind.FLOAT),
        (["00", "5", "12"], Kind.FLOAT),
        (["00.5", "10.5"], Kind.FLOAT),
        (["10", "12"], Kind.FLOAT),
    ],
)
def test_digits_padded_to_one_width_are_a_name(cells: list[str], kind: Kind) -> None:
    """A serial number keeps its zeros, and a number with a stray one is a number."""
    assert learn_kind(cells) is kind


def test_zeros_before_a_name_stay_and_those_before_a_number_cost_no_record() -> None:
    """Whatever follows names with zeros is text; zeros that come after numbers are read as numbers; times may have them too."""
    for begins, follows, codes in (
        ("S,0001,007", "S,0002,x\nS,0003,15", ["007", "x", "15"]),
        ("S,1,15", "S,2,007", [15, 7]),
    ):
        decoder = CsvDecoder(Edge(key="k", time="t"), named="a.csv")
        fed = [decoder.feed(f"{lines}\n".encode()) for lines in (f"k,t,code\n{begins}", follows)]
        assert [row["code"] for batch, _ in fed for row in batch.to_rows()] == codes
        assert [row["t"] for batch, _ in fed for row in batch.to_rows()] == [1, 2, 3][: len(codes)]
        assert not any(letters for _, letters in fed)


@pytest.mark.parametrize("nothing", ["", " ", "nan", "NaN"])
def test_what_holds_nothing_teaches_nothing(nothing: str) -> None:
    """A column that begins with blanks or nan is null there, and has the kind of what comes later: within a block or behind."""
    begin = "k,t,a\n" + f"S,0,{nothing}\n" * 5_000
    for blocks in ([begin, "S,0,1.5\n"], [begin + "S,0,1.5\n"]):
        decoder = CsvDecoder(Edge(key="k", time="t"), named="a.csv")
        batches = [decoder.feed(block.encode())[0] for block in blocks]
        assert batches[-1].schema["a"].kind is Kind.FLOAT
        assert [row["a"] for batch in batches for row in batch.to_rows()] == [None] * 5_000 + [1.5]


def test_declared_kinds() -> None:
    """int, bool and time columns are read as declared; what does not fit is rejected."""
    kinds = {"n": Kind.INT, "b": Kind.BOOL, "w": Kind.TIME}
    data = b"k,t,n,b,w\nS,0,1,true,2024-01-01T00:00:00Z\nS,0,1.5,true,0\nS,0,2,maybe,0\nS,0,3,0,never\nS,0,,,\n"
    rows, letters = decode(data, columns=kinds)
    assert [(row["n"], row["b"]) for row in rows] == [(1, True), (None, None)]
    assert [letter.reason_code for letter in letters] == [WRONG_TYPE] * 3


def test_headers() -> None:
    """A name given twice is refused; a name left out gets one; a byte order mark is no part of a name."""
    with pytest.raises(InputError, match="'a' twice"):
        parse_header(b"a,b,a", "x.csv")
    assert parse_header(b",value", "x.csv") == ["column0", "value"]
    rows, _ = decode(b"\xef\xbb\xbfk,t,a\nS,0,1")
    assert list(rows[0]) == ["k", "t", "a"]


def test_encoding_against_the_csv_module() -> None:
    """What is written reads back through the csv module, cell by cell."""
    batch = Batch(
        {
            "s": Column.of_texts(['a,"b"', "line\nbreak", " space "]),
            "x": Column(Kind.FLOAT, np.array([0.1, math.nan, 1e300])),
            "t": Column(Kind.TIME, np.array([0, 1_500_000_000, np.iinfo(np.int64).min])),
            "o": Column.of_array(np.array([{"a": [1]}, None, "x,y"], object)),
            "b": Column(Kind.BOOL, np.array([True, False, True])),
        }
    )
    read = list(csv.reader(io.StringIO(encode_csv(batch, header=True).decode(), newline="")))
    assert read[0] == ["s", "x", "t", "o", "b"]
    assert read[1] == ['a,"b"', "0.1", "1970-01-01T00:00:00Z", '{"a":[1]}', "true"]
    assert read[2] == ["line\nbreak", "", "1970-01-01T00:00:01.5Z", "", "false"]
    assert [float(read[3][1]), read[3][2:]] == [1e300, ["", "x,y", "true"]]
    assert encode_csv(batch.slice(0, 0)) == b""


FORMULAS = [
    f"{lead}{start}{rest}"
    for lead in ("", " ", "\u00a0", "\n")
    for start in ("=", "+", "-", "@", "\t", "\r", "\t=")
    for rest in ("1+1", 'HYPERLINK("http://elsewhere.example")', "cmd|' /C calc'!A0", "SUM(1,2)")
]


def test_no_cell_is_a_formula_when_a_spreadsheet_is_to_open_it() -> None:
    """Texts of every column, nested ones and the names of columns; numbers and other texts stay as they are."""
    rows = [{"s": text, "o": {"a": text}, text: -1.5, "n": -number} for number, text in enumerate(FORMULAS)]
    rows += [{"s": "pump-1", "o": text, "n": 0} for text in FORMULAS]
    read = list(
        csv.reader(io.StringIO(encode_csv(Batch.from_rows(rows), header=True, plain=True).decode(), newline=""))
    )
    cells = [cell for line in read for cell in line]
    texts = [cell for cell in cells if cell and not re.fullmatch(r"-?[0-9.]+", cell)]
    assert not [cell for cell in texts if cell.lstrip()[:1] in set("=+-@") or cell[0] in "\t\r"]
    assert {cell[1:] for cell in texts if cell.startswith("'")} == set(FORMULAS)
    assert [line[read[0].index("n")] for line in read[1:3]] == ["0", "-1"]
    assert "pump-1" in cells


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60), min_size=1, max_size=20)
)
def test_numbers_survive_a_round_trip(numbers: list[float]) -> None:
    """Numbers written as CSV read back equal and of the same type."""
    rows = [{"k": "S", "t": 0, "a": number} for number in numbers]
    back, letters = decode(encode_csv(Batch.from_rows(rows), header=True))
    assert not letters
    assert [repr(row["a"]) for row in back] == [repr(number) for number in numbers]
