"""Random scripts over the plant on line (R28): start, add, check, stop, kill, against `Plan.apply` over what came in."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from signal import SIGTERM
from typing import Any

from tests.chaos.family import UNHURRIED_S, Family, wait_for
from tests.chaos.harness import Campaign, Strike, end_well
from tests.chaos.oracle import difference, letters_of, rows_of
from tests.chaos.plant import HERE, Plant
from tests.chaos.plants.live import PLAN
from tests.chaos.stops import in_flight

SINKS = ("sqlite", "ndjson", "ndjson.gz", "parquet")
ACTIONS = ("add", "add", "add", "add", "check", "stop", "kill", "kill all")


@dataclass(frozen=True)
class Live(Plant):
    """The plant on line."""

    def beside(self, name: str, **changed: Any) -> Live:
        folder = self.folder.parent / name
        folder.mkdir()
        return replace(self, folder=folder, **changed)

    def command(self, *, keep: bool = True) -> list[str]:
        return [sys.executable, str(HERE / "plants" / "live.py")]

    def environment(self) -> dict[str, str]:
        more = {"PLANT_LANES": str(self.lanes), "PLANT_CHECKPOINT": str(self.checkpoint_s)}
        return {**super().environment(), **more}


class LiveCampaign(Campaign):
    """A campaign whose input is made up round by round, and judged by what of it came in."""

    def __post_init__(self) -> None:
        folder = self.folder / "plant"
        folder.mkdir(parents=True)
        self.plant = Live(folder, folder / "none", sinks=SINKS, checkpoint_s=self.checkpoint_s)
        self.golden = Judge()


# -- what was sent -----------------------------------------------------------------------------------------


@dataclass
class Connection:
    """The lines that one start was sent, and how many of them must have come in."""

    lines: list[str] = field(default_factory=list)
    due: int = 0


def more_lines(rng: random.Random, at: int, *, first: bool = False) -> Iterator[str]:
    """Some lines, numbered from ``at``: true duplicates, lines that are no records, clocks that step back, a field that few
    records have, the ``first`` among them; the last is a record."""
    for n in range(at, at + rng.randint(1, 250)):
        if rng.random() < 0.02:
            yield f"no record {n}"
        time = round(1.7e9 + n / 10 - (30.0 if rng.random() < 0.01 else 0.0), 1)
        sensor = f"S{int(rng.expovariate(0.2))}"
        record = {"sensor": sensor, "time": time, "value": round(rng.gauss(20, 3), 3), "n": float(n)}
        line = json.dumps({**record, "leak": 0.5} if n % 500 == 0 or (first and n == at) else record)
        yield from [line] * (2 if rng.random() < 0.02 else 1)


class Judge:
    """Of each connection a beginning has come in, once and in order, at least what was seen before; and the rows of every
    sink are those of `Plan.apply` over it."""

    def difference(self, plant: Plant) -> str:
        """Empty where there is none."""
        sent = [Connection(**one) for one in json.loads((plant.folder / "sent.json").read_text())]
        return judged(plant, sent, plant.sinks, ended=True)


def judged(plant: Plant, sent: Sequence[Connection], sinks: Sequence[str], *, ended: bool) -> str:
    """The first thing that is wrong; empty where nothing is. Dead letters are in their file when the run has ended: while
    it goes on they come later than the rows behind them, and after a kill again."""
    rows = {sink: list(map(values, rows_of(plant, sink))) for sink in sinks}
    letters = [json.loads(letter) for letter in letters_of(plant.state / "dead_letters.ndjson")] if ended else []
    positions = [letter["position"] for letter in letters]
    if sorted(set(positions)) != positions:
        return f"dead letters are doubled or out of order: {positions}"
    refused = [letter["raw"] for letter in letters] if ended else None
    told, came = came_in(sent, [row[3] for row in rows[sinks[0]]], refused)
    if told:
        return told
    wanted = [values(tuple(row.values())) for row in PLAN.apply(came)]
    return "\n".join(f"{sink}: {told}" for sink, got in rows.items() if (told := difference(got, wanted)))


def came_in(
    sent: Sequence[Connection], numbers: Sequence[float], refused: Sequence[str] | None
) -> tuple[str, list[Any]]:
    """What is wrong with these records and dead letters (None for no look at them), and the records. Of lines that are
    read together, those that are no records come in first; so a kill may leave them without the records before them."""
    of = {line: at for at, connection in enumerate(sent) for line in connection.lines}
    made = {line: json.loads(line) for line in of if line.startswith("{")}
    by_number = {record["n"]: (of[line], record) for line, record in made.items()}
    if unknown := [n for n in numbers if n not in by_number]:
        return f"records that nobody sent: {unknown[:5]}", []
    order = [at for at, _ in groupby(by_number[n][0] for n in numbers)]
    if order != sorted(set(order)):
        return f"connections are mixed: {order}", []
    cut = [line for line in refused or () if line not in of]
    for at, connection in enumerate(sent):
        good = [n for n in numbers if by_number[n][0] == at]
        bad = [line for line in refused or () if of.get(line) == at]
        places = [place for place, line in enumerate(connection.lines) if line.startswith("{")]
        if [json.loads(connection.lines[place])["n"] for place in places[: len(good)]] != good:
            return f"of connection {at} came {good[:3]} ... {good[-3:]}, which is no beginning of it", []
        end = places[len(good)] if len(good) < len(places) else len(connection.lines)
        refusable = [line for line in connection.lines if not line.startswith("{")]
        sure = max(connection.due, places[len(good) - 1] if good else 0)
        least = sum(not line.startswith("{") for line in connection.lines[:sure])
        if refused is not None and (refusable[: len(bad)] != bad or len(bad) < least):
            return f"of connection {at} came {len(good)} records and {bad}, and it had {refusable}", []
        if end < connection.due:
            return f"of connection {at} the first {end} lines are there, and {connection.due} were", []
        following = connection.lines[places[len(good) - 1] + 1 if good else 0 : end + 1]
        cut = [line for line in cut if not any(one.startswith(line) for one in following)]  # by an orderly stop
    if cut:
        return f"dead letters that nobody sent: {cut[:3]}", []
    return "", [by_number[n][1] for n in numbers]


def values(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Without names; of a sink that has no NaN it is null."""
    bare = [item[1] if isinstance(item, tuple) else item for item in row]
    return tuple(None if item != item else item for item in bare)


# -- the script --------------------------------------------------------------------------------------------


class Script:
    """One that is being played."""

    def __init__(self, campaign: Campaign, plant: Plant, rng: random.Random) -> None:
        self.campaign, self.plant, self.rng = campaign, plant, rng
        self.sent: list[Connection] = []
        self.numbered = 0
        self.acknowledged = 0
        """Lines of the last connection that was closed."""
        self._family: Family | None = None
        self._sender: socket.socket | None = None

    def started(self) -> tuple[Family, socket.socket]:
        """The run, and a connection to it; with as many lanes as it likes."""
        if self._family is None or self._sender is None:
            port = self.plant.folder / "port"
            port.unlink(missing_ok=True)
            self._family = family = self.start(self.rng.choice((0, 1, 2)))
            wait_for("the run listens", lambda: not family.alive or port.exists(), each_s=UNHURRIED_S)
            assert family.alive, family.told()[-2000:]
            self._sender = socket.create_connection(("127.0.0.1", int(port.read_text())), 60)
            self.sent.append(Connection())
        return self._family, self._sender

    def start(self, lanes: int) -> Family:
        return self.campaign.start(replace(self.plant, lanes=lanes))

    def add(self) -> bool:
        _, sender = self.started()
        lines = list(more_lines(self.rng, self.numbered, first=self.newest() is None))
        self.numbered = int(json.loads(lines[-1])["n"]) + 1
        self.sent[-1].lines += lines
        sender.sendall("".join(f"{line}\n" for line in lines).encode())
        return True

    def check(self) -> bool:
        """All that was sent is there, and right."""
        family, _ = self.started()
        self.add()
        wait_for(
            "what was sent is there",
            lambda: not family.alive or self.newest() == self.numbered - 1,
            each_s=UNHURRIED_S,
        )
        assert family.alive, family.told()[-2000:]
        self.due(len(self.sent[-1].lines))
        told = judged(self.plant, self.sent, self.plant.sinks[:1], ended=False)
        assert not told, told
        return True

    def newest(self) -> float | None:
        """The number of the last record in the database; what is there must stay there."""
        path = self.plant.folder / "rows.db"
        try:
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)
            try:
                found = connection.execute("SELECT n FROM features ORDER BY rowid DESC LIMIT 1").fetchone()
            finally:
                connection.close()
        except sqlite3.Error:
            return None
        return None if found is None else found[0]

    def stop(self) -> bool:
        family, _ = self.started()
        busy = self.busy(family)
        family.send(family.engine.pid, SIGTERM)
        end_well(family)
        self.due(self.hear())
        self.end()
        return busy

    def kill(self, *, everyone: bool = False) -> bool:
        family, _ = self.started()
        busy = self.busy(family)
        seen = self.newest()
        family.kill_all() if everyone else family.kill_engine()
        lines = self.sent[-1].lines
        numbers = [json.loads(line)["n"] if line.startswith("{") else -1.0 for line in lines]
        self.due(max(self.hear(), numbers.index(seen) + 1 if seen in numbers else 0))
        self.end()
        return busy

    def due(self, lines: int) -> None:
        """So many lines of this connection must not be lost any more."""
        self.sent[-1].due = max(self.sent[-1].due, lines)

    def hear(self) -> int:
        """How many lines the run that has ended had called safe."""
        _, sender = self.started()
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while more := sender.recv(1 << 16):
                told += more
        self.acknowledged = max(map(int, told.split(b"\n")[:-1]), default=0)
        return self.acknowledged

    def busy(self, family: Family) -> bool:
        return self.newest() != self.numbered - 1 or in_flight(self.plant, family)

    def end(self) -> None:
        """Nothing is left of the start."""
        if self._sender is not None:
            self._sender.close()
        if self._family is not None:
            self._family.end()
        self._family = self._sender = None
        told = [{"lines": one.lines, "due": one.due} for one in self.sent]
        Path(self.plant.folder, "sent.json").write_text(json.dumps(told))


def played(campaign: Campaign, plant: Plant, rng: random.Random, most: int, seed: int = 0) -> list[Strike]:
    """R28: so many actions, and at the end a check and a stop."""
    script = Script(campaign, plant, rng)
    play = {
        "add": script.add,
        "check": script.check,
        "stop": script.stop,
        "kill": script.kill,
        "kill all": partial(script.kill, everyone=True),
    }
    try:
        strikes = [Strike(what, play[what]()) for what in rng.choices(ACTIONS, k=most)]
        script.check()
        last = script.sent[-1]
        script.stop()
        assert script.acknowledged == len(last.lines), "what was there at an orderly end had not been acknowledged"
    finally:
        script.end()
    return strikes
