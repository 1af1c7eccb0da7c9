"""A pure-Python function of 8-10 us a record: how much of the cores each bridge leaves to it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tidemill as tm
from bench import _bridge_work as work
from bench import _peers
from bench._bridge_passes import Meter, Pass
from bench._common import Table, Wrong, attempt, median, spread

SIZES = (20, 200, 2_000)
_RECORDS = {20: 20_000, 200: 40_000, 2_000: 80_000}
_TARGETS = {20: 0.85, 200: 0.90, 2_000: 0.95}
_ONE_A_FRAME = 0.70
_WINDOWS = (64, 256)
OWN, ALONE = "tidemill", "tidemill, one item a frame"


@dataclass
class Cell:
    """One shape and one size: its items, and what they are inline."""

    shape: str
    size: int
    function: Callable[[Any], Any]
    items: list[Any]
    expected: list[Any]

    def inline(self) -> Pass:
        """The function alone on one core, here and now; by CPU time, so that other work cannot make it look slow."""
        some = self.items[: max(1, 10_000 // self.size)]
        made = Pass(len(some))
        used = time.process_time()
        for item in some:
            self.function(item)
        made.seconds = made.parent_s = time.process_time() - used
        return made

    def few(self) -> Cell:
        """A quarter of it, for peers that would take minutes."""
        count = max(16, len(self.items) // 4)
        return Cell(self.shape, self.size, self.function, self.items[:count], self.expected[:count])


@dataclass
class Efficiencies:
    """Rate / (lanes x inline), by who, shape and size, run by run; and the function's share of all CPU time, which
    other work on the machine disturbs less."""

    lanes: int
    each: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    shares: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)

    def add(self, who: str, cell: Cell, made: Pass, inline: Pass) -> None:
        place = (who, cell.shape, cell.size)
        self.each.setdefault(place, []).append(made.rate / (self.lanes * inline.rate))
        share = (inline.parent_s / inline.calls) / ((made.parent_s + made.workers_s) / made.calls)
        self.shares.setdefault(place, []).append(share)

    def text(self, who: str, shape: str, size: int) -> str:
        """Efficiency and share."""
        place = (who, shape, size)
        if place not in self.each:
            return "-"
        return f"{median(self.each[place]):.2f} ({median(self.shares[place]):.2f})"

    def who(self) -> list[str]:
        return list(dict.fromkeys(who for who, _, _ in self.each))

    def of(self, who: str, shape: str, size: int) -> float | None:
        each = self.each.get((who, shape, size))
        return median(each) if each else None


def cells(share: float = 1.0) -> list[Cell]:
    made = []
    for shape, function, records in (
        ("tuples", work.tuples, work.points_of(_RECORDS[2_000])),
        ("dicts", work.dicts, work.records_of(_RECORDS[2_000])),
    ):
        for size in SIZES:
            count = max(int(_RECORDS[size] * share), 8 * size)
            items: list[Any] = [records[start : start + size] for start in range(0, count, size)]
            made.append(Cell(shape, size, function, items, [function(item) for item in items]))
    gc.collect()
    gc.freeze()  # the inputs are no bridge's: its collections should not walk through them
    return made


def measure(options: argparse.Namespace, table: Table) -> None:
    grid = cells(0.2 if options.quick else 1.0)
    costs = [1e6 / (cell.inline().rate * cell.size) for cell in grid if cell.size == 200]
    table.note("row function inline", f"{min(costs):.1f}..{max(costs):.1f} us a record")
    made = Efficiencies(options.lanes)
    asyncio.run(_own(grid, made, options, table))
    for peer in _peers.PEERS:
        if missing := peer.missing():
            table.note(f"efficiency, {peer.name}", missing)
        elif peer.slow and options.quick:
            table.note(f"efficiency, {peer.name}", "left out of --quick")
        else:
            _peer(peer, grid, made, options, table)
    _table(table, made)
    if options.plot:
        plot(made, options.plot)


async def _own(grid: list[Cell], made: Efficiencies, options: argparse.Namespace, table: Table) -> None:
    async with tm.Lanes(options.lanes) as lanes:
        for cell in grid:
            for who, windows in ((OWN, _WINDOWS), (ALONE, (2 * options.lanes,))):
                row = f"{who}, {cell.shape} at {cell.size:,}"

                async def measured(cell: Cell = cell, who: str = who, windows: Any = windows, row: str = row) -> Pass:
                    await _through(lanes, cell, windows[0], row)
                    for _ in range(options.runs):
                        inline = cell.inline()
                        passes = [await _through(lanes, cell, window, row) for window in windows]
                        made.add(who, cell, max(passes, key=lambda each: each.rate), inline)
                    return passes[-1]

                last = await attempt(table, row, measured)
                if last is not None:
                    shown = made.text(who, cell.shape, cell.size)
                    print(f"{row}: {shown}; CPU us an item, parent + workers: {last.cpu()}", flush=True)


async def _through(lanes: tm.Lanes, cell: Cell, window: int, what: str) -> Pass:
    made = Pass(len(cell.items))
    with Meter(made):
        results = [result async for result in lanes.stream(cell.function, cell.items, window=window)]
    if results != cell.expected:
        raise Wrong(f"{what}: what came back is not what the function returns inline")
    return made


def _peer(peer: _peers.Peer, grid: list[Cell], made: Efficiencies, options: argparse.Namespace, table: Table) -> None:
    try:
        with peer.open(options.lanes) as ways:
            for cell in (one.few() if peer.slow else one for one in grid):
                for _ in range(min(options.runs, 1 if peer.slow else 3)):
                    inline = cell.inline()
                    passes = [_timed(way, cell, peer.name) for way in ways]
                    made.add(peer.name, cell, max(passes, key=lambda each: each.rate), inline)
                shown = made.text(peer.name, cell.shape, cell.size)
                print(f"{peer.name}, {cell.shape} at {cell.size:,}: {shown}", flush=True)
    except Exception as error:  # noqa: BLE001 - a peer that fails is a row
        table.note(f"efficiency, {peer.name}", f"failed: {type(error).__name__}: {str(error)[:160]}")


def _timed(way: _peers.Through, cell: Cell, who: str) -> Pass:
    made = Pass(len(cell.items))
    with Meter(made):
        results = way(cell.function, cell.items)
    if results != cell.expected:
        raise Wrong(f"{who}: what came back is not what the function returns inline")
    return made


def _table(table: Table, made: Efficiencies) -> None:
    for shape in ("tuples", "dicts"):
        for size in SIZES:
            for who, target in ((OWN, _TARGETS[size]), (ALONE, _ONE_A_FRAME if size == 20 else None)):
                each = made.each.get((who, shape, size))
                if each is None:
                    continue
                row = f"efficiency, list of {shape} at {size:,}, {who}"
                note = (
                    f"{spread(each)}; the function's share of all CPU time {median(made.shares[who, shape, size]):.2f}"
                )
                if target is None:
                    table.note(row, f"{median(each):.2f}{note}")
                else:
                    table.at_least(row, median(each), target, note=note)
        for who in made.who():
            if who not in {OWN, ALONE}:
                shown = " / ".join(made.text(who, shape, size) for size in SIZES)
                table.note(f"efficiency, list of {shape} at {' / '.join(f'{size:,}' for size in SIZES)}, {who}", shown)


def plot(made: Efficiencies, path: Path) -> None:
    """Efficiency by batch size, a line for each bridge."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot; not installed: pip install matplotlib")
        return
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "tidemill", "font.size": 9}
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, shape in zip(both, ("tuples", "dicts"), strict=True):
        for who in made.who():
            own = {"linewidth": 2.5, "color": "black"} if who in {OWN, ALONE} else {}
            style = "--" if who == ALONE else "-"
            values = [made.of(who, shape, size) for size in SIZES]
            axes.plot(range(len(SIZES)), values, style, marker="o", label=who, **own)
        axes.set(title=f"lists of {shape}", xlabel="records an item", ylim=(0, 1.05))
        axes.set_xticks(range(len(SIZES)), [f"{size:,}" for size in SIZES])
        axes.grid(visible=True, alpha=0.3)
    both[0].set_ylabel(f"rate / ({made.lanes} x inline)")
    figure.legend(*both[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    print(f"plot: {path}")
