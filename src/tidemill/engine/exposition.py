"""The metrics of a run, in the text that Prometheus and its kin read.

One grammar: ``tidemill_``, whose it is, what is counted, the base unit; ``_total`` behind what only grows. What has the name of
a field of `Statistics` means the same. Labels are edges and lanes of the pipeline as it is written, and words of the engine
such as reason codes: never sensors, so that no input can make series.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from tidemill.engine.health import is_ready
from tidemill.engine.metrics import Distribution, Spread, StateStatistics, Statistics
from tidemill.engine.oversight import Terms
from tidemill.errors import MissingExtra
from tidemill.letters import REASON_CODES
from tidemill.version import installed_version

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

__all__ = ["METRICS", "Metric", "Reading", "exposed", "load_library", "missing_library"]

_MOST: Final = 64
"""Values of a label, for words that are counted as they come; further ones are counted together."""
OTHER: Final = "other"
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"
_NS: Final = 1e9


@dataclass(frozen=True)
class Reading:
    """A run at one moment."""

    statistics: Statistics
    spread: Spread
    terms: Terms = field(default_factory=Terms)
    told: dict[tuple[str, str], float] = field(default_factory=dict)
    """Counters as they were told last, by name and label. What a run works on again is no new input, and whoever scrapes takes
    a counter that goes back for one that began anew: until it is past what was told, that is told again."""

    def highest(self, name: str, label: str, value: float) -> float:
        """What to tell of a counter that is so high now."""
        self.told[name, label] = highest = max(value, self.told.get((name, label), 0.0))
        return highest


Values = Iterable[tuple[str, float]]
"""Values of the label, empty without one, and of the metric."""


@dataclass(frozen=True)
class Metric:
    """One name, and how it is read."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    told: str
    read: Callable[[Reading], Any]
    """Gives `Values`, or of a histogram its `Distribution` and the unit of it in base units."""
    label: str = ""

    @property
    def exported(self) -> str:
        """The name under which it is found."""
        return f"tidemill_{self.name}" + "_total" * (self.kind == "counter")


def missing_library() -> str:
    """One sentence that says how to get the library that writes metrics; empty when it is there."""
    if importlib.util.find_spec("prometheus_client") is not None:
        return ""
    return str(MissingExtra("prometheus-client", "metrics", "The numbers of /metrics"))


def load_library() -> None:
    """Import it, where it is installed, and read what else is in files: under a scrape there may be none to be had."""
    installed_version()
    with contextlib.suppress(Exception):  # of one that is broken too: whoever asks for numbers is told
        importlib.import_module("prometheus_client.core")


def exposed(reading: Reading, accept: str = "") -> tuple[str, bytes]:
    """The content type and the text of all metrics, in the format that the header ``accept`` asks for."""
    from prometheus_client import exposition

    # The library fails on versions that are no numbers, and says those that are back: it gets to see one of ours.
    encode, content_type = exposition.choose_encoder(_OPENMETRICS if _OPENMETRICS.partition(";")[0] in accept else "")
    return content_type, encode(_Families(reading))


class _Families:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Family]:
        from prometheus_client import core

        run = core.InfoMetricFamily("tidemill_run", "The run that is measured.")
        run.add_metric([], {"pipeline": _label(self._reading.statistics.name), "version": installed_version()})
        yield run
        made = {"counter": core.CounterMetricFamily, "gauge": core.GaugeMetricFamily}
        for metric in METRICS:
            name = f"tidemill_{metric.name}"
            if metric.kind == "histogram":
                histogram = core.HistogramMetricFamily(name, metric.told)
                distribution, unit = metric.read(self._reading)
                histogram.add_metric([], *_buckets(distribution, unit))
                yield histogram
                continue
            values = list(metric.read(self._reading))
            if values:
                family = made[metric.kind](name, metric.told, labels=[metric.label] if metric.label else [])
                for label, value in values:
                    told = self._reading.highest(name, label, value) if metric.kind == "counter" else value
                    family.add_metric([_label(label)] if metric.label else [], told)
                yield family


def _label(text: str) -> str:
    """As it is, but for what no text in UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def _buckets(distribution: Distribution, unit: float) -> tuple[list[tuple[str, float]], float]:
    counted = zip(distribution.bounds, distribution.up_to, strict=True)
    bounded = [(f"{bound / unit:g}", float(samples)) for bound, samples in counted]
    return [*bounded, ("+Inf", float(distribution.samples))], distribution.total / unit


# -- how they are read -----------------------------------------------------------------------------------------


def _one(read: Callable[[Statistics], float]) -> Callable[[Reading], Values]:
    return lambda reading: [("", read(reading.statistics))]


def _each(members: str, read: Callable[[Any], float], name: str = "name") -> Callable[[Reading], Values]:
    """Of each source, sink or lane."""
    return lambda reading: [
        (str(getattr(member, name)), float(read(member))) for member in getattr(reading.statistics, members)
    ]


def _kept(read: Callable[[StateStatistics], float]) -> Callable[[Reading], Values]:
    """Of runs that keep state."""
    return lambda reading: [] if reading.statistics.state is None else [("", read(reading.statistics.state))]


def _words(counts: Mapping[str, int]) -> Values:
    """Counts by a word, the first so many by themselves."""
    words = list(counts.items())
    rest = sum(times for _, times in words[_MOST - 1 :])
    if len(words) <= _MOST:
        return [(word, float(times)) for word, times in words]
    return [*((word, float(times)) for word, times in words[: _MOST - 1]), (OTHER, float(rest))]


def _lanes(read: Callable[[Any], float]) -> Callable[[Reading], Values]:
    return lambda reading: [(str(n), float(read(lane))) for n, lane in enumerate(reading.statistics.lanes)]


METRICS: Final = (
    Metric("progressing", "gauge", "1 while the run progresses, as /healthz says.",
           lambda r: [("", float(r.terms.judged(r.statistics).progresses))]),
    Metric("ready", "gauge", "1 when lanes, sinks and connections are ready, as /readyz says.",
           _one(lambda s: float(is_ready(s).ready))),
    Metric("run_seconds", "gauge", "Since the run began.", _one(lambda s: s.seconds)),
    Metric("tries", "gauge", "Tries that failed since the run last got something done.",
           _one(lambda s: sum(trouble.tries for trouble in s.troubles))),
    Metric("records_in", "counter", "Records that came in.", _one(lambda s: s.records_in)),
    Metric("records_out", "counter", "Rows that left the lanes for the sinks.", _one(lambda s: s.rows_out)),
    Metric("records_gone", "counter", "Records that became neither rows nor dead letters.",
           lambda r: _words(r.statistics.gone), "how"),
    Metric("dead", "counter", "Records that went to the dead letters.",
           lambda r: _words(dict.fromkeys(REASON_CODES, 0) | r.statistics.dead_letters_by_reason), "reason_code"),
    Metric("counted", "counter", "What stages counted, such as windows that may lack a record.",
           lambda r: _words(r.statistics.counters), "what"),
    Metric("sensors", "gauge", "Sensors seen so far.", _one(lambda s: s.keys)),
    Metric("sensors_live", "gauge", "Sensors with a record in the last 300 s.", _one(lambda s: s.keys_live)),
    Metric("sensors_silent", "gauge", "Sensors seen, and without a record for 300 s.",
           _one(lambda s: s.keys - s.keys_live)),
    Metric("source_connected", "gauge", "1 while the source is connected, or listens.",
           _each("source_flows", lambda f: f.connected), "source"),
    Metric("source_tries", "gauge", "Times the source has tried to connect in vain since it was connected last.",
           _each("source_flows", lambda f: f.tries), "source"),
    Metric("source_records", "counter", "Records that the source gave.",
           _each("source_flows", lambda f: f.records), "source"),
    Metric("source_rejected", "counter", "Records of the source that could not be read.",
           _each("source_flows", lambda f: f.rejected), "source"),
    Metric("source_lost", "counter", "Datagrams to the source that the system dropped before they could be read.",
           _each("source_flows", lambda f: f.lost), "source"),
    Metric("source_turned_away", "counter", "Connections to the source that were not taken, because there were too many.",
           _each("source_flows", lambda f: f.turned_away), "source"),
    Metric("source_refused", "counter", "Requests to the source that were not taken, and answered why.",
           _each("source_flows", lambda f: f.refused), "source"),
    Metric("source_last_record_age_seconds", "gauge", "Since the source's last record.",
           _each("source_flows", lambda f: f.last_record_age_s), "source"),
    Metric("source_held_seconds", "gauge", "How long the source has waited for the engine to take what it gave.",
           _each("source_flows", lambda f: f.held_s), "source"),
    Metric("sink_records", "counter", "Rows that the sink has written.", _each("sink_flows", lambda f: f.rows), "sink"),
    Metric("sink_waiting_batches", "gauge", "Batches that were handed to the sink, and that its readers cannot see.",
           _each("sink_flows", lambda f: f.waiting), "sink"),
    Metric("sink_waiting_seconds", "gauge", "How long the oldest of these has waited.",
           _each("sink_flows", lambda f: f.waiting_s), "sink"),
    Metric("sink_commit_age_seconds", "gauge", "Since the sink last committed rows, or flushed them without state.",
           _each("sink_flows", lambda f: f.commit_age_s), "sink"),
    Metric("checkpoint_age_seconds", "gauge", "Since the newest checkpoint was published.",
           _kept(lambda s: s.checkpoint_age_s)),
    Metric("checkpoint_behind_records", "gauge", "Inputs since, which the next start would work on again.",
           _kept(lambda s: s.behind)),
    Metric("checkpoint_seconds", "gauge", "How long the newest checkpoint took.", _kept(lambda s: s.checkpoint_s)),
    Metric("log_bytes", "gauge", "Of the ingest log.", _kept(lambda s: s.log_bytes)),
    Metric("log_room_bytes", "gauge", "That the ingest log may still take.", _kept(lambda s: s.log_room_bytes)),
    Metric("log_filled_ratio", "gauge", "Share of what the ingest log may take that is taken.",
           _kept(lambda s: s.log_filled)),
    Metric("log_waiting_entries", "gauge", "Entries of the ingest log that the lanes have not been given.",
           _kept(lambda s: s.log_waiting)),
    Metric("log_seconds_left", "gauge", "How long the ingest log can take what comes, if nothing leaves it.",
           _kept(lambda s: s.log_seconds_left)),
    Metric("log_full", "gauge", "1 while sources wait for room in the ingest log.", _kept(lambda s: float(s.log_full))),
    Metric("lane_busy_seconds", "counter", "Time that the lane worked.", _lanes(lambda lane: lane.busy_s), "lane"),
    Metric("lane_busy_ratio", "gauge", "Share of the last seconds that the lane worked.",
           lambda r: [(str(n), share) for n, share in enumerate(r.statistics.load.lanes)], "lane"),
    Metric("lane_batches", "counter", "Slabs that the lane has worked through.",
           _lanes(lambda lane: lane.batches), "lane"),
    Metric("lane_restarts", "counter", "Processes of the lane that were lost and replaced.",
           _lanes(lambda lane: lane.restarts), "lane"),
    Metric("lane_waiting_seconds", "gauge", "How long the lane has had slabs without finishing one.",
           _each("lane_flows", lambda f: f.waiting_s, "number"), "lane"),
    Metric("loop_busy_ratio", "gauge", "Share of the last seconds that the event loop's thread had a CPU.",
           _one(lambda s: s.load.loop)),
    Metric("loop_lag_seconds", "histogram", "How late the event loop ran timers.", lambda r: (r.spread.loop_lag, _NS)),
    Metric("queue_records", "gauge", "Records that wait for a lane.", _one(lambda s: s.queue_records)),
    Metric("slabs_in_flight", "gauge", "Slabs in lanes, or on their way to sinks.", _one(lambda s: s.slabs_in_flight)),
    Metric("batch_records", "histogram", "Records in a slab.", lambda r: (r.spread.batch_records, 1.0)),
    Metric("end_to_end_seconds", "histogram", "From the read that brought a record to the flush that showed its row.",
           lambda r: (r.spread.end_to_end, _NS)),
)  # fmt: skip
"""All of them, in the order in which they are told."""
