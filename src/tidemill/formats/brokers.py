"""Where a broker of MQTT is, and what its refusals mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from tidemill.errors import InputError, PlanError
from tidemill.secret import SecretText

__all__ = ["VERSIONS", "Access", "Broker", "broker_of", "check_session", "refusal"]

VERSIONS: Final = ("5", "3.1.1")
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class Broker:
    """A broker's address, and who comes."""

    host: str
    port: int
    tls: bool
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    written: str = ""
    """Its address as people are shown it, where that is not all of it: parts are kept elsewhere."""

    def __str__(self) -> str:
        """Which broker it is, with nothing of who may use it."""
        if self.written:
            return self.written
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def broker_of(url: object, username: str | None = None, password: str | None = None, *, written: str = "") -> Broker:
    """The broker of a URL. Raises `PlanError` that does not show it: there may be a password in it.

    >>> print(broker_of("mqtts://me:s3cret@plant.example"), broker_of("mqtt://localhost:1884").port)
    mqtts://plant.example:8883 1884
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in _PORTS or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise PlanError("The address of MQTT(...) must be mqtt://host:1883, or mqtts://host:8883 for TLS.")
    if username is None and parts.username is not None:
        username = unquote(parts.username)
    if password is None and parts.password is not None:
        password = unquote(parts.password)
    if password is not None and username is None:
        raise PlanError("MQTT(...) has a password and no username=.")
    return Broker(host, port or _PORTS[parts.scheme], parts.scheme == "mqtts", username, password, written)


def check_session(qos: object, version: object, client_id: object) -> None:
    """What is asked of a broker can be. Raises `PlanError`."""
    if qos not in (0, 1, 2) or isinstance(qos, bool):
        raise PlanError(f"qos={qos!r} of MQTT must be 0, 1 or 2.")
    if version not in VERSIONS:
        raise PlanError(f"version={version!r} of MQTT must be {' or '.join(map(repr, VERSIONS))}.")
    if client_id is not None and (not isinstance(client_id, str) or not 1 <= len(client_id.encode()) <= 65_535):
        raise PlanError(f"client_id={client_id!r} of MQTT must be a text.")


class Access:
    """A broker's address and who comes, as they were written: each may refer to what is kept elsewhere.

    ``broker`` is what is known of it before that is looked up. Raises `PlanError` for what cannot become an address.

    >>> Access("mqtts://mill:${file:/run/secrets/mqtt}@${env:BROKER}").broker.written
    'mqtts://${env:BROKER}'
    """

    def __init__(self, url: object, username: str | None = None, password: str | None = None) -> None:
        self._url = SecretText(url if isinstance(url, str) else "", "the address of MQTT")
        self._username = None if username is None else SecretText(username, "username= of MQTT")
        self._password = None if password is None else SecretText(password, "password= of MQTT")
        written = self._url.shown(_without_login) if self._url.refers else ""
        if self._url.whole:
            self.broker = Broker("", 0, tls=True, written=written)
        else:
            logins = [None if each is None else each.standing_in("1") for each in (self._username, self._password)]
            self.broker = broker_of(self._url.standing_in("1"), *logins, written=written)

    def check(self) -> None:
        """What they refer to is there. Raises `InputError`."""
        for each in (self._url, self._username, self._password):
            if each is not None:
                each.check()

    def looked_up(self) -> Broker:
        """The broker as it is to be reached now; blocks for a moment. Raises `InputError`."""
        username = None if self._username is None else self._username.resolved()
        password = None if self._password is None else self._password.resolved()
        try:
            return broker_of(self._url.in_url(), username, password, written=self.broker.written)
        except PlanError as error:
            raise InputError(f"with what the options of MQTT refer to, they cannot be used: {error}") from None


def _without_login(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


_WHO: Final = "check username and password"
_OLD: Final = 'it does not speak this version of MQTT; try version="3.1.1"'
_ID: Final = "it does not take this client_id; choose another one"
_LASTING: Final = {
    1: _OLD,
    2: _ID,
    4: f"the username or password is wrong; {_WHO}",
    5: f"not authorized; {_WHO}",
    132: _OLD,
    133: _ID,
    134: f"the username or password is wrong; {_WHO}",
    135: f"not authorized; {_WHO}",
    138: "this client is banned; ask whoever runs the broker",
    140: f"it wants another way of proving who one is; {_WHO}",
}
"""Reason codes of both versions that stay so until somebody changes something."""
_PASSING: Final = {
    3: "it is not available at the moment",
    128: "it gave no reason",
    136: "it is not available at the moment",
    137: "it is busy",
    139: "it is shutting down",
    141: "it heard nothing from us for too long",
    142: "another client with the same client_id has taken over; give each run one of its own",
    143: "the topic filter is not valid there",
    144: "the topic is not valid there",
    145: "a packet identifier was in use",
    147: "more messages than agreed were under way",
    149: "a packet was too large for it",
    151: "a quota is used up",
    152: "an administrator has ended the connection",
    158: "it does not support shared subscriptions",
    159: "it takes no more connections at the moment",
    162: "it does not support wildcards in subscriptions",
}


def refusal(code: int) -> tuple[str, bool]:
    """What a reason code means, and whether it stays so until somebody changes something.

    >>> refusal(137), refusal(5)[1]
    (('it is busy', False), True)
    """
    if code in _LASTING:
        return _LASTING[code], True
    return _PASSING.get(code, f"its reason code is {code}"), False
