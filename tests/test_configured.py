"""What an option of a source or a sink, or a path of a stage, refers to is looked up or refused, in every one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.configured import Configured
from tidemill.errors import InputError, PlanError, TidemillError
from tidemill.secret import SecretText
from tidemill.sinks.base import LoopSink, ProcessSink, Sink
from tidemill.sources.base import Source

NOWHERE = "${env:NOT_THERE}"
NEEDED: dict[type, dict[str, Any]] = {
    tm.sources.DeadLetters: {"path": "dead.ndjson"},
    tm.sources.Frame: {"table": None},
    tm.sources.MQTT: {"url": "mqtts://broker", "topics": "plant/{sensor}", "username": "mill"},
    tm.sources.Records: {"records": []},
    tm.sources.Replay: {"path": "march.csv"},
    tm.sinks.Callback: {"fn": print},
    tm.sinks.HTTP: {"url": "https://hub/ingest"},
    tm.sinks.Lines: {"path": "out.ndjson"},
    tm.sinks.MQTT: {"url": "mqtts://broker", "topic": "features/{sensor}", "username": "mill"},
    tm.sinks.Parquet: {"path": "out/"},
    tm.sinks.PostgreSQL: {"database": "postgresql://db"},
    tm.sinks.SQLite: {"path": "out.db"},
    tm.sinks.TCP: {"url": "tls://hub:9000"},
    tm.sinks.UDP: {"url": "udp://hub:9000"},
    tm.testing.ScriptedSource: {"script": []},
}
"""What each is to be given besides the option that is tried."""


def everyone() -> list[type[Source | Sink]]:
    found = [getattr(module, name) for module in (tm.sources, tm.sinks, tm.testing) for name in module.__all__]
    bases = (Source, Sink, LoopSink, ProcessSink)
    return [one for one in found if inspect.isclass(one) and issubclass(one, (Source, Sink)) and one not in bases]


def options_of(one: type) -> list[str]:
    """All that are no data."""
    return [name for name in inspect.signature(one).parameters if name not in ("records", "script", "fn")]


def refused(of: type[Source | Sink], option: str, reference: Any, **more: Any) -> str:
    """What is told of it, when it is made or at the start."""
    with pytest.raises(TidemillError) as caught:
        of(**{**NEEDED.get(of, {}), **more, option: reference}).check()
    return str(caught.value)


def test_the_walk_finds_them_all() -> None:
    """Sources and sinks, and in each the options that all have."""
    assert {tm.sources.TCP, tm.sinks.PostgreSQL, tm.testing.ListSink, tm.sources.Records} <= set(everyone())
    assert all({"key", "time", "tz", "name"} <= set(options_of(one)) for one in everyone() if issubclass(one, Source))
    for one in everyone():
        assert one.looked_up_options | one.secret_options <= set(options_of(one)), one
        assert not one.looked_up_options & one.secret_options, one


@pytest.mark.parametrize("of", everyone(), ids=lambda of: f"{of.__module__.rpartition('.')[2]}-{of.__name__}")
def test_a_reference_is_never_the_text_itself(of: type[Source | Sink], tmp_path: Path) -> None:
    """In every option, of text or not, it is looked up, which fails here, or refused with the option's name and what to do."""
    (tmp_path / "own.pem").touch()
    for option in options_of(of):
        more = {"cert": tmp_path / "own.pem"} if option in ("cert_key", "cert_password") else {}
        said = refused(of, option, {"X-Key": NOWHERE} if option == "headers" else NOWHERE, **more)
        if option in of.looked_up_options | of.secret_options:
            assert f"refers to {NOWHERE}, and the environment has no NOT_THERE" in said
            assert f"{option}= of {of.__name__}" in said or option in ("url", "database")
        else:
            assert (
                f"{option}= of {of.__name__} takes no ${{env:NAME}} or ${{file:PATH}}; write the text itself." in said
            )
        for container in ([NOWHERE], ("a", NOWHERE), {"a": NOWHERE}, {NOWHERE: "a"}, Path(NOWHERE)):
            if option not in of.secret_options:
                told = refused(of, option, container, **more)
                assert f"refers to {NOWHERE}" in told or "takes no ${env:NAME}" in told


@pytest.mark.parametrize("text", ["${evn:NAME}", "${env:}", "${env:MINE", "${:x}"])
def test_what_was_meant_as_a_reference_is_refused_as_well(text: str) -> None:
    """In an option that takes them, and in one that takes none."""
    with pytest.raises(
        PlanError, match=r"path= of Replay refers to something in a way that is not known; write \$\{env:"
    ):
        tm.sources.Replay(text)
    with pytest.raises(PlanError, match="key= of Replay takes no"):
        tm.sources.Replay("march.csv", key=text)


def test_what_they_stand_for_is_as_if_it_had_been_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In part and in whole, in a text, a path and a list; what is checked of an option is checked of that."""
    (tmp_path / "line").write_text("line 7\n")
    monkeypatch.setenv("PLANT_ROOT", str(tmp_path))
    monkeypatch.setenv("PLANT_HOST", "0.0.0.0")
    line = f"${{file:{tmp_path}/line}}"
    assert tm.sinks.SQLite(Path("${env:PLANT_ROOT}") / "out.db", line).path == tmp_path / "out.db"
    assert tm.sinks.SQLite("out.db", line).table == "line 7"
    assert tm.sources.MQTT("mqtt://broker", [f"{line}/{{sensor}}", "b"]).topics == ("line 7/{sensor}", "b")
    assert tm.sources.UDP("${env:PLANT_HOST}", exposed=True).host == "0.0.0.0"
    for source in (tm.sources.UDP, tm.sources.TCP, tm.sources.HTTP):
        with pytest.raises(PlanError, match=r"0\.0\.0\.0.* can be reached from other machines"):
            source("${env:PLANT_HOST}")


def test_what_was_looked_up_refers_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever can set one variable could read others."""
    monkeypatch.setenv("PLANT_PATH", "${file:/etc/shadow}")
    with pytest.raises(InputError, match="path= of Replay refers to something that refers to something else"):
        tm.sources.Replay("${env:PLANT_PATH}")


def test_records_of_an_application_are_no_options() -> None:
    """Whatever is in them."""
    sink = tm.testing.ListSink()
    rows = [{"sensor": NOWHERE, "time": 1, "value": "${evn:X}"}]
    tm.run(tm.Pipeline(tm.sources.Records(rows), tm.Plan(), sink), lanes=0)
    assert [(row["sensor"], row["value"]) for row in sink.rows] == [(NOWHERE, "${evn:X}")]


class Own(tm.sources.Lines):
    """A source of an application's, which makes the path."""

    def __init__(self, line: str, **options: Any) -> None:
        super().__init__(f"${{env:PLANT_ROOT}}/{line}.ndjson", **options)


def test_a_source_of_an_application_is_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In options of its own, in those that it hands on, and in those that it makes."""
    monkeypatch.setenv("PLANT_ROOT", str(tmp_path))
    assert Own("7").path == f"{tmp_path}/7.ndjson"
    with pytest.raises(PlanError, match="line= of Own takes no"):
        Own(NOWHERE)
    with pytest.raises(PlanError, match="tz= of Own takes no"):
        Own("7", tz=NOWHERE)


def test_a_constructor_that_takes_nothing_is_as_it_was() -> None:
    """Its signature, its words and its errors too."""

    class Plain(Configured):
        secret_options = frozenset({"token"})

        def __init__(self, token: str, *, port: int = 0) -> None:
            """The words."""
            self.token = SecretText(token, "token=")
            self.port = port

    assert list(inspect.signature(Plain).parameters) == ["token", "port"]
    assert Plain.__init__.__doc__ == "The words."
    assert Plain(NOWHERE, port=3).token.refers
    made: Callable[..., Plain] = Plain
    with pytest.raises(TypeError, match="unexpected keyword argument 'prot'"):
        made("a", prot=3)


def model_at(path: Any) -> tm.Model:
    return tm.Model(path, inputs=["x"], outputs=["y"])


@pytest.mark.parametrize("stage", [tm.Calibrate, tm.Calibrate.range, tm.Calibrate.two_point, tm.Lookup, model_at])
def test_the_path_of_a_stage_is_looked_up_when_it_is_made(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: what it is then does not change with what the reference stands for. One to nothing is refused, with its option."""
    monkeypatch.setenv("PLANT_ROOT", "/plants/north")
    made = stage("${env:PLANT_ROOT}/table.csv")
    monkeypatch.setenv("PLANT_ROOT", "/plants/south")
    assert made.path == "/plants/north/table.csv"
    assert stage(Path("table.csv")).path == "table.csv"
    with pytest.raises(
        InputError, match=r"(table|model)= of \w+ refers to \$\{env:NOT_THERE\}, and the environment has no"
    ):
        stage(f"{NOWHERE}/table.csv")
