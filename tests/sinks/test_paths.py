"""Which sink a path means."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import PlanError, TidemillError


@pytest.mark.parametrize(
    ("path", "cls"),
    [
        ("features.db", sinks.SQLite),
        ("FEATURES.SQLITE", sinks.SQLite),
        ("a.b.sqlite3", sinks.SQLite),
        ("march.parquet", sinks.Parquet),
        ("march/", sinks.Parquet),
        (Path("out.ndjson"), sinks.Lines),
        ("out.jsonl.gz", sinks.Lines),
        ("out.csv", sinks.Lines),
        ("out.csv.gz", sinks.Lines),
        ("-", sinks.Lines),
    ],
)
def test_the_suffix_says_the_sink(path: str | Path, cls: type[sinks.ProcessSink]) -> None:
    """Options are handed on."""
    sink = sinks.for_path(path, if_exists="replace", columns=["a"])
    assert type(sink) is cls
    assert (sink.if_exists, sink.columns) == ("replace", ("a",))


@pytest.mark.parametrize("path", ["out.influx", "out.LP.gz"])
def test_the_suffix_says_line_protocol(path: str) -> None:
    """Which needs no more options, unless they say otherwise."""
    sink = sinks.for_path(path)
    assert isinstance(sink, sinks.Lines)
    assert sink.format == "influx"
    assert sinks.for_path(path, format="csv", if_exists="replace").format == "csv"


@pytest.mark.parametrize("written", ["http://influx:8086/api/v2/write?bucket=b", "${env:INFLUX}"])
def test_an_address_that_ends_in_write_is_posted_line_protocol(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the options say otherwise."""
    monkeypatch.setenv("INFLUX", "http://influx:8086/write?db=b")
    for sink in (sinks.for_path(written), sinks.for_path(written, measurement="m", tags=["sensor"])):
        assert isinstance(sink, sinks.HTTP)
        assert sink.format == "influx"
    plain = sinks.for_path(written, format="ndjson")
    assert isinstance(plain, sinks.HTTP)
    assert plain.format == "ndjson"


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("influx+tcp://telegraf:8094", "TCP('tcp://telegraf:8094')"),
        ("influx+tls://telegraf:8094", "TCP('tls://telegraf:8094')"),
        ("influx+udp://telegraf:8094", "UDP('udp://telegraf:8094')"),
        ("influx+http://telegraf:8080/telegraf", "HTTP('http://telegraf:8080/telegraf')"),
        ("influx+https://influx/write?db=b", "HTTP('https://influx/write')"),
        ("influx+${env:INFLUX}", "HTTP('${env:INFLUX}')"),
    ],
)
def test_a_server_of_lines_is_sent_line_protocol_where_its_url_says_so(
    url: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every text as a tag, as in files; else it is sent JSON, and only servers of lines are asked."""
    monkeypatch.setenv("INFLUX", "http://influx:8086/telegraf")
    sink = sinks.for_path(url, if_exists="append")
    assert isinstance(sink, sinks.TCP | sinks.UDP | sinks.HTTP)
    assert (repr(sink), sink.format, sink.if_exists) == (seen, "influx", "append")
    assert sink._encoded(Batch.from_rows([{"measurement": "m", "site": "a", "x": 1.5}])) == b"m,site=a x=1.5\n"
    with pytest.raises(PlanError, match=r"influx\+mqtt:// is not the beginning.*influx\+tcp://"):
        sinks.for_path("influx+mqtt://broker/a")


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    """It needs no slash at its end."""
    assert type(sinks.for_path(tmp_path)) is sinks.Parquet


@pytest.mark.parametrize("path", ["features", "features.txt", "march.parquet.gz", "features.db.gz"])
def test_another_suffix_is_refused_with_those_known(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=r"\.db.*\.parquet.*\.ndjson, \.jsonl, \.csv"):
        sinks.for_path(path)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("mqtt://broker/features/{sensor}", "MQTT('mqtt://broker:1883', 'features/{sensor}')"),
        ("mqtts://me:written-0ut@broker:1884/a/b c?/{s}/", "MQTT('mqtts://broker:1884', 'a/b c?/{s}/')"),
        ("mqtt://broker//rooted", "MQTT('mqtt://broker:1883', '/rooted')"),
        ("mqtts://me:${file:/run/mqtt}@${env:HOST}/a/{s}", "MQTT('mqtts://${env:HOST}', 'a/{s}')"),
        ("${env:BROKER}/a/{s}", "MQTT('${env:BROKER}', 'a/{s}')"),
        ("mqtt://broker/${env:LINE}/{s}", "MQTT('mqtt://broker:1883', '7/{s}')"),
        ("postgresql://me:${env:SECRET}@db/history", "PostgreSQL(postgresql://db/history, table 'features')"),
        ("${env:DATABASE}", "PostgreSQL(${env:DATABASE}, table 'features')"),
        ("http://me:written-0ut@hub:8080/ingest?k=written-0ut", "HTTP('http://hub:8080/ingest')"),
        ("https://${env:SECRET}@${env:HOST}/ingest", "HTTP('https://${env:HOST}/ingest')"),
        ("${env:HUB}", "HTTP('${env:HUB}')"),
        ("tcp://telegraf:8094", "TCP('tcp://telegraf:8094')"),
        ("tls://hub-${env:LINE}:9000", "TCP('tls://hub-7:9000')"),
        ("udp://telegraf:8094", "UDP('udp://telegraf:8094')"),
    ],
)
def test_a_url_says_the_server_and_refers_to_what_is_kept(url: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it refers to is looked up by the sink, and neither shown nor kept by it."""
    for name, kept in {
        "BROKER": "mqtts://me:c4nary@broker",
        "DATABASE": "postgresql://me:c4nary@db",
        "HUB": "https://me:c4nary@hub/ingest",
        "LINE": "7",
        "SECRET": "c4nary",
    }.items():
        monkeypatch.setenv(name, kept)
    sink = sinks.for_path(url, if_exists="append", columns=["a"])
    assert repr(sink) == seen
    assert sink.if_exists == "append"
    assert b"c4nary" not in pickle.dumps(sink)
    assert "written-0ut" not in repr(sink)


def test_what_is_kept_may_say_the_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its suffix, as if it had been written."""
    monkeypatch.setenv("OUT", str(tmp_path / "out.parquet"))
    monkeypatch.setenv("KIND", "csv")
    monkeypatch.setenv("STREAM", "-")
    assert sinks.for_path("${env:OUT}").place == str(tmp_path / "out.parquet")
    lines = sinks.for_path(Path("out.${env:KIND}"))
    assert isinstance(lines, sinks.Lines)
    assert lines.format == "csv"
    stream = sinks.for_path("${env:STREAM}")
    assert isinstance(stream, sinks.Lines)
    assert stream.path is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("mqtt://broker", "names the topic too: mqtt://HOST/TOPIC"),
        ("mqtt://me:${file:/run/mqtt}@broker/", "names the topic too: mqtt://HOST/TOPIC"),
        ("${env:WHOLE}", "names the topic too: mqtt://HOST/TOPIC"),
        (
            "ftp://me:c4nary@host/ingest",
            "^ftp:// is not the beginning of a sink's URL; those known are postgresql://, ",
        ),
        ("${env:OTHER}", "^what it refers to is not the beginning of a sink's URL"),
        ("${env:NONE}", r"'\$\{env:NONE\}' does not say which sink it is"),
        ("${env:NOT_THERE}", "the path of the output refers to .*, and the environment has no NOT_THERE"),
    ],
)
def test_what_says_no_sink_is_refused_without_what_is_kept(
    path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence."""
    monkeypatch.setenv("WHOLE", "mqtt://me:c4nary@broker/a")
    monkeypatch.setenv("OTHER", "c4nary://c4nary")
    monkeypatch.setenv("NONE", "c4nary")
    with pytest.raises(TidemillError, match=said) as caught:
        sinks.for_path(path)
    assert "c4nary" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["host=db password=c4nary user=me", "postgres//me:c4nary@db/plant", "host=db PASSWORD = c4nary"]
)
def test_what_may_hold_a_password_is_not_quoted(path: str) -> None:
    """It was meant for a server, and was mistyped."""
    with pytest.raises(PlanError, match="which may hold a password, does not say which sink it is") as caught:
        sinks.for_path(path)
    assert "c4nary" not in str(caught.value)


def test_all_names_are_there() -> None:
    """Each public name loads, and dir() shows it."""
    assert set(sinks.__all__) <= set(dir(sinks))
    for name in sinks.__all__:
        assert getattr(sinks, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Excel'"):
        sinks.Excel  # noqa: B018
