"""An InfluxDB server of one's own: the Debian package's program, a temporary folder, free ports of loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.ports import HeldPort

USER, PASSWORD = "mill", "s3cret-canary/ @"
_START_S = 120.0
_CONFIG = """
reporting-enabled = false
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
  auth-enabled = {auth}
[continuous_queries]
  enabled = false
[[udp]]
  enabled = true
  bind-address = "127.0.0.1:{udp_port}"
  database = "datagrams"
  batch-size = 1000
  batch-timeout = "10ms"
"""


def program() -> str:
    found = shutil.which("influxd")
    assert found, "these tests start a real InfluxDB server; install it with: sudo apt install influxdb"
    return found


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class InfluxServer:
    """Takes line protocol over HTTP, from `USER` alone with ``auth``, and over UDP, into the database ``datagrams``."""

    user, password = USER, PASSWORD

    def __init__(self, *, auth: bool = False) -> None:
        self._program = program()
        self.folder = Path(tempfile.mkdtemp(prefix="tidemill-influx-"))
        self._ports = [HeldPort(), HeldPort()]
        self.port, self.rpc = (port.number for port in self._ports)
        self.udp_port = free_udp_port()
        self._auth = auth
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        config = self.folder / "influxdb.conf"
        ports = {"rpc": self.rpc, "port": self.port, "udp_port": self.udp_port}
        config.write_text(_CONFIG.format(folder=self.folder, auth=str(self._auth).lower(), **ports))
        log = self.folder / "influxd.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, "-config", config], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until = time.monotonic() + _START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=1):
                    break
            except OSError:
                assert self._process.poll() is None, f"influxd has ended: {log.read_text()}"
                assert time.monotonic() < until, f"influxd does not answer: {log.read_text()}"
                time.sleep(0.02)
        if self._auth:
            self.query(f"CREATE USER {USER} WITH PASSWORD '{PASSWORD}' WITH ALL PRIVILEGES")

    def url(self, database: str, **more: str) -> str:
        """Where lines are posted; the database is made."""
        self.query(f'CREATE DATABASE "{database}"')
        return f"http://127.0.0.1:{self.port}/write?{urllib.parse.urlencode({'db': database, **more})}"

    def query(self, text: str, database: str = "") -> list[dict[str, Any]]:
        """The rows of all series, with their tags, and times in nanoseconds."""
        asked = {"q": text, "db": database, "epoch": "ns"}
        login = {"u": USER, "p": PASSWORD} if self._auth and not text.startswith("CREATE USER") else {}
        address = f"http://127.0.0.1:{self.port}/query?{urllib.parse.urlencode(login)}"
        with urllib.request.urlopen(address, urllib.parse.urlencode(asked).encode(), timeout=120) as answer:
            (result,) = json.load(answer)["results"]
        assert "error" not in result, result
        return [
            {**series.get("tags", {}), **dict(zip(series["columns"], values, strict=True))}
            for series in result.get("series", [])
            for values in series["values"]
        ]

    def stop(self) -> None:
        """What it has answered for is on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(120)
            self._process = None

    def remove(self) -> None:
        self.stop()
        for port in self._ports:
            port.close()
        shutil.rmtree(self.folder)
