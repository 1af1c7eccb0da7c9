"""A Mosquitto broker of one's own: the Debian package's program, a temporary folder, free ports of loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.ports import HeldPort

PASSWORD = "s3cret-canary"  # so that any test may look for it where it must not be
USER = "tidemill"
_START_S = 120.0
_AS_ROOT = os.geteuid() == 0


def program(name: str = "mosquitto") -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    assert found, "these tests start a real Mosquitto broker; install it with: sudo apt install mosquitto"
    return found


class MosquittoServer:
    """Started and stopped by hand. ``port`` takes anybody, ``guarded_port`` those who know the password; with ``tls``, a
    certificate and its key, ``tls_port`` shows that; with ``acl``, lines of such a file, ``port`` keeps to it; with
    ``mute`` nobody may subscribe there."""

    password = PASSWORD

    def __init__(
        self, *, tls: tuple[Path, Path] | None = None, acl: str = "", mute: bool = False, **settings: object
    ) -> None:
        self._program = program()
        self.folder = Path(tempfile.mkdtemp(prefix="tidemill-mosquitto-"))
        self._ports = [HeldPort() for _ in range(2 if tls is None else 3)]
        self.port, self.guarded_port, *of_tls = (port.number for port in self._ports)
        passwords = self.folder / "passwords"
        passwords.touch()
        subprocess.run(
            [program("mosquitto_passwd"), "-b", passwords, USER, PASSWORD], check=True, capture_output=True, timeout=120
        )
        self._settings = {
            "per_listener_settings": "true",
            "persistence": "true",
            "persistence_location": f"{self.folder}/",
            "autosave_interval": 1,
            "autosave_on_changes": "true",
            "max_queued_messages": 0,
            "max_inflight_messages": 1_000,
            **settings,
        }
        self._listeners = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            *self._only(acl),
            *(self._muted() if mute else []),
            f"listener {self.guarded_port} 127.0.0.1",
            f"password_file {passwords}",
        ]
        if tls is not None:
            (self.tls_port,) = of_tls
            self._listeners += [f"listener {self.tls_port} 127.0.0.1", "allow_anonymous true"]
            self._listeners += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        if _AS_ROOT:
            self._settings["user"] = "root"  # else it becomes a user who may not write in the folder
        self._process: subprocess.Popen[bytes] | None = None

    def _only(self, acl: str) -> list[str]:
        if not acl:
            return []
        path = self.folder / "acl"
        path.write_text(acl)
        path.chmod(0o600)
        return [f"acl_file {path}"]

    def _muted(self) -> list[str]:
        """By the broker's own plugin: files of ACL say nothing about subscriptions."""
        plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"))
        may = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
        config = {"defaultACLAccess": may, "clients": [], "groups": [{"groupname": "all", "roles": []}], "roles": []}
        path = self.folder / "security.json"
        path.write_text(json.dumps({**config, "anonymousGroup": "all"}))
        return [f"plugin {plugin}", f"plugin_opt_config_file {path}"]

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def guarded_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.guarded_port}"

    def start(self) -> None:
        """Return when it takes connections."""
        lines = [f"{name} {value}" for name, value in self._settings.items()] + self._listeners
        path = self.folder / "mosquitto.conf"
        path.write_text("\n".join(lines) + "\n")
        log = self.folder / "mosquitto.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, "-c", path], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )
        until = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, f"mosquitto has ended: {log.read_text()}"
                assert time.monotonic() < until, f"mosquitto does not answer: {log.read_text()}"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Orderly: it saves what it keeps."""
        self._end("terminate")

    def kill(self) -> None:
        """What it had not saved is gone."""
        self._end("kill")

    def _end(self, how: str) -> None:
        if self._process is not None:
            getattr(self._process, how)()
            self._process.wait(120)
            self._process = None

    def hold(self, signal_number: int = signal.SIGSTOP) -> None:
        """It is there, and says nothing any more; SIGCONT lets it go on."""
        assert self._process is not None
        self._process.send_signal(signal_number)

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        self.kill()
        for port in self._ports:
            port.close()
        shutil.rmtree(self.folder)
