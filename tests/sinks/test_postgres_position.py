"""Rows and their position in PostgreSQL: both or neither, whatever dies, and only for the newest start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, OutputExists, OutsideError
from tidemill.schema import Field, Kind, Schema
from tidemill.sinks.base import Keeping

OPEN = Schema(open=True)
LENGTH = 60


def row(number: int) -> dict[str, Any]:
    """One of a run; true duplicates are among them, and a field that comes later."""
    return {"n": float(number // 2), "text": f"row {number // 2}", **({"late": True} if number >= LENGTH // 2 else {})}


def rows(start: int, stop: int) -> Batch:
    return Batch.from_rows([row(number) for number in range(start, stop)])


def expected(count: int) -> list[dict[str, Any]]:
    """What an uninterrupted run of so many rows leaves."""
    names = dict.fromkeys(name for number in range(count) for name in row(number))
    return [{name: row(number).get(name) for name in names} for number in range(count)]


def keeping(epoch: int, pipeline: str = "plant") -> Keeping:
    return Keeping(Path("/nowhere"), pipeline, epoch)


def resumed(place: Any, epoch: int, **options: Any) -> tuple[sinks.PostgreSQL, int]:
    sink = place.sink(**options)
    return sink, sink.resume(OPEN, keeping(epoch))


def finish(place: Any, epoch: int, **options: Any) -> int:
    """What the engine does after a fault: a new start goes on from the position. Returns that."""
    sink, position = resumed(place, epoch, **options)
    sink.write(rows(position, LENGTH))
    sink.commit(LENGTH)
    sink.close()
    assert place.rows() == expected(LENGTH)
    assert positions(place) == [(epoch, LENGTH)]
    return position


def positions(place: Any) -> list[tuple[Any, ...]]:
    return place.query("SELECT epoch, position FROM tidemill_positions ORDER BY pipeline, sink")


# -- the order of things ---------------------------------------------------------------------------------


def test_rows_and_position_are_seen_together(place: Any) -> None:
    """Neither by a flush; both by a commit; a commit without rows moves the position alone."""
    sink, position = resumed(place, 1)
    assert position == 0
    sink.write(rows(0, 10))
    sink.flush()
    assert (place.rows(), positions(place)) == ([], [(1, None)])
    sink.commit(10)
    assert (place.rows(), positions(place)) == (expected(10), [(1, 10)])
    sink.commit(25)
    assert positions(place) == [(1, 25)]
    sink.write(rows(10, 20))
    sink.close()  # not committed: not there
    assert (place.rows(), positions(place)) == (expected(10), [(1, 25)])


def test_if_exists_holds_until_something_is_committed(place: Any) -> None:
    """A table of somebody else is refused at the first start; our own is gone on with, whatever ``if_exists`` says."""
    place.query("CREATE TABLE features (n double precision)")
    with pytest.raises(OutputExists):
        resumed(place, 1)
    with closing(resumed(place, 2, if_exists="replace")[0]) as sink:
        sink.write(rows(0, 10))  # dropped and made anew, and then nothing of it
    assert place.query("SELECT * FROM features") == []
    finish(place, 3, if_exists="replace")
    for epoch, if_exists in enumerate(("fail", "replace", "append"), start=4):
        with closing(place.sink(if_exists=if_exists)) as sink:
            assert sink.resume(OPEN, keeping(epoch)) == LENGTH
    assert place.rows() == expected(LENGTH)


def test_a_run_without_rows_is_continued_too(place: Any) -> None:
    """Its empty table is its own: the next start is not told that it is there already."""
    schema = Schema([Field("n", Kind.FLOAT), Field("text", Kind.TEXT)])
    with closing(place.sink()) as sink:
        assert sink.resume(schema, keeping(1)) == 0
    assert (place.query("SELECT n, text FROM features"), positions(place)) == ([], [(1, 0)])
    finish(place, 2)


def test_pipelines_and_sinks_have_positions_of_their_own(place: Any) -> None:
    """In one table of one schema."""
    for number, (pipeline, name) in enumerate((("a", "x"), ("a", "y"), ("b", "x"))):
        sink = place.sink(table=f"t{number}", name=name)
        assert sink.resume(OPEN, keeping(1, pipeline)) == 0
        sink.write(rows(0, 1))
        sink.commit(number + 1)
        sink.close()
    assert positions(place) == [(1, 1), (1, 2), (1, 3)]


def test_several_first_starts_at_once(place: Any) -> None:
    """All want to make the table of positions; one does."""
    made: list[int] = []

    def start(number: int) -> None:
        with closing(place.sink(table=f"t{number}", name=f"s{number}")) as sink:
            made.append(sink.resume(OPEN, keeping(1)))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0] * 6
    assert len(positions(place)) == 6


def test_the_server_is_told_to_keep_what_was_committed(place: Any) -> None:
    """A checkpoint builds on it, so a server set to lose the last second is asked not to."""
    sink = place.sink(database=place.server.url(query="?options=-csynchronous_commit%3Doff"))
    sink.resume(OPEN, keeping(1))
    sink.write(rows(0, 1))
    assert sink._connection is not None
    sink._end_copy()
    assert sink._connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    sink.close()


# -- the fence -------------------------------------------------------------------------------------------


def test_an_earlier_start_that_wakes_up_changes_nothing(place: Any) -> None:
    """A later one has taken the row, here without ending the session of the first: its commit is refused."""
    old, _ = resumed(place, 1)
    old.write(rows(0, 10))
    old.commit(10)
    old.write(rows(10, 50))
    place.query("UPDATE tidemill_positions SET epoch = 2")
    with pytest.raises(OutsideError, match="Another start"):
        old.commit(50)
    assert (place.rows(), positions(place)) == (expected(10), [(2, 10)])
    old.close()
    assert finish(place, 3) == 10


def test_a_later_start_ends_the_sessions_of_earlier_ones(place: Any) -> None:
    """One that is stopped, or whose machine is gone, may hold the very table that the later one must make."""
    old, _ = resumed(place, 1)
    old.write(rows(0, 40))  # made the table, and holds it
    assert finish(place, 2) == 0
    with pytest.raises(OutsideError):
        old.commit(40)
    old.close()
    assert (place.rows(), positions(place)) == (expected(LENGTH), [(2, LENGTH)])


def test_starts_in_another_schema_are_left_alone_and_those_in_ones_own_are_not(new_place: Any) -> None:
    """Of pipelines and sinks of the same names; it does not matter whether ``schema`` names it or the search path."""
    one, other = new_place(), new_place()

    def started(place: Any, epoch: int, schema: str | None = None) -> sinks.PostgreSQL:
        address = place.server.url(query=f"?options=-csearch_path%3D{place.schema}")
        return resumed(place, epoch, database=address, schema=schema)[0]

    first = started(one, 1)
    first.write(rows(0, 20))  # made the table, and holds it
    with closing(started(other, 1)) as second:
        second.write(rows(0, LENGTH))
        second.commit(LENGTH)
    first.commit(20)
    assert (one.rows(), positions(one)) == (expected(20), [(1, 20)])
    first.write(rows(20, 50))  # made a column, and holds the table
    assert finish(one, 2, schema=one.schema) == 20
    with closing(first), pytest.raises(OutsideError):
        first.commit(50)
    assert other.rows() == one.rows() == expected(LENGTH)


@pytest.mark.parametrize("epoch", [1, 2])
def test_only_a_later_start_takes_over(place: Any, epoch: int) -> None:
    """The same one again, or an earlier one, is refused, and the one that has it goes on."""
    sink, _ = resumed(place, 2)
    with pytest.raises(OutsideError, match="Another start"):
        resumed(place, epoch)
    sink.write(rows(0, LENGTH))
    sink.commit(LENGTH)
    sink.close()
    assert place.rows() == expected(LENGTH)


def test_of_two_starts_at_once_the_later_one_has_it(place: Any) -> None:
    """The earlier one has looked, and found nobody later, just before the later one took the row."""
    resumed(place, 1)[0].close()
    refusals: list[OutsideError] = []

    def start() -> None:
        with pytest.raises(OutsideError, match="Another start") as caught:
            resumed(place, 2)
        refusals.append(caught.value)

    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO%'"
    thread = threading.Thread(target=start)
    with place.server.connect() as later, later.transaction():
        later.execute(f"UPDATE {place.schema}.tidemill_positions SET epoch = 3".encode())
        thread.start()
        while place.query(waits) == [(0,)]:
            assert thread.is_alive()
    thread.join()
    assert refusals
    assert positions(place) == [(3, None)]


# -- what dies, and when -----------------------------------------------------------------------------------

WINDOWS = pytest.mark.parametrize("at", [1, LENGTH // 2 - 1, LENGTH - 1])
"""Where in the rows the fault comes: with the table, before the late column, with it."""


@WINDOWS
def test_the_servers_process_is_killed_before_the_commit(place: Any, at: int) -> None:
    """Its rows were never there."""
    sink, _ = resumed(place, 1)
    sink.write(rows(0, at))
    sink.commit(at)
    sink.write(rows(at, LENGTH))
    place.end_sessions()
    with pytest.raises(OutsideError):
        sink.commit(LENGTH)
    sink.close()
    assert place.rows() == expected(at)
    assert finish(place, 2) == at


class Cutting:
    """Between a sink and its server; the line is cut at a COMMIT, before the server hears of it or after it has done it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut_at: str | None = None
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._lines += [client, server]
                self._start(self._pass, client, server, "before")
                self._start(self._pass, server, client, "after")

    def _pass(self, source: socket.socket, target: socket.socket, side: str) -> None:
        """A COMMIT is a message of its own in both directions: the words, and the server's word that it was done."""
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and not (self.cut_at == side and b"COMMIT\0" in data):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._lines):
            end.close()


@pytest.fixture
def cutting(postgres: Any) -> Iterator[Cutting]:
    made = Cutting(postgres.port)
    yield made
    made.close()


@WINDOWS
@pytest.mark.parametrize("side", ["before", "after"])
def test_the_line_is_cut_during_the_commit(place: Any, cutting: Cutting, side: str, at: int) -> None:
    """Nobody can know whether the rows are there; the position in the database does."""
    address = place.server.url().replace(f":{place.server.port}/", f":{cutting.port}/")
    sink, _ = resumed(place, 1, database=address)
    sink.write(rows(0, at))
    sink.commit(at)
    sink.write(rows(at, LENGTH - 1))
    cutting.cut_at = side
    with pytest.raises(OutsideError, match="not known whether"):
        sink.commit(LENGTH - 1)
    sink.close()
    assert finish(place, 2) == (at if side == "before" else LENGTH - 1)


@WINDOWS
@pytest.mark.parametrize("after", [True, False], ids=["after the commit", "before the commit"])
def test_the_process_is_killed(place: Any, at: int, after: bool) -> None:
    """By SIGKILL, which it cannot tell anybody: its committed rows are there, the others are not."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_postgres_position as it
sink = it.sinks.PostgreSQL({place.server.url()!r}, schema={place.schema!r}, name="rows")
position = sink.resume(it.OPEN, it.keeping(1))
sink.write(it.rows(0, {at}))
sink.commit({at})
sink.write(it.rows({at}, it.LENGTH))
if {after}:
    sink.commit(it.LENGTH)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert finish(place, 2) == (LENGTH if after else at)


def test_a_process_that_is_stopped_is_no_obstacle(place: Any) -> None:
    """It holds the table in an open transaction; when it goes on, its commit is refused."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_postgres_position as it
sink = it.sinks.PostgreSQL({place.server.url()!r}, schema={place.schema!r}, name="rows")
sink.resume(it.OPEN, it.keeping(1))
sink.write(it.rows(0, 40))
print("holds it", flush=True)
sys.stdin.readline()
try:
    sink.commit(40)
except it.OutsideError:
    print("refused", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as zombie:
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "holds it\n"
        os.kill(zombie.pid, signal.SIGSTOP)
        assert finish(place, 2) == 0
        os.kill(zombie.pid, signal.SIGCONT)
        assert zombie.communicate("\n", timeout=120)[0] == "refused\n"
    assert (place.rows(), positions(place)) == (expected(LENGTH), [(2, LENGTH)])


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_the_server_is_restarted_in_the_middle(place: Any, how: str) -> None:
    """In order or by a crash: an error that may pass, and a new start that goes on. While it is away, likewise."""
    sink, _ = resumed(place, 1)
    sink.write(rows(0, 10))
    sink.commit(10)
    sink.write(rows(10, 40))
    place.server.stop(how)
    try:
        with pytest.raises(OutsideError):
            sink.commit(40)
        sink.close()
        with pytest.raises(OutsideError, match="could not be reached"):
            resumed(place, 2)
    finally:
        place.server.start()
    assert finish(place, 3) == 10


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 20)),
        st.tuples(st.sampled_from(["commit", "flush", "killed", "left", "closed", "fenced"]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_of_faults_equals_an_uninterrupted_run(new_place: Any, steps: list[tuple[str, int]]) -> None:
    """What the position says is what is there, after each start; at the end all rows are, once, in order."""
    place = new_place()
    epoch = 1
    sink, at = resumed(place, epoch)
    committed = at
    abandoned = []
    for step, count in steps:
        if step == "write":
            upto = min(at + count, LENGTH)
            sink.write(rows(at, upto))
            at = upto
        elif step == "commit":
            sink.commit(at)
            committed = at
        elif step == "flush":
            sink.flush()
        else:
            if step == "killed":
                place.end_sessions()
            elif step == "closed":
                sink.close()
            elif step == "fenced":
                place.query("UPDATE tidemill_positions SET epoch = epoch + 1")
                with pytest.raises(OutsideError, match="Another start"):
                    sink.commit(at)
                epoch += 1
            abandoned.append(sink)  # "left": its session still has the rows that were not committed
            epoch += 1
            sink, at = resumed(place, epoch)
            assert at == committed
            assert place.rows() == expected(committed)
    sink.close()
    finish(place, epoch + 1)
    for old in abandoned:
        with suppress(OutsideError):
            old.close()
    assert place.rows() == expected(LENGTH)


def test_a_rule_that_is_checked_at_the_commit(place: Any) -> None:
    """A deferred constraint: its refusal is known to have left nothing, and is the table's, not the line's."""
    place.query("CREATE TABLE features (n double precision UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    sink = place.sink(if_exists="append", columns=["n"])
    sink.resume(OPEN, keeping(1))
    sink.write(sink.chosen(rows(0, 2)))
    with pytest.raises(InputError, match="unique") as caught:
        sink.commit(2)
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert (place.rows(), positions(place)) == ([], [(1, None)])
