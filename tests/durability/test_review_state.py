"""Faults of what is kept on disk that a hostile reading found, and that must stay found."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from tests.durability.endless import Endless

import tidemill as tm
from tidemill import files
from tidemill.engine import log_segments, setbacks
from tidemill.engine.checkpoint_store import CheckpointStore, newest
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.keeper import Keeper
from tidemill.engine.state_folder import StateFolder
from tidemill.formats.log_frames import frame_head, length_of
from tidemill.letters import DeadLetter
from tidemill.schema import Kind
from tidemill.testing import ListSink, ScriptedSource

Change = Callable[[dict[str, Any]], object]


def record(n: int) -> dict[str, object]:
    return {"sensor": f"S{n % 2}", "time": n, "value": float(n)}


def given_once(*batches: list[dict[str, Any]]) -> ScriptedSource:
    """A source that cannot seek, so that what it gives goes through the log."""
    return ScriptedSource(batches)


def without_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the run died before each."""
    monkeypatch.setattr(CheckpointStore, "write", lambda *_: 0)


# -- checkpoints ---------------------------------------------------------------------------------------------


async def test_a_state_of_rejected_records_alone_goes_on(tmp_path: Path, lanes: int) -> None:
    """Whoever had a wrong key=, stopped the run and corrected it has a checkpoint without a sensor."""

    async def started(*given: dict[str, Any]) -> list[dict[str, Any]]:
        sink, source = ListSink(), Endless([list(given)])
        source.columns["value"] = Kind.FLOAT
        pipeline = tm.Pipeline(source, tm.Plan(tm.Lag("value")), sink, name="plant")
        async with tm.serve(pipeline, lanes=lanes, state=tmp_path / "state") as run, asyncio.timeout(60):
            while run.statistics().dead_letters + len(sink.rows) < len(given):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
            run.stop_soon()
            await run.wait()
        return sink.rows

    assert await started({"value": 1.0}, {"value": 2.0}) == []
    found = newest(tmp_path / "state" / "checkpoints")
    assert found is not None
    assert found.facts["position"] == 2
    assert [row["value"] for row in await started(record(1))] == [1.0]


def rewritten(tmp_path: Path, change: Change, arrays: Change = lambda _: None) -> None:
    """The newest checkpoint with other facts or arrays, its check sums right."""
    folder = tmp_path / "state" / "checkpoints"
    found = newest(folder)
    assert found is not None
    facts, parts = dict(found.facts), {name: found._value(name) for name in found.names}
    change(facts)
    arrays(parts)
    for path in folder.iterdir():
        path.unlink()
    CheckpointStore(folder).write(found.number, facts, parts.items())


EVIL: dict[str, Change] = {
    "no position": lambda facts: facts.pop("position"),
    "a position of text": lambda facts: facts.update(position="7"),
    "a position below 0": lambda facts: facts.update(position=-1),
    "a place behind it": lambda facts: facts.update(place_position=facts["position"] + 1),
    "lanes without end": lambda facts: facts.update(lanes=2**31),
    "no lanes": lambda facts: facts.update(lanes=0),
    "a place that is a list": lambda facts: facts.update(place=[1]),
    "an empty watermark": lambda facts: facts.update(watermark={}),
    "letters of less than nothing": lambda facts: facts.update(letters_bytes=-1),
    "stages of another kind": lambda facts: facts.update(stages=[1]),
    "no stages": lambda facts: facts.update(stages=None),
}


def calibrated(tmp_path: Path, sink: ListSink) -> None:
    table = tmp_path / "calibration.csv"
    if not table.exists():
        table.write_text("sensor,baseline,scale\n*,0,1\n")
    recording = tmp_path / "in.ndjson"
    recording.write_text("".join(f'{{"sensor": "S{n % 2}", "time": {n}, "value": {n}}}\n' for n in range(40)))
    pipeline = tm.Pipeline(tm.sources.Replay(recording), tm.Plan(tm.Calibrate(str(table)), tm.Lag("value")), sink)
    tm.run(pipeline, lanes=0, state=tmp_path / "state")


@pytest.mark.parametrize("change", EVIL.values(), ids=list(EVIL))
def test_what_no_run_has_written_is_refused_before_it_is_used(tmp_path: Path, change: Change) -> None:
    """A check sum is no signature; and nobody is asked to read a KeyError."""
    calibrated(tmp_path, ListSink())
    rewritten(tmp_path, change)
    with pytest.raises(tm.OutsideError, match=r"checkpoint \d+ in .* was not written by a run: .*--fresh"):
        calibrated(tmp_path, ListSink())


def test_sizes_of_keys_that_are_not_theirs_are_refused(tmp_path: Path) -> None:
    calibrated(tmp_path, ListSink())
    rewritten(
        tmp_path,
        lambda facts: facts.update(ended=False),
        lambda parts: parts.update({"keys/sizes": np.array([-5, 9], np.int32)}),
    )
    with pytest.raises(tm.OutsideError, match="the sizes of its keys are not theirs"):
        calibrated(tmp_path, ListSink())


# -- tables that are kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../secret.csv", "secret.csv", "a" * 64 + "/../../../secret.csv"])
def test_a_checkpoint_leads_to_no_other_file(tmp_path: Path, name: str) -> None:
    calibrated(tmp_path, ListSink())
    (tmp_path / "secret.csv").write_text("sensor,baseline,scale\n*,0,7\n")
    rewritten(tmp_path, lambda facts: facts.update(files={str(tmp_path / "calibration.csv"): [name]}))
    with pytest.raises(tm.OutsideError, match="as a file that it keeps"):
        calibrated(tmp_path, ListSink())


@pytest.mark.parametrize("harm", [lambda text: text.replace("0,1", "0,9"), lambda text: text[:-3], lambda _: ""])
def test_a_kept_table_that_is_damaged_is_not_believed(tmp_path: Path, harm: Callable[[str], str]) -> None:
    """Its name says what is in it."""
    calibrated(tmp_path, ListSink())
    (kept,) = (tmp_path / "state" / "files").iterdir()
    kept.write_text(harm(kept.read_text()))
    with pytest.raises(tm.OutsideError, match=f"{kept.name} is damaged; restore it"):
        calibrated(tmp_path, ListSink())


def test_what_killed_starts_left_of_copies_is_removed(tmp_path: Path) -> None:
    calibrated(tmp_path, ListSink())
    kept = tmp_path / "state" / "files"
    (kept / f".{'a' * 64}.csv.x7").write_bytes(b"half")
    calibrated(tmp_path, ListSink())
    assert [path.name for path in kept.iterdir() if path.name.startswith(".")] == []


# -- attempts ------------------------------------------------------------------------------------------------


async def test_a_run_that_fails_again_and_again_holds_one_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt that a sink has ended gives back its processes, its memory and its files."""
    monkeypatch.setattr(setbacks, "_BACK_OFF_S", (0.001, 0.001))
    tries, held = 0, []

    def memories() -> int:
        links = []
        for place in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # that of the listing itself
                links.append(str(place.readlink()))
        return sum("memfd:" in link for link in links)

    class Away(ListSink):
        async def write(self, batch: tm.Batch) -> None:
            nonlocal tries
            tries += 1
            held.append(memories())
            if tries < 9:
                raise tm.OutsideError("the database is away")
            await super().write(batch)

    sink = Away()
    source = Endless([[record(n) for n in range(10)]])
    pipeline = tm.Pipeline(source, tm.Plan(tm.Rolling("value", 3)), sink, name="plant")
    async with tm.serve(pipeline, lanes=2, state=tmp_path / "state") as run:
        async with asyncio.timeout(60):
            while not sink.rows:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
            server = psutil.Process(next(lane.pid for lane in run.statistics().lanes)).parent()
            while len(server.children()) > 2:  # noqa: ASYNC110 - those that were told to end take their moment
                await asyncio.sleep(0)
        run.stop_soon()
        await run.wait()
    assert tries >= 9
    assert held[-1] <= 2 * held[0], held  # an attempt has some forty


# -- the log -------------------------------------------------------------------------------------------------


def test_a_log_that_one_entry_has_filled_has_room_again_once_it_is_not_needed(tmp_path: Path) -> None:
    """The last segment stays as long as anything in it is needed, and no longer."""
    log = IngestLog(tmp_path / "log", max_bytes=1 << 20, min_free=0)
    log.append(b"x" * (2 << 20))
    log.sync()
    log.look_again()
    assert (log.room(), log.first) == (0, 0)
    log.forget(1)
    assert log.room() == 0
    log.look_again()
    assert log.room() > (1 << 20) - (64 << 10)
    assert (log.first, log.end, list(log.read(1))) == (1, 1, [])
    log.append(b"more")
    log.sync()
    log.look_again()
    assert list(log.read(1)) == [(1, b"more")]
    log.close()
    again = IngestLog(tmp_path / "log", max_bytes=1 << 20, min_free=0)
    assert (again.first, again.end, list(again.read(1))) == (1, 2, [(1, b"more")])
    again.close()


def test_a_senders_text_cannot_keep_a_start_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like the head of a frame, again and again, each with all that follows for its entry: once much more was looked
    at than there is, a start says that it cannot tell, instead of looking on for an hour or cutting off what may be whole."""
    log = IngestLog(tmp_path / "log")
    size = 200_000
    heads = b"".join(frame_head(7, 0, [b"x" * 150_000], 0)[:24] for _ in range(size // 24))
    log.append(b"whole")
    log.sync()
    log.append(heads)
    log.sync()
    log._last.file.close()  # as in a crash: nothing says that this is all
    (segment,) = (path for path in (tmp_path / "log").iterdir() if path.suffix == ".log")
    data = bytearray(segment.read_bytes())
    data[data.index(heads) + len(heads) - 1] ^= 1  # torn
    segment.write_bytes(data)
    looked = 0
    real = log_segments.read_frame

    def counted(data: bytes, at: int, seed: int, place: int = 0) -> Any:
        nonlocal looked
        looked += length_of(data, at) or 0
        return real(data, at, seed, place)

    monkeypatch.setattr(log_segments, "read_frame", counted)
    with pytest.raises(tm.OutsideError, match="looks like entries that it cannot be told what is one"):
        IngestLog(tmp_path / "log")
    assert looked < 65 * len(data)


# -- the folder ----------------------------------------------------------------------------------------------


def test_an_identity_that_cannot_be_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may have hiccuped: a new identity would make strangers of all sinks."""
    state = tmp_path / "state"
    StateFolder(state, "plant").close()
    before = (state / "pipeline.json").read_bytes()
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "pipeline.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(tm.OutsideError, match="Input/output error"):
            StateFolder(state, "plant")
    assert (state / "pipeline.json").read_bytes() == before
    StateFolder(state, "plant").close()


def test_the_number_of_a_start_is_greater_than_all_before_it_also_when_it_was_lost(tmp_path: Path) -> None:
    """Or else what the last start has committed looks like another's, who came later."""
    calibrated(tmp_path, ListSink())
    place = tmp_path / "state" / "epoch"
    place.unlink()
    found = newest(tmp_path / "state" / "checkpoints")
    assert found is not None
    rewritten(tmp_path, lambda facts: facts.update(epoch=41))
    folder = StateFolder(tmp_path / "state", "pipeline")
    assert folder.epoch > 1_000
    folder.close()
    place.write_text(f"{2**63}\n")
    with pytest.raises(tm.InputError, match=r"epoch is not readable"):
        StateFolder(tmp_path / "state", "pipeline")


def test_a_history_is_refused_where_inputs_came_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would have other places in the input behind it, and sinks have committed theirs."""
    with monkeypatch.context() as patch:
        without_checkpoints(patch)
        first = tm.Pipeline(given_once([record(1), record(2)]), tm.Plan(), ListSink(), name="plant")
        tm.run(first, lanes=0, state=tmp_path / "state")
    history = tmp_path / "history.ndjson"
    history.write_text('{"sensor": "S1", "time": 0, "value": 0}\n')
    again = tm.Pipeline(given_once([record(3)]), tm.Plan(), ListSink(), name="plant")
    with pytest.raises(tm.InputError, match="has inputs that an earlier start took in"):
        tm.run(again, lanes=0, state=tm.State(tmp_path / "state", warm=tm.sources.Replay(history)))


def test_a_lock_holds_the_name_and_not_a_file_that_was_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening and the locking of it, another start may have moved the folder aside."""
    place = tmp_path / "lock"
    real, held = fcntl.flock, []

    def slow(handle: int, operation: int) -> None:
        if not held:
            place.rename(tmp_path / "moved")
            held.append(None)
            held[0] = files.lock(place)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    assert files.lock(place) is None
    held[0].release()
    assert files.lock(place) is not None


async def test_letters_in_a_file_that_was_moved_away_are_counted_no_more(tmp_path: Path) -> None:
    """A run that goes on from there cuts what is behind its checkpoint, in the file that is there."""
    place = tmp_path / "dead_letters.ndjson"
    letters = DeadLetterFile(place)

    async def written(*raws: str) -> int:
        for raw in raws:
            letters.add(DeadLetter("malformed", "no", raw))
        length = letters.bookmark()
        writing = asyncio.ensure_future(letters.write())
        told = await length
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        return told

    assert await written("a", "b") == place.stat().st_size
    place.rename(tmp_path / "rotated")
    assert await written("c") == place.stat().st_size
    await letters.aclose()


def test_a_checkpoint_that_is_published_while_the_run_looks_at_the_log_ends_nothing() -> None:
    """A thread adds it to those that are kept, at any moment."""
    kept: deque[Any] = deque(maxlen=3)

    class Facts(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            kept.append(self)
            return super().__getitem__(name)

    kept.append(Facts(place={}))
    keeper: Any = SimpleNamespace(_kept=kept, journal=SimpleNamespace(nearly_full=True))
    assert Keeper.pressed.fget(keeper)  # type: ignore[attr-defined]
