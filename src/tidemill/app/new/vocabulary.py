"""What fields are called that hold quantities and readings, and what is none of these."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ARRIVALS",
    "MEASURED",
    "METRICS",
    "NO_READINGS",
    "PHYSICAL",
    "READINGS",
]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MEASURED: Final = _words(
    "measured measurement sampled sample observed observation event captured acquired acquisition recorded reading device "
    "sensor"
)
"""Of two times of a record, the one that a run is to go by .."""
ARRIVALS: Final = _words(
    "received receive recv rx arrival arrived ingest ingested ingestion server gateway created inserted stored saved written "
    "processed updated uploaded"
)
""".. and the one that came later."""
METRICS: Final = _words("metric channel parameter measurement quantity variable param signal property measure")
"""What a reading is of, where a device has several."""
READINGS: Final = _words("value reading val wert valeur valor")
PHYSICAL: Final = _words(
    "temperature temp humidity pressure level flow speed power voltage current vibration energy co2 distance weight "
    "force torque load rpm acceleration salinity ph usage utilization"
)
NO_READINGS: Final = _words(
    "lat latitude lon lng long longitude altitude elevation depth id index idx seq sequence counter fcnt cnt port fport "
    "version label flag code status epoch year month day hour minute second row sample number no nr dr redundancy test "
    "score size"
)
"""Numbers all the same: taken when there is nothing else."""
