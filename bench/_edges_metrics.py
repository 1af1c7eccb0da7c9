"""What it costs that a run is asked how it is: lines over one connection, with `/metrics` read once a second and without it."""

from __future__ import annotations

import argparse
import os

import tidemill as tm
from bench import _common
from bench._common import Table, median, spread, worst_lag
from bench._edges_run import Took, lines_of, taken

LINES = 3_000_000
"""Some seconds, so that there are some scrapes."""


def measure(options: argparse.Namespace, table: Table) -> None:
    """By turns, each first in every second; CPU time is what other programs disturb less than they do a rate."""
    without, scraped = [], []
    for number in range(options.runs):
        for first in (number % 2 == 0, number % 2 == 1):
            (without if first else scraped).append(_taken(options, scraped=not first))
        print(
            f"metrics: {_told(scraped[-1])}, {scraped[-1].scrapes} scrapes; without {_told(without[-1])}; "
            f"{_common.lag_text(scraped[-1].report.loop_lag)}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    pairs = list(zip(without, scraped, strict=True))
    rates = [off.seconds / on.seconds for off, on in pairs]
    what = "TCP, NDJSON, /metrics read once a second / without it"
    note = f"; {LINES / median([on.seconds for on in scraped]):,.0f}/s; loop lag {worst_lag([on.report.loop_lag for on in scraped])}"
    table.at_least(f"{what}, lines/s", median(rates), 0.99, shown="{:.3f}", note=spread(rates, "{:.3f}") + note)
    for which, off_s, on_s in (
        ("the loop's thread", [off.loop_s for off in without], [on.loop_s for on in scraped]),
        ("all threads of the engine", [off.process_s for off in without], [on.process_s for on in scraped]),
    ):
        ratios = [off / on for off, on in zip(off_s, on_s, strict=True)]
        note = f"{spread(ratios, '{:.3f}')}; {_each(median(off_s))} / {_each(median(on_s))} a line"
        table.at_least(f"the same by CPU time of {which}", median(ratios), 0.99, shown="{:.3f}", note=note)


def _taken(options: argparse.Namespace, *, scraped: bool) -> Took:
    return taken(tm.sources.TCP(), LINES, lines_of(LINES, "ndjson"), options.folder, scraped=scraped)


def _told(took: Took) -> str:
    return f"{LINES / took.seconds:,.0f}/s, {_each(took.loop_s)} of the loop and {_each(took.process_s)} of the engine a line"


def _each(seconds: float) -> str:
    return f"{seconds / LINES * 1e6:.3f} us"
