"""What many tests share."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import pytest_asyncio
from hypothesis import settings
from hypothesis import strategies as st
from tests.slow import slow_tests

import tidemill as tm
from tidemill.engine.lane import Lane
from tidemill.formats import alike_kernel
from tidemill.stages.statistics.compiled import load_kernels

settings.register_profile("all", deadline=None)  # no test depends on speed
settings.register_profile("fast", deadline=None, max_examples=20)
cloudpickle.register_pickle_by_value(sys.modules[__name__])


_SLOW = ("acceptance", "bridge", "chaos", "durability")
"""Folders of tests that start processes by the hundred; `make test-fast` leaves them out, and what ``slow.txt`` names."""


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("fast" if config.option.markexpr == "not slow" else "all")


@pytest.fixture(scope="session", autouse=True)
def frozen() -> Iterator[None]:
    """What thousands of tests are made of is not looked through for garbage, nor counted, by each run that one of them begins."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_freeze_count", lambda: 1)  # 40 ms for each run, over half a million objects
        yield
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    named = slow_tests()
    for item in items:
        if item.path.parent.name in _SLOW or item.nodeid.partition("[")[0] in named:
            item.add_marker(pytest.mark.slow)
    items[:] = _longest_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _longest_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Each worker is given as long a piece of the list, in order: at the beginning of each are as many of the campaigns, which
    take minutes, so that no worker is left with several when all others have ended."""
    campaigns = [item for item in items if item.path.parent.name == "chaos"]
    others = [item for item in items if item.path.parent.name != "chaos"]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        ordered += campaigns[worker::workers]
        end = len(items) * (worker + 1) // workers - len(ordered)
        ordered += others[:end]
        del others[:end]
    return ordered


@pytest.fixture(autouse=True)
def state_of_live_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live runs keep state in the current folder, which is the checkout here: give each test a folder of its own."""
    monkeypatch.setattr("tidemill.engine.state.default_place", lambda name: tmp_path / ".tidemill" / name)


@pytest.fixture(autouse=True)
def pages_of_live_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live runs of `tm.run` show their pages at one address by default, and several tests run at a time: at free ports here."""
    monkeypatch.setattr("tidemill.engine.showing.DEFAULT_ADDRESS", "127.0.0.1:0")


@pytest.fixture(params=[pytest.param(0, id="inline"), pytest.param(2, id="processes", marks=pytest.mark.slow)])
def lanes(request: pytest.FixtureRequest) -> int:
    """The same test inline and with real processes."""
    return request.param


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    assert folder.is_dir(), f"the recorded data are not at {folder}; this test needs them and does not skip"
    return folder


def _beside(name: str) -> Any:
    """A module in a file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server of these tests alone; its class is in the file beside this one."""
    server = _beside("postgres_server").PostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Any]:
    """A Mosquitto broker of these tests alone; its class is in the file beside this one."""
    server = _beside("mosquitto_server").MosquittoServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def influx() -> Iterator[Any]:
    """An InfluxDB server of these tests alone; its class is in the file beside this one."""
    server = _beside("influx_server").InfluxServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def guarded_influx() -> Iterator[Any]:
    """One that asks who comes, for one test alone."""
    server = _beside("influx_server").InfluxServer(auth=True)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_mosquitto() -> Iterator[Any]:
    """Makes brokers of one test alone, which may be stopped and killed: ``own_mosquitto(setting=...)``."""
    servers = []

    def make(**settings: object) -> Any:
        server = _beside("mosquitto_server").MosquittoServer(**settings)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.remove()


# -- records of every shape that must come back as they came, for property tests ------------------------------

_MISSING = object()

_numbers = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 0.0, -0.0, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**64, 10**400, float(2**53)]),
)
_nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
_FIELDS = {
    "number": _numbers,
    "text": st.text(max_size=3) | st.sampled_from(["", "S1", "\ud800", "ü" * 300]),
    "flag": st.booleans(),
    "nested": st.lists(_nested, max_size=2) | st.dictionaries(st.text(max_size=2), _nested, max_size=2),
}


@st.composite
def _records(draw, max_size=12):
    """A list of dicts; each field has one kind, may be None or absent, and dicts differ in the order of their fields."""
    holes = draw(st.sampled_from([[], [None], [None, _MISSING]]))
    shuffled = draw(st.booleans())
    columns = {name: values | st.sampled_from(holes) if holes else values for name, values in _FIELDS.items()}
    rows = draw(st.lists(st.fixed_dictionaries(columns), max_size=max_size))
    made = []
    for row in rows:
        names = draw(st.permutations(list(row))) if shuffled else list(row)
        made.append({name: row[name] for name in names if row[name] is not _MISSING})
    return made


def _told(rows):
    """Names, order, types and values of records, to the bit: for comparing."""
    return [[(name, type(item).__name__, repr(item)) for name, item in row.items()] for row in rows]


@pytest.fixture(scope="session")
def records():
    """The strategy of lists of records: ``records(max_size=12)``."""
    return _records


@pytest.fixture(scope="session")
def told():
    """Names, order, types and values of records, for comparing."""
    return _told


# -- lanes that are open for a whole file --------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[tm.Lanes]:
    """Two lanes."""
    async with tm.Lanes(2) as lanes:
        yield lanes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one() -> AsyncIterator[tm.Lanes]:
    """One lane, so that calls queue."""
    async with tm.Lanes(1) as lanes:
        yield lanes


@pytest.fixture
def time_passes() -> Callable[[tm.Lanes], None]:
    """As if all timeouts of these lanes' calls were over now: a test need not guess how long a call takes to begin."""

    def passes(lanes: tm.Lanes) -> None:
        crew = lanes._crew
        assert crew is not None
        crew._perform(crew.calls.expired(1 << 62))

    return passes


class Hangs:
    """In a lane: ``hangs()`` never returns, and its deadline is over once it has been called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def __call__(self) -> None:
        self._told().touch()
        while True:
            pass

    def until_looked_at(self) -> None:
        """Take longer than any deadline: return when the run has looked whether one is over."""
        self._told().touch()
        while not self._told("looked").exists():
            pass
        self._told().unlink()

    def _told(self, what: str = "hangs", pid: int | None = None) -> Path:
        return self._folder / f"{what} {os.getpid() if pid is None else pid}"

    def overdue(self, lane: Lane, now_ns: int, deadlines_ns: list[int | None]) -> int | None:
        """`Lane.overdue` by a clock that has come to the deadline of whoever says so, and of nobody else."""
        stage = _overdue(lane, 1 << 62, deadlines_ns)
        if not self._told(pid=lane.pid).exists():  # asked last: who has said so was at it before
            return _overdue(lane, now_ns, deadlines_ns)
        self._told("looked", lane.pid).touch()
        return stage


_overdue = Lane.overdue


@pytest.fixture
def hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hangs:
    """Hangs in a lane. Give its stage a deadline that no machine is too slow for: it does not take that long."""
    made = Hangs(tmp_path / "hangs")

    def overdue(lane: Lane, now_ns: int, deadlines_ns: list[int | None]) -> int | None:
        return made.overdue(lane, now_ns, deadlines_ns)

    monkeypatch.setattr(Lane, "overdue", overdue)
    return made


# -- a telephone to functions that run in a lane ---------------------------------------------------------------


def call_home(port: int, name: str) -> str:
    """Runs in a lane: says that it runs, and waits to be told what to return."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(f"{name}\n".encode())
        told = line.recv(100)
    return told.decode()


class Listener:
    """A server on a free port that leaves no connection behind when it is closed."""

    def __init__(self) -> None:
        self._connections: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        await self.answer(reader, writer)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has called."""
        raise NotImplementedError

    async def close(self) -> None:
        """Return when every connection is closed: one that the collector finds later would fail another test."""
        self._server.close()
        for writer in self._connections:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._connections), return_exceptions=True)


class Telephone(Listener):
    """Hears of functions in lanes as they start, and tells them to end."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, asyncio.StreamWriter] = {}
        self.calls = 0
        self._heard = asyncio.Condition()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        async with self._heard:
            self.calls += 1
            self.lines[name] = writer
            self._heard.notify_all()

    async def hear(self, *names: str) -> None:
        """Return when functions of these names run."""
        async with self._heard:
            await self._heard.wait_for(lambda: set(names) <= set(self.lines))

    async def hear_any(self, count: int) -> list[str]:
        """Return when so many run: which."""
        async with self._heard:
            await self._heard.wait_for(lambda: len(self.lines) >= count)
            return list(self.lines)

    async def tell(self, name: str, what: str = "done") -> None:
        """Let it return."""
        writer = self.lines.pop(name)
        writer.write(what.encode())
        writer.close()


class Doorbell(Listener):
    """Rings when a connection was opened and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        self.rung.set()


@pytest_asyncio.fixture(loop_scope="module")
async def telephone() -> AsyncIterator[Telephone]:
    made = Telephone()
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def doorbell() -> AsyncIterator[Doorbell]:
    made = Doorbell()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def home():
    """The function that calls home; ``home(port, name)``."""
    return call_home


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Signs certificates, of `tests/certificates.py`."""
    return _beside("certificates").Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def kernels_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has loaded them."""
    monkeypatch.setattr(alike_kernel, "_in_use", [load_kernels()["read_alike"]])
