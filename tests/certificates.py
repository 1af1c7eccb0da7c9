"""Certificates of an authority that only one test trusts, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

__all__ = ["Authority"]


class Authority:
    """Signs what a test asks for; ``ca`` is what its clients trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = shutil.which("openssl")
        assert found, "these tests make certificates; install openssl"
        self._openssl = found
        self.ca, self._key = self.alone("authority")
        (folder / "index").touch()
        (folder / "ca.cnf").write_text(
            f"[ca]\ndefault_ca = it\n[it]\ndatabase = {folder}/index\nnew_certs_dir = {folder}\nrand_serial = yes\n"
            "policy = any\ndefault_md = sha256\ncopy_extensions = copy\n[any]\ncommonName = supplied\n"
        )

    def alone(self, name: str) -> tuple[Path, Path]:
        """A certificate that nobody but itself has signed, and its key."""
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        self._run("req", "-x509", "-days", "2", *self._asking(name, "127.0.0.1", key), "-out", cert)
        return cert, key

    def signed(self, name: str, address: str = "127.0.0.1", *, expired: bool = False) -> tuple[Path, Path]:
        """A certificate for an address, and its key."""
        cert, key, asked = (self._folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        self._run("req", *self._asking(name, address, key), "-out", asked)
        now = datetime.now(UTC)
        ends = now - timedelta(days=1) if expired else now + timedelta(days=1)
        dates = ["-startdate", f"{now - timedelta(days=2):%Y%m%d%H%M%SZ}", "-enddate", f"{ends:%Y%m%d%H%M%SZ}"]
        self._run(
            "ca", "-batch", "-notext", "-config", self._folder / "ca.cnf", "-cert", self.ca, "-keyfile", self._key,
            "-in", asked, "-out", cert, *dates,
        )  # fmt: skip
        return cert, key

    def locked(self, key: Path, passphrase: str) -> Path:
        """The same private key, with a passphrase, beside it."""
        made = key.with_suffix(".locked")
        self._run("pkey", "-in", key, "-aes256", "-passout", f"pass:{passphrase}", "-out", made)
        return made

    def _asking(self, name: str, address: str, key: Path) -> list[str | Path]:
        kind = "IP" if address.replace(".", "").isdigit() else "DNS"
        return [
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
            "-subj", f"/CN={name}", "-addext", f"subjectAltName={kind}:{address}",
        ]  # fmt: skip

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run([self._openssl, *arguments], check=True, capture_output=True, timeout=120)
