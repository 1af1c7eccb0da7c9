"""What the documentation shows is what happens: its Python runs, its links lead somewhere."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
from tests.sinks.line_servers import Post, take, web_server
from tests.sinks.test_mqtt_sink import Reader
from tests.sources.test_http import Sender
from tests.sources.test_mqtt import Publisher

import tidemill as tm

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("deploy/*.md")})


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def executed(code: str, folder: Path) -> str:
    """What it prints as a script without a ``__main__`` guard, in a folder that has the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "shown.py").write_text(code)
    done = subprocess.run([sys.executable, "shown.py"], cwd=folder, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_example_runs_as_it_stands(tmp_path: Path) -> None:
    """Copied into a file and started, it leaves the features in the database."""
    executed(python_of(ROOT / "README.md")[0], tmp_path)
    with closing(sqlite3.connect(tmp_path / "features.db")) as database:
        query = re.search(r'sqlite3 features\.db "(.*)"', (ROOT / "README.md").read_text())
        assert query
        rows = database.execute(query[1]).fetchall()
    assert rows[0][0] == "pump-2"
    assert len(rows) == 3


def test_the_readmes_example_is_ten_lines() -> None:
    """More than a screen and nobody reads it."""
    code = [line for line in python_of(ROOT / "README.md")[0].splitlines() if line.strip()]
    assert len(code) <= 12


def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its blocks, joined; its own assertions hold."""
    executed("\n".join(python_of(ROOT / "docs" / "tutorial.md")), tmp_path)


@pytest.mark.parametrize("name", ["laws", "parity", "silence", "state-of-your-own", "time-windows"])
def test_these_pages_run_from_top_to_bottom(tmp_path: Path, name: str) -> None:
    """Their blocks, joined; their own assertions hold."""
    executed("\n".join(python_of(ROOT / "docs" / "howto" / f"{name}.md")), tmp_path)


@pytest.mark.slow
def test_the_notebook_of_the_page_about_parity_is_what_check_finds(tmp_path: Path) -> None:
    """The command as it is shown prints what is shown, over the table that the page's code has written."""
    page = ROOT / "docs" / "howto" / "parity.md"
    code = python_of(page)
    executed("\n".join(code), tmp_path)
    (tmp_path / "plant.py").write_text(code[0].partition("features =")[0])
    shown = [block.removeprefix("\n") for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    command = [sys.executable, "-m", *shown[0].split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(shown[1])


def test_the_page_about_new_shows_what_new_writes(tmp_path: Path) -> None:
    """The command as it is shown says what is shown, and writes the plan that is shown; a recording without times is
    answered as shown."""
    page = (ROOT / "docs" / "howto" / "new.md").read_text()
    shown = [block.removeprefix("\n") for block in page.split("```")[1::2] if block.startswith("\n")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "other").mkdir()
    (tmp_path / "ecg.csv").write_text("sample,MLII\n0,995\n1,995\n")
    commands = [shown[0].split()[1:], ["new", "other/ecg.py", "--from", "ecg.csv"]]
    done = [
        subprocess.run([sys.executable, "-m", "tidemill", *words], cwd=tmp_path, capture_output=True, text=True)  # noqa: PLW1510
        for words in commands
    ]
    assert (done[0].stdout, done[0].returncode) == (shown[1], 0)
    assert (tmp_path / "plant.py").read_text() == python_of(ROOT / "docs" / "howto" / "new.md")[0]
    assert done[1].stderr.replace(f"{tmp_path}/", "") == shown[3]
    assert done[1].returncode == 4


def test_the_page_about_models_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its blocks, joined, find the reading that stands out, and print that the rest holds."""
    told = executed("\n".join(python_of(ROOT / "docs" / "howto" / "models.md")), tmp_path)
    assert told.splitlines() == ["[200]", "True", "True", "True"]


def test_the_page_about_secrets_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """It prints what it shows, and nothing that it refers to need be there for that."""
    page = ROOT / "docs" / "howto" / "secrets.md"
    told = executed("\n".join(python_of(page)), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == shown


def test_the_page_about_devices_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its blocks, joined, print what it shows, and that wide records and lanes give the same."""
    page = ROOT / "docs" / "howto" / "devices.md"
    told = executed("\n".join(python_of(page)), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == [*shown, "True", "True 24 20"]


def test_the_page_about_postgresql_runs_from_top_to_bottom(
    tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks, joined, print what it shows, on a server that the environment names."""
    postgres.query("CREATE DATABASE plant")
    url = urlsplit(postgres.url())
    where = {"PGHOST": url.hostname, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    for name, value in where.items():
        monkeypatch.setenv(name, str(value))
    page = ROOT / "docs" / "howto" / "postgresql.md"
    told = executed("\n".join(python_of(page)), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == "\n".join(shown[1:3]).splitlines()


def test_the_page_about_lines_that_are_sent_runs_and_influxdb_has_the_rows(tmp_path: Path, influx: Any) -> None:
    """It prints what it shows; the server alone has another port."""
    url = influx.url("plant")
    page = ROOT / "docs" / "howto" / "send-lines.md"
    told = executed(python_of(page)[0].replace("http://127.0.0.1:8086/write?db=plant", url), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == shown
    found = influx.query("SELECT count(value), count(value_mean_50) FROM readings", "plant")
    assert [found[0]["count"], found[0]["count_1"]] == [940, 940]


def test_the_reader_of_the_page_about_lines_has_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that are all the same. One post is taken and not answered, the run ends in the middle, the next start sends it all
    again; and then comes what the first one was still to send."""
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.1)
    names: dict[str, Any] = {"tm": tm}
    exec(python_of(ROOT / "docs" / "howto" / "send-lines.md")[1], names)
    lines: list[bytes] = []

    def answer(post: Post) -> Any:
        if len(server.posts) > 4:
            return 401, {}, b"not now"
        lines.extend(post.lines)
        return None if len(server.posts) == 2 else take(post)

    def run(url: str) -> None:
        records = tm.sources.Records([{"sensor": "S", "time": 0, "value": 1.5}] * 500)
        sink = tm.sinks.HTTP(url, numbered=True, body=5_000)
        tm.run(tm.Pipeline(records, tm.Plan(), sink, name="twice"), lanes=0, state=tmp_path / "state")

    with web_server(answer) as server, pytest.raises(tm.OutsideError):
        run(server.url)
    with web_server() as server:
        run(server.url)
    came = [json.loads(line) for line in [*lines, *server.taken, lines[-1]]]
    made = names["plan"].apply(came)
    assert [row["_seq"] for row in made] == list(range(500))
    assert {row["_epoch"] for row in made} == {1, 2}
    assert len(came) > len(lines) + 400 > 500


def test_the_page_about_statistics_names_the_columns_that_there_are() -> None:
    """Behind each stage, and no other."""
    (code,) = python_of(ROOT / "docs" / "statistics.md")
    names: dict[str, Any] = {}
    exec(code, names)
    made = names["plan"].apply(
        pd.DataFrame({"sensor": ["a"], "time": [1.0], "temp": [20.0]}), key="sensor", time="time"
    )
    assert list(made)[3:] == [name for told in re.findall("# (.*)", code) for name in told.split(", ")]


# -- what listens, and what a broker sends to ------------------------------------------------------------------

READINGS = [{"sensor": "pump-2", "site": "hall", "value": 81.3 + number} for number in range(3)]


async def to_socket(source: Any, _: Any) -> None:
    _, writer = await asyncio.open_connection(*await source.wait_listening())
    writer.writelines(f"{json.dumps(reading)}\n".encode() for reading in READINGS)
    writer.close()
    await writer.wait_closed()


async def to_post(source: Any, _: Any) -> None:
    _, port = await source.wait_listening()
    body = "\n".join(map(json.dumps, READINGS)).encode()
    assert (await Sender(port).post(body))[:2] == (202, {"records": len(READINGS)})


async def to_broker(source: Any, broker: Any) -> None:
    """Readings flat, as a number, and where the page about MQTT looks for them."""
    await source.wait_subscribed()
    publisher = Publisher(broker.port)
    topic = source.topics[0].replace("{site}", "hall").replace("{sensor}", "pump-2")
    for reading in READINGS:
        publisher.publish(topic, json.dumps({**reading, "data": {"temp": reading["value"]}}))
    await publisher.published()
    publisher.close()


async def live(code: str, broker: Any, send: Callable[[Any, Any], Awaitable[None]], *more: str) -> None:
    """Run a page's pipeline, on a free port and with a broker that is there, until it has the readings; with the sinks of
    these names beside its own."""
    code, places = re.subn(
        r"port=\d+|mqtt://(localhost|broker\.plant:1883)", lambda named: _here(named[0], broker), code
    )
    assert places
    names: dict[str, Any] = {}
    exec(code.replace("tm.run(", "pipeline = ("), names)
    pipeline = names["pipeline"]
    pipeline = pipeline.between(pipeline.sources, [*pipeline.sinks, *(names[name] for name in more)])
    async with tm.serve(pipeline, lanes=0) as run, asyncio.timeout(60):
        await send(names["source"], broker)
        while run.statistics().records_in < len(READINGS):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        run.stop_soon()
        assert (await run.wait()).dead_letters == 0


def _here(named: str, broker: Any) -> str:
    return "port=0" if named.startswith("port") else broker.url


def features(column: str) -> list[float]:
    with closing(sqlite3.connect("features.db")) as database:
        return [value for (value,) in database.execute(f"SELECT {column} FROM features ORDER BY rowid")]


@pytest.mark.parametrize("send", [to_socket, to_post, to_broker])
async def test_one_changed_line_makes_the_readmes_example_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mosquitto: Any, send: Any
) -> None:
    """Each of the lines that it shows, in place of the recording."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code, lines = python_of(ROOT / "README.md")
    line = lines.splitlines()[[to_socket, to_post, to_broker].index(send)]
    await live(re.sub("^source = .*", line, code, flags=re.MULTILINE), mosquitto, send)
    assert len(features("surprise")) == len(READINGS)
    assert None not in features("normalized_mean_50")


@pytest.mark.parametrize(("name", "send"), [("http", to_post), ("state", to_socket)])
async def test_the_plans_of_these_pages_take_readings_and_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, send: Any
) -> None:
    """The second start's windows hold the readings of the first."""
    monkeypatch.chdir(tmp_path)
    (code,) = python_of(ROOT / "docs" / "howto" / f"{name}.md")
    for _ in range(2):
        await live(code, None, send)
    assert features("value_mean_50") == pytest.approx([81.3, 81.8, 82.3, 82.05, 82.1, 82.3])


async def test_the_page_about_mqtt_takes_readings_from_a_broker_and_gives_it_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mosquitto: Any
) -> None:
    """Its source and its sink in one run."""
    monkeypatch.chdir(tmp_path)
    reader = Reader(mosquitto.port, "features/hall/+")
    await live("\n".join(python_of(ROOT / "docs" / "howto" / "mqtt.md")), mosquitto, to_broker, "sink")
    came = await asyncio.to_thread(reader.take, len(READINGS))
    reader.close()
    assert {message.topic for message in came} == {"features/hall/pump-2"}
    published = [json.loads(message.payload)["value_mean_50"] for message in came]
    assert published == features("value_mean_50") == pytest.approx([81.3, 81.8, 82.3])


def test_no_page_shows_python_that_no_test_names() -> None:
    """Whoever writes a page writes what runs it."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    shown = [page.stem for page in PAGES if python_of(page)]
    assert [name for name in shown if f'"{name}"' not in tests and f'"{name}.md"' not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link of every page."""
    links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_architecture_names_files_that_exist() -> None:
    """The tour of the floors does not lead into walls."""
    named = re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", (ROOT / "docs" / "architecture.md").read_text())
    assert named
    places = (ROOT / "src" / "tidemill", ROOT)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_delivery_of_every_source_and_sink_is_documented() -> None:
    """A new edge says in the table what happens to a record when something dies."""
    page = (ROOT / "docs" / "delivery.md").read_text()
    interfaces = {"Source", "SourceContext", "SourceStatistics", "Sink", "ProcessSink", "LoopSink", "SinkStatistics"}
    edges = {name for module in (tm.sources, tm.sinks) for name in module.__all__ if name[0].isupper()} - interfaces
    assert {name for name in edges if f"`{name}" not in page} == set()


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(page.name for page in folder.glob("0*.md"))
    assert re.findall(r"\]\((0[^)]+)\)", index) == pages
