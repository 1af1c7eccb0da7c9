"""How a recording is written, told from its first bytes."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.app.new.sniffing import BLANKS, Layout, number_of, sniffed
from tidemill.errors import InputError, TidemillError


def head(text: str | bytes, suffix: str = ".csv", *, whole: bool = True):
    return sniffed(f"plant{suffix}", suffix, text if isinstance(text, bytes) else text.encode(), whole=whole)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("sensor,time,value\nS1,1,20\n", Layout("csv")),
        ("sensor;time;value\nS1;1;20.5\n", Layout("csv", separator=";")),
        ("sensor;time;value\nS1;1;20,5\nS2;2;21,5\n", Layout("csv", separator=";", decimal=",")),
        ("sensor\ttime\tvalue\nS1\t1\t20\n", Layout("csv", separator="\t")),
        ("sensor|time|value\nS1|1|20\n", Layout("csv", separator="|")),
        ("sensor time  value\nS1\t1\t20\n", Layout("csv", separator=BLANKS)),
        ("# logger 7\n# hall 2\nsensor,time,value\nS1,1,20\n", Layout("csv", skipped=2)),
        ("'sensor', 'time', value\n'S1', '1', 20\n", Layout("csv", quote="'")),
        ("sensor, time, value\nS1, 2024-03-01 12:00:00, 20\n", Layout("csv")),
        ("time, sensor, value\n2024-03-01 12:00:00, S1, 20\n", Layout("csv", spaced=True)),
        ("time , sensor , value\n2024-03-01 12:00:00 , S1 , 20\n", Layout("csv", spaced=True, padded=True)),
        ("sensor ,time ,value\nS1,2024-03-01 12:00:00,20\n", Layout("csv", padded=True)),
        ('sensor,time,value\n"Smith, John",1,20\n', Layout("csv")),
        ("\nsensor,time,value\r\nS1,1,20\r\n", Layout("csv")),
        ("value\n20\n21\n", Layout("csv")),
        ('{"sensor": "S1"}\n', Layout("ndjson", named=False)),
        ("sensor,gr\u00f6\u00dfe\nS1,20\n".encode("latin-1"), Layout("csv", encoding="latin-1")),
        ("sensor,value\nS1,20\n".encode("utf-16"), Layout("csv", encoding="utf-16")),
        ("sensor,value\nS1,20\n".encode("utf-8-sig"), Layout("csv")),
    ],
    ids=lambda item: repr(item)[:30] if not isinstance(item, Layout) else str(item),
)
def test_layouts(text: str | bytes, layout: Layout) -> None:
    """Separators, quotes, decimal commas, lines before the header, encodings; each is said in words."""
    found = head(text)
    assert found.layout == layout
    assert found.rows
    assert found.layout.plain is (layout in (Layout("csv"), Layout("csv", padded=True), Layout("ndjson", named=False)))
    assert str(layout)


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("", ".csv", "is empty"),
        ("  \n\n", ".csv", "is empty"),
        (b"PAR1\0\0", ".csv", "is Parquet"),
        ("x", ".parquet", "is Parquet"),
        (b"\0\1\2", ".dat", "is not text"),
        ('[{"a": 1}]', ".json", "one JSON array"),
        ('{\n "a": 1\n}\n', ".json", "no line of it is one JSON object"),
        ("1,2.5,S1\n2,3.5,S1\n", ".csv", "has no header"),
        ("2024-03-01T12:00:00,20\n", ".csv", "has no header"),
        ("sensor,value\n", ".csv", "no record that fits"),
        ("sensor,sensor\na,b\n", ".csv", "twice"),
        ("mill,line=L1 speed=4 1700000000000000000\n", ".influx", "is line protocol; .* --input FILE.influx"),
        ("# by telegraf\n\nmill speed=4\n", ".txt", "is line protocol"),
    ],
)
def test_what_is_no_recording_of_lines_is_said_to_be_what_it_is(text: str | bytes, suffix: str, said: str) -> None:
    """One sentence, with the file's name."""
    with pytest.raises(InputError, match=said) as refused:
        head(text, suffix)
    assert f"plant{suffix}" in str(refused.value)


def test_a_line_that_the_look_cut_is_left_alone() -> None:
    """Half a record is no record; the end of a whole file is one."""
    assert [row["b"] for row in head("a,b\n1,20\n2,2", whole=False).rows] == ["20"]
    assert [row["b"] for row in head("a,b\n1,20\n2,2").rows] == ["20", "2"]


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
    min_size=1,
    max_size=8,
).map(str.strip)


@given(
    st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=2, max_size=6, unique=True),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=30),
    st.sampled_from([",", ";", "\t", "|"]),
)
def test_a_table_of_numbers_is_read_with_the_separator_it_was_written_with(fields, numbers, separator) -> None:
    """Whatever the numbers; names and cells come back."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(fields)
    writer.writerows([number] * len(fields) for number in numbers)
    found = head(text.getvalue())
    assert (found.layout.separator, list(found.fields)) == (separator, fields)
    assert [number_of(row[fields[0]]) for row in found.rows] == numbers


@settings(max_examples=30)
@given(st.lists(st.dictionaries(names, st.none() | st.booleans() | st.integers() | st.text(max_size=5)), min_size=1))
def test_json_lines_are_the_records_they_are(rows) -> None:
    """Field by field, in order, whatever stands in them."""
    rows = [{"sensor": "S1", **row} for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert list(head(text, ".ndjson").rows) == json.loads(f"[{','.join(text.splitlines())}]")


@given(
    st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    st.sampled_from([".csv", ".ndjson", ".txt"]),
    st.booleans(),
)
def test_any_bytes_are_a_recording_or_refused_in_one_sentence(data, suffix, whole) -> None:
    """Nothing else happens."""
    try:
        found = sniffed("plant", suffix, data, whole=whole)
    except TidemillError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "plant" in refused
    else:
        assert found.rows
        assert all(set(row) <= set(found.fields) for row in found.rows)
