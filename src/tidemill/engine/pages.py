"""What a live run shows over HTTP: a question in, a page out.

/metrics    for Prometheus
/healthz    200 while the run progresses, else 503 and who keeps it from that; with ?verbose also the limiting resource
/readyz     200 once lanes, sinks and connections are ready, else 503 and what is not
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tidemill.engine.exposition import Reading, exposed, missing_library
from tidemill.engine.health import held_loop, is_ready
from tidemill.engine.limiting import limiting
from tidemill.engine.metrics import Spread, Statistics
from tidemill.engine.oversight import Terms
from tidemill.printable import counted, lines_printable

__all__ = ["Page", "Seen", "page", "refused"]

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Seen:
    """A run as its event loop told it; without statistics it has only just begun."""

    statistics: Statistics | None
    spread: Spread | None = None
    terms: Terms = field(default_factory=Terms)
    told: dict[tuple[str, str], float] = field(default_factory=dict)


def refused(host: str) -> Page | None:
    """The answer to a request that calls this machine by another name: None for an address, ``localhost`` or no name at all.

    A web page whose name was made to lead here would read what only this machine may see.

    >>> [refused(host) is None for host in ("127.0.0.1:9464", "[::1]:9464", "localhost", "", "a.example:9464")]
    [True, True, True, True, False]
    """
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return None
    try:
        ip_address(name)
    except ValueError:
        return _said(403, "this is for this machine alone, and it is not asked for by that name; ask for 127.0.0.1")
    return None


def page(target: str, see: Callable[[], Seen], *, accept: str = "") -> Page:
    """The page at ``target``, a path with a query. ``see`` raises `TimeoutError` with the seconds that the loop was given."""
    try:
        url = urlsplit(target)
        asked = parse_qs(url.query, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return _said(400, "this is no address of a page")
    if url.path not in ("/metrics", "/healthz", "/readyz"):
        return _said(404, "there are /metrics, /healthz, /healthz?verbose and /readyz")
    try:
        seen = see()
    except TimeoutError as error:
        return _said(503, str(held_loop(float(error.args[0]))))
    match url.path:
        case "/metrics":
            return _metrics(seen, accept)
        case "/readyz":
            readiness = is_ready(seen.statistics)
            return _said(200 if readiness.ready else 503, str(readiness))
        case _:
            return _health(seen, verbose="verbose" in asked)


def _metrics(seen: Seen, accept: str) -> Page:
    if missing := missing_library():
        return _said(501, missing)
    if seen.statistics is None or seen.spread is None:
        return _said(503, "the run is being started")
    content_type, body = exposed(Reading(seen.statistics, seen.spread, seen.terms, seen.told), accept)
    return Page(200, content_type, body)


def _health(seen: Seen, *, verbose: bool) -> Page:
    health = seen.terms.judged(seen.statistics)
    lines = [str(health)]
    if verbose:
        lines.append(limiting(seen.statistics))
        if seen.statistics is not None:
            lines += _details(seen.statistics)
    return _said(200 if health.progresses else 503, "\n".join(lines))


def _details(statistics: Statistics) -> Iterator[str]:
    yield (
        f"{statistics.name}: {counted(statistics.records_in, 'record')} in, {counted(statistics.rows_out, 'row')} out, "
        f"{counted(statistics.dead_letters, 'dead letter')}, in {statistics.seconds:,.0f} s"
    )
    if statistics.dead_letters_full:
        yield "dead letters: their file is full; further ones are counted, and the newest of them written at the end"
    for (who, reason_code), dead in statistics.dead.items():
        yield f"{who}: {counted(dead, 'dead letter')}, {reason_code}"
    for source in statistics.source_flows:
        how = "ended" if source.ended else "connected" if source.connected else "not connected"
        given = f"{counted(source.records, 'record')}, {source.rejected:,} rejected"
        last = f"the last {source.last_record_age_s:,.1f} s ago" if source.records or source.rejected else "none so far"
        yield f"source {source.name}: {how}, {given}, {last}"
        if source.turned_away:
            yield f"source {source.name}: {source.turned_away:,} connections turned away, the last from {source.last_away}"
    for sink in statistics.sink_flows:
        last = f"the last commit {sink.commit_age_s:,.1f} s ago" if sink.commits else "no commit so far"
        yield f"sink {sink.name}: {counted(sink.rows, 'row')}, {last}"
    if (state := statistics.state) is not None:
        yield (
            f"checkpoint {state.checkpoint:,}: {state.checkpoint_age_s:,.1f} s ago, {counted(state.behind, 'input')} since; "
            + ("1 log entry waits" if state.log_waiting == 1 else f"{state.log_waiting:,} log entries wait")
        )


def _said(status: int, text: str) -> Page:
    return Page(status, _TEXT, f"{lines_printable(text)}\n".encode())
