"""Which field is the sensor, which the time, which the reading."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.app.new.fields_seen import at_place
from tidemill.app.new.roles import Given, Roles, roles_of
from tidemill.app.new.sniffing import Head, Layout, sniffed
from tidemill.errors import InputError, TidemillError


def roles(text: str, *, suffix: str = ".csv", **given: str) -> Roles:
    return roles_of(sniffed("plant", suffix, text.encode(), whole=True), Given(**given))


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("text", "key", "time", "value"),
    [
        ("sensor,time,value\nS1,1700000000,20.5\n", "sensor", "time", ("value",)),
        ("timestamp,value\n2024-03-01 00:00:00,20.5\n", "{stem}", "timestamp", ("value",)),
        ("time,time_epoch,lat,lon,value\n2024-03-01T00:00:00Z,1709251200,40.7,-124.1,6\n", "{stem}", "time", ("value",)),
        ("time,z,level\n2024-03-01T00:00:00Z,0,1\n2024-03-01T00:00:01Z,0,2\n", "{stem}", "time", ("level",)),
        ("ts,deviceName,humidity,temp\n1700000000250,a,40,20.5\n", "deviceName", "ts", ("temp",)),
        ("id,ts,mote_id,x\n1,1700000000,7,1.5\n2,1700000001,7,2.5\n3,1700000002,7,0.5\n", "mote_id", "ts", ("x",)),
        ("id,ts,x\n1,1700000000,1.5\n2,1700000001,2.5\n3,1700000002,0.5\n", "{stem}", "ts", ("x",)),
        ("hall,ts,x\na,1700000000,1.5\na,1700000001,2\nb,1700000000,2.5\nb,1700000001,2\n", "hall", "ts", ("x",)),
        ("machine,metric,ts,value\nm1,temp,1700000000,1\nm1,flow,1700000000,2\n", "{machine}/{metric}", "ts", ("value",)),
        ("Zeit,Sensor,Wert\n31.12.2024 12:00,S1,4\n31.12.2024 12:01,S1,5\n", "Sensor", "Zeit", ("Wert",)),
        ("when,bytes\n1700000000,1500000000.5\n1700000001,1400000000\n", "{stem}", "when", ("bytes",)),
        ("a,bytes\n1700000000,1500000000.5\n1700000001,1400000000\n", "{stem}", "a", ("bytes",)),
        (lines({"devEUI": "d1", "fCnt": 7, "_date": "2024-03-01T00:00:00Z", "object": {"t": {"temperature": 20.5}}}), "devEUI", "_date", ("object", "t", "temperature")),
        (lines({"sensor": "S1", "time": 1700000000, "ok": True, "n": 3}), "sensor", "time", ("n",)),
    ],
)  # fmt: skip
def test_roles(text: str, key: str, time: str, value: tuple[str, ...]) -> None:
    """By name, by what stands in the fields, and by both."""
    found = roles(text)
    assert (found.key, found.time, found.value) == (key, time, value)


def test_readings_with_decimal_commas_name_no_sensor() -> None:
    """However often they come again."""
    rows = [f"01.03.2024 10:00:{n:02};2{n % 7},{n % 2 * 5};4{n % 10},{n * 37 % 1000:03}\n" for n in range(60)]
    found = roles("Zeit;Temperatur;Feuchte\n" + "".join(rows))
    assert (found.key, found.value, found.others) == ("{stem}", ("Temperatur",), (("Feuchte",),))


@pytest.mark.parametrize("odd", ["e\nx", "e\n" * 200, "e" * 201])
def test_one_odd_name_costs_no_sensor_its_column(odd: str) -> None:
    """On a broker anybody may send one; a field whose texts mostly have several lines names nothing."""
    rows = [{"sensor": odd if n % 2 else "S1", "time": 1700000000 + n, "value": n * 37 % 11} for n in range(20)]
    assert roles(lines(*rows)).key == "sensor"
    texts = [{"report": f"ok\n{n % 2}", "time": 1700000000 + n, "value": n * 37 % 11} for n in range(20)]
    assert roles(lines({**texts[0], "report": "ok"}, *texts)).key == "{stem}"


def test_a_sensor_that_some_records_do_not_name_is_still_the_one() -> None:
    """Where most do, as a guess that says how many are rejected; where few do, that is said instead of that none does."""
    rows = [f"{1700000000 + n},{'' if n % 4 == 0 else f'p{n % 3}'},{n * 37 % 11}\n" for n in range(40)]
    found = roles("time,sensor,value\n" + "".join(rows))
    assert (found.key, found.doubt("key")) == (
        "sensor",
        "a guess: 'sensor' is empty in 10 of 40 records, and these are rejected",
    )
    assert roles("time,sensor,machine,value\n" + "".join(row.replace(",", ",m1,", 1) for row in rows)).key == "sensor"
    few = [{"time": 1700000000 + n, "value": n * 37 % 11} | ({"sensor": "p1"} if n % 4 == 0 else {}) for n in range(40)]
    found = roles(lines(*few))
    assert found.key == "{stem}"
    assert found.doubt("key").startswith("no field names a sensor ('sensor' is empty in 30 of 40 records): the file is")


def test_what_is_a_guess_is_said_to_be_one() -> None:
    """And what is told by the recording is not."""
    sure = roles("sensor,time,value\nS1,1700000000,20.5\n")
    assert sure.doubts == {}
    unsure = roles("timestamp,temperature,humidity\n2024-03-01 00:00:00,20,40\n2024-03-01 00:00:01,21,41\n")
    assert set(unsure.doubts or ()) == {"key", "tz", "value"}
    assert unsure.others == (("humidity",),)
    assert roles("time_utc,value\n2024-03-01 00:00:00,20\n").doubt("tz") == ""
    assert roles("t,value\n2024-03-01 00:00:00,20\n", tz="Europe/Berlin").doubt("tz") == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [("received_at", "measured_at"), ("server_time", "ts"), ("timestamp", "sample_time"), ("created", "measured")],
)
def test_of_two_times_that_of_the_measurement_is_taken(first: str, second: str) -> None:
    """As a guess, which names the other one; a time and its epoch are one."""
    rows = [f"2024-03-01T0{hour}:00:{n:02}Z" for n in range(10, 20) for hour in (9, 6)]
    text = "".join(
        f"{late},{early},S1,{20 + n}\n" for n, (late, early) in enumerate(zip(rows[::2], rows[1::2], strict=True))
    )
    found = roles(f"{first},{second},sensor,value\n{text}")
    assert (found.time, found.doubt("time")) == (second, f"a guess: {first!r} holds other times")
    same = "time,epoch,sensor,value\n2024-03-01T00:00:00Z,1709251200,S1,20\n2024-03-01T00:00:01Z,1709251201,S1,21\n"
    assert (roles(same).time, roles(same).doubt("time")) == ("time", "")


def test_a_counter_is_a_reading_only_when_there_is_nothing_else() -> None:
    """Even if the reading stands still; it is marked as a guess then, and of messages a list's numbers are named."""
    still = roles(lines(*({"sensor": "S1", "time": 1700000000 + n, "fCnt": n, "x": 20} for n in range(5))))
    assert (still.value, still.doubt("value")) == (("x",), "")
    uplinks = [{"devEUI": "d", "fCnt": n, "rxInfo": [{"name": "g", "channel": 1, "rssi": -90 - n}]} for n in range(5)]
    found = roles_of(sniffed("plant", ".ndjson", lines(*uplinks).encode(), whole=True), Given(arrival=True))
    assert found.value == ("fCnt",)
    assert found.doubt("value").startswith("a guess: no number is called as readings are")
    assert "value={\"rssi\": 'rxInfo[*].rssi'} at the source" in found.doubt("value")
    recorded = roles(lines(*({**uplink, "time": 1700000000 + n} for n, uplink in enumerate(uplinks))))
    assert recorded.doubt("value") == "a guess: no number is called as readings are"


def test_the_reading_of_a_database_may_begin_with_an_underscore() -> None:
    """As InfluxDB exports it, beside the number of a table that never varies."""
    head = "result,table,_time,_value,_field,_measurement,host"
    rows = [f",0,2024-03-01T00:00:{n:02}Z,{20 + n / 2},usage,cpu,h{n % 2}" for n in range(10)]
    assert roles("\n".join([head, *rows, ""])).value == ("_value",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sample,V5\n0,995\n1,990\n2,995\n", ["no field looks like a time", "'V5' ('995', '990')", "--time sample", "'sample' counts up"]),
        ("Reading#,V5\n0,995\n1,990\n2,995\n", ["--time 'Reading#' reads it"]),
        ("a,b,ts,x\np,q,1,1\np,q,2,2\nr,s,3,3\nr,s,4,4\n".replace(",1,", ",1700000001,").replace(",2,", ",1700000002,").replace(",3,", ",1700000003,").replace(",4,", ",1700000004,"), ["several might name them: 'a', 'b'", "--key a", "--key '{stem}'"]),
        ("date,hour,x\n2024-03-01,12:00:00,1\n", ["in two columns, 'date' (the day) and 'hour'", "--time"]),
        ("sensor,time,state\nS1,1700000000,on\n", ["no field holds numbers", "'state' ('on')"]),
        (lines({"sensor": "S1", "time": 1700000000, "temp": "20.5"}), ["'temp' are in quotes, and tm.MapRows(function, adds={'temp': float})"]),
        (lines({"sensor": "S1", "meta": {"time": 1700000000}, "value": 3}), ["inside of another field, at 'meta.time'", "--time"]),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked_for(text: str, said: list[str]) -> None:
    """With the fields seen, what stands in them, and the option to give."""
    with pytest.raises(InputError) as refused:
        roles(text)
    assert all(words in str(refused.value) for words in said), refused.value


def test_what_counts_up_beyond_any_time_is_not_proposed_as_seconds() -> None:
    """It would be refused then."""
    with pytest.raises(InputError, match=r"--time FIELD\.$"):
        roles("n,V5\n20240331125961,995\n20240331125962,990\n20240331125963,995\n")


def test_what_is_given_is_taken() -> None:
    """Also a template, the file's name, a counter as time, and a place inside of a record."""
    counter = roles("sample,V5\n0,995\n1,990\n", time="sample", key="{stem}")
    assert (counter.time, counter.key) == ("sample", "{stem}")
    assert "seconds since 1970" in counter.doubt("time")
    assert roles("a,b,ts,x\np,q,1700000000,1\n", key="{a}/{b}").key == "{a}/{b}"
    nested = lines({"sensor": "S1", "time": 1700000000, "value": 3, "data": {"raw": 4}})
    assert roles(nested, value="data.raw").value == ("data", "raw")
    assert roles(nested, value="value").value == ("value",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"time": "when"}, "no field 'when', which --time names; the fields seen are: 'sensor', 'time', 'value'"),
        ({"key": "{line}/{sensor}"}, "no field 'line', which --key names"),
        ({"value": "x"}, "field 'x' is not there"),
        ({"value": "sensor"}, "field 'sensor' holds no numbers"),
        ({"time": "sensor"}, "holds no times"),
    ],
)
def test_what_is_given_and_not_there_is_refused(given: dict, said: str) -> None:
    """Naming the option."""
    with pytest.raises(InputError, match=said.replace("{", r"\{")):
        roles("sensor,time,value\nS1,1700000000,20\n", **given)


@pytest.mark.parametrize(
    ("record", "given", "said"),
    [
        ({"metrics": [{"name": "temp", "value": 20}]}, {}, "jq -c 'del(.metrics) + .metrics[]'"),
        ({"n": 1, "data": {"odd-name": [{"t": 20}]}}, {"value": "x[*].t"}, """jq -c 'del(.data["odd-name"]) + .data["odd-name"][]'"""),
        ({"samples": [1, 2.5]}, {}, """jq -c 'del(.samples) + {"samples": .samples[]}'"""),
    ],
)  # fmt: skip
def test_readings_in_a_list_of_a_file_are_opened_first(record: dict, given: dict, said: str) -> None:
    """With a command that does it, and makes a recording that is read."""
    text = lines({"device": "D1", "ts": 1700000000, **record})
    with pytest.raises(InputError) as refused:
        roles(text, **given)
    assert str(refused.value).endswith(f"first, for example with: {said}")


UPLINKS = [
    {
        "deduplicationId": f"u{n}",
        "time": 1700000000 + n,
        "deviceInfo": {
            "tenantName": "hall",
            "deviceProfileName": "ems",
            "deviceName": f"p{n % 3}",
            "devEui": f"e{n % 3}",
        },
        "object": {"temp": n * 37 % 11},
        "regionConfigId": "eu868",
    }
    for n in range(12)
]
"""As ChirpStack 4 writes them."""


@pytest.mark.parametrize("given", [{}, {"key": "deviceInfo.deviceName"}])
def test_sensors_that_are_named_inside_of_another_field_are_not_taken_for_one(given: dict[str, str]) -> None:
    """No source of files looks there: it is said with which command they come to the top of each record."""
    with pytest.raises(
        InputError, match=r"inside of another field, at 'deviceInfo\.deviceName'.*--key '\{stem\}'"
    ) as refused:
        roles(lines(*UPLINKS), **given)
    assert str(refused.value).endswith("first, for example with: jq -c '.deviceName = .deviceInfo.deviceName'")
    moved = [{**uplink, "deviceName": uplink["deviceInfo"]["deviceName"]} for uplink in UPLINKS]
    assert roles(lines(*moved)).key == "deviceName"
    assert roles(lines(*UPLINKS), key="{stem}").key == "{stem}"
    assert roles(lines(*UPLINKS[::3])).key == "regionConfigId"  # all of one device
    with pytest.raises(InputError, match=r"jq -c '\.id = \.dev\.id'"):
        roles(lines(*({"time": 1700000000 + n, "dev": {"id": f"p{n % 3}"}, "value": n} for n in range(12))))


names = st.text(min_size=1, max_size=6)
items = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(
    st.lists(st.dictionaries(names | st.sampled_from(["time", "sensor", "value", "ts"]), items), min_size=1, max_size=8)
)
def test_any_records_have_roles_or_are_refused_in_one_sentence(rows) -> None:
    """Of what is found, every field is there; nothing else happens."""
    fields = tuple(dict.fromkeys(name for row in rows for name in row))
    try:
        found = roles_of(Head("plant", Layout("ndjson"), fields, tuple(rows)), Given())
    except TidemillError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert refused.startswith("plant")
        assert len(refused) < 2_000
    else:
        assert found.time in fields
        assert any(isinstance(at_place(row, found.value), (int, float, str)) for row in rows)
