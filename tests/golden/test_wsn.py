"""Hot water beside wireless sensors: flags against the labels of the recordings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tidemill as tm

pytestmark = pytest.mark.slow

WINDOW = 240  # readings: twenty minutes, several times as long as any event
RISE = {"humidity": 5.0, "temperature": 2.0}  # %, degrees C above the middle of the last twenty minutes


def spilled(batch: tm.Batch) -> dict[str, np.ndarray]:
    """Far above what the mote is used to, in one of both: hot water makes air warm and humid, and the weather slowly."""
    above = [batch[name] - batch[f"{name}_median_{WINDOW}"] > rise for name, rise in RISE.items()]
    return {"spill": np.logical_or.reduce(above)}


PLAN = tm.Plan(tm.Rolling(list(RISE), window=WINDOW, stats=["median"]), tm.Map(spilled, adds={"spill": bool}))


@pytest.fixture
def flags(recordings, rows_of):
    """Label, flag and mote of each reading of a recording."""

    def run(name: str) -> pd.DataFrame:
        source = tm.sources.Replay(recordings / "uncg_wsn" / name / "data.csv", key="mote_id", time="reading")
        frame = pd.DataFrame(rows_of(source, PLAN))
        return frame.assign(label=frame["label"] != 0)[["mote_id", "reading", "label", "spill"]]

    return run


@pytest.mark.parametrize(
    ("name", "rows", "labelled", "least"),
    [("singlehop", 18_914, 149, (1.0, 0.96)), ("multihop", 18_760, 158, (1.0, 0.94))],
)
def test_spills_are_flagged(flags, name, rows, labelled, least):
    """The limits were chosen with both recordings in view; the multi-hop one is of two months later."""
    frame = flags(name)
    hits = int((frame["label"] & frame["spill"]).sum())
    precision, recall = hits / int(frame["spill"].sum()), hits / int(frame["label"].sum())
    print(f"{name}: {labelled} labelled readings of {rows:,}; precision {precision:.3f}, recall {recall:.3f}")
    assert (len(frame), int(frame["label"].sum())) == (rows, labelled)
    assert precision >= least[0]
    assert recall >= least[1]


@pytest.mark.parametrize("name", ["singlehop", "multihop"])
def test_each_event_is_flagged_with_its_first_reading_or_its_second(flags, name):
    """Two events in each recording, at different motes."""
    frame = flags(name)
    motes = frame.loc[frame["label"], "mote_id"].unique()
    assert len(motes) == 2
    for mote in motes:
        own = frame[frame["mote_id"] == mote]
        late = own.loc[own["spill"], "reading"].min() - own.loc[own["label"], "reading"].min()
        assert late in (0, 1)
