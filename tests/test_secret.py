"""What options refer to is looked up late, shown never, and put where it belongs whatever it holds."""

from __future__ import annotations

import logging
import os
import pickle
import string
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

import tidemill as tm
from tidemill.errors import InputError, PlanError
from tidemill.formats.brokers import Access
from tidemill.secret import SecretText
from tidemill.sinks.postgres_connection import shown

CANARY = "c4nary'of \\the/plant@: %41"
KEPT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\x85"), min_size=4
)
"""What may be kept in a variable: no NUL, one line."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The canary, in a file that only we may read, and in the variable PLANT_SECRET."""
    monkeypatch.setenv("PLANT_SECRET", CANARY)
    place = tmp_path / "kept"
    place.write_text(CANARY + "\n")
    place.chmod(0o600)
    return place


@given(secret=KEPT, before=st.text(string.ascii_letters), after=st.text(string.ascii_letters))
def test_a_reference_stands_for_what_is_kept(secret: str, before: str, after: str) -> None:
    """In a variable or a file; the line's end is no part of it; and what was looked up is not held by anything."""
    os.environ["PLANT_ANY"] = secret
    with tempfile.NamedTemporaryFile() as file:
        file.write(secret.encode() + b"\n")
        file.flush()
        for reference in ("${env:PLANT_ANY}", f"${{file:{file.name}}}"):
            written = SecretText(f"{before}{reference}{after}", "password=")
            as_it_was = pickle.dumps(written)
            assert written.resolved() == f"{before}{secret}{after}"
            assert reference in repr(written)
            assert pickle.dumps(written) == as_it_was


@given(secret=KEPT)
def test_a_part_of_an_address_is_that_part_whatever_it_holds(secret: str) -> None:
    """Nothing in a password can become a host, a path or another word; oracles: the libraries that read them."""
    os.environ["PLANT_ANY"] = secret
    broker = Access("mqtts://mill:${env:PLANT_ANY}@broker.plant:1884").looked_up()
    assert (broker.username, broker.password, broker.host, broker.port) == ("mill", secret, "broker.plant", 1884)
    url = SecretText("postgresql://mill:${env:PLANT_ANY}@db.plant/history", "")
    assert unquote(urlsplit(url.in_url()).password or "") == secret
    assert conninfo_to_dict(url.in_url())["password"] == secret
    for words in (
        "host=db.plant password=${env:PLANT_ANY} user=mill",
        "password='${env:PLANT_ANY}' host=db.plant user=mill",
    ):
        read = conninfo_to_dict(SecretText(words, "").in_words())
        assert read == {"host": "db.plant", "password": secret, "user": "mill"}


@given(secret=KEPT.filter(lambda text: "$" not in text and "{" not in text and "}" not in text), said=st.text())
def test_what_others_say_is_repeated_without_it(secret: str, said: str) -> None:
    """A server that quotes what it was given is quoted with the reference."""
    os.environ["PLANT_ANY"] = secret
    hidden = SecretText("${env:PLANT_ANY}", "").hidden(f"{said}{secret}{said}")
    assert secret not in hidden.replace("${env:PLANT_ANY}", "\0")


def test_all_of_an_address_may_be_kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is taken as it is, and what it names is checked when it is known."""
    monkeypatch.setenv("BROKER", "mqtt://mill:se%40cret@broker.plant")
    access = Access("${env:BROKER}")
    assert str(access.broker) == str(access.looked_up()) == "${env:BROKER}"
    assert access.looked_up().password == "se@cret"
    monkeypatch.setenv("BROKER", "broker.plant with s3cret")
    with pytest.raises(InputError, match="must be mqtt://host:1883") as caught:
        access.looked_up()
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("BROKER", "mqtt://broker.plant")
    with pytest.raises(InputError, match="write mqtts://"):
        tm.sources.MQTT("${env:BROKER}", "plant/{sensor}", ca="ca.pem").check()


def test_what_is_shown_is_what_was_written(kept: Path) -> None:
    """Of hosts and databases the reference, of who may come in nothing; a password that is written out is not shown."""
    source = tm.sources.MQTT(f"mqtt://me:${{file:{kept}}}@${{env:PLANT_SECRET}}:1884", "plant/{sensor}")
    assert repr(source) == "MQTT('mqtt://${env:PLANT_SECRET}:1884', ['plant/{sensor}'])"
    for database, seen in (
        (
            "postgresql://me:${env:PLANT_SECRET}@${env:DB_HOST}/${env:DB}?sslpassword=${env:K}",
            "postgresql://${env:DB_HOST}/${env:DB}",
        ),
        (f"host=db password=${{file:{kept}}} dbname=history", "postgresql://db/history"),
        ("${env:DATABASE_URL}", "${env:DATABASE_URL}"),
        ("postgresql://me:written-0ut@db/history", "postgresql://db/history"),
    ):
        assert shown(SecretText(database, "")) == seen
        assert repr(tm.sinks.PostgreSQL(database)) == f"PostgreSQL({seen}, table 'features')"
    for made in (
        tm.sources.MQTT("mqtt://me:written-0ut@broker", "a"),
        tm.sources.MQTT("mqtt://broker", "a", username="me", password="written-0ut"),
        tm.sources.HTTP(token="written-0ut"),
        SecretText("written-0ut", "token= of HTTP"),
    ):
        assert "written-0ut" not in repr(made)


@pytest.mark.parametrize(
    ("password", "said"),
    [
        (
            "${env:NOT_THERE}",
            "password= of MQTT refers to ${env:NOT_THERE}, and the environment has no NOT_THERE; set it",
        ),
        ("${env:EMPTY}", "password= of MQTT refers to ${env:EMPTY}, which is empty."),
        (
            "${file:/not/there}",
            "password= of MQTT refers to ${file:/not/there}, and there is no file|/not/there cannot be read",
        ),
        ("${file:{folder}}", "cannot be read"),
        ("${file:{folder}/lines}", "which has more than one line"),
        ("${file:{folder}/long}", "which is longer than 65536 bytes"),
        ("${file:{folder}/latin}", "which is not UTF-8 text"),
    ],
)
def test_what_is_not_there_is_told_at_start(
    password: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that names the option and the reference, and nothing of what was found."""
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "lines").write_text("c4nary\nsecond\n")
    (tmp_path / "long").write_bytes(b"c4nary" * 20_000)
    (tmp_path / "latin").write_bytes(b"c4nary\xff")
    source = tm.sources.MQTT(
        "mqtt://broker", "plant/{sensor}", username="me", password=password.replace("{folder}", str(tmp_path))
    )
    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Latest())
    with pytest.raises(InputError) as caught:
        pipeline.check()
    assert any(part in str(caught.value) for part in said.split("|"))
    assert "c4nary" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["${evn:NAME}", "${env:}", "${env:MINE", "${:x}", "a ${file:} b", "${env:A} ${vault:b}"]
)
def test_a_reference_that_is_none_is_refused_when_it_is_written(text: str) -> None:
    """Else it would be sent as a password; what it says is not repeated, since it may be one."""
    with pytest.raises(PlanError, match=r"token= of HTTP refers .* write \$\{env:NAME\}") as caught:
        tm.sources.HTTP(token=text)
    assert text not in str(caught.value)


def test_a_dollar_sign_is_no_reference() -> None:
    """Passwords have them."""
    for text in ("pa$$word", "$HOME", "${HOME}", "{env:A}", "a}${b"):
        assert SecretText(text, "").resolved() == text


def test_a_file_that_all_may_read_is_warned_of(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With its name and the command, at each start; one that is private is not."""
    source = tm.sources.HTTP(token=f"${{file:{kept}}}")
    with caplog.at_level(logging.WARNING, "tidemill"):
        source.check()
        assert not caplog.records
        kept.chmod(0o644)
        source.check()
    assert [record.getMessage() for record in caplog.records] == [
        f"token= of HTTP: every user of this machine may read {kept}; take that away with: chmod o-r {kept}"
    ]
