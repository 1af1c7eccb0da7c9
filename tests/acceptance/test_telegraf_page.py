"""The page about Telegraf: each of its configurations is played, and the plan beside it run as it stands."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from line_protocol_parser import parse_line
from tests.sources.test_http import Sender

import tidemill as tm

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "telegraf.md").read_text()
LINES = [f"cpu,cpu=cpu{n % 2},host=a usage_idle={80 + n} {1_568_760_922_000_000_000 + n}" for n in range(6)]
MEANS = [80, 81, 81, 82, 82, 83]
"""Of each of the two series so far."""


def section(heading: str) -> tuple[Any, str]:
    """Telegraf's configuration and the plan."""
    text = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    toml = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert toml
    assert code
    return tomllib.loads(toml[1]), code[1]


def test_no_plan_is_longer_than_the_page_says() -> None:
    """Six lines."""
    plans = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(plans) == 4
    assert all(len([line for line in plan.splitlines() if line]) <= 6 for plan in plans)


def test_the_child_of_telegraf(tmp_path: Path) -> None:
    """The command as it is written, but for where its files are, from a folder that has none; what comes back is read by another parser."""
    toml, code = section("Between Telegraf's inputs and outputs")
    (tmp_path / "plant.py").write_text(code)
    command = toml["processors"]["execd"][0]["command"]
    assert command[0] == "tidemill"
    for place in ("/etc/tidemill", "/var/lib/tidemill"):
        command = [word.replace(place, str(tmp_path)) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd="/",
        input="".join(f"{line}\n" for line in ("no record", *LINES)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    lines = [parse_line(line) for line in done.stdout.splitlines()]
    assert [line["fields"]["usage_idle_mean_30"] for line in lines] == MEANS
    assert [line["tags"] for line in lines] == [parse_line(line)["tags"] for line in LINES]
    assert '"raw":"no record"' in (tmp_path / "dead_letters.ndjson").read_text()


async def played(code: str, address: Any, send: Callable[[tuple[str, int]], Any]) -> None:
    """Run the plan, on a free port instead of the one that it names, which Telegraf's configuration names too."""
    named = f"port={address.port}"
    assert code.count(named) == 1
    names: dict[str, Any] = {}
    exec(code.replace(named, "port=0"), names)
    source = names["source"]
    async with tm.serve(names["pipeline"], lanes=0) as run:
        async with asyncio.timeout(60):
            where = await source.wait_listening()
            await send(where)
            while run.statistics().records_in < len(LINES):  # noqa: ASYNC110
                await asyncio.sleep(0)
    with closing(sqlite3.connect("features.db")) as database:
        rows = database.execute("SELECT cpu, host, usage_idle_mean_30 FROM features ORDER BY time").fetchall()
    assert rows == [(f"cpu{n % 2}", "a", mean) for n, mean in enumerate(MEANS)]


async def test_the_output_that_posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is configured: packed, and called text."""
    monkeypatch.chdir(tmp_path)
    toml, code = section("Posted, and answered when they are safe")
    options = toml["outputs"]["http"][0]
    assert (options["data_format"], options["content_encoding"]) == ("influx", "gzip")
    url = urlsplit(options["url"])

    async def send(address: tuple[str, int]) -> None:
        body = gzip.compress("".join(f"{line}\n" for line in LINES).encode())
        headers = {"Content_Type": "text/plain; charset=utf-8", "Content_Encoding": "gzip"}
        status, told, _ = await Sender(address[1]).post(body, url.path, **headers)
        assert (status, told) == (202, {"records": len(LINES)})

    await played(code, url, send)


@pytest.mark.parametrize("heading", ["Written to a socket", "Thrown at a socket"])
async def test_the_output_that_writes_to_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heading: str
) -> None:
    """A metric at a time."""
    monkeypatch.chdir(tmp_path)
    toml, code = section(heading)
    options = toml["outputs"]["socket_writer"][0]
    assert options["data_format"] == "influx"
    url = urlsplit(options["address"])
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[url.scheme]

    async def send(address: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, kind) as writer:
            writer.connect(address)
            for line in LINES:
                writer.send(f"{line}\n".encode())

    await played(code, url, send)
