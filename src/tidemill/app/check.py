"""What ``tidemill check`` prints: a pipeline compiled, and nothing run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tidemill.app.replace import NO_SINK, said_as_options
from tidemill.app.run_options import Edges
from tidemill.app.standard_streams import tell
from tidemill.app.units import in_units
from tidemill.engine.lanes_count import resolved_lanes
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.engine.process_outlet import SINK_BYTES
from tidemill.engine.sendable import sent_sink, sent_stages
from tidemill.engine.slabs import SLAB_BYTES, SLAB_COUNT
from tidemill.errors import OutputExists
from tidemill.printable import printable
from tidemill.schema import Field, Schema
from tidemill.sinks.base import ProcessSink
from tidemill.sources.base import Source

__all__ = ["aligned", "checked", "described", "state_of", "warn_of_outputs"]

LABEL = 10  # characters of a label and the space behind it: "stage 99"
OTHERWISE = {
    "peer": "its connection",
    "peer_host": "its sender's address",
    "topic": "its topic",
    "series": "its series (measurement and tags)",
}
"""What names the sensor of a record without the default field, by what the source calls it."""
KEYS_SHOWN = 1_000  # sensors that the memory is worked out for


def checked(pipeline: Pipeline, lanes: int | None = None) -> Checked:
    """The pipeline compiled, by the same calls that a run makes, so that the errors are a run's own, and found fit to be
    sent to its processes.

    The sinks' places are not looked at yet: a plan can be read while last week's output is still there.
    """
    for source in pipeline.sources:
        source.check()
    compiled = pipeline.check(edges=False)
    sent_stages(compiled.plan.stages)
    for sink in pipeline.sinks if resolved_lanes(lanes) else ():
        if isinstance(sink, ProcessSink):
            sent_sink(sink)
    return compiled


def described(pipeline: Pipeline, compiled: Checked, *, lanes: int | None = None, keeps: bool = False) -> str:
    """Sources, stages with what each adds, sinks, lanes and memory, as text; ``keeps`` for a run that keeps state."""
    rows = [
        *_sources(pipeline, compiled),
        *_stages(compiled),
        *_sinks(pipeline, compiled, keeps=keeps),
        ("lanes", _lanes(lanes)),
        ("memory", _memory(pipeline, compiled)),
        ("", _shared(pipeline, lanes)),
    ]
    return aligned([("pipeline", pipeline.name), *rows])


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Labels and texts in two columns, a line each, whatever is in the texts."""
    return "".join(printable(f"{label:<{LABEL}}{text}".rstrip()) + "\n" for label, text in rows)


def warn_of_outputs(pipeline: Pipeline, edges: Edges, *, resumes: bool = False) -> None:
    """Look at the sinks' places. What is there already is said on stderr: it is in a run's way, not in a check's. One that
    ``resumes`` goes on with what it made itself.

    Raises `InputError` for a place that no run can write to.
    """
    for sink in pipeline.sinks:
        if resumes and sink.keeps_position:
            continue
        try:
            with said_as_options(edges):
                sink.check()
        except OutputExists as there:
            tell(f"tidemill: a run would not begin: {printable(str(there))}\n")


def _sources(pipeline: Pipeline, compiled: Checked) -> Iterator[tuple[str, str]]:
    for source in pipeline.sources:
        yield "source", f"{source.name}: {_roles(source)}"
    yield "", _columns(compiled.schemas[0])


def _roles(source: Source) -> str:
    sensor, time = f"sensor from {source.key or 'sensor'!r}", f"time from {source.time or 'time'!r}"
    if source.otherwise is not None:
        sensor += f", else {OTHERWISE.get(source.otherwise, source.otherwise)}"
    if source.push and source.time is None:
        time += ", else its arrival"
    return f"{sensor}; {time}; times without a zone are {source.tz}"


def _stages(compiled: Checked) -> Iterator[tuple[str, str]]:
    for number, stage in enumerate(compiled.plan.stages, 1):
        before, after = compiled.schemas[number - 1], compiled.schemas[number]
        yield f"stage {number}", stage.name
        yield "", _change(before, after)


def _change(before: Schema, after: Schema) -> str:
    """What a stage does to the columns, told as a difference."""
    added = [field for field in after if field.name not in before or before[field.name] != field]
    removed = [name for name in before.names if name not in after]
    parts = [f"+ {_listed(added)}"] if added else []
    if removed and not after.open:
        parts.append(f"- {', '.join(removed)}")
    if after.open and not before.open:
        parts.append("+ what its first batch shows")
    return "; ".join(parts) or "the same columns"


def _sinks(pipeline: Pipeline, compiled: Checked, *, keeps: bool) -> Iterator[tuple[str, str]]:
    for sink in pipeline.sinks:
        delivery = sink.delivery_with_state if keeps else sink.delivery
        yield "sink", "none; a run needs --output" if sink.name == NO_SINK else f"{sink.name}: {delivery}"
    yield "", _columns(compiled.schemas[-1])


def _columns(schema: Schema) -> str:
    listed = _listed(list(schema))
    if not schema.open:
        return listed or "no columns"
    return f"{listed}, and what the first batch shows" if listed else "columns as the first batch shows them"


def _listed(fields: Sequence[Field]) -> str:
    return ", ".join(map(str, fields))


def _lanes(asked: int | None) -> str:
    count = resolved_lanes(asked)
    if not count:
        return "0: everything runs in one process"
    return f"{count}{'' if asked is not None else ', what this machine may use'}"


def _memory(pipeline: Pipeline, compiled: Checked) -> str:
    each = compiled.plan.layout(1, 1).bytes_per_key
    if not each:
        return "no state of sensors"
    return (
        f"state {in_units(each)} for each sensor ({in_units(each * KEYS_SHOWN)} for {KEYS_SHOWN:,}), "
        f"at most {pipeline.max_keys:,} sensors"
    )


def state_of(compiled: Checked, sensors: int) -> str:
    """What the state of so many sensors takes."""
    each = compiled.plan.layout(1, 1).bytes_per_key
    return f"their state takes {in_units(each * sensors)}" if each else "they have no state"


def _shared(pipeline: Pipeline, lanes: int | None) -> str:
    """What batches travel in; both are taken from the machine only as far as they are filled."""
    told = f"slabs at most {in_units(SLAB_COUNT * SLAB_BYTES)}"
    processes = sum(isinstance(sink, ProcessSink) for sink in pipeline.sinks) if resolved_lanes(lanes) else 0
    if processes:
        told += f", to sinks at most {in_units(processes * SINK_BYTES)}"
    return f"{told}, as far as they are filled"
