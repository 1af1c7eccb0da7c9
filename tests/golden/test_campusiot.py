"""Loss and duplicates of three LoRaWAN devices, from their frame counters alone, against what is published of them.

The recordings' README: 46,706 messages, 804 of them without a counter, 1,984 repeated, about 17,500 lost, 10 resets.
"""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tidemill as tm
from tidemill.testing import ListSink

pytestmark = pytest.mark.slow

DOOR, STATION, TOWER = "d1d1e80000000032", "d1d1e80000000033", "A81758FFFE04B1C1"
PUBLISHED = {
    DOOR: {"records": 9_786 + 10_102, "uncounted": 368, "repeated": 1, "lost": 17_314, "resets": 9},
    STATION: {"records": 14_204, "uncounted": 436, "repeated": 0, "lost": 86, "resets": 0},
    TOWER: {"records": 12_614, "uncounted": 0, "repeated": 1_983, "lost": 126, "resets": 1},
}
COUNTERS = {"d1d1*": ("devEUI", "fCnt"), "ems-*": ("dev_eui", "fcnt")}
"""Per network server, the fields that hold the device and its counter."""


def messages(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as lines:
        return [msgspec.json.decode(line) for line in lines]


def test_the_counters_say_what_the_readme_says(recordings: Path) -> None:
    """The counts above, by going through the files with nothing of ours: what the stage is held to."""
    for device, expected in PUBLISHED.items():
        paths = [path for path in (recordings / "campusiot_lorawan").glob("*.gz") if device in path.name]
        rows = sorted((row for path in paths for row in messages(path)), key=lambda row: row["_timestamp"])
        frames = [row.get("fCnt", row.get("fcnt")) for row in rows]
        steps = [after - before for before, after in pairwise(frame for frame in frames if frame is not None)]
        assert expected == {
            "records": len(rows),
            "uncounted": frames.count(None),
            "repeated": steps.count(0),
            "lost": sum(step - 1 for step in steps if step > 0),
            "resets": sum(step < 0 for step in steps),
        }
    sums = {what: sum(counts[what] for counts in PUBLISHED.values()) for what in PUBLISHED[DOOR]}
    assert sums == {"records": 46_706, "uncounted": 804, "repeated": 1_984, "lost": 17_526, "resets": 10}


def test_dedup_finds_loss_and_duplicates_of_each_device(recordings: Path, lanes: int) -> None:
    """In a run over the recordings as they are, in the run's counters and in the rows of each device."""
    found: dict[str, dict[str, int]] = {}
    totals: Counter[str] = Counter()
    for pattern, (device, counter) in COUNTERS.items():
        source = tm.sources.Replay(
            recordings / "campusiot_lorawan" / f"{pattern}.ndjson.gz", key=device, time="_timestamp"
        )
        sink = ListSink(columns=[device, counter, "lost", "reset"])
        plan = tm.Plan(tm.Dedup(counter=counter, modulo=65_536))
        report = tm.run(tm.Pipeline(source, plan, sink), lanes=lanes)
        assert (report.dead_letters, report.filtered, report.in_flight) == (0, 0, 0)
        totals.update(report.counters, records=report.records_in, repeated=report.deduplicated)
        for row in sink.rows:
            own = found.setdefault(row[device], dict.fromkeys(PUBLISHED[DOOR], 0))
            own["records"] += 1
            own["uncounted"] += row.get(counter) is None
            own["lost"] += row["lost"]
            own["resets"] += row["reset"]
    for device, own in found.items():  # what was dropped is what is not there
        own["repeated"] = PUBLISHED[device]["records"] - own["records"]
        own["records"] += own["repeated"]
    assert found == PUBLISHED
    silences = totals.pop("time_leaps")  # of more than thirty days, after which event time goes on
    assert totals == {"records": 46_706, "unchecked": 804, "repeated": 1_984, "lost": 17_526, "resets": 10}
    assert silences == 3


def test_every_message_has_its_own_time(recordings: Path) -> None:
    """By device and time there is nothing to drop: a repeated frame is archived anew, at another millisecond."""
    source = tm.sources.Replay(recordings / "campusiot_lorawan" / "ems-*.ndjson.gz", key="dev_eui", time="_timestamp")
    report = tm.run(tm.Pipeline(source, tm.Plan(tm.Dedup()), ListSink(columns=["fcnt"])), lanes=0)
    assert (report.rows_out, report.deduplicated) == (12_614, 0)
