"""``tidemill new plant.py --mqtt URL``: listen to a broker, keep what was heard as a recording, and write the same files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from tidemill import files, sources
from tidemill.app.exit_codes import ExitCode
from tidemill.app.new.command import finish, near, places_of
from tidemill.app.new.fields_seen import at_place
from tidemill.app.new.in_lists import EACH, Opened, opened
from tidemill.app.new.key_role import SensorsInside
from tidemill.app.new.live import Heard, heard
from tidemill.app.new.roles import Given, Roles, roles_of
from tidemill.app.new.sniffing import Head, Layout
from tidemill.app.new.survey import surveyed
from tidemill.app.new.templates import Draft, Live
from tidemill.app.new.topics_seen import TopicsSeen, topics_seen
from tidemill.column import Column
from tidemill.errors import InputError
from tidemill.formats.brokers import broker_of
from tidemill.formats.json_lines import time_texts
from tidemill.formats.key_template import KeyTemplate
from tidemill.formats.roles import DEFAULT_TIME
from tidemill.formats.topics import TopicPattern
from tidemill.printable import counted
from tidemill.schema import Kind

__all__ = ["new_live"]

HEARD: Final = "heard.ndjson"
"""What was heard, as records: the test compares them."""
PASSWORD: Final = "MQTT_PASSWORD"  # noqa: S105 - a variable's name
"""The variable of the environment that holds the password, here and in the plan, unless the address has it."""
_OTHERS_SHOWN: Final = 3
_LETTERS: Final = 6
"""That tell a plan's client_id from that of a plan of the same name: of two runs with one, each ends the other's connection."""

Row = dict[str, Any]


def new_live(plan: str, url: str, topic: str, seconds: float, given: Given, *, force: bool) -> ExitCode:
    """Write the plan, the calibration and the test, and what was heard beside them.

    The password in an address goes to no file: the plan reads it from the environment. Raises what `new` raises, and
    `OutsideError` when no broker answers. Nothing is written then.
    """
    if not seconds > 0:
        raise InputError(f"--seconds {seconds:g} must be more than 0.")
    places = places_of(plan, HEARD, force=force)
    broker = broker_of(url)
    if broker.username is not None and broker.password is None:
        broker = broker_of(url, password=os.environ.get(PASSWORD))
    found = heard(url, broker.password, topic, seconds)
    topics = topics_seen(found.topics)
    rows = _rows(found, topics)
    many = len(rows)
    asked = replace(given, key=given.key or topics.key, otherwise="{topic}", arrival=True)
    items: Opened | None = None
    if given.value is not None and EACH in given.value:
        items = opened(str(broker), rows, given.value)
        rows, asked = list(items.rows), replace(asked, value=items.value)
    fields = tuple(dict.fromkeys(name for row in rows for name in row if name != _ARRIVED))
    head = Head(str(broker), Layout("ndjson"), fields, tuple(rows))
    moved: dict[str, tuple[str, ...]] = {}
    try:
        roles = roles_of(head, asked)
    except SensorsInside as found_at:
        moved = {found_at.name: found_at.place}
        rows = [{**row, found_at.name: at_place(row, found_at.place)} for row in rows]
        head = replace(head, fields=(*fields, found_at.name), rows=tuple(rows))
        key = (asked.key or found_at.name).replace(".".join(found_at.place), found_at.name)
        roles = roles_of(head, replace(asked, key=key))
    if items is not None and given.key is None:
        roles = _told_apart(roles, items)
    paths = _paths(roles, TopicPattern(topics.pattern).names, moved, always=items is not None)
    recorded = [_recorded(row, roles, paths) for row in rows]
    on = counted(len({row["topic"] for row in rows}), "topic")
    count = f"{counted(many, 'message')} on {on} in {seconds:g} s"
    live = Live(
        str(broker),
        topics.pattern,
        f"a guess from {count}",
        broker.username,
        broker.password is not None,
        f"tidemill-{places[0].stem}-{secrets.token_hex(_LETTERS // 2)}",
        paths if items is None else {name: items.in_message(place) for name, place in paths.items()},
    )
    roles = replace(roles, value=roles.value[-1:] if paths else roles.value)
    draft = Draft(places[0].name, HEARD, True, places[0].stem, Layout("ndjson"), roles, live=live)
    survey = surveyed(sources.Records(recorded, key=roles.key, time=roles.time, tz=roles.tz), roles.value)
    files.write_whole(places[-1], msgspec.json.Encoder().encode_lines(recorded))
    finish(
        places,
        replace(draft, rejected=survey.rejected.count > 0),
        survey,
        read=f"{broker}, {topics.pattern!r}: {count}, of {counted(len(survey.sensors), 'sensor')}{_others(topics, found)}",
        again=f" --input {near(places[-1])}",
    )
    return ExitCode.DONE


_ARRIVED: Final = ""
"""The field that carries the arrival until it is known whether it is needed."""


def _rows(found: Heard, topics: TopicsSeen) -> list[Row]:
    """The readings on topics of the pattern, with what it binds and the topic, as the source will make them."""
    pattern = TopicPattern(topics.pattern)
    bound = {topic: pattern.match(topic) for topic in found.topics}
    return [
        {**columns, **record, **columns, "topic": topic, _ARRIVED: arrived_ns}
        for topic, arrived_ns, record in found.messages
        if (columns := bound[topic]) is not None
    ]


def _told_apart(roles: Roles, items: Opened) -> Roles:
    """The same with what tells the items of a list apart in the key, where something does."""
    label = next((name for name in items.labels if name not in (*roles.key_fields, roles.time)), None)
    if label is None or set(items.labels) & set(roles.key_fields):
        return roles
    template = KeyTemplate(roles.key)
    key = roles.key if template.field is None else f"{{{template.field}}}"
    doubts = {**(roles.doubts or {}), "key": f"a guess: {label!r} tells the items of a list apart"}
    return replace(roles, key=f"{key}/{{{label}}}", doubts=doubts)


def _paths(
    roles: Roles, bound: Sequence[str], moved: Mapping[str, tuple[str, ...]], *, always: bool
) -> dict[str, tuple[str, ...]]:
    """Where each column is, once one is inside of other fields, or ``always``: a source takes these columns, and no others.

    ``moved`` are those that the messages have there and the records at their top.
    """
    if len(roles.value) == 1 and not moved and not always:
        return {}
    own = [name for name in (*roles.key_fields, roles.time) if name not in (*bound, "topic")]
    places = {name: moved.get(name, (name,)) for name in own if name != roles.value[-1]}
    return {roles.value[-1]: roles.value, **places}


def _recorded(row: Row, roles: Roles, paths: dict[str, tuple[str, ...]]) -> Row:
    """A reading as a record of a recording, which tells its time."""
    made = dict(row)
    arrived_ns = made.pop(_ARRIVED)
    if paths:
        taken = {name: item for name, place in paths.items() if (item := at_place(row, place)) is not None}
        made = {name: made[name] for name in (*roles.key_fields, "topic") if name in made} | taken
    if roles.time == DEFAULT_TIME and made.get(DEFAULT_TIME) is None:
        made[DEFAULT_TIME] = time_texts(Column(Kind.TIME, np.array([arrived_ns])))[0]
    return made


def _others(topics: TopicsSeen, found: Heard) -> str:
    """What is not in the plan."""
    parts = []
    if topics.others:
        shown = ", ".join(map(repr, topics.others[:_OTHERS_SHOWN]))
        many = len(topics.others)
        parts.append(f"{counted(many, 'topic')} {'is' if many == 1 else 'are'} left out ({shown})")
    if found.unread:
        why, _ = found.unread.most_common(1)[0]
        many = found.unread.total()
        parts.append(f"{counted(many, 'message')} {'holds' if many == 1 else 'hold'} no reading ({why})")
    return f"; {'; '.join(parts)}" if parts else ""
