"""The keeper: a run's state on disk, what an attempt begins with, and what a checkpoint on the disk lets go."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tidemill import files
from tidemill.clock import Clock
from tidemill.core.controls import NewStage, NewStages
from tidemill.core.plan import Plan
from tidemill.core.resume import Matching, check_resume, identify, matched
from tidemill.engine.checkpoint_store import Checkpoint, CheckpointStore
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.intake import Beginning
from tidemill.engine.journal import Journal
from tidemill.engine.kept_files import InEffect, KeptFiles, occurrence
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.engine.saved_facts import SavedFacts, facts_of
from tidemill.engine.saved_state import fill
from tidemill.engine.sendable import sent_stage
from tidemill.engine.state import State
from tidemill.engine.state_folder import Begun, StateFolder
from tidemill.engine.tally import Tally
from tidemill.errors import InputError, PlanError
from tidemill.sinks.base import Keeping
from tidemill.stages.base import Stage

if TYPE_CHECKING:
    from tidemill.engine.attempt import Attempt

__all__ = ["Keeper", "Places"]

KEPT: Final = 3
"""Checkpoints that are kept."""
_UNUSED_NS: Final = 86_400 * 10**9
"""How long before the oldest of these a copy of a file must have been wanted last, to be removed."""
_log = logging.getLogger("tidemill")
Place = dict[str, Any]
"""Where an inflow can begin again: JSON-like, and the inflow's own."""


class Places:
    """Where the inflow stood at which positions, so that a checkpoint at any position knows where to begin again.

    >>> places = Places(0, {"entry": 0})
    >>> places.add(10, {"entry": 1}); places.add(20, {"entry": 2})
    >>> places.before(15)
    (10, {'entry': 1})
    """

    def __init__(self, position: int, place: Place) -> None:
        self._known: deque[tuple[int, Place]] = deque([(position, place)])

    def add(self, position: int, place: Place) -> None:
        """Everything up to ``position`` comes from before ``place``."""
        self._known.append((position, place))

    def before(self, position: int) -> tuple[int, Place]:
        """The last place at which no input beyond ``position`` had come, and its own position; those before are forgotten."""
        while len(self._known) > 1 and self._known[1][0] <= position:
            self._known.popleft()
        return self._known[0]


class Keeper:
    """One run's state on disk; each of its attempts has a `Saving`."""

    def __init__(self, folder: StateFolder, clock: Clock, state: State) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder.checkpoints, keep=KEPT)
        self._clock = clock
        self.state = state
        self.files = KeptFiles(folder.files)
        self.in_effect: InEffect = {}
        """The files that the stages are made of, as they are when the attempt begins."""
        self._begun = folder.begun()
        """What the disk says of the beginning."""
        self._begun_before = self._begun
        """The same, as this start has found it."""
        self._begins: Begun | None = None
        """What it has to say before the next input."""
        self._beginning = threading.Lock()
        self.journal: Journal | None = None
        """The way through the ingest log, where there is one."""
        self.found: Checkpoint | None = None
        """The newest checkpoint that is whole, and what it says."""
        self.facts: SavedFacts | None = None
        self._find()
        self.places = Places(0, {})
        now, run_began = clock.wall_ns(), clock.monotonic_ns()
        written = now if self.facts is None or self.facts.written_ns is None else self.facts.written_ns
        self.published_ns = run_began - max(now - written, 0)
        """When the newest checkpoint was published, on the clock of this process; the run's beginning before the first."""
        self.reached = 0
        """Up to where in the input all has left the lanes, in any attempt."""
        self.warming = False
        """Whether a history is worked on, before the run's own input: nothing is published before it is over."""
        self._kept: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        """What the last checkpoints of this run say."""
        self._tallies: dict[int, Tally] = {}
        self._resumed_from = 0
        """The checkpoint from which an attempt has last gone on."""

    @property
    def place(self) -> Place:
        """Where the inflow begins again; empty at the very beginning."""
        return {} if self.facts is None else self.facts.place

    @property
    def number(self) -> int:
        """Of the newest checkpoint; 0 before the first."""
        return 0 if self.found is None else self.found.number

    @property
    def position(self) -> int:
        """Up to where in the input all is done."""
        return 0 if self.facts is None else self.facts.position

    def letters_bytes(self, place: Path) -> int:
        """How many bytes of this file of dead letters are not to come again: others' and those of the checkpoint."""
        if self.facts is not None and self.facts.letters == str(place):
            return self.facts.letters_bytes
        return self.folder.begin_letters(place)

    @property
    def ended(self) -> bool:
        """Whether the whole input had been worked on, to its end."""
        return self.facts is not None and self.facts.ended

    def of_sink(self, name: str) -> Keeping:
        """What a sink is told."""
        return Keeping(self.folder.of_sink(name), self.folder.pipeline, self.folder.epoch)

    async def begin_again(self) -> None:
        """Another attempt comes: it goes on from the newest checkpoint, with a number of its own."""
        await asyncio.to_thread(self._find)
        self.folder.begin_epoch()
        if self.journal is not None:
            self.journal.rewind(self.place.get("entry", 0))

    def _find(self) -> None:
        found = self.store.newest()
        self.facts = None if found is None else facts_of(found)
        self.found = found

    def has_input(self) -> bool:
        """Whether the ingest log holds anything. Blocks."""
        log = IngestLog(self.folder.log)
        log.close()
        return log.end > 0

    @property
    def tally(self) -> Tally:
        """What this run had counted at the newest checkpoint."""
        return self._tallies.get(self.number, Tally())

    def tallied(self, number: int, tally: Tally) -> None:
        """A checkpoint of this run is about to be written, at which so much had been counted."""
        self._tallies[number] = tally
        for old in sorted(self._tallies)[: -(KEPT + 1)]:
            del self._tallies[old]

    async def restore(self, attempt: Attempt) -> Beginning:
        """Give the attempt the state of the newest checkpoint; where its input begins."""
        cuts = sorted({outlet.resumed_at for outlet in attempt.outflow.outlets if outlet.resumed_at})
        facts, declared = self.facts, _declared(attempt.pipeline)
        if self.found is None or facts is None:
            self.places = Places(0, {})
            return Beginning(declared=declared, cuts=cuts)
        self._refuse_older_outputs(attempt, facts)
        matching = self.matching(attempt.checked)
        stages = attempt.checked.plan.stages
        fields = [one.fields for one in matching.old]
        if matching.keeps_keys:
            await asyncio.to_thread(
                fill, self.found, facts, attempt.keys, attempt.mill.lanes, stages, fields, matching.sources
            )
        attempt.outflow.rows = facts.rows
        attempt.watermark.restore(msgspec.structs.asdict(facts.watermark), self._clock.monotonic_ns())
        learned = {str(new): facts.learned.get(str(old)) for new, old in enumerate(matching.sources)}
        attempt.mill.learned_before(
            {stage: kinds for stage, kinds in learned.items() if kinds is not None},
            facts.results if matching.same else {},
            probing=facts.probing or not matching.same,
        )
        self.places = Places(facts.place_position, facts.place)
        if self._resumed_from != self.found.number:  # attempts that fail one after the other begin at the same
            self._resumed_from = self.found.number
            _log.info("resumed behind input %d, from checkpoint %d", facts.position, self.found.number)
        return Beginning(facts.place_position, facts.position, facts.kinds, facts.empty, declared, cuts)

    def check(self, pipeline: Pipeline, *, edges: bool = True) -> Checked:
        """The pipeline with its tables and models as they were at the checkpoint, or when its first input was let in."""
        with self._beginning:
            known = {} if self.facts is None else self.facts.files
            if self._begun.checkpoint == self.number:
                known = {**known, **self._begun.files}
            load = self.files.loader(known)
            checked = pipeline.check(edges=edges, resumes=self.folder.epoch > 1, waits=not pipeline.finite, load=load)
            self.in_effect = load.in_effect
            told = self.in_effect.items() <= known.items()
            self._begins = None if told else Begun(self.number, self.in_effect, self._begun.place)
        return checked

    def begin(self) -> None:
        """Inputs are about to come, and sinks may commit what is made of them long before a checkpoint tells of what that was
        done with: have it on the disk. Blocks."""
        with self._beginning:
            if self._begins is not None:
                self.folder.begin(self._begins)
                self._begun, self._begins = self._begins, None

    def begun_nothing(self) -> None:
        """No lane could work on what came in: what counts for it is what there was before, or else what the next start finds.
        Blocks."""
        with self._beginning:
            if self._begun != self._begun_before:
                self.folder.begin(self._begun_before)
                self._begun = self._begun_before

    def begin_at(self, decided: Callable[[], Place]) -> Place:
        """The same for an inflow without a log: where its first input is, as the first start decided. Blocks."""
        if not self._begun.place:
            self._begins = Begun(self.number, self.in_effect, decided())
        self.begin()
        return self._begun.place

    def stale(self, stages: Sequence[Stage]) -> set[int]:
        """The stages whose files have changed since they were made. Blocks."""
        return {
            number
            for number, stage in enumerate(stages)
            if stage.path is not None and self._is_stale(stage.path, occurrence(stages, number))
        }

    def _is_stale(self, path: str, which: int) -> bool:
        if files.endless(path):
            return False
        try:
            return self.files.keep(path) != self.in_effect[path][which]
        except InputError:
            return False  # there is nothing new that could serve

    def stages_of(self, checked: Checked, plan: Plan, told: Sequence[Mapping[str, Any]]) -> list[NewStage]:
        """The stages made of a kept file, as another start decided (`told_of`), without those that this plan does not have.
        Blocks."""
        stages = []
        for one in told:
            number, name = _stage_told(plan.stages, one), str(one["file"])
            if number is not None:
                stage = plan.stages[number]
                made = stage.prepared(self.files.loader({str(stage.path): [name]})).settled(checked.schemas[number])
                stages.append(NewStage(number, sent_stage(made), name))
        return stages

    @staticmethod
    def told_of(made: NewStages, stages: Sequence[Stage]) -> list[dict[str, Any]]:
        """What the log is told: the plan that reads it may have other stages before these."""
        return [
            {"path": stages[one.stage].path, "which": occurrence(stages, one.stage), "file": one.file}
            for one in made.stages
        ]

    def require_unused(self, attempt: Attempt, file: str, path: str, error: PlanError, *, opened: bool) -> None:
        """The log tells of a kept ``file`` that no lane can open, as ``error`` says.

        Where none ever could, no input behind it has been worked on, and it may be passed over: that was logged before stages
        were ``opened`` first. Raises `PlanError` where one could, or a sink has rows of inputs behind it.
        """
        place = self.folder.files / file
        position = attempt.intake.entered + 1
        reached = max((outlet.resumed_at for outlet in attempt.outflow.outlets), default=0)
        if opened or reached > position:
            raise PlanError(
                f"{error} It is the {path} that counts from input {position:,} on, kept as {place}, and has been used. Start with "
                "what could open it then, such as the library of that time, or start over with --fresh."
            ) from error
        _log.warning(
            "%s was replaced at input %d by what cannot be opened, kept as %s; nothing was worked on with it, so it is passed over "
            "and the one before stays in use: %s",
            path,
            position,
            place,
            error,
        )

    def effective(self, stages: Sequence[Stage], changed: Mapping[int, str]) -> InEffect:
        """The files in effect when some stages were made anew since the attempt began."""
        names = {path: list(kept) for path, kept in self.in_effect.items()}
        for number, name in changed.items():
            names[str(stages[number].path)][occurrence(stages, number)] = name
        return names

    def matching(self, checked: Checked) -> Matching:
        """Which stage goes on with which state. Raises `PlanError` where some would be lost that may not."""
        old = [] if self.facts is None else self.facts.stages
        matching = matched(old, identify(checked.plan, checked.place_by))
        check_resume(matching, self.state.drop_state)
        return matching

    def _refuse_older_outputs(self, attempt: Attempt, facts: SavedFacts) -> None:
        """A sink had committed all up to the checkpoint, or there would be none."""
        for outlet in attempt.outflow.outlets:
            if outlet.name not in facts.sinks and 0 < outlet.resumed_at < facts.position:
                _log.warning(
                    "the sink %s was left out for a while: of inputs %d to %d it has no rows",
                    outlet.name,
                    outlet.resumed_at + 1,
                    facts.position,
                )
            if outlet.name in facts.sinks and outlet.resumed_at < facts.position:
                raise InputError(
                    f"the output of sink {outlet.name} reaches up to input {outlet.resumed_at:,}, and the state in "
                    f"{self.folder.place} goes on behind {facts.position:,}: was it put back from an older copy, or "
                    "removed? Restore it, or start over with --fresh and another output."
                )

    def refuse_newer_outputs(self, attempt: Attempt) -> None:
        """All that the log held has entered. What a sink has seen had been there before, so an output that reaches further has
        seen other inputs at the places of those that come next: they would be taken for written, and be nowhere."""
        entered = attempt.intake.entered
        for outlet in attempt.outflow.outlets:
            if outlet.resumed_at > entered:
                raise InputError(
                    f"the output of sink {outlet.name} reaches up to input {outlet.resumed_at:,}, and the state in "
                    f"{self.folder.place} knows of {entered:,} inputs: was the state put back from an older copy? Put both back "
                    "from the same moment, or start over with --fresh."
                )

    @property
    def pressed(self) -> bool:
        """Whether the ingest log is nearly full, and would be less so if the checkpoints that are kept were all as the newest.
        Full alone would be too late: a log that was full, and is nearly so when no more comes, would stay that for ever.
        """
        kept = [facts["place"] for facts in tuple(self._kept)]  # a thread may be adding one
        return self.journal is not None and self.journal.nearly_full and (len(kept) < KEPT or kept[0] != kept[-1])

    def published(self, facts: Mapping[str, Any]) -> None:
        """A checkpoint is on the disk: what none of those that are kept needs may go from the log, and of the files. Blocks."""
        self.published_ns = self._clock.monotonic_ns()
        self._kept.append(facts)
        if len(self._kept) < KEPT:
            return
        oldest = self._kept[0]
        if self.journal is not None:
            self.journal.log.forget(oldest["place"].get("entry", 0))
        # A file that the log alone tells of, behind the oldest, was wanted not long before that.
        needed = {name for kept in self._kept for names in kept["files"].values() for name in names}
        self.files.prune(needed, oldest["written_ns"] - _UNUSED_NS)


def _declared(pipeline: Pipeline) -> dict[str, str]:
    """The kinds that sources declare by now; what came before was taken for what it had learned."""
    return {name: kind.value for source in pipeline.sources for name, kind in source.columns.items()}


def _stage_told(stages: Sequence[Stage], told: Mapping[str, Any]) -> int | None:
    """Where among these is the stage that a log tells of, by its path; before it told the path, by its place."""
    if "path" not in told:
        number = int(told["stage"])
        return number if number < len(stages) and stages[number].path is not None else None
    alike = [number for number, stage in enumerate(stages) if stage.path == told["path"]]
    return alike[told["which"]] if told["which"] < len(alike) else None
