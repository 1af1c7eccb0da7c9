"""A recording's first records → which field is the sensor, which the time, which the reading. No I/O.

What cannot be told is an `InputError` that says what was seen and which option to give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill.app.new.fields_seen import Place, fields_seen
from tidemill.app.new.key_role import key_of
from tidemill.app.new.sniffing import Head
from tidemill.app.new.time_role import time_of
from tidemill.app.new.times_seen import TimeSeen
from tidemill.app.new.value_role import value_of
from tidemill.formats.field_names import words_of
from tidemill.formats.key_template import KeyTemplate

__all__ = ["Given", "Roles", "roles_of"]


@dataclass(frozen=True)
class Given:
    """What the command line says; None where it is left to the guess."""

    key: str | None = None
    time: str | None = None
    tz: str | None = None
    value: str | None = None
    otherwise: str = "{stem}"
    """The key when no field names a sensor: of a recording the file's name, of messages the topic."""
    arrival: bool = False
    """Whether records without a time have that of their arrival."""


@dataclass(frozen=True)
class Roles:
    """What the fields mean."""

    key: str
    """A field or a template, as a source takes it."""
    time: str
    seen: TimeSeen
    tz: str
    value: Place
    """The field of the reading; several names when it is inside of others."""
    others: tuple[Place, ...] = ()
    """Further numbers, each a reading of its own perhaps."""
    doubts: Mapping[str, str] | None = None
    """What is a guess, and about what: ``key``, ``time``, ``format`` (of the time), ``tz``, ``value``."""

    @property
    def key_fields(self) -> tuple[str, ...]:
        """What makes the key: fields, or what a source knows besides."""
        return KeyTemplate(self.key).names

    def doubt(self, role: str) -> str:
        """Why a role is a guess; empty when it is none."""
        return (self.doubts or {}).get(role, "")


def roles_of(head: Head, given: Given) -> Roles:
    """Raises `InputError` when a role cannot be told, with the fields seen and the option to give.

    >>> from tidemill.app.new.sniffing import sniffed
    >>> head = sniffed("a.csv", ".csv", b"timestamp,mote_id,temp\\n1700000000,3,20.5\\n1700000005,3,21\\n", whole=True)
    >>> roles = roles_of(head, Given())
    >>> roles.key, roles.time, roles.seen.words, roles.value
    ('mote_id', 'timestamp', 'epoch in s', ('temp',))
    """
    fields = fields_seen(head)
    time, seen, time_doubt = time_of(fields, given.time, arrival=given.arrival)
    key, key_doubt = key_of(fields, given.key, time=time, otherwise=given.otherwise)
    taken = {time, *KeyTemplate(key).names}
    value, others, value_doubt = value_of(fields, given.value, taken=taken, of_messages=given.arrival)
    zone_told = seen.zoned or given.tz is not None or {"utc", "gmt"} & set(words_of(time))
    doubts = {
        "key": key_doubt,
        "time": time_doubt,
        "format": seen.doubt if seen.format else "",
        "tz": "" if zone_told else "a guess: the times name no zone",
        "value": value_doubt,
    }
    return Roles(key, time, seen, given.tz or "UTC", value, others, {role: why for role, why in doubts.items() if why})
