"""Reaching a PostgreSQL server, and its refusals as our own errors."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from tidemill.errors import InputError, MissingExtra, OutsideError, PlanError, TidemillError
from tidemill.secret import SecretText

if TYPE_CHECKING:
    import psycopg

__all__ = ["Connection", "connected", "named", "require_library", "shown"]

if TYPE_CHECKING:
    Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_S: Final = 10
"""Seconds in which a server must answer; a ``connect_timeout`` in the user's own string comes first."""
LOST_MS: Final = 30_000
"""A connection on which nothing comes through for so long is given up."""

_URL: Final = re.compile(r"postgres(ql)?://")
_LOGIN: Final = re.compile(r"\A[^/@]*@")
_QUERY: Final = re.compile(r"\w+=[^&]*(&\w+=[^&]*)*")
_PART: Final = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S*)")
_SHOWN: Final = ("host", "hostaddr", "port", "dbname", "service")


def require_library() -> None:
    """Raise `MissingExtra` where psycopg is not installed, or finds no libpq."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise MissingExtra("psycopg", "postgres", "Tables of PostgreSQL") from None


def shown(database: SecretText) -> str:
    """Which database it is, with nothing of who may use it: no name of a user, no password.

    >>> shown(SecretText("postgresql://me:secret@db.plant/history?sslmode=require&password=secret", ""))
    'postgresql://db.plant/history'
    >>> shown(SecretText("host=${env:DB} dbname=history user=me password='se cret'", ""))
    'postgresql://${env:DB}/history'
    """
    return database.shown(_without_login)


def _without_login(dsn: str) -> str:
    if _URL.match(dsn):
        place, _, query = _LOGIN.sub("", dsn.partition("://")[2]).partition("?")
        if "@" in query and not _QUERY.fullmatch(query):
            place = query = ""  # the mark may be of a password, which libpq refuses so
        server, _, database = place.rpartition("@")[2].partition("/")
        parts = {name: value for name, value in parse_qsl(query) if name in _SHOWN}
    else:
        server, database = "", ""
        parts = {name: value.strip("'") for name, value in _PART.findall(dsn) if name in _SHOWN}
    server = parts.get("host") or parts.get("hostaddr") or server
    if "port" in parts:
        server = f"{server}:{parts['port']}"
    database = parts.get("dbname") or database
    if "service" in parts:
        return f"postgresql://{server}/{database} (service {parts['service']})"
    return f"postgresql://{server}/{database}"


def connected(database: SecretText) -> Connection:
    """A connection without an open transaction. What the user's string says, or the environment, comes before what is ours.

    Raises `MissingExtra`, `PlanError` for a string that libpq cannot read, `InputError` for what it refers to and is not
    there, and what `named` makes of a refusal.
    """
    require_library()
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    is_url = _URL.match(database.standing_in("x")) is not None
    dsn = database.in_url() if is_url else database.in_words()
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's own message quotes the string, which may hold a password
        raise PlanError(
            "The database of PostgreSQL(...) is neither a URL such as postgresql://user@host/database nor words such as "
            '"host=... dbname=... user=...".'
        ) from None
    ours = {
        "connect_timeout": os.environ.get("PGCONNECT_TIMEOUT", CONNECT_S),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": LOST_MS,
    }
    options: dict[str, Any] = {name: value for name, value in ours.items() if name not in given}
    try:
        return psycopg.connect(
            dsn,
            autocommit=True,  # transactions are begun and ended in so many words
            prepare_threshold=None,  # a pooler in between may give each transaction another server process
            client_encoding="utf8",
            fallback_application_name="tidemill",
            **options,
        )
    except psycopg.Error as error:
        raise named(error, database, "could not be reached") from (None if database.refers else error)


_LASTING: Final = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "is not permitted to log in",
    "certificate",
)
"""What a server says, in English, to one who may not come in. libpq hands on no code for these; a server that speaks
another language is tried again, in vain, with its own words in the log."""

_PASSING: Final[dict[str, str]] = {
    "53100": "The disk of the server is full; rows go on when there is space.",
    "53300": "All its connections are taken; end some, or raise max_connections.",
    "57P01": "It is being shut down or restarted.",
    "57P02": "It is recovering from a crash.",
    "57P03": "It is starting up.",
    "25006": "It takes no writes: a standby, or set read-only.",
    "55P03": "Another session holds a lock on the table for longer than 10 seconds; let it finish.",
}

_LASTING_STATES: Final[dict[str, str]] = {
    "28": "Check user and password.",
    "3D": "Create the database, or name another one.",
    "3F": "Create the schema, or name another one with schema=.",
    "42501": "Grant the user what is missing; it needs to create and to write tables.",
    "2BP01": 'Other objects depend on the table, so if_exists="replace" cannot drop it; drop those first.',
    "54000": "Name the columns that you want with columns=[...].",
    "54011": "Name the columns that you want with columns=[...].",
    "23": "The table has a rule of its own that a row breaks.",
    "22": "A value does not fit into its column.",
    "42": "",
    "0A": "",
    "2B": "",
    "54": "",
}


def named(error: psycopg.Error, database: SecretText, doing: str) -> TidemillError:
    """`InputError` for what stays so until somebody changes it, `OutsideError` for what may pass by itself."""
    state = error.sqlstate or ""
    place, said = shown(database), database.hidden(_said(error))
    for prefix in (state, state[:2]):
        if prefix in _LASTING_STATES:
            return InputError(_sentence(place, doing, said, _LASTING_STATES[prefix]))
    needs_password = getattr(error.pgconn, "needs_password", False) if not state else False
    if not state and (needs_password or any(words in str(error) for words in _LASTING)):
        return InputError(_sentence(place, doing, said, "Check the address, user, password and rights."))
    return OutsideError(_sentence(place, doing, said, _PASSING.get(state, "")))


def _said(error: psycopg.Error) -> str:
    """The server's words in one line; its context quotes rows, and is left out, and so is what libpq asks on further lines."""
    first_line = str(error).strip().partition("\n")[0]
    said = (error.diag.message_primary if error.sqlstate else None) or first_line or type(error).__name__
    return " ".join(said.split()).rstrip(".")


def _sentence(place: str, doing: str, said: str, hint: str) -> str:
    return f"{place} {doing}: {said}. {hint}".rstrip()
