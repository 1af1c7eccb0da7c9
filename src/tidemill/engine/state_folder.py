"""The state folder: where a pipeline's state is, and that nobody else is in it.

- ``lock``: held by the engine that runs
- ``epoch``: the number of its start, greater with each
- ``pipeline.json``: whose state it is
- ``beginning.json``: with which files, and where, a start began that no checkpoint tells of yet
- ``letters.json``: where its dead letters go, and how much was there before
- ``checkpoints/``, ``log/``, ``files/``, ``sinks/NAME/``, ``dead_letters.ndjson``
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from tidemill import files
from tidemill.engine.checkpoint_store import newest
from tidemill.engine.saved_facts import facts_of
from tidemill.errors import InputError, OutsideError

__all__ = ["Begun", "FoundFolder", "StateFolder", "default_place"]

VERSION: Final = 1
_NETWORKS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "fuse.sshfs", "ncpfs"}
)
_WRITTEN: Final = ("pipeline.json", "epoch", "letters.json", "beginning.json")
"""The files of the folder itself."""
_LAST_EPOCH: Final = 1 << 62
_UNCHECKED_STARTS: Final = 1_000_000
"""Starts since the newest checkpoint, at most."""
_NEEDED: Final = 16 << 20
"""Bytes that must be free at the start."""
_log = logging.getLogger("tidemill")


class _Whose(msgspec.Struct):
    """What ``pipeline.json`` says."""

    version: int
    pipeline: str
    id: str


class _Letters(msgspec.Struct):
    """What ``letters.json`` says."""

    path: str
    bytes: int


class Begun(msgspec.Struct, frozen=True):
    """What ``beginning.json`` says: what a start decided before it let any input in."""

    checkpoint: int = 0
    """The newest one then: once there is another, that one tells of the files."""
    files: dict[str, list[str]] = {}
    """In effect at the beginning, by path."""
    place: dict[str, Any] = {}
    """Where the first input is, of an inflow that has no log."""


def default_place(pipeline: str) -> Path:
    """Where the state of a pipeline of this name is, unless something else is asked for.

    >>> default_place("plant / line 2").parts[-2:]
    ('.tidemill', 'plant_line_2')
    """
    return files.absolute(".tidemill") / (re.sub(r"[^\w.-]+", "_", pipeline).strip(".") or "pipeline")


class FoundFolder:
    """What is at the place of a state folder; nothing here changes it, and a run may be using it."""

    def __init__(self, place: str | Path) -> None:
        self.place = files.absolute(place)

    def require_usable(self, pipeline: str) -> None:
        """Refuse what a start of this pipeline would refuse of the folder, whoever uses it at the moment."""
        self._refuse_what_cannot_serve()
        if not self.place.exists():
            return
        with self._disk():
            self._refuse_if_open_to_others()
            if self._known(pipeline) is None:
                self._refuse_other_things()

    def place_of_sink(self, name: str) -> Path:
        """The folder of a sink, there or not."""
        return self.place.joinpath(*_of_sink(name))

    def _refuse_what_cannot_serve(self) -> None:
        there = next(place for place in (self.place, *self.place.parents) if place.exists())
        if not there.is_dir():
            raise InputError(f"{there} is a file; the state needs a folder.")
        kind = _file_system(self.place)
        if kind in _NETWORKS:
            raise OutsideError(
                f"The state folder {self.place} is on a network file system ({kind}), where locks and fsync cannot be "
                "relied on; choose a folder on a disk of this machine."
            )

    def _refuse_if_open_to_others(self) -> None:
        if not files.is_private(self.place):
            raise InputError(
                f"The state folder {self.place} may be written to by others; run chmod 700 on it if it is yours."
            )

    def _known(self, pipeline: str) -> _Whose | None:
        """Whose state it is, None before the first start; refuses that of another pipeline, and of a newer tidemill."""
        place = self.place / "pipeline.json"
        data = files.read_there(place)
        if data is None:
            return None
        try:
            whose = msgspec.json.decode(data, type=_Whose)
        except msgspec.MsgspecError as error:
            raise InputError(f"{place} is not readable ({error}); restore it, or start over with --fresh.") from None
        if whose.version > VERSION:
            raise InputError(
                f"The state in {self.place} is of a newer tidemill (version {whose.version} of the format, and this one "
                f"knows {VERSION}); upgrade tidemill, or start over with --fresh."
            )
        if whose.pipeline != pipeline:
            raise InputError(
                f"The state in {self.place} belongs to the pipeline {whose.pipeline!r}, and this is {pipeline!r}. If it is "
                f"the same, give it its name, Pipeline(..., name={whose.pipeline!r}); else choose another folder, or start over "
                "with --fresh."
            )
        return whose

    def _refuse_other_things(self) -> None:
        there = set(files.names_in(self.place))
        ours = {"lock", *(left.name for left in self._leftovers())}  # of a first start that was killed
        if "pipeline.json" not in there and there - ours:
            raise InputError(f"{self.place} holds other things than a state; choose a folder of its own.")

    def _leftovers(self) -> list[Path]:
        """Files that starts which were killed had not written to their end."""
        own = [left for name in _WRITTEN for left in files.leftovers(self.place / name)]
        kept = self.place / "files"
        return own + [kept / name for name in files.names_in(kept) if name.startswith(".")] if kept.is_dir() else own

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutsideError(f"The state folder {self.place} cannot be used: {error.strerror or error}.") from error


class StateFolder(FoundFolder):
    """A state folder that this process has locked, until `close`.

    Raises `InputError` for one that others may write to, that is another pipeline's or of a newer tidemill;
    `OutsideError` for one that is in use, on a network file system (whose locks and fsyncs do not hold), or full.
    ``fresh`` begins anew: what was there is moved aside, never deleted, once ``may_begin`` has raised nothing that is against it.
    """

    def __init__(
        self, place: str | Path, pipeline: str, *, fresh: bool = False, may_begin: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(place)
        self._refuse_what_cannot_serve()
        with self._disk():
            if fresh and self.place.exists():
                self._move_aside(may_begin)
            files.make_folder(self.place)
            self._refuse_if_open_to_others()
            if files.free_space(self.place) < _NEEDED:
                raise OutsideError(f"The disk of the state folder {self.place} is full; make room, or choose another.")
            self._lock = files.lock(self.place / "lock")
            if self._lock is None:
                raise OutsideError(
                    f"The state folder {self.place} is in use by another run of this pipeline; stop that one first. If they are two "
                    "pipelines, give each a name of its own, Pipeline(..., name=)."
                )
            try:
                self._whose = self._owned(pipeline)
                for left in self._leftovers():
                    files.remove(left)
                self.epoch = 0
                self.begin_epoch()
                self.checkpoints = self._within("checkpoints")
                self.log = self._within("log")
                self.files = self._within("files")
            except BaseException:
                self._lock.release()
                raise

    @property
    def pipeline(self) -> str:
        """Names this state, and no other's, outside of the folder."""
        return self._whose.id

    @property
    def dead_letters(self) -> Path:
        return self.place / "dead_letters.ndjson"

    def of_sink(self, name: str) -> Path:
        """The folder of a sink, which is made if need be."""
        with self._disk():
            return self._within(*_of_sink(name))

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()

    # -- what is there -------------------------------------------------------------------------------------

    def _move_aside(self, may_begin: Callable[[], object]) -> None:
        number = 1
        while (aside := self.place.with_name(f"{self.place.name}.old-{number}")).exists():
            number += 1
        lock = files.lock(self.place / "lock")
        if lock is None:
            raise OutsideError(f"The state folder {self.place} is in use by another run; stop that one first.")
        try:
            self._refuse_other_things()
            may_begin()
            files.publish(self.place, aside)
        finally:
            lock.release()
        _log.warning("the state so far was moved to %s; delete it when you do not need it", aside)

    def _owned(self, pipeline: str) -> _Whose:
        whose = self._known(pipeline)
        if whose is None:
            self._refuse_other_things()
            whose = _Whose(VERSION, pipeline, uuid.uuid4().hex)
            files.write_atomic(self.place / "pipeline.json", msgspec.json.encode(whose))
        return whose

    def begin_letters(self, letters: Path) -> int:
        """The length of a file of dead letters when the first start used it that knows of none in it. Blocks.

        What others had written there is theirs, and stays.
        """
        place = self.place / "letters.json"
        with self._disk():
            data = files.read_there(place)
        try:
            known = None if data is None else msgspec.json.decode(data, type=_Letters)
        except msgspec.MsgspecError as error:
            raise InputError(f"{place} is not readable ({error}); restore it, or start over with --fresh.") from None
        if known is None or known.path != str(letters):
            known = _Letters(str(letters), letters.stat().st_size if letters.exists() else 0)
            files.write_atomic(place, msgspec.json.encode(known))
        return known.bytes

    def begun(self) -> Begun:
        """What the last start that let an input in began with, as far as no checkpoint told of it. Blocks."""
        place = self.place / "beginning.json"
        with self._disk():
            data = files.read_there(place)
        try:
            return Begun() if data is None else msgspec.convert(json.loads(data), Begun)
        except ValueError as error:
            raise InputError(f"{place} is not readable ({error}); restore it, or start over with --fresh.") from None

    def begin(self, begun: Begun) -> None:
        """Have it on the disk, for good. Blocks."""
        with self._disk():  # in ASCII: the names of files may be no Unicode
            files.write_atomic(self.place / "beginning.json", json.dumps(msgspec.to_builtins(begun)).encode())

    def begin_epoch(self) -> None:
        """From here on, what earlier starts still do is not wanted: the number of this start is greater than theirs."""
        place = self.place / "epoch"
        with self._disk():
            data = files.read_there(place)
        try:
            before = self._lost_epoch() if data is None else int(data)
        except ValueError:
            before = -1
        if not 0 <= before < _LAST_EPOCH:
            raise InputError(f"{place} is not readable; restore it, or start over with --fresh.")
        self.epoch = before + 1
        with self._disk():
            files.write_atomic(place, b"%d\n" % self.epoch)

    def _lost_epoch(self) -> int:
        """A number above those of all starts so far, when the file that has it is gone: 0 before the first."""
        checkpoints = self.place / "checkpoints"
        found = newest(checkpoints) if checkpoints.exists() else None
        return 0 if found is None else facts_of(found).epoch + _UNCHECKED_STARTS

    def _within(self, *names: str) -> Path:
        folder = self.place.joinpath(*names)
        files.make_folder(folder)
        return folder


def _of_sink(name: str) -> tuple[str, str]:
    return "sinks", quote(name, safe=" ").replace(".", "%2E")


def _file_system(place: Path) -> str:
    """The kind of file system that a path is on, or would be; empty where the platform does not tell."""
    there = place
    while not there.exists():
        there = there.parent
    real = os.path.realpath(there)
    best, kind = "", ""
    for line in (files.read_bytes("/proc/self/mounts") or b"").decode(errors="replace").splitlines():
        fields = line.split(" ")
        mounted = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        if mounted and inside and len(mounted) >= len(best):
            best, kind = mounted, fields[2]
    return kind
