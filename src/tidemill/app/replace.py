"""``--input`` and ``--output``: other edges for the same plan."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from tidemill import files, sinks, sources
from tidemill.app.load import Found
from tidemill.app.run_options import Edges
from tidemill.core.plan import Plan
from tidemill.engine.pipeline import Pipeline
from tidemill.errors import InputError, PlanError
from tidemill.formats.line_formats import INFLUX_SUFFIXES, LINE_FORMATS
from tidemill.sources.base import Source
from tidemill.sources.readers import FORMATS

__all__ = ["NO_SINK", "replaced", "said_as_options", "source_of"]

STANDARD_STREAM: Final = "-"
NO_SINK: Final = "none"
"""The name of the sink of a plan that is only checked."""
_TRY: Final = r"try (key='[^']*'), (time='[^']*')(, or key='[^']*')?"
"""What a recording says whose sensor or time is called otherwise (`formats.rejects.suggestion`)."""
_OF_WARM: Final = (
    r"--warm reads as the source in the file does; where the recording differs, run the plan by a program: "
    r"tm.run(pipeline, state=tm.State(warm=tm.sources.Replay(PATH, \1, \2)))."
)


def replaced(found: Found, edges: Edges, *, sinkless: bool = False) -> Pipeline:
    """The found pipeline with these edges; ``sinkless`` for one of which no row is written, so that none need be given.

    A new source reads the sensor, the time and their zone from the fields that the file's own source names, unless
    the command line names others, and times as they are written there. Raises `PlanError` when an edge is missing or an option has nothing to act on.
    """
    pipeline = found.pipeline
    _refuse_idle_options(edges)
    if pipeline is None:
        assert isinstance(found.plan, Plan)
        sinkless = sinkless and edges.output is None
        _require_ends(found, edges, sinkless=sinkless)
        sink = sinks.Latest(name=NO_SINK) if sinkless else _sink(edges)
        return Pipeline(_source(edges, ()), found.plan, sink, name=found.path.stem)
    pipeline = pipeline.called(found.path.stem)
    if edges.input is None and edges.output is None:
        return pipeline
    return pipeline.between(
        pipeline.sources if edges.input is None else _source(edges, pipeline.sources),
        pipeline.sinks if edges.output is None else _sink(edges),
    )


@contextlib.contextmanager
def said_as_options(edges: Edges, warm: str | None = None) -> Iterator[None]:
    """Errors about what is at ``--output`` and ``--input`` name the option that decides about it, not the argument in a file. For
    ``--warm`` there is none."""
    try:
        yield
    except (InputError, PlanError) as error:
        said = str(error)
        if edges.output is not None:
            said = re.sub(r'if_exists="(\w+)"', r"--if-exists \1", said).replace("write --if", "add --if")
        if edges.input is not None and str(files.absolute(edges.input)) in said:
            said = re.sub(_TRY, lambda found: re.sub(r"(key|time)=('[^']*'),?", r"--\1 \2", found[0]), said)
        elif warm is not None and str(files.absolute(warm)) in said:
            said = re.sub(rf"{_TRY}.*", _OF_WARM, said)
        if said == str(error):
            raise
        raise type(error)(said) from error


def _refuse_idle_options(edges: Edges) -> None:
    if edges.input is None:
        given = [name for name in ("key", "time", "tz") if getattr(edges, name) is not None]
        if given:
            raise PlanError(
                f"--{given[0]} says how --input is to be read, and there is no --input; "
                f"write {given[0]}= at the source in the file, or add --input PATH."
            )
    if edges.output is None and edges.if_exists != "fail":
        raise PlanError(
            "--if-exists is about --output, and there is no --output; write if_exists= at the sink in the file."
        )


def _require_ends(found: Found, edges: Edges, *, sinkless: bool) -> None:
    ends = {"--input": edges.input, **({} if sinkless else {"--output": edges.output})}
    missing = [option for option, given in ends.items() if given is None]
    if missing:
        raise PlanError(
            f"{found.path} holds a plan ({found.name}) and no pipeline, so its edges come from the command line: "
            f"add {' and '.join(f'{option} PATH' for option in missing)}."
        )


def source_of(recording: str, pipeline: Pipeline) -> Source:
    """A recording, read as the pipeline's own sources are: of the same sensor, time and zone, written the same way."""
    return _source(Edges(recording), pipeline.sources)


def _source(edges: Edges, own: Collection[Source]) -> Source:
    assert edges.input is not None
    scheme, mark, _ = edges.input.partition("://")
    if mark:  # not to be shown whole: it may hold a password
        raise PlanError(f"{scheme}:// is no recording; write the source into the file, such as sources.MQTT(...).")
    given = {"key": edges.key, "time": edges.time, "tz": edges.tz}
    options = {name: value if value is not None else _agreed(name, own) for name, value in given.items()}
    key, time, tz = options["key"], options["time"], options["tz"] or "UTC"
    columns = {name: kind for source in own for name, kind in source.columns.items()}
    form = _alike("time_format", own)
    if edges.input == STANDARD_STREAM or files.suffix(edges.input) in INFLUX_SUFFIXES:
        written, unit = _written(edges.input, own)
        return sources.Lines(
            edges.input,
            key=key,
            time=time,
            tz=tz,
            columns=columns,
            time_format=form,
            format=written,
            precision=unit,
        )
    kind = _kind(edges.input, own)
    return sources.Replay(edges.input, key=key, time=time, tz=tz, columns=columns, time_format=form, format=kind)


def _kind(place: str, own: Collection[Source]) -> str | None:
    """The format of recordings whose names do not say it, when the file's own are such."""
    told = files.suffix(place) in FORMATS or files.absolute(place).is_dir()
    recorded = all(isinstance(source, sources.Replay) for source in own)
    return None if told or not recorded else _alike("format", own)


def _written(place: str, own: Collection[Source]) -> tuple[str | None, str | None]:
    """Format and precision of lines on standard input, or of a file of line protocol: those of the file's own."""
    written = _alike("format", own)
    if place != STANDARD_STREAM:
        return "influx", _alike("precision", own) if written == "influx" else None
    return (written, _alike("precision", own)) if written in ("csv", *LINE_FORMATS) else (None, None)


def _alike(option: str, own: Collection[Source]) -> str | None:
    """What the file's own sources say with one voice; None where they differ, or have no such option."""
    said = {getattr(source, option, None) for source in own}
    return said.pop() if len(said) == 1 else None


def _agreed(option: str, own: Iterable[Source]) -> str | None:
    """What the file's own sources say with one voice."""
    said = {getattr(source, option) for source in own}
    if len(said) > 1:
        raise PlanError(
            f"The sources of the pipeline differ in {option}= ({', '.join(sorted(map(str, said)))}); "
            f"say which one holds for --input: --{option} NAME"
        )
    return said.pop() if said else None


def _sink(edges: Edges) -> sinks.Sink:
    assert edges.output is not None
    return sinks.for_path(edges.output, if_exists=edges.if_exists)
