"""What fields of records are called that hold the sensor or the time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["NO_SENSORS", "SENSORS", "TIMES", "WEAK_SENSORS", "likely", "words_of"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SENSORS: Final = _words(
    "sensor device mote node machine asset equipment tag station thing meter eui host hostname topic channel series "
    "location name id key"
)
"""The best first."""
WEAK_SENSORS: Final = _words("name id key")
"""Of these, those that name rows as often."""
NO_SENSORS: Final = _words(
    "unit units status state quality flag label comment type kind message text version note data payload"
)
"""Texts that come again and name no sensor."""
TIMES: Final = _words("timestamp time datetime date ts when clock epoch stamp utc zeit datum heure fecha at")
_PART: Final = 4
"""Letters of a word that is looked for inside of others too: ``sensorid``."""


def words_of(name: str) -> list[str]:
    """The words of a field's name.

    >>> words_of("deviceName"), words_of("Mote-ID"), words_of("devEUI")
    (['device', 'name'], ['mote', 'id'], ['dev', 'eui'])
    """
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())


def likely(fields: Sequence[str], words: Sequence[str]) -> str | None:
    """The field that is called most like one of these words, the best of which come first; None when none is.

    >>> likely(["humidity", "moteId"], SENSORS), likely(["sensorid"], SENSORS), likely(["humidity"], SENSORS)
    ('moteId', 'sensorid', None)
    """
    for word in words:
        for field in fields:
            if word in words_of(field):
                return field
    for word in words:
        for field in fields:
            if len(word) >= _PART and word in field.lower():
                return field
    return None
