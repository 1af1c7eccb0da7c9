"""What a person is shown: a line, a view, a summary."""

from __future__ import annotations

import io
import json
import re

import tidemill as tm
from tidemill.app.status import line, summary, watching
from tidemill.engine.metrics import BatchRecords, LaneReport, Quantiles, Report, Statistics


def statistics(seconds: float = 12.0, **changed: object) -> Statistics:
    fields: dict[str, object] = {
        "seconds": seconds,
        "records_in": 1_234_567,
        "rows_out": 1_234_000,
        "dead_letters": 0,
        "filtered": 0,
        "records_per_s": 98_765.4,
        "lanes": (LaneReport(0.91, 500, 0), LaneReport(0.5, 480, 1)),
        "queue_records": 2_000,
        "queue_limit": 131_072,
        "slabs_in_flight": 3,
        "batch_records": BatchRecords(400, 9_000),
        "latency": Quantiles(3.25, 17.5, 40.0, 1),
        "loop_lag": Quantiles(0.06, 0.9, 3.1, 1),
        "keys": 1_000,
    }
    return Statistics(**{**fields, **changed})  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_says_everything_that_the_demo_promises() -> None:
    """Rate, each lane's share, batch size, queue depth, latency and loop lag stand in one line."""
    assert line(statistics()) == (
        "00:12 | 1,234,567 records | 98,765/s | lanes 91% 50% | batch p50 400 | queue 2,000/131,072 | "
        "latency p50 3.25 ms p99 17.5 ms | loop lag p50 0.06 ms p99 0.90 ms max 3.10 ms"
    )


def test_dead_letters_appear_only_when_there_are_some() -> None:
    """Nobody needs to read a zero; nobody may miss the first one."""
    assert "dead letters" not in line(statistics())
    assert line(statistics(dead_letters=3)).endswith("dead letters 3")


def test_inline_runs_say_so() -> None:
    """The share of this process is no lane's: in a line, in the view, and at the end of a real run."""
    shown = io.StringIO()
    report = tm.run(
        tm.Pipeline(tm.sources.Synthetic(3, None, count=5), tm.Plan(), tm.sinks.Latest()),
        lanes=0,
        on_statistics=lambda read: shown.write(line(read)),
    )
    assert "| inline 91% |" in line(statistics(lanes=(LaneReport(0.91, 500, 0),), inline=True))
    assert re.search(r"^inline +\d+% busy$", summary(report), re.MULTILINE)
    assert "lanes" not in summary(report) + shown.getvalue()


def test_plain_lines_come_at_their_pace() -> None:
    """However often statistics are handed over, a log gets a line each interval."""
    stream = io.StringIO()
    with watching(stream, title="plant", line_every_s=5.0) as watch:
        for tenth in range(200):
            watch(statistics(tenth / 10))
    assert [text[:5] for text in stream.getvalue().splitlines()] == ["00:05", "00:10", "00:15", "00:19"]


def test_a_log_that_is_kept_has_a_line_a_minute() -> None:
    """And no other, however long the run."""
    stream = io.StringIO()
    with watching(stream, title="plant") as watch:
        for second in range(300):
            watch(statistics(float(second)))
    assert [text[:5] for text in stream.getvalue().splitlines()] == ["01:00", "02:00", "03:00", "04:00", "04:59"]


def test_a_machine_reads_the_numbers_as_fields() -> None:
    """Of an object as every other line of the log is one."""
    stream = io.StringIO()
    with watching(stream, title="plant", log_format="json") as watch:
        watch(statistics(name="plant"))
    (told,) = map(json.loads, stream.getvalue().splitlines())
    assert (told["level"], told["logger"], told["pipeline"]) == ("INFO", "tidemill", "plant")
    assert (told["records"], told["lanes_busy"], told["latency_p99_ms"]) == (1_234_567, 0.705, 17.5)
    assert told["message"].startswith("00:12 | 1,234,567 records")


def test_a_quiet_run_shows_nothing() -> None:
    """Neither to a person nor to a log."""
    for stream in (io.StringIO(), Terminal()):
        with watching(stream, title="plant", quiet=True) as watch:
            watch(statistics(600.0))
        assert not stream.getvalue()


def test_a_short_run_is_seen_too() -> None:
    """What was held back for the next line is shown at the end."""
    stream = io.StringIO()
    with watching(stream, title="plant", line_every_s=5.0) as watch:
        watch(statistics(1.0))
        watch(statistics(1.5))
    assert [text[:5] for text in stream.getvalue().splitlines()] == ["00:01"]


def test_what_is_shown_is_the_average_since_the_last_showing() -> None:
    """A glance every five seconds is not a glance at a random quarter of one."""
    stream = io.StringIO()
    with watching(stream, title="plant", line_every_s=5.0) as watch:
        for second, busy in ((1, 0.0), (3, 0.2), (5, 1.0)):
            watch(statistics(second, records_in=1000 * second, lanes=(LaneReport(busy, 1, 0),)))
    assert "1,000/s | lanes 40%" in stream.getvalue()


def test_a_terminal_gets_a_view_with_every_lane() -> None:
    """The live view shows the numbers of the line, and a bar for each lane."""
    stream = Terminal()
    with watching(stream, title="plant", note="rows in features.db") as watch:
        watch(statistics())
    shown = stream.getvalue()
    for words in ("plant", "102,881", "lane 0", "lane 1", "91%", "1 restart", "p99 17.5 ms", "max 3.10 ms", "rows in"):
        assert words in shown


def test_the_summary_names_every_record_that_became_no_row() -> None:
    """Filtered, dead, dropped, unfinished: counted in words, with the reasons of dead letters."""
    told = summary(
        Report(
            records_in=100,
            rows_out=90,
            filtered=4,
            dead_letters=3,
            in_flight=3,
            seconds=2.0,
            records_per_s=50.0,
            dead_letters_by_reason={"raised": 1, "bad_time": 2},
            counters={"unknown_key": 7},
            lanes=(LaneReport(0.5, 10, 2),),
        )
    )
    assert "100 records in, 90 rows out" in told
    assert "4 filtered, 3 dead letters, 3 unfinished" in told
    assert "2 bad_time, 1 raised" in told
    assert "7 unknown key" in told
    assert "50% busy, 2 restarts" in told


def test_the_summary_tells_what_the_grace_was_too_short_for() -> None:
    """Rows that no record stands for; how many, where they had been made, and nothing twice."""
    assert "given up on their way to sinks: 1,200 rows\n" in summary(Report(gave_up=True, rows_given_up=1_200))
    assert "given up before everything was written\n" in summary(Report(gave_up=True))
    assert "given up" not in summary(Report(gave_up=True, in_flight=3))


def test_values_that_a_sink_left_out_are_told_at_the_end() -> None:
    """By sink and field: the rows are there, and these values are not."""
    assert "left out by lines: 1,200 humidity, 1 door\n" in summary(
        Report(left_out={"lines": {"humidity": 1_200, "door": 1}})
    )


def test_one_of_a_kind_is_told_as_one() -> None:
    """In the first run that somebody tries, which often has a single record."""
    told = summary(Report(records_in=1, dead_letters=1, seconds=1.0, lanes=(LaneReport(0.5, 1, 1),)))
    assert "1 record in, 0 rows out" in told
    assert "\n1 dead letter\n" in told
    assert "50% busy, 1 restart\n" in told
