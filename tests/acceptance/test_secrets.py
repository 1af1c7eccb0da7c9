"""Real runs with real passwords, which are nowhere to be read: not in what a run says, shows, keeps, or is called."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.sinks.line_servers import WebServer, take, web_server

PLANT = """
import tidemill as tm

pipeline = tm.Pipeline(
    [
        tm.sources.MQTT({broker!r}, "{root}/{{sensor}}", username="tidemill", password={mqtt!r}, client_id={root!r}),
        tm.sources.HTTP(token={token!r}),
        tm.sources.TCP(cert={cert!r}, cert_key={cert_key!r}, cert_password={key!r}),
    ],
    tm.Plan(),
    [
        tm.sinks.PostgreSQL({database!r}, {root!r}),
        tm.sinks.HTTP({hub!r}, token={posted!r}, headers={{"X-Key": {posted!r}}}),
    ],
    name="plant",
)
print(pipeline, pipeline.sources, pipeline.sinks)
"""
WAIT_S = 30.0


class Plant:
    """One in a folder of its own, with the passwords kept one way."""

    def __init__(self, folder: Path, postgres: Any, mosquitto: Any, authority: Any, hub: WebServer, way: str) -> None:
        self.hub = hub
        self.folder = folder
        self.root = f"secrets_{uuid.uuid4().hex}"
        self.mosquitto = mosquitto
        self.secrets = {
            "MQTT": mosquitto.password,
            "DATABASE": f"{self.root}@/: '",
            "TOKEN": f"t0ken-{self.root}",
            "KEY": f"k3y-{self.root}",
            "POSTED": f"p0sted-{self.root}",
        }
        cert, open_key = authority.alone("plant")
        self.certificate = {"cert": str(cert), "cert_key": str(authority.locked(open_key, self.secrets["KEY"]))}
        self.postgres = postgres
        self.url = f"postgresql://{self.root}:{{}}@127.0.0.1:{postgres.port}/postgres"
        postgres.query(
            f"CREATE ROLE {self.root} LOGIN PASSWORD '{self.secrets['DATABASE'].replace(chr(39), chr(39) * 2)}'"
        )
        postgres.query(f"CREATE SCHEMA {self.root} AUTHORIZATION {self.root}")
        self.way = way

    def write(self) -> dict[str, str]:
        """The file of the plant, and what the environment adds to it."""
        as_written = {
            "env": {name: f"${{env:PLANT_{name}}}" for name in self.secrets},
            "file": {name: f"${{file:kept/{name}}}" for name in self.secrets},
            "written out": {**self.secrets, "DATABASE": quote(self.secrets["DATABASE"], safe="")},
        }[self.way]
        (self.folder / "plant.py").write_text(
            PLANT.format(
                broker=self.mosquitto.guarded_url,
                mqtt=as_written["MQTT"],
                token=as_written["TOKEN"],
                key=as_written["KEY"],
                **self.certificate,
                root=self.root,
                database=self.url.format(as_written["DATABASE"]),
                hub=f"{self.hub.url}&key={as_written['POSTED']}",
                posted=as_written["POSTED"],
            )
        )
        if self.way == "file":
            (self.folder / "kept").mkdir(exist_ok=True)
            for name, secret in self.secrets.items():
                (self.folder / "kept" / name).write_text(secret + "\n")
        return {f"PLANT_{name}": secret for name, secret in self.secrets.items()} if self.way == "env" else {}

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        words = ("run", "plant.py", "--lanes", "1", "--metrics", "127.0.0.1:0", "--report", "report.json")
        command = [sys.executable, "-m", "tidemill", *words]
        environment = {**os.environ, **self.write(), "PLANT_MARK": self.root}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **pipes) as run:
            try:
                yield run
            finally:
                run.kill()

    def publish(self, *payloads: str) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self.mosquitto.port)
        client.loop_start()
        for payload in payloads:
            client.publish(f"{self.root}/S1", payload, qos=1).wait_for_publish(WAIT_S)
        client.disconnect()
        client.loop_stop()

    def processes(self) -> dict[int, bytes]:
        """The command lines of all processes that have inherited the environment of the run."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.root.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes()
        return found

    def shows(self, text: str) -> list[str]:
        """The secrets that are in there, in any form."""
        return [
            name
            for name, secret in self.secrets.items()
            if any(form in text for form in (secret, quote(secret, safe=""), repr(secret)[1:-1]))
        ]

    def kept(self) -> dict[str, str]:
        """All that the run has left on the disk."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and "kept" not in path.parts)
        return {str(path): path.read_bytes().decode("latin-1") for path in files if path.name != "plant.py"}


@pytest.fixture
def made(tmp_path: Path, postgres: Any, mosquitto: Any, authority: Any) -> Iterator[Callable[[str], Plant]]:
    """Makes the one of the test."""
    with web_server() as hub:
        yield lambda way: Plant(tmp_path, postgres, mosquitto, authority, hub, way)


def read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:  # unready is an answer too
        return error.read().decode()


def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("way", ["env", "file", "written out"])
def test_a_run_never_shows_a_secret(made: Callable[[str], Plant], way: str) -> None:
    """Its output, pages, report, dead letters, state, and the command lines of its processes; and it works."""
    plant = made(way)
    with plant.running() as run:
        assert run.stdout is not None
        said = []
        url = ""
        for line in run.stdout:
            said.append(line)
            url = found[1] if (found := re.search("/healthz are on (http://[0-9.:]+)", line)) else url
            if "source mqtt: connected to" in line:
                break
        plant.publish("1.5", "2.5", "no number")
        until(lambda: 'tidemill_sink_records_total{sink="postgresql"} 2.0' in read(f"{url}/metrics"))
        pages = [read(url + page) for page in ("/metrics", "/healthz?verbose", "/readyz")]
        processes = plant.processes()
        run.send_signal(signal.SIGINT)
        rest, _ = run.communicate(timeout=WAIT_S)
    output = "".join(said) + rest
    assert run.returncode == 0, output
    assert len(processes) >= 4, "the run, its fork server, a lane and the process of the sink"
    kept = plant.kept()
    assert {"report.json", "dead_letters.ndjson"} <= {Path(name).name for name in kept}
    assert any(name.endswith(".checkpoint") for name in kept)
    assert plant.postgres.query(f"SELECT value FROM {plant.root}.{plant.root} ORDER BY value") == [(1.5,), (2.5,)]
    assert [json.loads(line)["value"] for line in plant.hub.taken] == [1.5, 2.5]
    posted = plant.hub.posts[0]
    assert posted.path.endswith(f"&key={plant.secrets['POSTED']}")
    assert (posted.headers["Authorization"], posted.headers["X-Key"]) == (
        f"Bearer {plant.secrets['POSTED']}",
        plant.secrets["POSTED"],
    )
    for where, text in {
        "output": output,
        "pages": "".join(pages),
        **{f"process {number}": command.decode() for number, command in processes.items()},
        **kept,
    }.items():
        assert plant.shows(text) == [], where


@pytest.mark.parametrize(
    ("way", "wrong", "said"),
    [
        ("file", "MQTT", "the username or password is wrong|not authorized"),
        ("env", "DATABASE", "password authentication failed"),
        ("written out", "DATABASE", "password authentication failed"),
        ("env", "POSTED", "refuses what is posted: it answers 401 Unauthorized"),
    ],
)
def test_a_wrong_secret_is_told_without_it(made: Callable[[str], Plant], way: str, wrong: str, said: str) -> None:
    """With what was refused and by whom, in one sentence."""
    plant = made(way)
    right = plant.secrets[wrong]
    plant.hub.answer = lambda post: take(post) if post.headers["X-Key"] == right else (401, {}, post.path.encode())
    plant.secrets[wrong] = f"{right}-wrong"
    with plant.running() as run:
        if wrong == "POSTED":
            assert run.stdout is not None
            next(line for line in run.stdout if "source mqtt: connected to" in line)
            plant.publish("1.5")
        output, _ = run.communicate(timeout=WAIT_S)
    assert run.returncode not in (0, -signal.SIGKILL)
    assert re.search(said, output)
    assert "Traceback" not in output
    for text in (output, *plant.kept().values()):
        assert plant.shows(text) == []
        assert right not in text


def test_a_run_without_its_secret_does_not_start(tmp_path: Path, made: Callable[[str], Plant]) -> None:
    """And says which is missing."""
    plant = made("file")
    plant.write()
    (tmp_path / "kept" / "TOKEN").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", "run", "plant.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "token= of HTTP refers to ${file:kept/TOKEN}, and" in done.stderr
    assert plant.shows(done.stdout + done.stderr) == []
