"""A PostgreSQL server of one's own: the Debian package's programs, a temporary folder, a free port of loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from tests.ports import HeldPort

PASSWORD = "s3cret-canary"  # in every address, so that any test may look for it where it must not be
USER = "tidemill"


def programs() -> Path:
    """The newest server's; Debian has them out of the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda place: int(place.parts[-3]))
    found = [*(place.parent for place in places)]
    elsewhere = shutil.which("initdb")
    if elsewhere is not None:
        found.append(Path(elsewhere).parent)
    assert found, "these tests start a real PostgreSQL server; install it with: sudo apt install postgresql"
    return found[-1]


class PostgresServer:
    """Started and stopped by hand; ``durable`` is for measuring, with fsync as a server in earnest has it."""

    def __init__(self, *, durable: bool = False) -> None:
        self._programs = programs()
        self._account = self._server_account()
        self.folder = Path(tempfile.mkdtemp(prefix="tidemill-postgres-"))
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._data = self.folder / "data"
        self._ran("initdb", "-D", self._data, "-U", USER, f"--pwfile={secret}", "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip
        self._port = HeldPort()
        self.port = self._port.number
        settings = {
            "listen_addresses": "'127.0.0.1'",
            "port": self.port,
            "unix_socket_directories": f"'{self.folder}'",
            "fsync": "on" if durable else "off",
            "max_connections": 40,
            "shared_buffers": "'128MB'" if durable else "'16MB'",
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    @staticmethod
    def _server_account() -> pwd.struct_passwd | None:
        """The server refuses to run as root; the package has made a user for it."""
        return pwd.getpwnam("postgres") if os.getuid() == 0 else None

    def _ran(self, program: str, *arguments: object) -> None:
        account = self._account
        as_whom: dict[str, Any] = {}
        if account is not None:
            as_whom = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        log = self.folder / "programs.log"
        with log.open("a") as file:
            done = subprocess.run(
                [self._programs / program, *map(str, arguments)],
                cwd="/", stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, timeout=180, **as_whom,
            )  # fmt: skip
        assert done.returncode == 0, f"{program}: {log.read_text()}"

    # -- its life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Return when it takes connections."""
        self._ran("pg_ctl", "start", "-w", "-t", 150, "-D", self._data, "-l", self._data / "server.log")

    def stop(self, how: str = "fast") -> None:
        """``immediate`` is a crash."""
        self._ran("pg_ctl", "stop", "-w", "-t", 150, "-m", how, "-D", self._data)

    def restart(self, how: str = "immediate") -> None:
        self.stop(how)
        self.start()

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        self._port.close()
        shutil.rmtree(self.folder)

    # -- its use -------------------------------------------------------------------------------------

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD, query: str = "") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}{query}"

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url(database), autocommit=True, **options)

    def query(self, sql: str, values: tuple[Any, ...] = (), *, database: str = "postgres") -> list[tuple[Any, ...]]:
        with self.connect(database) as connection:
            cursor = connection.execute(sql.encode(), values or None)
            return cursor.fetchall() if cursor.description else []
