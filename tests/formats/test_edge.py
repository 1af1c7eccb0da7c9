"""The edge: roles, kinds, and rejects one by one."""

from __future__ import annotations

import datetime as dt
import math
import threading

import numpy as np
import pytest

from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.formats import roles
from tidemill.formats.csv_lines import CsvDecoder
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import line_format
from tidemill.formats.rejects import suggestion
from tidemill.formats.unfit import is_unicode
from tidemill.kinds import Kinds, conform
from tidemill.letters import BAD_TIME, INFINITE, MALFORMED, MISSING_FIELD, NO_KEY, OVERSIZE, WRONG_TYPE
from tidemill.schema import Kind
from tidemill.sources.readers import LinesDecoder

GOOD = {"sensor": "S1", "time": 1, "value": 20.5}


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"time": 1, "value": 1.0}, NO_KEY),
        ({"sensor": None, "time": 1, "value": 1.0}, NO_KEY),
        ({"sensor": "", "time": 1, "value": 1.0}, NO_KEY),
        ({"sensor": "S1", "value": 1.0}, BAD_TIME),
        ({"sensor": "S1", "time": None, "value": 1.0}, BAD_TIME),
        ({"sensor": "S1", "time": 1e30, "value": 1.0}, BAD_TIME),
        ({"sensor": "S1", "time": "soon", "value": 1.0}, WRONG_TYPE),
        ({"sensor": "S1", "time": 1, "value": "hot"}, WRONG_TYPE),
        ({"sensor": "S1", "time": 1, "value": True}, WRONG_TYPE),
        ({"sensor": "S1", "time": 1, "value": math.inf}, INFINITE),
        ({"sensor": "S1", "time": 1, "value": -math.inf}, INFINITE),
        ({"sensor": ["S1"], "time": 1, "value": 1.0}, WRONG_TYPE),
        ({"sensor": "\ud800", "time": 1, "value": 1.0}, MALFORMED),
        ({"sensor": "S1", "time": 1, "value": 1.0, 7: 8}, MALFORMED),
        ("text", MALFORMED),
        (None, MALFORMED),
        (3, MALFORMED),
    ],
)
def test_a_bad_record_goes_alone(record: object, code: str) -> None:
    """The bad record is a letter with its code and itself; its neighbours flow."""
    batch, letters = Edge(source="plant").rows([GOOD, record, GOOD, GOOD])
    assert [(letter.reason_code, letter.raw, letter.source) for letter in letters] == [(code, record, "plant")]
    assert batch.to_rows() == [GOOD] * 3
    assert batch.keys[batch.key].tolist() == ["S1"] * 3
    assert batch.time.tolist() == [10**9] * 3


@pytest.mark.parametrize(
    ("field", "item", "code", "told"),
    [
        ("v\ud800", 1.0, MALFORMED, r"the field name 'v\ud800' is not valid Unicode text"),
        ("o", {"lock": threading.Lock()}, WRONG_TYPE, "field 'o' holds a dict that cannot be sent to another process"),
        ("o", [1, (n for n in ())], WRONG_TYPE, "field 'o' holds a list that cannot be sent to another process"),
    ],
)
def test_what_no_other_process_can_take_goes_alone(field: str, item: object, code: str, told: str) -> None:
    """A record that could not be sent to a lane is rejected at the edge, with its field; its neighbours flow."""
    good = {**GOOD, "o": [1]}
    bad = {**good, field: item}
    batch, letters = Edge().rows([good, bad, good])
    assert [(letter.reason_code, letter.raw) for letter in letters] == [(code, bad)]
    assert letters[0].reason.startswith(told)
    assert batch.to_rows() == [good] * 2
    assert batch.names == ("sensor", "time", "value", "o")


def test_columns_of_any_objects() -> None:
    """Of a table that may hold anything, a row that could not be sent to a lane is rejected singly."""
    objects = Column(Kind.OBJECT, np.array([None, threading.Lock(), None], object))
    columns = {"sensor": Column.of_texts(["S"] * 3), "time": Column(Kind.FLOAT, np.arange(3.0)), "o": objects}
    batch, letters = Edge().columns(columns, parsed=False)
    assert (len(batch), [letter.reason_code for letter in letters]) == (2, [WRONG_TYPE])
    assert letters[0].reason.startswith("field 'o' holds a lock")


def test_a_record_without_a_key_teaches_no_kind() -> None:
    """What is rejected for its key does not make the column of its value text for the rest of the run."""
    batch, letters = Edge().rows([{"time": 1, "value": "hot"}, GOOD])
    assert len(letters) == 1
    assert batch.schema["value"].kind is Kind.FLOAT


def test_a_declared_field_must_be_there() -> None:
    """A record that lacks a declared field is rejected; null is a value for it."""
    edge = Edge(columns={"n": Kind.INT})
    batch, letters = edge.rows([{**GOOD, "n": 1}, GOOD, {**GOOD, "n": None}])
    assert [letter.reason_code for letter in letters] == [MISSING_FIELD]
    assert batch.schema["n"].kind is Kind.INT
    assert [row["n"] for row in batch.to_rows()] == [1, None]


def test_a_template_joins_fields_and_what_the_source_knows() -> None:
    """``{line}/{machine}`` over fields; ``{stem}`` from the source; literal braces doubled."""
    rows = [{"line": 1, "machine": "m", "time": 0}, {"line": 2, "machine": "k", "time": 0}]
    batch, _ = Edge(key="{line}/{machine}").rows(rows)
    assert batch.keys[batch.key].tolist() == ["1/m", "2/k"]
    batch, _ = Edge(key="{stem}").rows(rows, known={"stem": "pump"})
    assert batch.keys[batch.key].tolist() == ["pump", "pump"]
    batch, _ = Edge(key="{{{stem}}}-{line}").rows(rows, known={"stem": "pump"})
    assert batch.keys[batch.key].tolist() == ["{pump}-1", "{pump}-2"]


def test_a_number_can_be_a_key() -> None:
    """The key is the text of the value as the record held it."""
    batch, _ = Edge().rows([{"sensor": 7, "time": 0}, {"sensor": 7.5, "time": 0}])
    assert batch.keys[batch.key].tolist() == ["7", "7.5"]


def test_nan_is_no_key() -> None:
    """A DataFrame has NaN where a number is missing: that names no sensor, as in pandas' groupby."""
    columns = {"sensor": Column(Kind.FLOAT, np.array([1.0, np.nan, 2.5])), "time": Column(Kind.FLOAT, np.arange(3.0))}
    batch, letters = Edge().columns(columns)
    assert batch.keys[batch.key].tolist() == ["1.0", "2.5"]
    assert [(letter.reason_code, letter.key) for letter in letters] == [(NO_KEY, None)]
    assert letters[0].reason == "field 'sensor', which names the sensor, is missing or null"


def test_keys_can_be_numbers_and_texts_side_by_side() -> None:
    """Where the field is declared to be of any kind, whichever comes first; the field stays as it came."""
    rows = [{"sensor": 7, "time": 0}, {"sensor": "S1", "time": 1}, {"sensor": "7", "time": 2}]
    batch, letters = Edge(columns={"sensor": Kind.OBJECT}).rows(rows, parsed=True)
    assert (batch.keys[batch.key].tolist(), letters) == (["7", "S1", "7"], [])
    assert batch.to_rows() == rows


@pytest.mark.parametrize("key", ["{", "{}", "{a!r}", "{a:>3}"])
def test_a_template_that_is_none(key: str) -> None:
    """A malformed template is refused when it is written."""
    with pytest.raises(PlanError, match=r"template|names in braces"):
        Edge(key=key)


def test_a_text_that_is_no_key_costs_its_neighbours_no_look_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many slices share the texts of a column; each slice rejects its own rows."""
    looks = []
    monkeypatch.setattr(roles, "is_unicode", lambda text: bool(looks.append(text)) or is_unicode(text))
    edge = Edge()
    column = Column.of_texts(["S1", "", "S2"] * 100)
    for start in range(0, 300, 30):
        times = Column.of_array(np.arange(30.0))
        batch, letters = edge.columns({"sensor": column.slice(start, start + 30), "time": times})
        assert batch.keys.tolist() == ["S1", "", "S2"]
        assert [letter.reason for letter in letters] == ["the key, from 'sensor', is empty"] * 10
    assert looks == ["S1S2"]


def test_arrival_and_fallback_fill_what_push_sources_lack() -> None:
    """Without the default fields, the time is the arrival's and the sensor the connection; named fields must be there."""
    known = [{"peer": "a:1"}, {"peer": "b:2"}]
    batch, letters = Edge(arrival=True, fallback="peer").rows(
        [{"value": 1}, {"sensor": "S", "time": 3, "value": 2}], wall_ns=np.array([7, 8]), known=known
    )
    assert not letters
    assert batch.keys[batch.key].tolist() == ["a:1", "S"]
    assert batch.time.tolist() == [7, 3 * 10**9]
    _, letters = Edge(arrival=True, time="t", key="k", fallback="peer").rows([{"value": 1}], known=known)
    assert len(letters) == 1


def test_rejects_before_and_after_leave_arrivals_with_their_records() -> None:
    """Each record keeps its own arrival when its neighbours are rejected."""
    rows = ["bad", {"value": 1, "sensor": "a"}, {"value": "x", "sensor": "b"}, {"value": 2, "sensor": "c"}]
    batch, letters = Edge(arrival=True).rows(rows, wall_ns=np.array([1, 2, 3, 4]))
    assert batch.time.tolist() == [2, 4]
    assert [letter.raw for letter in letters] == [rows[0], rows[2]]


def test_nan_from_python_is_a_value() -> None:
    """A NaN that the user gives takes its place; only infinities are refused."""
    batch, letters = Edge().rows([{**GOOD, "value": math.nan}])
    assert not letters
    assert math.isnan(batch["value"][0])


def test_numbers_whose_sum_overflows_are_not_infinite() -> None:
    """Large finite numbers pass."""
    batch, letters = Edge().rows([{**GOOD, "value": 1.7e308}] * 3)
    assert (len(batch), letters) == (3, [])


def test_explain_names_the_fields_and_what_to_try() -> None:
    """When everything is rejected, the sentence holds the fields seen and likely options."""
    edge = Edge(source="tcp")
    edge.rows([{"machine_id": "a", "ts": 1, "temp": 2.0}] * 3)
    sentence = edge.explain()
    assert "machine_id, ts, temp" in sentence
    assert "key='machine_id', time='ts'" in sentence
    assert edge.accepted == 0


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"sensor": "S", "time": 1}], "no field 'value', which is declared. The fields seen are: sensor, time."),
        ([7], "the record is a int, not an object."),
        ([{f"f{n}": 1 for n in range(40)}], "f19, 20 more."),
        ([{"name": "cpu", "tags": {}, "fields": {}, "timestamp": 1}], 'looks like Telegraf\'s JSON: say format="telegraf-json".'),
    ],
)  # fmt: skip
def test_the_worst_reason_decides_what_is_advised(rows: list[object], told: str) -> None:
    """Nothing is said of key= and time= where they are not at fault, and names that are too many are counted."""
    edge = Edge(columns={"value": Kind.FLOAT} if "sensor" in str(rows) else {})
    edge.rows(rows)
    sentence = edge.explain(formats=["ndjson", "telegraf-json"])
    assert told in sentence
    assert ("key=" in sentence) == ("f19" in sentence)


LINES = {
    "mill,line=L1 speed=41 1700000000000000000": 'looks like line protocol: say format="influx".',
    '{"sensor": "S1"}': 'looks like NDJSON: say format="ndjson".',
    "S1;2024-05-01 00:00:00;20,5;7": 'looks like CSV: say format="csv".',
    "sensor,time,value": 'looks like CSV: say format="csv".',
    "hello": "An example: 'hello'.",
    "hello, world, foo": "An example: 'hello, world, foo'.",
    "it\x1b[2J" + "x" * 10_000: "An example: 'it\\x1b[2J",
}


@pytest.mark.parametrize("line", LINES)
def test_what_is_no_record_is_shown_and_a_format_that_is_known_is_named(line: str) -> None:
    """In one short line, with the format= to try, where the source has it."""
    edge = Edge()
    edge.refuse(MALFORMED, "the line is not that", line)
    sentence = edge.explain(formats=["csv", "ndjson", "influx"])
    assert sentence.startswith("the line is not that. An example: '")
    assert LINES[line] in sentence
    assert ("say format" in sentence) == ("say format" in LINES[line])
    assert sentence.isprintable()
    assert len(sentence) < 250
    assert "say format" not in edge.explain()
    assert "key=" not in sentence


def test_columns_take_the_kind_of_the_run() -> None:
    """A column that comes as another kind is rejected row by row; an empty one takes the run's kind."""
    kinds = Kinds({"value": Kind.FLOAT})
    column, rejects = conform("value", Column.of_texts(["a", "b"]), kinds)
    assert column.kind is Kind.FLOAT
    assert [reject.reason_code for reject in rejects] == [WRONG_TYPE] * 2
    column, rejects = conform("value", Column.missing(Kind.OBJECT, 2), kinds)
    assert (column.kind, rejects) == (Kind.FLOAT, [])
    column, rejects = conform("n", Column.of_integers(np.array([1, 2])), Kinds({"n": Kind.INT}))
    assert (column.kind, column.values.tolist(), rejects) == (Kind.INT, [1, 2], [])


def test_values_of_a_time_field_are_read_as_times() -> None:
    """Texts, epochs of any unit and datetimes, alone and side by side; a number beyond int64 goes alone, null is null."""
    items = [
        "2023-11-14T22:13:20Z",
        1700000000,
        1700000000000,
        1.7e9,
        dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC),
    ]
    rows = [{"sensor": "S1", "time": item, "installed": item} for item in items]
    bad = [{**rows[0], "installed": item} for item in (10**19, 10**400, "soon", True)]
    columns = {"time": Kind.TIME, "installed": Kind.TIME}
    whole, letters = Edge(columns=columns).rows([*rows, *bad, {**rows[0], "installed": None}])
    singly = [Edge(columns=columns).rows([row])[0] for row in rows]
    times = [1700000000 * 10**9] * len(rows)
    assert whole.to_rows()[:-1] == [{"sensor": "S1", "time": ns, "installed": ns} for ns in times]
    assert whole.to_rows()[-1]["installed"] is None
    assert [one.to_rows()[0] for one in singly] == whole.to_rows()[:-1]
    assert whole.time.tolist() == [*times, times[0]]
    assert [(letter.reason_code, letter.raw) for letter in letters] == [(WRONG_TYPE, row) for row in bad]


def test_numbers_in_the_format_of_times_are_read_in_it() -> None:
    """Whether they come alone or beside texts."""
    edge = Edge(columns={"time": Kind.TIME}, time_format="%Y%m%d")
    rows = [{"sensor": "S1", "time": item} for item in (20240301, "20240301")]
    assert edge.rows(rows)[0].time.tolist() == edge.rows(rows[:1])[0].time.tolist() * 2 == [1709251200 * 10**9] * 2


def test_epochs_behind_a_column_of_times_are_no_nanoseconds() -> None:
    """An integer column of a field that has come as times; times without a zone are local in a field of numbers too."""
    names = Column.of_texts(["a"])
    whole = Column.of_integers(np.array([1700000000]))
    naive = Column(Kind.TIME, np.array([1700000000 * 10**9]))
    edge = Edge(tz="Europe/Berlin")
    edge.columns({"sensor": names, "time": naive}, naive=frozenset({"time"}))
    assert edge.columns({"sensor": names, "time": whole})[0].time.tolist() == [1700000000 * 10**9]
    edge = Edge(tz="Europe/Berlin")
    edge.columns({"sensor": names, "time": whole})
    late, _ = edge.columns({"sensor": names, "time": naive}, naive=frozenset({"time"}))
    assert late.time.tolist() == [1699996400 * 10**9]


def test_naive_times_of_a_table_are_local() -> None:
    """A TIME column without a zone is read in ``tz``, and carried as the moments that are meant, whether it tells the records' time or not."""
    local = Column(Kind.TIME, np.array([0]))
    columns = {"sensor": Column.of_texts(["a"]), "time": local, "seen": local, "sent": local}
    batch, _ = Edge(tz="Europe/Berlin").columns(columns, naive=frozenset({"time", "seen"}))
    assert batch.time.tolist() == [-3_600 * 10**9]
    assert {name: batch.columns[name].values.tolist() for name in ("time", "seen", "sent")} == {
        "time": [-3_600 * 10**9],
        "seen": [-3_600 * 10**9],
        "sent": [0],
    }


def test_a_source_learns_so_many_names_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records that bring others are letters, whatever comes along with them; null is no field that is learned."""
    monkeypatch.setattr("tidemill.formats.needed_fields.MOST_NAMES", 6)
    records = [
        {**GOOD, "a": 1.0},
        {**GOOD, "b": 1.0, "c": 1.0},
        {**GOOD, "d": 1.0},  # the seventh
        {**GOOD, "b": 2.0, "d": None},
        {**GOOD, "a": "wrong", "e": 1.0},
    ]
    for size in (1, 2, 5):
        edge = Edge()
        given = [edge.rows(records[start : start + size]) for start in range(0, 5, size)]
        letters = [letter for _, some in given for letter in some]
        assert [row for batch, _ in given for row in batch.to_rows()] == [*records[:2], records[3]]
        assert [(letter.reason_code, letter.raw) for letter in letters] == [
            (OVERSIZE, records[2]),
            (OVERSIZE, records[4]),
        ]
        assert "'d' is new" in letters[0].reason
        assert [name for name, _ in edge.kinds.learned] == ["sensor", "time", "value", "a", "b", "c"]


def test_what_was_learned_is_told_of_every_time_before() -> None:
    """A list that was given stays as it was when more is learned."""
    kinds = Kinds({"n": Kind.INT})
    kinds.learn("a", Kind.TEXT)
    before = kinds.learned
    kinds.learn("b", Kind.FLOAT)
    assert (before, kinds.learned) == ([["a", "text"]], [["a", "text"], ["b", "float"]])


def test_reasons_that_differ_each_time_are_not_all_kept() -> None:
    """The most frequent of the first is told."""
    edge = Edge()
    edge.rows([{"sensor": "S1", "time": f"bad {n}"} for n in range(1_000)])
    edge.rows([{"sensor": "S1", "time": "bad 7"}])
    assert "'bad 7'" in edge.explain()
    assert len(edge._rejects._reasons) <= 256


def test_a_twin_learns_for_both_and_counts_for_itself() -> None:
    """A look ahead fixes the kinds of the run without touching its counts."""
    edge = Edge()
    edge.twin().rows([GOOD, "bad"])
    assert edge.kinds.get("value") is Kind.FLOAT
    assert edge.accepted == 0
    assert "nothing was rejected" in edge.explain()


def test_a_letter_has_the_roles_that_its_record_would_have_had() -> None:
    """From what the source knows and when it came, where the record says neither; a bad time is not one."""
    edge = Edge(arrival=True, fallback="peer")
    rows = [
        {"value": float("inf")},
        {"sensor": "S", "time": "1970-01-01T00:00:01Z", "value": float("inf")},
        {"time": "x"},
    ]
    _, letters = edge.rows(rows, known=[{"peer": "h:1"}] * 3, wall_ns=np.array([7, 8, 9]))
    assert [(letter.key, letter.time_ns, letter.arrival) for letter in letters] == [
        ("h:1", 7, True),
        ("S", 10**9, True),
        ("h:1", None, True),
    ]
    templated = Edge(key="{stem}/{n}", time="t").refuse(MALFORMED, "why", "{", known={"stem": "pump"})
    assert (templated.key, templated.time_ns, templated.arrival) == (None, None, False)
    whole = Edge(key="{stem}", time="t").refuse(MALFORMED, "why", "{", known={"stem": "pump"})
    assert whole.key == "pump"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["humidity", "mote", "stamp"], "key='mote', time='stamp'"),
        (["humidity", "moteId", "timestamp_ms"], "key='moteId', time='timestamp_ms'"),
        (["timestamp", "name"], "key='name', time='timestamp'"),
        (["humidity", "val"], "key='FIELD', time='FIELD'"),
        (["sensorid", "mytime"], "key='sensorid', time='mytime'"),
    ],
)
def test_what_is_suggested_is_called_as_sensors_and_times_are(fields: list[str], said: str) -> None:
    """By its words: there is an ``id`` in humidity, and it is no sensor. What is not there is not suggested."""
    assert suggestion(fields) == said


def test_letters_show_times_as_texts() -> None:
    """As numbers they would be read by their size when the letter is replayed: 20 minutes after 1970 would be 2008."""
    seen = Column(Kind.TIME, np.array([1_200 * 10**9]))
    columns = {"sensor": Column.of_texts(["S1"]), "time": Column.of_texts(["never"]), "seen": seen}
    for naive, told in ((frozenset(), "1970-01-01T00:20:00Z"), (frozenset({"seen"}), "1970-01-01T00:20:00")):
        _, (letter,) = Edge(columns={"seen": Kind.TIME}, tz="Europe/Berlin").columns(columns, rows=1, naive=naive)
        assert letter.raw == {"sensor": "S1", "time": "never", "seen": told}
    decoder = CsvDecoder(Edge(columns={"seen": Kind.TIME}), named="plant.csv")
    _, (letter,) = decoder.feed(b"sensor,time,seen\nS1,never,1970-01-01 00:20\n")
    assert letter.raw["seen"] == "1970-01-01 00:20"


def test_times_without_a_zone_are_read_in_tz_in_every_field_of_times() -> None:
    """Of a table too, where the field is declared."""
    local = Column(Kind.TIME, np.array(["2024-07-01T12:00"], "datetime64[ns]").view(np.int64))
    edge = Edge(columns={"seen": Kind.TIME}, tz="Europe/Berlin")
    columns = {"sensor": Column.of_texts(["S1"]), "time": local, "seen": local}
    batch, letters = edge.columns(columns, rows=1, naive=frozenset({"time", "seen"}))
    assert letters == []
    assert batch["seen"].astype(np.int64).tolist() == batch.time.tolist() == [1_719_828_000 * 10**9]


def test_of_two_reasons_one_is_told_whatever_comes_before_the_record() -> None:
    """The neighbours decide in which order the columns are."""
    odd = {"sensor": "a", "time": 1, "x": "no", "y": "no"}
    told = set()
    for first in ({"sensor": "a", "time": 1, "x": 1.0, "y": 1.0}, {"y": 1.0, "x": 1.0, "time": 1, "sensor": "a"}):
        edge = Edge()
        edge.rows([{"sensor": "a", "time": 1, "x": 1.0, "y": 1.0}])
        _, (letter,) = edge.rows([first, odd])
        told.add(letter.reason)
    assert len(told) == 1


def test_of_reasons_as_frequent_the_first_to_come_is_told() -> None:
    """A bad line of a block before its records that are none."""
    decoder = LinesDecoder(Edge(), line_format("ndjson"))
    _, letters = decoder.feed(b'{"sensor":"a","value":1}\nnonsense\n')
    assert len(letters) == 2
    assert "An example: 'nonsense'" in decoder._edge.explain(formats=("ndjson",))
