"""What the command line says of state."""

from __future__ import annotations

from pathlib import Path

from tidemill.app.checkpoint_command import folder_of
from tidemill.app.run_options import Keeps
from tidemill.app.standard_streams import write_out
from tidemill.core.keys import KeyTable
from tidemill.core.resume import check_resume, described, identify, matched
from tidemill.engine.checkpoint_store import newest
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.engine.saved_facts import facts_of
from tidemill.engine.saved_state import keys_of
from tidemill.engine.state import State
from tidemill.engine.state_folder import FoundFolder
from tidemill.errors import InputError
from tidemill.printable import lines_printable
from tidemill.sources.base import Source

__all__ = ["resumption", "state_asked_for"]


def state_asked_for(pipeline: Pipeline, keeps: Keeps, warm: Source | None) -> State | bool:
    """The state that a run keeps; False for none. Raises `InputError` for options that contradict each other."""
    asks = keeps.fresh or warm or keeps.drop_state or keeps.checkpoint_s is not None
    if keeps.no_state and (keeps.state is not None or asks):
        raise InputError(
            "--no-state keeps nothing, so it does not go with --state, --fresh, --checkpoint-s, --warm or --drop-state."
        )
    if keeps.no_state or (keeps.state is None and pipeline.finite):
        if asks:
            raise InputError("a recording keeps no state by itself; name the folder with --state DIR.")
        return False
    dropped = tuple(keeps.drop_state or ())
    seconds = State.checkpoint_s if keeps.checkpoint_s is None else keeps.checkpoint_s
    return State(keeps.state, fresh=keeps.fresh, checkpoint_s=seconds, warm=warm, drop_state=dropped)


def resumption(place: Path, pipeline: Pipeline, compiled: Checked, drop_state: tuple[str, ...]) -> None:
    """Print which stages would go on with the state in a folder, which a run may be using.

    Raises what a start would refuse: a folder that it cannot use, stages that would lose their state, an output that is not
    where the rows so far are, more sensors than ``max_keys``.
    """
    checkpoints = folder_of(place)
    found = newest(checkpoints)
    folder = FoundFolder(place)
    if found is None or checkpoints != folder.place:  # else these are checkpoints alone, such as copies
        folder.require_usable(pipeline.name)
    if found is None:
        write_out(f"resume: there is no checkpoint in {place}; {pipeline.name} would begin anew\n")
        return
    facts = facts_of(found)
    matching = matched(facts.stages, identify(compiled.plan, compiled.place_by))
    told = f"{described(matching)}\n        behind input {facts.position:,}, checkpoint {found.number}\n"
    write_out(lines_printable(told))
    check_resume(matching, drop_state)
    for sink in pipeline.sinks:
        sink.require_same_output(folder.place_of_sink(sink.name))
    if matching.keeps_keys:
        KeyTable(1, pipeline.max_keys).enter(keys_of(found))
