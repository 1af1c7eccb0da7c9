"""``tidemill new plant.py --from march.csv``: look at a recording, write three files beside each other, say what was guessed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tidemill import files, sources
from tidemill.app.check import aligned
from tidemill.app.exit_codes import ExitCode
from tidemill.app.new.fields_seen import Place, shown_place
from tidemill.app.new.roles import Given, Roles, roles_of
from tidemill.app.new.sniffing import BLANKS, Head, Layout, sniffed
from tidemill.app.new.survey import LOOKED_AT, Survey, surveyed
from tidemill.app.new.templates import BLANK, MOST_SENSORS, Draft, calibration_text
from tidemill.app.new.time_role import ARRIVAL
from tidemill.app.standard_streams import write_out
from tidemill.engine.plan import FROM_DISK, Plan
from tidemill.errors import InputError, MissingExtra, OutputExists, PlanError
from tidemill.sources.base import Source
from tidemill.stages.base import Stage
from tidemill.stages.calibrate import Calibrate
from tidemill.stages.map_rows import MapRows
from tidemill.stages.rolling import Rolling

__all__ = ["finish", "near", "new", "places_of"]

_HEAD: Final = 1 << 18
"""Bytes by which a recording is judged."""


def new(plan: str, recording: str, given: Given, *, force: bool) -> ExitCode:
    """Write ``plan``, ``calibration.csv`` and the test beside it, from what the recording shows.

    Raises `InputError` for a recording that nothing can be made of, saying what was seen and which option to give,
    and `OutputExists` when one of the files is there already, unless ``force``. Nothing is written then.
    """
    places = places_of(plan, force=force)
    path = _recording(recording)
    head = _head(path)
    roles = roles_of(head, given)
    source, draft = _source(path, _draft(places[0], path, head, roles))
    survey = surveyed(source, roles.value)
    _require_fit(source, roles.value)
    draft = replace(draft, rejected=survey.rejected.count > 0)
    finish(places, draft, survey, read=f"{near(path)}: {head.layout}; {survey}", again=_again(recording, head.layout))
    return ExitCode.DONE


def finish(places: Sequence[Path], draft: Draft, survey: Survey, *, read: str, again: str) -> None:
    """Write the three files, and say what was written, seen and guessed."""
    texts = draft.plan_text(), calibration_text(survey.calibrated), draft.test_text()
    for place, text in zip(places, texts, strict=False):
        files.write_whole(place, text.encode())
    write_out(aligned(_told(places, draft.roles, survey, read, again)))


def places_of(plan: str, *more: str, force: bool) -> tuple[Path, ...]:
    """Where the three files go, and ``more`` beside them. Raises `OutputExists` and `InputError`."""
    path = files.absolute(plan)
    if path.suffix != ".py":
        raise InputError(
            f"the plan is a Python file, and {plan!r} does not end in .py; write: tidemill new {path.stem}.py ..."
        )
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; make it first, or give another place.")
    places = path, path.with_name("calibration.csv"), path.with_name(f"test_{path.stem}.py"), *map(path.with_name, more)
    there = [str(place) for place in places if files.stamp(place) is not None]
    if there and not force:
        verb = "is" if len(there) == 1 else "are"
        own = files.stamp(path) is not None or files.stamp(places[2]) is not None
        advice = (
            "give another folder, or add --force to replace what is there"
            if own
            else f"another plan may need that, so give {path.name} a folder of its own"
        )
        raise OutputExists(f"{' and '.join(there)} {verb} there already, and new writes over nothing; {advice}.")
    return places


def _recording(recording: str) -> Path:
    found = files.expand(recording)
    if len(found) > 1:
        raise InputError(
            f"{recording} means {len(found)} files; give one of them ({found[0].name}), and in the plan its folder or pattern."
        )
    return found[0]


def _head(path: Path) -> Head:
    with files.open_read(path) as handle:
        data = b""
        for block in files.read_blocks(path, handle, _HEAD):
            data += block
            if len(data) >= _HEAD and b"\n" in data:
                break
            if len(data) > 1 << 22:
                raise InputError(f"{path} has no line's end in its first 4 MB; new looks at CSV and NDJSON.")
        whole = len(data) < _HEAD
    return sniffed(str(path), files.suffix(path), data, whole=whole)


def _draft(plan: Path, path: Path, head: Head, roles: Roles) -> Draft:
    inside = path.is_relative_to(plan.parent)
    place = str(path.relative_to(plan.parent)) if inside else str(path)
    return Draft(plan.name, place, inside, files.stem(path), head.layout, roles, head.fields)


def _source(path: Path, draft: Draft) -> tuple[Source, Draft]:
    """What the plan's own source will be, and the draft that says so."""
    roles, layout = draft.roles, draft.layout
    options: dict[str, Any] = {"key": draft.key, "time": roles.time, "tz": roles.tz, "time_format": roles.seen.format}
    if layout.plain:
        return sources.Replay(path, format=None if layout.named else layout.kind, **options), draft
    frame = _frame(path, draft)
    if frame[roles.value[0]].dtype.kind not in "biuf":
        draft = replace(draft, coerced=True)
        frame = _frame(path, draft)
    return sources.Frame(frame, **options), draft


def _frame(path: Path, draft: Draft) -> Any:
    layout = draft.layout
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtra("pandas", "all", f"Files written in {layout}") from None
    frame = pd.read_csv(
        path,
        sep=r"\s+" if layout.separator == BLANKS else layout.separator,
        quotechar=layout.quote,
        skiprows=layout.skipped,
        decimal=layout.decimal,
        encoding=layout.encoding,
        skipinitialspace=layout.separator != BLANKS,
        header=0,
        names=list(draft.fields) if layout.padded else None,
        converters=dict.fromkeys(draft.stripped, str.strip),
        dtype=dict.fromkeys(draft.as_text, str),
        keep_default_na=not draft.key_fields,
        na_values=dict.fromkeys(draft.blankable(draft.fields), BLANK) if draft.key_fields else None,
        nrows=LOOKED_AT,
    )
    if draft.coerced:
        value = draft.roles.value[0]
        frame[value] = pd.to_numeric(frame[value].str.replace(layout.decimal, "."), errors="coerce")
    return frame.assign(stem=draft.stem) if draft.by_stem else frame


def _require_fit(source: Source, value: Place) -> None:
    """Refuse what the plan could not be run on, such as a column that has the name of one of its own."""
    stages: list[Stage] = [] if len(value) == 1 else [MapRows(list, adds={value[-1]: float})]
    stages += [
        Calibrate({"*": (0, 1)}, value[-1]),
        Rolling("normalized", window=50, stats=["mean", "std", "min", "max"]),
    ]
    try:
        Plan(*stages).prepared(FROM_DISK).bind(source.peek())
    except PlanError as error:
        raise InputError(
            f"{source.name}: the plan would not run on what was read: {error} Give another field with --value."
        ) from None


# -- words ---------------------------------------------------------------------------------------------------


def _told(places: Sequence[Path], roles: Roles, survey: Survey, read: str, again: str) -> Iterator[tuple[str, str]]:
    """Labels and texts: what was written, what was seen, what is a guess, what to type next."""
    plan, calibration, test, *_ = names = [near(place) for place in places]
    yield "wrote", ", ".join(names)
    yield "read", read
    for sentence in survey.rejected.told:
        yield "", sentence
    yield "sensor", _role(f"key={roles.key!r}", roles.doubt("key"))
    time = roles.seen.words if roles.seen is ARRIVAL else f"time={roles.time!r}, {roles.seen.words}"
    yield "time", _role(time, "; ".join(filter(None, map(roles.doubt, ["time", "format"]))))
    if not roles.seen.zoned:
        yield "zone", _role(f"tz={roles.tz!r}", roles.doubt("tz"))
    yield "reading", _role(shown_place(roles.value), roles.doubt("value"))
    yield "", f"calibrated by each sensor's mean and spread, as seen: put the true ones into {calibration}"
    more = len(survey.sensors) - MOST_SENSORS
    if more > 0:
        yield (
            "",
            f"{calibration} has the first {MOST_SENSORS:,} sensors; {more:,} more have no line, and are NaN until they do",
        )
    yield "next", f"tidemill check {shlex.quote(plan)}{again}"
    yield "", f"tidemill run {shlex.quote(plan)}"
    missing = "" if find_spec("pandas") else "  # needs pandas: pip install pandas"
    yield "", f"python {shlex.quote(test)}{missing}"


def _again(recording: str, layout: Layout) -> str:
    """The option that gives a check the recording, where `sources.Replay` reads it."""
    return f" --input {shlex.quote(recording)}" if layout.plain and layout.named else ""


def _role(what: str, doubt: str) -> str:
    return f"{what} ({doubt})" if doubt else what


def near(path: Path) -> str:
    """The path as a person in this folder writes it."""
    try:
        return str(path.relative_to(os.getcwd()))  # noqa: PTH109 - as the other doors
    except ValueError:
        return str(path)
