"""The dead letter file: every letter counted, what is written can be read, the disk is never filled."""

import asyncio
import json
import logging
import math
import resource
import threading
import weakref

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.batching import Limits
from tidemill.engine.dead_letters import NEWEST, DeadLetterFile, DeadLettersStatistics
from tidemill.engine.letter_order import LetterOrder
from tidemill.errors import InputError, TidemillError
from tidemill.letters import MALFORMED, RAISED, DeadLetter
from tidemill.testing import ListSink


def write(path, letters, **options):
    """The file's lines after these letters, and the file."""

    async def session():
        file = DeadLetterFile(path, **options)
        for letter in letters:
            file.add(letter)
        await file.aclose()
        return file

    file = asyncio.run(session())
    return path.read_bytes().splitlines() if path.exists() else [], file


def test_no_letter_no_file(tmp_path):
    """A good run leaves nothing behind."""
    lines, file = write(tmp_path / "dead.ndjson", [])
    assert (lines, file.count, (tmp_path / "dead.ndjson").exists()) == ([], 0, False)


def test_a_letter_says_everything(tmp_path):
    """One line of JSON with the reason, where it happened, and the record as it came."""
    raw = {"sensor": "S1", "value": 5, "more": {"n": [1, None, True]}}
    letter = DeadLetter(
        RAISED, "ValueError: no", raw, source="tcp", stage="Map(f)", key="S1", time_ns=10**9 + 5, position=7
    )
    lines, file = write(tmp_path / "dead.ndjson", [letter])
    assert msgspec.json.decode(lines[0]) == {
        "reason_code": "raised",
        "reason": "ValueError: no",
        "source": "tcp",
        "stage": "Map(f)",
        "key": "S1",
        "time": "1970-01-01T00:00:01.000000005Z",
        "position": 7,
        "raw": raw,
    }
    assert (file.count, dict(file.reasons), file.samples) == (1, {"raised": 1}, [letter])


def test_what_a_replay_needs_of_a_letter(tmp_path):
    """The names of a CSV line's cells; no time at all where the source would stamp one, else that it is not known."""
    letters = [
        DeadLetter(MALFORMED, "why", "S1", header=("sensor", "n")),
        DeadLetter(MALFORMED, "why", "{", arrival=True),
    ]
    line, stamped = map(json.loads, write(tmp_path / "dead.ndjson", letters)[0])
    assert (line["header"], line["time"]) == (["sensor", "n"], None)
    assert not {"header", "time"} & set(stamped)


def test_samples_beyond_the_cap_are_short(tmp_path):
    """What waits in memory till the end of the run is cut; what is in the file is whole."""
    letters = [DeadLetter(MALFORMED, "why", "x" * 100_000)] * 3
    lines, file = write(tmp_path / "dead.ndjson", letters, max_bytes=150_000)
    assert [len(json.loads(line)["raw"]) for line in lines] == [100_000]
    assert len(file.newest_path.read_bytes()) < 10_000


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")


def endless():
    raw = {"a": []}
    raw["a"] += [raw, raw]
    return raw


def deep(levels=5_000):
    raw = []
    for _ in range(levels):
        raw = [raw]
    return raw


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("not { json", "not { json"),
        ("\ud800", r"\ud800"),
        ({"\ud800": "\udfff"}, {r"\ud800": r"\udfff"}),
        ({"value": math.inf, "n": None}, {"value": "inf", "n": None}),
        ({"value": [-math.inf]}, {"value": ["-inf"]}),
        ({"value": math.nan}, {"value": None}),
        ({"value": 2**70}, {"value": 2**70}),
        ({"value": {1}}, {"value": "{1}"}),
        ({"value": 1j}, {"value": "1j"}),
        ({"value": Hostile()}, None),
        ({(1, 2): 3, None: 4}, None),
        ({Hostile(): math.inf}, None),
        (endless(), None),
        (deep(), None),
        ("x" * 100_000, "x" * 100_000),
        (None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hostile_records_are_written(tmp_path, raw, shown):
    """Whatever a record holds, its line is JSON, and shows what was wrong with it."""
    letters = [DeadLetter(MALFORMED, "\ud800 why", raw, key="\ud800"), DeadLetter(MALFORMED, "fine", "next")]
    lines, _ = write(tmp_path / "dead.ndjson", letters)
    assert len(lines) == 2
    read = json.loads(lines[0])
    assert read["reason"] == r"\ud800 why"
    msgspec.json.decode(lines[0])
    if shown is not None:
        assert read["raw"] == shown
    assert json.loads(lines[1])["raw"] == "next"


def test_what_would_deceive_a_terminal_is_escaped(tmp_path):
    """As in logs; whoever reads the JSON has the same text, and what people write stays as it is."""
    raw = {"pump \u202e7": "\u2066a\u2069 \x7f \x9b2J \u200f \U000e0001 Übergröße 温度 😀"}
    lines, _ = write(tmp_path / "dead.ndjson", [DeadLetter(MALFORMED, "why \u202a", raw, key="\u202e")])
    text = lines[0].decode()
    assert text.isprintable()
    assert "Übergröße 温度 😀" in text
    letter = msgspec.json.decode(lines[0])
    assert (letter["raw"], letter["reason"], letter["key"]) == (raw, "why \u202a", "\u202e")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(raws=st.lists(anything, max_size=5))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_letter_is_one_line(tmp_path, raws):
    """Any Python values at all: as many lines as letters, each of them JSON."""
    path = tmp_path / "dead.ndjson"
    path.unlink(missing_ok=True)
    lines, file = write(path, [DeadLetter(RAISED, "why", raw) for raw in raws])
    assert len(lines) == file.count == len(raws)
    for line in lines:
        msgspec.json.decode(line)
        assert line.decode().isprintable()


def test_the_cap(tmp_path, caplog):
    """The file stops short of its cap, says so once, holds the first letters whole, and counting goes on."""
    letters = [DeadLetter(RAISED, "why", {"n": n}) for n in range(100)]
    path = tmp_path / "dead.ndjson"
    with caplog.at_level(logging.WARNING, "tidemill"):
        lines, file = write(path, letters, max_bytes=1000)
    size = path.stat().st_size
    assert 1000 - len(lines[-1]) - 10 <= size <= 1000
    assert [json.loads(line)["raw"]["n"] for line in lines] == list(range(len(lines)))
    assert file.count == 100
    assert len(caplog.records) == 1
    lines_after, _ = write(path, letters, max_bytes=1000)
    assert lines_after == lines, "what an earlier run wrote counts"


def test_the_newest_beyond_the_cap(tmp_path):
    """Beyond the cap the newest letters stay, in order, in a file beside; the first ones are in the full file."""
    path, count = tmp_path / "dead.ndjson", 3 * NEWEST
    lines, file = write(path, [DeadLetter(RAISED, "why", n) for n in range(count)], max_bytes=2000)
    assert file.newest_path == tmp_path / "dead.newest.ndjson"
    newest = [json.loads(line)["raw"] for line in file.newest_path.read_bytes().splitlines()]
    assert newest == list(range(count - NEWEST, count))
    assert len(lines) < NEWEST
    write(path, [DeadLetter(RAISED, "why", n) for n in range(3)], max_bytes=2000)
    assert [json.loads(line)["raw"] for line in file.newest_path.read_bytes().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "why"), [("folder", "is a folder"), ("no/x.ndjson", "is not there"), ("file/x.ndjson", "is not a folder")]
)
def test_a_bad_path_is_refused_at_start(tmp_path, name, why):
    """A path that could never be written is refused before anything runs, with the absolute path; nothing is made."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=why) as caught:
        DeadLetterFile(tmp_path / name).check()
    assert str(tmp_path / name) in str(caught.value)
    DeadLetterFile(tmp_path / "fine.ndjson").check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_default_path_is_tried_when_a_letter_comes(tmp_path, monkeypatch):
    """A clean run needs no place for dead letters."""
    (tmp_path / "dead_letters.ndjson").mkdir()
    monkeypatch.chdir(tmp_path)
    DeadLetterFile().check()


def test_the_default_path_is_tried_before_what_cannot_be_read_again(tmp_path, monkeypatch):
    """Not at the first bad record of a child of Telegraf's, say, whose folder nobody thought of."""
    (tmp_path / "dead_letters.ndjson").mkdir()
    monkeypatch.chdir(tmp_path)
    pipeline = tm.Pipeline(tm.sources.Lines("-", format="influx"), tm.Plan(), tm.sinks.Latest())
    with pytest.raises(InputError) as caught:
        tm.run(pipeline, lanes=0)
    assert str(caught.value) == (
        f"the dead letters cannot be written to {tmp_path}/dead_letters.ndjson: it is a folder. Name another file with "
        "dead_letters= (--dead-letters)."
    )


def test_letters_are_appended(tmp_path):
    """A second run keeps the letters of the first."""
    for n in range(2):
        lines, _ = write(tmp_path / "dead.ndjson", [DeadLetter(RAISED, "why", n)])
    assert [json.loads(line)["raw"] for line in lines] == [0, 1]


@pytest.mark.parametrize("keep_bytes", [None, 30])
def test_a_letter_that_was_cut_short_swallows_none(tmp_path, keep_bytes):
    """A full disk or a power cut has left half a line; the next run's first letter has a line of its own."""
    path = tmp_path / "dead.ndjson"
    path.write_bytes(b'{"raw":0}\n{"raw":1,"reason')
    _, file = write(path, [DeadLetter(RAISED, "why", 2)], keep_bytes=keep_bytes)
    lines, _ = write(path, [DeadLetter(RAISED, "why", 3)])
    assert [lines[0], lines[1]] == [b'{"raw":0}', b'{"raw":1,"reason']
    assert [json.loads(line)["raw"] for line in lines[2:]] == [2, 3]
    assert file.statistics().file_bytes == len(b"\n".join([*lines[:3], b""]))


def test_a_full_disk_leaves_whole_letters(tmp_path):
    """What of the last ones had room is taken back."""
    path = tmp_path / "dead.ndjson"
    before, _ = write(path, [DeadLetter(RAISED, "why", 1)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limit[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(TidemillError, match=r"cannot be written: .*\(see ulimit -f"):
            write(path, [DeadLetter(RAISED, "why", 2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before[0] + b"\n"


async def test_a_cancelled_writer_loses_nothing(tmp_path):
    """Whenever the writer is cancelled, aclose waits for what it was writing and writes the rest, in order."""
    for turns in range(12):
        file = DeadLetterFile(tmp_path / f"{turns}.ndjson")
        writing = asyncio.ensure_future(file.write())
        for n in range(20):
            file.add(DeadLetter(RAISED, "why", n))
            if n < turns:
                await asyncio.sleep(0)
        writing.cancel()
        await file.aclose()
        await asyncio.gather(writing, return_exceptions=True)
        assert [json.loads(line)["raw"] for line in file.path.read_bytes().splitlines()] == list(range(20))


def test_a_folder_that_is_not_there(tmp_path):
    """The error names the path."""
    with pytest.raises(TidemillError, match="nowhere"):
        write(tmp_path / "nowhere" / "dead.ndjson", [DeadLetter(RAISED, "why", 1)])


def test_statistics_say_how_the_file_is(tmp_path):
    """Letters, bytes, and whether it is full."""
    path = tmp_path / "dead.ndjson"
    _, file = write(path, [DeadLetter(RAISED, "no", {"n": n}) for n in range(3)])
    assert file.statistics() == DeadLettersStatistics(3, 0, path.stat().st_size, full=False)
    _, file = write(tmp_path / "small.ndjson", [DeadLetter(RAISED, "no", {"n": n}) for n in range(9)], max_bytes=100)
    assert (file.statistics().letters, file.statistics().full) == (9, True)


@given(st.lists(st.lists(st.none() | st.integers(0, 20), max_size=8) | st.integers(0, 22), max_size=12))
def test_letters_leave_in_input_order(steps):
    """Whatever order they come in: each once, in one list for each release, those of one input as they came."""
    handed = []
    order = LetterOrder(handed.append)
    held, released, number = [], 0, 0
    for step in [*steps, None]:
        if isinstance(step, list):
            for index in step:
                order.add(DeadLetter(RAISED, str(number), {}, position=index))
                held.append((released if index is None else index, number))
                number += 1
            continue
        due = sorted(one for one in held if step is None or one[0] < step)
        order.release(step)
        assert [[letter.reason for letter in letters] for letters in handed] == [[str(n) for _, n in due]] * bool(due)
        handed.clear()
        held = [one for one in held if one not in due]
        released = max(released, step or 0)
        assert len(order) == len(held)


async def test_many_letters_are_counted_at_once(tmp_path):
    """As they are one by one."""
    letters = [DeadLetter(RAISED if n % 3 else MALFORMED, "why", n) for n in range(10)]
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    file.add(letters[0])
    file.add_all(letters[1:])
    await file.aclose()
    assert (dict(file.reasons), file.samples) == ({MALFORMED: 4, RAISED: 6}, letters[:3])
    lines = (tmp_path / "dead.ndjson").read_text().splitlines()
    assert [json.loads(line)["raw"] for line in lines] == list(range(10))


async def test_letters_that_are_written_are_let_go_of_off_the_loop(tmp_path):
    """To free thousands of records at once would hold it."""
    file, threads = DeadLetterFile(tmp_path / "dead.ndjson"), []
    for n in range(10):
        letter = DeadLetter(MALFORMED, "why", n)
        if n >= 3:  # the first are samples
            weakref.finalize(letter, lambda: threads.append(threading.current_thread()))
        file.add(letter)
    del letter
    await file.aclose()
    assert len(threads) == 7
    assert threading.main_thread() not in threads


def refuse(rows):
    raise ValueError("no")


@pytest.mark.parametrize("most", [32_768, 7])
def test_letters_of_rows_that_stages_made_have_an_order_of_their_own(tmp_path, lanes, most):
    """With state, whatever lanes and slabs they came from: behind the letter of the record that ended their window, then by what
    ended, then by the sensor's name."""
    records = [{"sensor": f"S{n % 5}", "time": 1e9 + n, "value": float(n)} for n in range(200)]
    for n in range(12, 200, 12):
        records[n] = {"sensor": "S0", "time": 1e9 - 5000, "value": 1.0}  # late
    plan = tm.Plan(
        tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}, late="dead_letter"),
        tm.MapRows(refuse, adds={"x": float}, on_error="dead_letter"),
    )
    run = tm.run(
        tm.Pipeline(tm.sources.Records(records), plan, ListSink(), lag="0s"),
        lanes=lanes,
        state=tmp_path / "state",
        limits=Limits(max_records=most),
    )
    letters = [json.loads(line) for line in (tmp_path / "state" / "dead_letters.ndjson").read_text().splitlines()]
    ended, expected = 1e9, []
    for n, record in enumerate(records):
        if record["time"] < 1e9:
            expected.append((n, "S0"))
        elif record["time"] // 10 > ended // 10:
            expected += [(None, f"S{sensor}") for sensor in range(5)]
            ended = record["time"]
    expected += [(None, f"S{sensor}") for sensor in range(5)]
    assert [(letter["position"], letter["key"]) for letter in letters] == expected
    assert run.counters["dead_rows"] == 100
    assert all("behind" not in letter for letter in letters)
