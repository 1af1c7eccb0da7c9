"""Watching a run: a live view on a terminal, plain lines anywhere else, a summary at the end.

Everything shown is read from the engine's frozen `Statistics` and `Report`; nothing here measures.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TextIO

from tidemill.app.logs import LogFormat, json_line
from tidemill.app.standard_streams import tell
from tidemill.engine.metrics import Quantiles, Report, Statistics
from tidemill.printable import NAME, counted, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["line", "summary", "summary_json", "watching"]

LIVE_EVERY_S = 0.25  # 4 Hz: more would cost a core to draw and nobody reads faster
LINE_EVERY_S = 60.0  # into a log that is kept for weeks
BAR_CELLS = 20

Watch = Callable[[Statistics], None]


@contextlib.contextmanager
def watching(
    stream: TextIO,
    *,
    title: str,
    line_every_s: float = LINE_EVERY_S,
    note: str = "",
    log_format: LogFormat = "text",
    quiet: bool = False,
) -> Iterator[Watch]:
    """A function to hand statistics to, as often as one likes; it shows them on ``stream`` as often as is useful, and with
    ``quiet`` not at all."""
    if quiet:
        yield lambda _: None
    elif stream.isatty():
        with _live(stream, title, note) as watch:
            yield watch
    else:
        told = _json if log_format == "json" else line
        every = _Every(line_every_s, lambda statistics: tell(told(statistics) + "\n", stream))
        yield every
        every.last()


class _Every:
    """Passes statistics on at most once in ``interval_s`` of the run's own time, averaged over what it held back."""

    def __init__(self, interval_s: float, show: Watch) -> None:
        self._interval_s = interval_s
        self._show = show
        self._shown_s = 0.0
        self._shown_records = 0
        self._busy: list[tuple[float, ...]] = []
        self._held: Statistics | None = None

    def __call__(self, statistics: Statistics) -> None:
        self._busy.append(tuple(lane.busy for lane in statistics.lanes))
        self._held = statistics
        if statistics.seconds - self._shown_s >= self._interval_s:
            self.last()

    def last(self) -> None:
        """Show now what is held back, if anything: a short run is seen too."""
        statistics, self._held = self._held, None
        if statistics is None:
            return
        passed = max(statistics.seconds - self._shown_s, 1e-9)
        shares = [sum(column) / len(self._busy) for column in zip(*self._busy, strict=True)]
        lanes = [dataclasses.replace(lane, busy=share) for lane, share in zip(statistics.lanes, shares, strict=True)]
        rate = (statistics.records_in - self._shown_records) / passed
        self._shown_s, self._shown_records = statistics.seconds, statistics.records_in
        self._busy.clear()
        self._show(dataclasses.replace(statistics, records_per_s=rate, lanes=tuple(lanes)))


# -- plain lines -------------------------------------------------------------------------------------------


def line(statistics: Statistics) -> str:
    """One line of plain text that says how the run is."""
    busy = " ".join(f"{lane.busy:.0%}" for lane in statistics.lanes)
    parts = [
        f"{_clock(statistics.seconds)}",
        counted(statistics.records_in, "record"),
        f"{statistics.records_per_s:,.0f}/s",
        f"{'inline' if statistics.inline else 'lanes'} {busy}",
        f"batch p50 {statistics.batch_records.p50:,.0f}",
        f"queue {statistics.queue_records:,}/{statistics.queue_limit:,}",
        f"latency p50 {_ms(statistics.latency.p50_ms)} p99 {_ms(statistics.latency.p99_ms)}",
        f"loop lag {_spread(statistics.loop_lag, ' ')}",
    ]
    if statistics.state is not None:
        parts.append(f"checkpoint {statistics.state.checkpoint:,} at {statistics.state.position:,}")
    if statistics.dead_letters:
        parts.append(f"dead letters {statistics.dead_letters:,}")
    return " | ".join(parts)


def _json(statistics: Statistics) -> str:
    """The same as a line of the log, with its numbers as fields."""
    latency, lag, state = statistics.latency, statistics.loop_lag, statistics.state
    fields = {
        "pipeline": statistics.name,
        "seconds": round(statistics.seconds, 1),
        "records": statistics.records_in,
        "records_per_s": round(statistics.records_per_s, 1),
        "lanes_busy": round(sum(lane.busy for lane in statistics.lanes) / max(len(statistics.lanes), 1), 3),
        "batch_p50": statistics.batch_records.p50,
        "queue_records": statistics.queue_records,
        "latency_p50_ms": round(latency.p50_ms, 3),
        "latency_p99_ms": round(latency.p99_ms, 3),
        "loop_lag_p99_ms": round(lag.p99_ms, 3),
        "dead_letters": statistics.dead_letters,
    }
    if state is not None:
        fields |= {"checkpoint": state.checkpoint, "checkpoint_position": state.position}
    return json_line("INFO", "tidemill", line(statistics), fields)


# -- live --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _live(stream: TextIO, title: str, note: str) -> Iterator[Watch]:
    """A view redrawn in place. Statistics come on the event loop and are drawn in a thread: drawing takes
    milliseconds, which belong to the records."""
    from rich import panel, table, text  # noqa: F401 - imported now, not in the first moments of the run
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    with (
        Live(console=console, auto_refresh=False, transient=False) as live,
        ThreadPoolExecutor(1, "tidemill-view") as thread,
    ):
        console.show_cursor()  # a second Ctrl-C leaves at once and would not bring a hidden cursor back
        drawing: list[Future[None]] = []

        def draw(statistics: Statistics) -> None:
            if drawing and not drawing[0].done():
                return  # a terminal that is slow to draw misses a picture, and nothing waits for it
            drawing[:] = [thread.submit(lambda: live.update(_view(statistics, title, note), refresh=True))]

        every = _Every(LIVE_EVERY_S, draw)
        yield every
        every.last()


def _view(statistics: Statistics, title: str, note: str) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    lanes = Table.grid(padding=(0, 2))
    for index, lane in enumerate(statistics.lanes):
        restarts = counted(lane.restarts, "restart") if lane.restarts else ""
        name = "inline" if statistics.inline else f"lane {index}"
        lanes.add_row(name, _bar(lane.busy), f"{lane.busy:4.0%}", counted(lane.batches, "batch", "batches"), restarts)
    numbers = Table.grid(padding=(0, 3))
    numbers.add_column(style="dim")
    for name, value in _numbers(statistics):
        numbers.add_row(name, Text(value))
    parts: list[RenderableType] = [numbers, Text(), lanes]
    if note:
        parts += [Text(), Text(note, style="dim")]
    return Panel(Group(*parts), title=f"{title}  {_clock(statistics.seconds)}", title_align="left", expand=False)


def _numbers(statistics: Statistics) -> list[tuple[str, str]]:
    batch = statistics.batch_records
    rows = [
        ("records/s", f"{statistics.records_per_s:,.0f}"),
        ("records in", f"{statistics.records_in:,}"),
        ("rows out", f"{statistics.rows_out:,}"),
        ("batch size", f"p50 {batch.p50:,.0f}   max {batch.max:,.0f}"),
        ("queue", f"{statistics.queue_records:,} of {statistics.queue_limit:,} records"),
        ("latency", f"p50 {_ms(statistics.latency.p50_ms)}   p99 {_ms(statistics.latency.p99_ms)}"),
        ("loop lag", _spread(statistics.loop_lag)),
    ]
    if (state := statistics.state) is not None:
        rows.append(("checkpoint", f"{state.checkpoint:,} at input {state.position:,}, {state.behind:,} since"))
    if statistics.dead_letters:
        rows.append(("dead letters", f"{statistics.dead_letters:,}"))
    return rows


def _bar(share: float) -> str:
    full = min(BAR_CELLS, max(0, round(share * BAR_CELLS)))
    return "█" * full + "░" * (BAR_CELLS - full)


# -- the end -----------------------------------------------------------------------------------------------


def summary(report: Report) -> str:
    """A few lines that say what a run did; every record that did not become a row is named."""
    lost = {
        "filtered": report.filtered,
        "dead letter" + "s" * (report.dead_letters != 1): report.dead_letters,
        "late": report.late,
        "deduplicated": report.deduplicated,
        "dropped": report.dropped,
        "absorbed": report.absorbed,
        "unfinished": report.in_flight,
    }
    left = [counted(report.behind, "input")] if report.behind else []
    left += [counted(report.log_waiting, "log entry", "log entries")] if report.log_waiting else []
    reasons = ", ".join(f"{count:,} {code}" for code, count in sorted(report.dead_letters_by_reason.items()))
    lines = [
        f"{counted(report.records_in, 'record')} in, {counted(report.rows_out, 'row')} out, in {report.seconds:.1f} s",
        f"rate      {report.records_per_s:,.0f} records/s",
        ", ".join(f"{count:,} {what}" for what, count in lost.items() if count),
        f"dead letters: {reasons}" if reasons else "",
        ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in sorted(report.counters.items()) if count),
        *(f"lost before {source} could read it: {count:,}" for source, count in report.lost.items()),
        *(
            f"written by {sink}: {counted(rows, 'row')}"
            for sink, rows in report.sinks.items()
            if rows != report.rows_out
        ),
        *(f"left out by {sink}: {_named(fields)}" for sink, fields in report.left_out.items()),
        *(f"deleted by {sink}: {counted(rows, 'row')}, too old" for sink, rows in report.deleted.items()),
        _given_up(report),
        f"left for the next start: {' and '.join(left)}" if left else "",
        f"latency   {_spread(report.latency)}",
        f"loop lag  {_spread(report.loop_lag)}",
        f"{'inline' if report.inline else 'lanes':<10}{_lanes(report)}",
    ]
    return "".join(f"{text}\n" for text in lines if text)


def summary_json(report: Report, *, pipeline: str, dead_letters_in: str = "") -> str:
    """The same as a line of the log, with its numbers as fields."""
    fields: dict[str, object] = {
        "pipeline": pipeline,
        "seconds": round(report.seconds, 1),
        "records": report.records_in,
        "records_per_s": round(report.records_per_s, 1),
        "rows": report.rows_out,
        "filtered": report.filtered,
        "dead_letters": report.dead_letters,
        "late": report.late,
        "deduplicated": report.deduplicated,
        "dropped": report.dropped,
        "absorbed": report.absorbed,
        "unfinished": report.in_flight,
        "gave_up": report.gave_up,
        "rows_given_up": report.rows_given_up,
        "behind": report.behind,
        "log_waiting": report.log_waiting,
        "latency_p50_ms": round(report.latency.p50_ms, 3),
        "latency_p99_ms": round(report.latency.p99_ms, 3),
        "loop_lag_p99_ms": round(report.loop_lag.p99_ms, 3),
        "lanes_busy": round(sum(lane.busy for lane in report.lanes) / max(len(report.lanes), 1), 3),
        "lane_restarts": sum(lane.restarts for lane in report.lanes),
    }
    if dead_letters_in:
        fields["dead_letters_in"] = dead_letters_in
    said = "; ".join(" ".join(text.split()) for text in summary(report).splitlines())
    return json_line("INFO", "tidemill", said, fields)


def _given_up(report: Report) -> str:
    """What the grace after a stop was too short for, beside records that are unfinished."""
    if report.rows_given_up:
        return f"given up on their way to sinks: {counted(report.rows_given_up, 'row')}"
    return "given up before everything was written" if report.gave_up and not report.in_flight else ""


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {printable(name, longest=NAME)}" for name, count in counts.items())


def _lanes(report: Report) -> str:
    """Each lane's share of work, and how often it had to be replaced."""
    told = (
        f"{lane.busy:.0%} busy" + (f", {counted(lane.restarts, 'restart')}" * bool(lane.restarts))
        for lane in report.lanes
    )
    return "; ".join(told)


def _spread(spread: Quantiles, gap: str = "   ") -> str:
    return gap.join((f"p50 {_ms(spread.p50_ms)}", f"p99 {_ms(spread.p99_ms)}", f"max {_ms(spread.max_ms)}"))


def _ms(milliseconds: float) -> str:
    """Three digits that matter, whatever the size.

    >>> _ms(0.1234), _ms(12.3456), _ms(2345.6)
    ('0.12 ms', '12.3 ms', '2.35 s')
    """
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.1f} ms" if milliseconds >= 10 else f"{milliseconds:.2f} ms"


def _clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> _clock(75.4)
    '01:15'
    """
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
