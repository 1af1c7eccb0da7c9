"""For tests of pipelines, stages and sinks, ours and yours: a clock, a source, a sink and lanes that are driven by hand,
and the laws that every stage keeps.

Tests with these never wait and never depend on the speed of the machine.
"""

from __future__ import annotations

from tidemill.testing.clock import ManualClock
from tidemill.testing.inline_lanes import InlineLanes
from tidemill.testing.laws import check_map, check_stage
from tidemill.testing.list_sink import ListSink
from tidemill.testing.scripted import CRASH, EOF, PAUSE, ScriptedSource
from tidemill.testing.subject import LawBroken

__all__ = [
    "CRASH",
    "EOF",
    "PAUSE",
    "InlineLanes",
    "LawBroken",
    "ListSink",
    "ManualClock",
    "ScriptedSource",
    "check_map",
    "check_stage",
]
