"""``tidemill log DIR``: what an ingest log holds, and whether it is whole. Reads only, also while a run writes it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from tidemill import files
from tidemill.engine.log_segments import find_segments, frames, is_blank, scattered
from tidemill.errors import InputError, OutsideError
from tidemill.files import PlacedFile
from tidemill.formats.log_frames import FRAMES_AT, Frame, entry_name, first_of, read_head, read_mark
from tidemill.printable import counted

__all__ = ["Damage", "LogSurvey", "SegmentSurvey", "inspect", "survey", "told"]


@dataclass(frozen=True)
class Damage:
    """A place that is not as it was written."""

    path: Path
    place: int
    what: str


@dataclass(frozen=True)
class SegmentSurvey:
    """One file of the log."""

    path: Path
    entries: int
    """Whole ones."""
    first: int
    """Number of the first entry, by the file's name."""
    end: int
    """One more than the number of the last whole entry."""
    bytes: int
    """Taken on disk, with what is only reserved."""
    used: int
    """Bytes up to the end of the last whole entry."""
    damages: tuple[Damage, ...]
    torn_at: int | None = None
    """Where the rest of a write begins that a crash cut short; None when nothing of that kind is there."""


@dataclass(frozen=True)
class LogSurvey:
    """What lies in the folder of a log."""

    folder: Path
    segments: tuple[SegmentSurvey, ...]
    damages: tuple[Damage, ...]
    """Of every file."""
    refused: str
    """Why a run would not begin with it, as it would say so; empty when it would."""

    @property
    def is_whole(self) -> bool:
        """Whether every entry that was ever on disk, and not forgotten, is there."""
        return not self.damages and not self.refused


def inspect(folder: Path) -> str:
    """What `told` tells of `survey`."""
    return told(survey(folder))


def survey(folder: Path) -> LogSurvey:
    """Look through every file of the log in ``folder``, or in ``folder/log``.

    Raises `InputError` when there is no log, and `OutsideError` when it cannot be read.
    """
    place = files.absolute(folder)
    try:
        place = place / "log" if "log" in files.names_in(place) else place
        names = [name for name in files.names_in(place) if first_of(name) is not None]
        if not names:
            raise InputError(f"{place} holds no ingest log: no file there is called like {entry_name(0)}.")
        segments = [_segment(place / name, is_last=name == names[-1]) for name in names]
        refused = ""
        try:
            find_segments(place)
        except OutsideError as error:
            refused = str(error)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no folder {place}; check its name, or where the state of the run is.") from None
    except OSError as error:
        raise OutsideError(f"{place} cannot be read: {error.strerror or error}.") from error
    missing = [
        Damage(one.path, one.used, f"entries {one.end} to {after.first - 1} are missing")
        for one, after in itertools.pairwise(segments)
        if one.end < after.first and not one.damages
    ]
    damages = [damage for one in segments for damage in one.damages]
    return LogSurvey(place, tuple(segments), (*damages, *missing), refused)


def _segment(path: Path, *, is_last: bool) -> SegmentSurvey:
    file = PlacedFile(path, "read")
    first = first_of(path.name) or 0
    try:
        data, size = file.read(0, FRAMES_AT), file.size()
        try:
            seed = read_head(data).seed
        except ValueError as error:
            half_made = is_last and is_blank(file, 0)  # in the moment of the crash, with nothing in it
            damages = () if half_made else (Damage(path, 0, str(error)),)
            return SegmentSurvey(path, 0, first, first, size, 0, damages)
        mark = read_mark(data)
        certain = mark.end if mark else 0
        return _surveyed(path, file, first, seed, certain, is_last=is_last)
    finally:
        file.close()


def _surveyed(path: Path, file: PlacedFile, first: int, seed: int, certain: int, *, is_last: bool) -> SegmentSurvey:
    number, place, count = first, FRAMES_AT, 0
    damages: list[Damage] = []
    torn_at = None
    while True:
        for frame in frames(file, place, number, seed, 1 << 64):
            number, place, count = number + 1, frame.end, count + 1
        if is_blank(file, place) and certain <= number:
            break
        later = [_without_entry(frame) for frame in scattered(file, place, seed, number)]
        on_disk = max([certain, *(frame.on_disk for frame in later)])
        if is_last and on_disk <= number:
            torn_at = place
            break
        following = next((frame for frame in later if frame.number > number), None)
        if following is None:
            upto = f" to {certain - 1}" if certain > number + 1 else ""
            damages.append(Damage(path, place, f"entry {number}{upto} is not whole"))
            break
        upto = f" to {following.number - 1}" if following.number > number + 1 else ""
        damages.append(Damage(path, place, f"entry {number}{upto} is not whole"))
        number, place = following.number, following.place
    return SegmentSurvey(path, count, first, number, file.size(), place, tuple(damages), torn_at)


def _without_entry(frame: Frame) -> Frame:
    """Many may lie there; their entries are not needed."""
    return Frame(frame.number, frame.on_disk, b"", frame.place)


def told(found: LogSurvey) -> str:
    """For a person: the whole, each file, what is torn, what is damaged."""
    first, end = found.segments[0].first, found.segments[-1].end
    count = sum(one.entries for one in found.segments)
    files_told = f"{counted(len(found.segments), 'segment')}, {_megabytes(sum(one.bytes for one in found.segments))}"
    lines = [f"{found.folder}: {counted(count, 'entry', 'entries')}{_range(first, end)} in {files_told}"]
    for one in found.segments:
        entries = f"{counted(one.entries, 'entry', 'entries')}{_range(one.first, one.end)}"
        lines.append(f"  {one.path.name}  {entries}, {_megabytes(one.used)} of {_megabytes(one.bytes)} used")
    torn = [one for one in found.segments if one.torn_at is not None]
    lines.append("torn tail: " + ("no" if not torn else f"yes, at byte {torn[0].torn_at} of {torn[0].path.name}"))
    if torn:
        lines.append(
            "  a write was cut short by a crash, or is going on now; the next start cuts it off, nobody was promised it"
        )
    lines.append("damage: " + ("none" if found.is_whole else counted(len(found.damages), "place")))
    lines += [f"  {one.path.name} at byte {one.place}: {one.what}" for one in found.damages]
    if found.refused:
        lines.append(f"  a run would be refused: {found.refused}")
    return "\n".join(lines) + "\n"


def _range(first: int, end: int) -> str:
    return f" ({first} to {end - 1})" if end > first else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
