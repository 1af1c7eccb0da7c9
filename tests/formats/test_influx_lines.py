"""Line protocol: the grammar whole, beside another parser, and under a hail of damaged lines."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from line_protocol_parser import LineFormatError, parse_line
from tests.formats.test_mutated_messages import MESSAGES, recorded, without_hanging

from tidemill.formats.edge import Edge
from tidemill.formats.influx_lines import MOST_FIELDS, InfluxLines
from tidemill.formats.line_formats import line_format, set_up
from tidemill.formats.lines import text_of
from tidemill.formats.telegraf_json import TelegrafJson
from tidemill.letters import BAD_TIME, INFINITE, MALFORMED, OVERSIZE

# As the pages of Telegraf's plugins show their output.
SAMPLES = [
    "cpu,cpu=cpu-total,host=loaner usage_guest=1.036269430422946,usage_guest_nice=0,usage_idle=82.3834196941197 1568760922000000000",
    "disk,fstype=hfs,mode=ro,path=/ free=398407520256i,inodes_free=97267461i,used_percent=20.258799180125635 1453832006274169688",
    'system,host=tyrion uptime=1249632i,load1=3.72,n_users=3i,uptime_format="14 days, 11:07" 1483964144000000000',
    "win_disk,host=PLANT\\ 1,instance=C:,objectname=LogicalDisk Percent_Idle_Time=99.9 1500000000000000000",
    "modbus,name=Device,slave_id=1,type=holding_register energy=3254.5,frequency=5e1,on=true 1554079521000000000",
    "mem total=8589934592u,available=-1i",
]


def one(line: str, precision: int = 1) -> dict[str, Any]:
    decoded = InfluxLines(precision).decode(line.encode())
    assert decoded.bad == []
    (row,) = decoded.rows
    return row


def refused(line: str | bytes) -> tuple[str, str]:
    decoded = InfluxLines().decode(line if isinstance(line, bytes) else line.encode())
    assert decoded.rows == []
    (bad,) = decoded.bad
    return bad.reason_code, bad.reason


def typed(row: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    return {name: (type(item), item) for name, item in row.items()}


def test_a_line_is_measurement_tags_time_and_fields() -> None:
    """In this order, each value with the type that the line gives it."""
    row = one('mill,line=L1,site=a speed=41,count=7i,total=9u,on=t,state="ok" 1700000000000000001')
    wanted = {
        "measurement": "mill",
        "line": "L1",
        "site": "a",
        "time": 1700000000000000001,
        "speed": 41.0,
        "count": 7,
        "total": 9,
        "on": True,
        "state": "ok",
    }
    assert list(typed(row).items()) == list(typed(wanted).items())


@pytest.mark.parametrize(
    ("item", "value"),
    [
        *[(word, True) for word in ("t", "T", "true", "True", "TRUE")],
        *[(word, False) for word in ("f", "F", "false", "False", "FALSE")],
        ("1.e+78", 1e78),
        ("-1.234456e+78", -1.234456e78),
        (".5", 0.5),
        ("-0", -0.0),
        ("1E-5", 1e-5),
        ("9223372036854775807i", 2**63 - 1),
        ("-9223372036854775808i", -(2**63)),
        ("18446744073709551615u", 2**64 - 1),
        ('""', ""),
        (r'"a \"b\" \\ c\d, e=f"', r'a "b" \ c\d, e=f'),
    ],
)
def test_every_spelling_of_a_value_is_read(item: str, value: Any) -> None:
    """The first time, when the whole grammar reads the line, and when its series is known."""
    lines = InfluxLines()
    for _ in range(2):
        (row,) = lines.decode(f"m,t=a f={item} 5".encode()).rows
        assert repr(row["f"]) == repr(value)


def test_names_and_tags_may_hold_what_separates_them() -> None:
    """A backslash before a comma, a space or an equals sign takes its meaning away; before any other it is itself."""
    assert one(r"my\ mill\,2,a\=b=c\,\ d\=e,p=C:\x f\ g=1") == {
        "measurement": "my mill,2",
        "a=b": "c, d=e",
        "p": r"C:\x",
        "f g": 1.0,
    }
    assert one(r"m=n\=o,t=a\\,b f=1".replace("b f", "u=b f").replace(r"\\,u=b", r"\\\ u")) == {
        "measurement": r"m=n\=o",
        "t": r"a\\ u",
        "f": 1.0,
    }


def test_comments_empty_lines_and_spaces_are_passed_over() -> None:
    """Also a last line without an end, and the line ends of Windows."""
    block = b"# a comment\n\n   \nm  f=1  5 \r\n  # another\n m f=2"
    decoded = InfluxLines().decode(block)
    assert (decoded.rows, decoded.bad) == (
        [{"measurement": "m", "time": 5, "f": 1.0}, {"measurement": "m", "f": 2.0}],
        [],
    )


@pytest.mark.parametrize(("precision", "scale"), [("ns", 1), ("us", 10**3), ("ms", 10**6), ("s", 10**9)])
def test_the_precision_says_what_a_timestamp_counts(precision: str, scale: int) -> None:
    """In nanoseconds whatever it was, exactly, before 1970 too."""
    form = line_format("influx", precision)
    decoded = form.decode(b"m f=1 1700000000\nm f=1 -3\n")
    assert [row["time"] for row in decoded.rows] == [1_700_000_000 * scale, -3 * scale]


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("m temp=NaN", MALFORMED, "'temp' holds NaN"),
        ("m temp=-inf", INFINITE, "'temp' holds -inf"),
        ("m temp=1e400", INFINITE, "'temp'"),
        ("m temp=" + "9" * 65, MALFORMED, "a number of more than 64 digits"),
        ("m temp=-0." + "3" * 65 + "e1", MALFORMED, "a number of more than 64 digits"),
        ("m temp=" + "0" * 65 + "1i", MALFORMED, "a number of more than 64 digits"),
        ("m temp=" + "x" * 65, MALFORMED, "is no number"),
        ("m temp=9223372036854775808i", MALFORMED, "'temp' holds '9223372036854775808i', an integer beyond 64 bits"),
        ("m temp=-1u", MALFORMED, "'temp' holds '-1u', an unsigned integer below 0"),
        ("m temp=18446744073709551616u", MALFORMED, "an integer beyond 64 bits"),
        ("m temp=1_0", MALFORMED, "'temp'"),
        ("m temp=+1", MALFORMED, "'temp'"),
        ("m temp=٣", MALFORMED, "'temp'"),
        ("m temp=tRUE", MALFORMED, "'temp'"),
        (f"m temp={'1' * 65}", MALFORMED, "'temp'"),
        ('m temp="open', MALFORMED, "field 'temp'"),
        ('m temp="a"b', MALFORMED, "field 'temp'"),
        ("m temp=", MALFORMED, "field 'temp'"),
        ("m temp", MALFORMED, "field 'temp' has no value"),
        ("m =1", MALFORMED, "without a name at character 3"),
        ("m a=1,", MALFORMED, "no field at the line's end"),
        ("m", MALFORMED, "measurement 'm'"),
        (",a=b f=1", MALFORMED, "without a measurement"),
        ("m,site f=1", MALFORMED, "tag 'site'"),
        ("m,site= f=1", MALFORMED, "tag 'site'"),
        ("m,site=a=b f=1", MALFORMED, "tag 'site'"),
        ("m,site=a,site=b f=1", MALFORMED, "tag 'site' is there twice"),
        ("m f=1,f=2", MALFORMED, "field 'f' is there twice"),
        ("m,f=a f=2", MALFORMED, "field 'f' is there twice"),
        ("m measurement=2", MALFORMED, "field 'measurement' names the measurement"),
        ("m time=2", MALFORMED, "called 'time'"),
        ("m f=1 1.5", BAD_TIME, "timestamp '1.5'"),
        ("m f=1 99999999999999999999", BAD_TIME, "timestamp"),
        ("m f=1 -9223372036854775808", BAD_TIME, "timestamp"),
        ("m " + ",".join(f"f{n}=1" for n in range(MOST_FIELDS + 1)), OVERSIZE, f"more than {MOST_FIELDS} fields"),
        ("m," + ",".join(f"t{n}=1" for n in range(MOST_FIELDS + 1)) + " f=1", OVERSIZE, "tags"),
    ],
)
def test_a_bad_line_is_refused_by_name(line: str, code: str, told: str) -> None:
    """Alone, behind a line of the same series, and with its neighbours unharmed."""
    assert refused(line)[0] == code
    assert told in refused(line)[1]
    lines = InfluxLines()
    decoded = lines.decode(f"m g=1 5\n{line}\nm g=2 5\n".encode())
    assert [row["g"] for row in decoded.rows] == [1.0, 2.0]
    assert [bad.raw for bad in decoded.bad] == [line]


def test_what_is_not_utf8_is_one_bad_line() -> None:
    """Its neighbours are read."""
    decoded = InfluxLines().decode(b"m f=1\nm,t=\xff f=1\nm f=2\n")
    assert [row["f"] for row in decoded.rows] == [1.0, 2.0]
    assert [(bad.reason, bad.raw) for bad in decoded.bad] == [("the line is not UTF-8", "m,t=\\xff f=1")]


def test_a_known_series_is_forgotten_before_it_costs_memory() -> None:
    """40,000 series, each once: what is kept of them stays bounded."""
    lines = InfluxLines()
    for start in range(0, 40_000, 1_000):
        lines.decode("\n".join(f"m,id={n} f=1 5" for n in range(start, start + 1_000)).encode())
    assert len(lines._series) <= 16_384


# -- beside another parser ---------------------------------------------------------------------------

NAMES = st.text(string.ascii_letters + "_-.:/é" + ' ,="', min_size=1, max_size=8)
"""Without a backslash before what it would escape: there two parsers may differ, and we have examples of our own."""
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False).map(repr),
    st.integers(-(2**63) + 1, 2**63 - 2).map("{}i".format),  # the other parser takes the outermost for overflows
    st.integers(0, 2**64 - 2).map("{}u".format),
    st.sampled_from([*"tTfF", "true", "True", "TRUE", "false", "False", "FALSE"]),
    st.text(string.printable.replace("\n", "").replace("\r", "")).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
)


def escaped(text: str, glyphs: str = " ,=") -> str:
    return "".join(f"\\{glyph}" if glyph in glyphs else glyph for glyph in text)


@st.composite
def lines_of_protocol(draw: st.DrawFn) -> str:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    cut = draw(st.integers(0, len(names) - 1))
    tags = "".join(f",{escaped(name)}={escaped(draw(NAMES))}" for name in names[:cut])
    fields = ",".join(f"{escaped(name)}={draw(NUMBERS)}" for name in names[cut:])
    stamp = draw(st.one_of(st.just(""), st.integers(-(2**63) + 2, 2**63 - 2).map(" {}".format)))
    return f"{escaped(draw(NAMES), ' ,')}{tags} {fields}{stamp}"


@given(lines_of_protocol())
@example("m,t=a f=1i,g=2u,h=t 5")
def test_another_parser_reads_the_same(line: str) -> None:
    """Measurement, tags, fields with their types, and time; in the first reading and when the series is known."""
    oracle = parse_line(line)
    if line.startswith("#") or oracle is None or {"measurement", "time"} & {*oracle["tags"], *oracle["fields"]}:
        return
    wanted = {"measurement": oracle["measurement"], **oracle["tags"], **oracle["fields"]}
    if oracle["time"] is not None:
        wanted["time"] = oracle["time"]
    lines = InfluxLines()
    for _ in range(2):
        decoded = lines.decode(line.encode())
        assert decoded.bad == []
        assert {k: (type(v), repr(v)) for k, v in decoded.rows[0].items()} == {
            k: (type(v), repr(v)) for k, v in wanted.items()
        }


@st.composite
def lines_behind_others(draw: st.DrawFn) -> tuple[list[str], str]:
    """Any lines, also cut ones, and one that may begin as they do."""
    any_line = st.one_of(lines_of_protocol(), st.text('ma\\ ,="1i#', max_size=12))
    line = draw(any_line)
    cuts = draw(st.lists(st.integers(0, len(line)), max_size=4))
    return draw(st.permutations([line[:cut] for cut in cuts] + draw(st.lists(any_line, max_size=4)))), line


@given(lines_behind_others())
@example((["cpu,host=a\\"], "cpu,host=a\\ b v=2 5"))
@example((["m\\"], "m\\ v=1,a=2 5"))
def test_a_line_is_read_alike_whatever_came_before_it(given: tuple[list[str], str]) -> None:
    """Its record with what is known of it, or the reason why there is none: senders share a decoder."""
    others, line = given
    lines = InfluxLines()
    for other in others:
        lines.decode(other.encode())
    assert repr(lines.decode(line.encode())) == repr(InfluxLines().decode(line.encode()))


@pytest.mark.parametrize("line", SAMPLES)
def test_what_telegraf_documents_is_read_as_another_parser_reads_it(line: str) -> None:
    """Lines of its plugins."""
    oracle = parse_line(line)
    row = one(line)
    assert typed({name: row[name] for name in oracle["fields"]}) == typed(oracle["fields"])
    assert {name: row[name] for name in oracle["tags"]} == oracle["tags"]
    assert (row["measurement"], row.get("time")) == (oracle["measurement"], oracle["time"])


# -- under a hail of damaged lines -------------------------------------------------------------------


def mutated(chance: random.Random, line: str) -> bytes:
    data = bytearray(line.encode())
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[place : place + chance.randint(0, 3)] = b""
            case 1:
                data[place:place] = chance.choice([b" ", b",", b"=", b'"', b"\\", b"#", b"i", b"\xff", b"\0", b"NaN"])
            case 2:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case _:
                data[place:place] = bytes(data[: chance.randint(0, 20)])
    return bytes(data).replace(b"\n", b"?").replace(b"\r", b"?") or b"x"


def as_influx(message: bytes, number: int) -> str:
    """The flat parts of a message of a recording: texts as tags and, each second time, as fields; numbers as both kinds."""
    parts = {name: item for name, item in msgspec.json.decode(message).items() if item != ""}
    texts = {name: item for name, item in parts.items() if isinstance(item, str)}
    tags = "".join(f",{escaped(name)}={escaped(item)}" for name, item in texts.items())
    numbers = {name: item for name, item in parts.items() if type(item) in (int, float)}
    fields = [f"{escaped(name)}={item!r}{'i' if type(item) is int else ''}" for name, item in numbers.items()]
    if number % 2:
        tags, fields = "", [*fields, *(f"{escaped(name)}={json.dumps(item)}" for name, item in texts.items())]
    return f"lora{tags} {','.join(fields)} {1_700_000_000_000_000_000 + number}"


def test_each_damaged_line_is_a_record_or_a_letter(recordings: Path) -> None:
    """None is lost, none hurts a neighbour and none takes long; a comment and an empty line are neither."""
    chance = random.Random(1)
    samples = [
        *(SAMPLES * 3),
        *(as_influx(message, number) for number, message in enumerate(recorded(recordings)[::4])),
    ]
    lines = InfluxLines()
    edge = Edge(arrival=True)
    set_up(edge, lines)
    accepted = dead = passed_over = 0

    def one(damaged: list[bytes]) -> int:
        nonlocal accepted, dead, passed_over
        decoded = lines.decode(b"\n".join((b"good f=1 5", *damaged, b"good f=2 5")))
        assert [row["f"] for row in decoded.rows if row["measurement"] == "good"] == [1.0, 2.0]
        assert decoded.known is not None
        letters = [edge.refuse(bad.reason_code, bad.reason, bad.raw) for bad in decoded.bad]
        batch, more = edge.rows(decoded.rows, known=decoded.known, parsed=True)
        accepted += len(batch) - 2
        dead += len(letters) + len(more)
        refused_raws = {bad.raw for bad in decoded.bad}
        passed_over += sum(
            1 for line in damaged if line.lstrip(b" ")[:1] in (b"", b"#") and text_of(line) not in refused_raws
        )
        return len(batch)

    for _ in range(MESSAGES // 100):
        damaged = [mutated(chance, chance.choice(samples)) for _ in range(100)]
        without_hanging(lambda damaged=damaged: one(damaged))
    assert accepted + dead + passed_over == MESSAGES
    assert dead > 10_000
    assert accepted > 10_000


def test_what_another_parser_takes_of_damaged_lines_we_take_alike() -> None:
    """20,000 of them: where both take a line, both read the same."""
    chance = random.Random(2)
    both = 0
    for _ in range(20_000):
        line = mutated(chance, chance.choice(SAMPLES))
        decoded = InfluxLines().decode(line)
        try:
            oracle = parse_line(line.decode())
        except (LineFormatError, UnicodeDecodeError):
            continue
        if oracle is None or not decoded.rows or b"\0" in line:
            continue
        both += 1
        row = decoded.rows[0]
        wanted = {"measurement": oracle["measurement"], **oracle["tags"], **oracle["fields"]}
        assert {name: repr(item) for name, item in row.items() if name != "time"} == {
            name: repr(item) for name, item in wanted.items()
        }
        assert row.get("time") == oracle["time"]
    assert both > 2_000


# -- Telegraf's JSON ---------------------------------------------------------------------------------

METRIC = '{"fields":{"field_1":30,"field_N":59.5},"name":"docker","tags":{"host":"raynor"},"timestamp":1458229140}'
ROW = {"measurement": "docker", "host": "raynor", "time": 1458229140 * 10**9, "field_1": 30, "field_N": 59.5}


def test_telegrafs_json_gives_the_same_records() -> None:
    """One metric on a line, or a batch of them."""
    decoded = TelegrafJson().decode(f'{METRIC}\n{{"metrics":[{METRIC},{METRIC}]}}\n{{"metrics":[]}}\n'.encode())
    assert (decoded.rows, decoded.bad) == ([ROW] * 3, [])
    assert decoded.known == [{"series": "docker,host=raynor"}] * 3


def test_a_series_is_the_same_on_every_road() -> None:
    """With spaces, commas and equals signs in it, and a tag whose name begins another's."""
    lines = InfluxLines().decode(b"my\\ mill=1,a-b=1,a=L\\ 1\\,\\=2,a\\ b=2,a1=3 v=1 1\n")
    metric = {"name": "my mill=1", "tags": {"a": "L 1,=2", "a b": "2", "a-b": "1", "a1": "3"}, "fields": {"v": 1}}
    decoded = TelegrafJson().decode(json.dumps(metric).encode() + b"\n")
    assert lines.known == decoded.known == [{"series": "my\\ mill=1,a-b=1,a1=3,a=L\\ 1\\,\\=2,a\\ b=2"}]
    assert {**decoded.rows[0], "time": 1} == lines.rows[0]


@pytest.mark.parametrize(
    ("metric", "code", "told"),
    [
        ("7", MALFORMED, "is a int, not an object"),
        ('{"fields":{"a":1}}', MALFORMED, "no text 'name'"),
        ('{"name":"m"}', MALFORMED, "'fields'"),
        ('{"name":"m","fields":{"a":1},"tags":[1]}', MALFORMED, "'tags' is a list"),
        ('{"name":"m","fields":{"a":1},"tags":{"t":1}}', MALFORMED, "tag 't'"),
        ('{"name":"m","fields":{"a":1},"tags":{"a":"x"}}', MALFORMED, "'a' is a tag and a field"),
        ('{"name":"m","fields":{"time":1}}', MALFORMED, "'time'"),
        ('{"name":"m","fields":{"a":1},"timestamp":1.5}', BAD_TIME, "timestamp"),
        ('{"name":"m","fields":{"a":1},"timestamp":99999999999}', BAD_TIME, "timestamp"),
    ],
)
def test_a_bad_metric_of_a_batch_is_refused_alone(metric: str, code: str, told: str) -> None:
    """Its neighbours in the same line are records."""
    decoded = TelegrafJson().decode(f'{{"metrics":[{METRIC},{metric},{METRIC}]}}\n'.encode())
    assert decoded.rows == [ROW, ROW]
    (bad,) = decoded.bad
    assert bad.reason_code == code
    assert told in bad.reason
