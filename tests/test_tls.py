"""Certificates and private keys, with a passphrase and without: real ones, in handshakes in memory."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.errors import InputError, PlanError
from tidemill.secret import SecretText
from tidemill.tls import client_context, passphrase, server_context

PASSPHRASE = "c4nary of the mill"


@pytest.fixture(scope="module")
def shown(authority: Any) -> dict[str, Path]:
    """A certificate and its private key, which has a passphrase, as options."""
    cert, key = authority.signed("mill")
    return {"cert": cert, "cert_key": authority.locked(key, PASSPHRASE)}


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase, in a variable, and two others."""
    monkeypatch.setenv("PLANT_KEY", PASSPHRASE)
    monkeypatch.setenv("PLANT_OTHER", "0ther canary")
    monkeypatch.setenv("PLANT_LONG", "long canary" * 100)


def shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> Any:
    """The certificate that the server sees, after a handshake."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname="127.0.0.1"), server.wrap_bio(there, back, server_side=True)]
    while ends:
        for end in tuple(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
            if end.server_side:
                served = end
    return served.getpeercert()


def test_a_key_with_a_passphrase_opens_on_both_sides(authority: Any, shown: dict[str, Path]) -> None:
    """As a server shows it, and as a client does."""
    secret = passphrase("${env:PLANT_KEY}", "TCP")
    server = server_context(**shown, cert_password=secret, ca=authority.ca)
    assert server is not None
    seen = shaken(server, client_context(authority.ca, **shown, cert_password=secret))
    assert seen["subject"] == ((("commonName", "mill"),),)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "the key has a passphrase, and there is no cert_password="),
        ("${env:PLANT_OTHER}", "cert_password= is wrong"),
        ("written 0ther canary", "cert_password= is wrong"),
        ("${env:PLANT_LONG}", "cert_password= has more than 1024 bytes"),
        ("${env:NOT_THERE}", "refers to ${env:NOT_THERE}, and the environment has no NOT_THERE"),
    ],
)
def test_whoever_takes_a_key_says_why_it_does_not_open(shown: dict[str, Path], given: str | None, said: str) -> None:
    """At the start, never showing what was given, and never asking at the terminal; with the right one all of them start."""
    for make in (
        lambda **more: tm.sources.TCP(**shown, **more),
        lambda **more: tm.sources.HTTP(**shown, **more),
        lambda **more: tm.sources.MQTT("mqtts://broker", "plant/{sensor}", **shown, **more),
        lambda **more: tm.sinks.MQTT("mqtts://broker", "plant/{sensor}", **shown, **more),
        lambda **more: tm.sinks.TCP("tls://hub:9000", **shown, **more),
        lambda **more: tm.sinks.HTTP("https://hub/ingest", **shown, **more),
    ):
        with pytest.raises(InputError) as caught:
            make(cert_password=given).check()
        assert said in str(caught.value)
        assert "canary" not in str(caught.value)
        make(cert_password="${env:PLANT_KEY}").check()
        for of in (make(cert_password=given), make(cert_password=PASSPHRASE)):
            assert "canary" not in repr(of)


def test_a_passphrase_for_a_key_that_has_none_is_not_needed(authority: Any) -> None:
    """It was taken away from the file, say."""
    cert, key = authority.alone("alone")
    assert server_context(cert, key, SecretText("any", "cert_password=")) is not None


def test_a_passphrase_without_a_key_is_refused() -> None:
    """So is one that is empty, which OpenSSL would take for a question."""
    with pytest.raises(PlanError, match="cert_password= is for the private key of the certificate cert="):
        client_context(cert_password=passphrase("a", "MQTT"))
    with pytest.raises(PlanError, match="cert_key=, cert_password= and ca= of TCP are for TLS"):
        tm.sources.TCP(cert_password="a")
    with pytest.raises(PlanError, match="cert_password= of HTTP is empty"):
        tm.sources.HTTP(cert_password="")
