"""The options of ``tidemill run`` by what they are about; the argument parser reads them here, docstrings and all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

__all__ = ["Edges", "Ends", "Keeps", "Place", "Tells"]

Place = Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)]  # - is stdin, or stdout


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Edges:
    """Where records come from and rows go; None leaves the file's word.

    Parameters
    ----------
    input
        Read this instead of the pipeline's own source: a file, a folder or a pattern; - for stdin.
    output
        Write here instead of the pipeline's own sink; the suffix says the format, a URL the server; - for stdout.
        influx+ before a URL says line protocol instead of JSON: influx+tcp://HOST:PORT.
    key
        The field that names the sensor, for --input; by default as in the file.
    time
        The field that holds the time, for --input; by default as in the file.
    tz
        The zone of times without one, for --input; by default as in the file, else UTC.
    if_exists
        What to do when the output of --output is there already.
    """

    input: Place | None = None
    output: Place | None = None
    key: str | None = None
    time: str | None = None
    tz: str | None = None
    if_exists: Literal["fail", "append", "replace"] = "fail"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Keeps:
    """What is kept from one start to the next.

    Parameters
    ----------
    state
        Keep state in this folder, and go on where the run before it was stopped. A live pipeline does so anyway, in
        .tidemill/ and the file's name.
    no_state
        Keep none.
    fresh
        Start over; the state so far is moved aside.
    checkpoint_s
        Seconds between checkpoints: how long rows wait to be seen in a sink that commits them; by default 1.
    warm
        A recording to work on first, if there is no checkpoint yet: no sink gets its rows, and windows are full when the
        run's own input begins.
    drop_state
        A stage that is not in the plan any more, and whose state may go.
    """

    state: Path | None = None
    no_state: bool = False
    fresh: bool = False
    checkpoint_s: float | None = None
    warm: str | None = None
    drop_state: Annotated[list[str], cyclopts.Parameter(consume_multiple=False)] | None = None


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Ends:
    """When it ends by itself, and how.

    Parameters
    ----------
    seconds
        Stop reading after this long.
    grace
        Seconds to finish what is in flight once asked to stop.
    stall_after
        End with 8 when the run has not progressed for so many seconds, though there is something to do. A source that has
        a connection of its own connects anew first. A source that is merely silent counts with --silent-after alone.
    silent_after
        The same when a source is connected, and has given nothing for so many seconds.
    max_dead
        End with 9 when more of the last records became dead letters: 50%/60s for a share of them, 100/60s for a number.
    """

    seconds: float | None = None
    grace: float = 10.0
    stall_after: float | None = None
    silent_after: float | None = None
    max_dead: str | None = None


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Tells:
    """What it says of itself, and where.

    Parameters
    ----------
    report
        Write the report of the run here, as JSON: a file that the run neither reads nor writes otherwise.
    dead_letters
        Write rejected records here, with their reasons; a file of their own too. Without state, dead_letters.ndjson in the
        folder that the run is started in.
    metrics
        HOST:PORT where the run shows /metrics, /healthz and /readyz; port 0 takes a free one. A live pipeline does so
        anyway, at 127.0.0.1:9464.
    metrics_exposed
        Whoever reaches that address may read them, as in a network of the plant's own; wanted beyond this machine.
    no_metrics
        Show nothing.
    log_format
        json makes every line on stderr a JSON object, whoever writes it.
    quiet
        Do not show how it goes on: no view on a terminal, and elsewhere no line each minute. The log and the summary at the
        end stay.
    """

    report: Path | None = None
    dead_letters: Path | None = None
    metrics: str | None = None
    metrics_exposed: bool = False
    no_metrics: bool = False
    log_format: Literal["text", "json"] = "text"
    quiet: bool = False
