"""Seekable sources: whoever goes on where another stood gets what that one would have got, to the bit and in its order."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import sources
from tidemill.batch import Batch
from tidemill.errors import InputError
from tidemill.letters import DeadLetter
from tidemill.sources import DeadLetters, Frame, Lines, Records, Replay, Source, SourceContext
from tidemill.sources.edged import pieces
from tidemill.sources.made import MadeSource

# -- recordings ------------------------------------------------------------------------------------------------

LIMIT = 120
"""Bytes of a line."""
BAD_LINES = [
    b"nonsense",
    b"[1]",
    b"",
    b"  ",
    b'{"sensor": "S", "time": "soon"}',
    b"\xff",
    b"x" * 400,
    b'{"value": NaN}',
]
BAD_CSV = [b"a,b", b"", b"\xff,1,1,1", b"x" * 400, b'S1,1,"open,1', b'"two\nlines",1,2,3', b'S2,2,"a\nb",4', b",1,1,1"]


def times() -> st.SearchStrategy[Any]:
    """Clocks that step back, and what is no time."""
    return st.one_of(st.integers(0, 40), st.integers(0, 40), st.none(), st.just("never"))


@st.composite
def rows(draw: Any, records: Any, max_size: int = 12) -> list[dict[str, Any]]:
    """Records, some of which lack a role or hold what does not fit the others."""
    made = draw(records(max_size=max_size))
    for row in made:
        for name, values in (
            ("sensor", st.sampled_from(["S1", "S2", "S3", "", None])),
            ("time", times()),
            ("value", st.floats() | st.integers() | st.sampled_from(["odd", True, None])),
            (draw(st.sampled_from(["late", "later"])), st.integers() | st.text(max_size=3)),
        ):
            if draw(st.integers(0, 9)):
                row[name] = draw(values)
    return made


@st.composite
def clock(draw: Any, most: int) -> list[Any]:
    """Times of up to so many records in a row: mostly forwards, so that files that are merged lie within each other."""
    steps = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, -4]), min_size=most // 4, max_size=most))
    return list(itertools.accumulate(steps))


@st.composite
def json_file(draw: Any, records: Any) -> bytes:
    odd = [json.dumps(row).encode() for row in draw(rows(records, max_size=4))]
    lines = []
    for time in draw(clock(24)):
        row = {"sensor": draw(st.sampled_from(["S1", "S2"])), "time": time, "value": draw(st.integers(0, 9))}
        row |= draw(st.sampled_from([{}, {}, {}, {"other": None}, {"other": None}, {"other": 7}, {"other": "x"}]))
        lines.append(json.dumps(row).encode())
        if draw(st.integers(0, 5)) == 5:
            lines.append(draw(st.sampled_from([*BAD_LINES, *odd])))
    return framed(draw, lines)


@st.composite
def csv_file(draw: Any) -> bytes:
    lines = []
    for time in draw(clock(24)):
        cells = draw(st.sampled_from(["1,", "2.5,", ",", "odd,", '"3",', "4,", "5,7", "5,x"]))
        lines.append(f"{draw(st.sampled_from(['S1', 'S2']))},{time},{cells}".encode())
        if draw(st.integers(0, 5)) == 5:
            lines.append(draw(st.sampled_from(BAD_CSV)))
    return framed(draw, [*draw(st.sampled_from([[], [], [b"", b""]])), b"sensor,time,value,other", *lines])


def framed(draw: Any, lines: list[bytes]) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    data = end.join(lines) + draw(st.sampled_from([b"", end]))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + data


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# -- one strategy for each seekable source: how to make it, anew each time --------------------------------------

Make = Callable[[], Source]


@st.composite
def replay(draw: Any, records: Any, folder: Path) -> Make:
    packed = draw(st.sampled_from(["", "", ".gz"]))
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["csv", "ndjson", "parquet"]))
        if kind == "parquet":
            table = pa.table(
                {
                    "sensor": draw(st.lists(st.sampled_from(["S1", "S2", "", None]), min_size=1, max_size=30)),
                }
            )
            count = table.num_rows
            ticks = [*draw(clock(30)), *range(30)][:count]
            table = table.append_column("time", pa.array(ticks))
            table = table.append_column("value", pa.array([float(n) for n in range(count)]))
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=draw(st.integers(1, 9)))
        else:
            data = draw(csv_file() if kind == "csv" else json_file(records))
            written(folder, f"{number}.{kind}{packed}", data)
    order = draw(st.sampled_from(["merge", "sequence"]))
    paces = draw(st.lists(st.sampled_from(["max", 1.0, 50.0]), min_size=1, max_size=4))
    turn = itertools.cycle(paces)
    return lambda: Replay(folder, order=order, pace=next(turn), limit=LIMIT)


@st.composite
def lines(draw: Any, records: Any, folder: Path) -> Make:
    kind = draw(st.sampled_from(["csv", "ndjson"]))
    data = draw(csv_file() if kind == "csv" else json_file(records))
    path = written(folder, f"a.{kind}{draw(st.sampled_from(['', '.gz']))}", data)
    return lambda: Lines(path, limit=LIMIT)


@st.composite
def dead_letters(draw: Any, records: Any, folder: Path) -> Make:
    made = []
    for row in draw(rows(records)):
        letter = {"raw": draw(st.sampled_from([row, json.dumps(row), "nonsense"]))}
        if draw(st.booleans()):
            letter["key"] = "K"
        if draw(st.booleans()):
            letter["time"] = draw(st.sampled_from([None, "2026-01-01T00:00:00Z"]))
        if draw(st.integers(0, 4)) == 0:
            letter |= {"raw": draw(st.sampled_from(["S1,1", "S1,1,2", '"S1'])), "header": ["sensor", "time", "value"]}
        made.append(json.dumps(letter).encode())
    bad = draw(st.lists(st.sampled_from([*BAD_LINES, b"x" * 4_000]), max_size=4))
    path = written(folder, "letters.ndjson", framed(draw, draw(st.permutations(made + bad))))
    return lambda: DeadLetters(path, limit=2_000)


@st.composite
def frame(draw: Any, records: Any, folder: Path) -> Make:
    count = draw(st.integers(0, 30))
    of = lambda values: draw(st.lists(values, min_size=count, max_size=count))  # noqa: E731
    table = pd.DataFrame(
        {
            "sensor": pd.Series(of(st.sampled_from(["S1", "S2", None])), dtype=object),
            "time": of(st.integers(0, 40)),
            "value": of(st.floats()),
        }
    )
    if draw(st.booleans()):
        return lambda: Frame(pa.Table.from_pandas(table))
    return lambda: Frame(table)


@st.composite
def of_a_list(draw: Any, records: Any, folder: Path) -> Make:
    items: list[Any] = draw(rows(records, max_size=25))
    for place in sorted(draw(st.lists(st.integers(0, len(items)), max_size=3)), reverse=True):
        batch = Batch.from_rows([{"sensor": "B", "time": n, "value": n} for n in range(draw(st.integers(0, 5)))])
        items.insert(place, draw(st.sampled_from([batch, 7, {1: 2, "late": 1}, {"\ud800": 1, "late": "x"}])))
    return lambda: Records(items if len(items) % 2 else tuple(items))


STRATEGIES: dict[type[Source], Any] = {
    DeadLetters: dead_letters,
    Frame: frame,
    Lines: lines,
    Records: of_a_list,
    Replay: replay,
}


def test_every_source_that_can_seek_is_tried_here() -> None:
    """A source that says something of its own about seeking has a strategy, and those that do not cannot seek."""
    found = [getattr(sources, name) for name in sources.__all__]
    able = {
        each
        for each in found
        if inspect.isclass(each) and issubclass(each, Source) and each.seekable is not Source.seekable
    }
    assert able == set(STRATEGIES)
    assert not sources.TCP().seekable
    assert not sources.Synthetic(count=1).seekable
    assert not Records(iter([])).seekable
    assert not Lines("-").seekable
    assert issubclass(sources.Synthetic, MadeSource)


# -- the law ---------------------------------------------------------------------------------------------------


@dataclass
class LegClock:
    """A clock that moves when somebody sleeps, and whose wall is not that of the run before."""

    wall: int
    now: int = 10**9
    step: int = 1

    def monotonic_ns(self) -> int:
        self.now += self.step
        return self.now

    def wall_ns(self) -> int:
        return self.wall + self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(1, round(seconds * 1e9))
        await asyncio.sleep(0)


@dataclass
class Leg:
    """A stream from an offset to where it was stopped: what it gave, and where it stood then."""

    events: list[Any] = field(default_factory=list)
    offset: Any = None
    ended: bool = False


def told_of(batch: Batch) -> Iterator[Any]:
    """Each record: its fields with their types, its key and time, and the kinds of its columns."""
    kinds = sorted((name, column.kind.value) for name, column in batch.columns.items())
    keys = [] if batch.key_column is None else batch.key_column.to_list()
    for row, key, time in zip(batch.to_rows(), keys, batch.time.tolist(), strict=True):
        present = [kind for kind in kinds if kind[0] in row]
        yield "record", [(n, type(item).__name__, repr(item)) for n, item in row.items()], key, time, present


def told_of_letter(letter: DeadLetter) -> Any:
    return "letter", letter.reason_code, letter.reason, repr(letter.raw), letter.key, letter.time_ns, letter.header


async def leg(source: Source, clock: LegClock, stop: int | None) -> Leg:
    """Run ``source`` until ``stop`` steps (batches and rejects) have been made, or to its end."""
    made = Leg()
    steps = itertools.count(1)

    def stepped() -> None:
        if made.offset is None and next(steps) == stop:
            made.offset = json.dumps(source.offset())

    def reject(letter: DeadLetter) -> None:
        if made.offset is None:
            made.events.append(told_of_letter(letter))
            stepped()

    context = SourceContext(clock, reject)
    stream = source.stream(context)
    async for batch in stream:
        assert batch.arrived_ns
        if made.offset is None:
            made.events += told_of(batch)
            stepped()
        if made.offset is not None:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    made.ended = made.offset is None
    if made.ended:
        made.offset = json.dumps(source.offset())
    return made


async def whole_and_in_legs(make: Make, stops: list[int], looks: list[bool]) -> None:
    first_wall = 1_700_000_000 * 10**9
    looking = iter(itertools.cycle(looks))
    source = make()
    source.check()
    whole = await leg(source, LegClock(first_wall, step=0), None)
    accepted = source.accepted
    events: list[Any] = []
    offset = None
    begun = next(looking)
    if begun:
        source = make()
        source.check()
        offset = json.dumps(source.beginning(LegClock(first_wall, step=0).wall_ns()))
    for number in itertools.count(begun):
        source = make()
        if offset is None or next(looking):
            source.check()
        if offset is not None:
            source.seek(json.loads(offset))
            assert json.loads(json.dumps(source.offset())) == json.loads(offset)
        wall = first_wall + number * 10**15
        stop = stops[number] if number < len(stops) else None
        made = await leg(source, LegClock(wall, step=0), stop)
        events += made.events
        offset = made.offset
        assert events == whole.events[: len(events)]
        if made.ended:
            break
    assert events == whole.events
    assert source.accepted == accepted
    again = make()
    again.seek(json.loads(offset))
    assert (await leg(again, LegClock(0), None)).events == []


SMALL = {
    "readers.BLOCK": st.integers(20, 300),
    "recorded.BLOCK": st.just(100),
    "readers._ROWS": st.integers(1, 9),
    "readers._COUNTED_ANEW": st.integers(1, 20),
    "records._BLOCK": st.integers(1, 9),
}
"""Bounds that are large in a run: here a few records go beyond them."""


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_a_stream_in_legs_is_the_stream(kind: type[Source], records: Any) -> None:
    """Stopped anywhere, also before the first record, again and again, and gone on with by a new source each time: the same
    records and letters."""

    @settings(deadline=None)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
            for bound, values in SMALL.items():
                patch.setattr(f"tidemill.sources.{bound}", data.draw(values))
            most = data.draw(st.integers(1, 9))
            for module in ("frame", "lines", "recorded", "records", "replay"):
                patch.setattr(f"tidemill.sources.{module}.pieces", lambda batch, _=0: pieces(batch, most))
            try:
                make = data.draw(STRATEGIES[kind](records, Path(name)))
                make().check()
            except InputError:
                return  # no header, or none of the roles in the first records: refused before it begins
            stops = data.draw(st.lists(st.integers(1, 12), max_size=6))
            looks = data.draw(st.lists(st.booleans(), min_size=1, max_size=3))
            asyncio.run(whole_and_in_legs(make, stops, looks))

    law()


# -- what the law would seldom meet ----------------------------------------------------------------------------


async def legs(make: Make) -> list[list[Any]]:
    """The stream, stopped after each of its steps in turn and gone on with from there, and stopped after every step:
    all these streams."""
    whole = await leg(make(), LegClock(0, step=0), None)
    made = [whole.events]
    for stop in itertools.count(1):
        first = await leg(make(), LegClock(0, step=0), stop)
        if first.ended:
            return [*made, await step_by_step(make)]
        source = make()
        source.seek(json.loads(first.offset))
        made.append(first.events + (await leg(source, LegClock(5, step=0), None)).events)
    raise AssertionError


async def step_by_step(make: Make) -> list[Any]:
    events: list[Any] = []
    source = make()
    while not (made := await leg(source, LegClock(0, step=0), 1)).ended:
        events += made.events
        source = make()
        source.seek(json.loads(made.offset))
    return events + made.events


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 40 bytes, batches of one record."""
    monkeypatch.setattr("tidemill.sources.readers.BLOCK", 40)
    for module in ("lines", "recorded", "records", "replay"):
        monkeypatch.setattr(f"tidemill.sources.{module}.pieces", lambda batch, _=0: pieces(batch, 1))


@pytest.mark.usefixtures("small")
async def test_the_pace_goes_on_from_the_newest_time(tmp_path: Path) -> None:
    """A clock that stepped back before the stop costs no time after it, though its newest time is blocks ago."""
    ticks = (1, 50, 3, 4, 5, 6, 60)
    (tmp_path / "a.csv").write_text("sensor,time,value\n" + "".join(f"a{tick},{tick:02},1\n" for tick in ticks))
    first = await leg(Replay(tmp_path), LegClock(0, step=0), 4)
    source = Replay(tmp_path, pace=1.0)
    source.seek(json.loads(first.offset))
    clock = LegClock(0, step=0)
    events = (await leg(source, clock, None)).events
    assert [event[2] for event in events] == ["a5", "a6", "a60"]
    assert clock.now == 11 * 10**9


@pytest.mark.usefixtures("small")
async def test_a_mark_of_byte_order_within_a_file_is_not_one(tmp_path: Path) -> None:
    """Only the first bytes of a file can be one; two files put together have one in the middle."""
    one = b"\xef\xbb\xbf" + b"".join(b'{"sensor":"a","time":%d,"v":"xxxx"}\n' % n for n in range(1, 5))
    (tmp_path / "a.ndjson").write_bytes(one * 3)
    made = await legs(lambda: Lines(tmp_path / "a.ndjson"))
    assert sum(event[0] == "letter" for event in made[0]) == 2
    assert all(events == made[0] for events in made)


@pytest.mark.usefixtures("small")
async def test_a_long_line_over_many_blocks(tmp_path: Path) -> None:
    """It is read over again from its start, and rejected once."""
    good = b'{"sensor":"a","time":1}\n'
    (tmp_path / "a.ndjson").write_bytes(good + b"x" * 500 + b"\n" + good * 3)
    made = await legs(lambda: Lines(tmp_path / "a.ndjson", limit=100))
    assert [event[0] for event in made[0]].count("letter") == 1
    assert all(events == made[0] for events in made)


async def test_what_a_bad_record_teaches_does_not_depend_on_its_neighbours() -> None:
    """A record that is refused for a field's name teaches no kind, whoever comes along with it."""
    bad = {"sensor": "a", "time": 0, "\ud800": 1, "late": "text"}
    good = {"sensor": "a", "time": 1, "late": 2.5}
    for items in ([bad, good], [7, bad, good]):
        source = Records(items)
        assert [e[0] for e in (await leg(source, LegClock(0), None)).events][-1] == "record"


# -- refusals ----------------------------------------------------------------------------------------------------


def csv_of(rows: int) -> str:
    return "sensor,time,value\n" + "".join(f"a,{n},{n}\n" for n in range(rows))


async def stood(source: Source, stop: int | None) -> Any:
    return json.loads((await leg(source, LegClock(0), stop)).offset)


@pytest.mark.usefixtures("small")
async def test_what_is_not_what_it_was_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """A file that is gone, shorter, another one or begins differently, by name and with the way out."""
    path = tmp_path / "a.csv"
    path.write_text(csv_of(50))
    offset = await stood(Replay(path), 5)
    for change, told in (
        (lambda: path.write_text(csv_of(10)), "shorter than it was"),
        (lambda: path.write_text(csv_of(50).replace("a,0", "b,0")), "begins differently"),
        (
            lambda: ((tmp_path / "b").write_text(csv_of(90)), (tmp_path / "b").rename(path)),
            "another file",
        ),
    ):
        change()
        with pytest.raises(InputError, match=f"a.csv .*{told}.*--fresh"):
            Replay(path).seek(offset)
        path.write_text(csv_of(50))
    path.unlink()
    with pytest.raises(InputError, match=r"no file .*a\.csv.*--fresh"):
        Replay(path).seek(offset)
    (tmp_path / "b.csv").write_text(csv_of(50))
    path.write_text(csv_of(50))
    with pytest.raises(InputError, match=r"a\.csv, which source replay does not read"):
        Replay(tmp_path / "b.csv").seek(offset)
    with pytest.raises(InputError, match="made by the source replay, and this is lines"):
        Lines(path).seek(offset)


async def test_lists_and_tables_of_another_length_are_refused() -> None:
    """They cannot be what they were."""
    rows = [{"sensor": "a", "time": n} for n in range(5)]
    offset = await stood(Records(rows), 1)
    with pytest.raises(InputError, match="the list has 4 items, and had 5"):
        Records(rows[:4]).seek(offset)
    offset = await stood(Frame(pd.DataFrame(rows)), 1)
    with pytest.raises(InputError, match="the table has 4 rows, and had 5"):
        Frame(pd.DataFrame(rows[:4])).seek(offset)


@pytest.mark.usefixtures("small")
async def test_what_is_added_is_read_from_the_end_on(tmp_path: Path) -> None:
    """In the middle of the files nothing changes; from their end, what was added and new files are read."""
    path = tmp_path / "a.csv"
    path.write_text(csv_of(20))
    middle, end = await stood(Replay(tmp_path), 5), await stood(Replay(tmp_path), None)
    whole = (await leg(Replay(tmp_path), LegClock(0), None)).events
    with path.open("a") as file:
        file.write("a,100,1\na,101,\n")
    (tmp_path / "b.csv").write_text("sensor,time,value,other\nb,7,1,2\n")
    for offset, expected in ((middle, whole[-15:]), (end, None)):
        source = Replay(tmp_path)
        source.seek(offset)
        events = (await leg(source, LegClock(0), None)).events
        if expected is not None:
            assert events == expected
        else:
            assert [event[2] for event in events] == ["b", "a", "a"]
            again = Replay(tmp_path)
            again.seek(json.loads(json.dumps(source.offset())))
            assert (await leg(again, LegClock(0), None)).events == []
