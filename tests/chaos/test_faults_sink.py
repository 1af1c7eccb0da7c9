"""Sinks that are slow, or stand still, and bursts: memory stays flat, senders wait, every row comes once."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import psutil
from tests.chaos.small_plants import Live, Plant, lines, wanted

STALLS = """
class Sink(tm.sinks.SQLite):
    '''Stands still while a file is there.'''

    def write(self, batch):
        while pathlib.Path("stalled").exists():
            time.sleep(0.01)
        super().write(batch)
"""
SLOW = """
class Sink(tm.sinks.SQLite):
    '''Takes a few rows at a time.'''

    def write(self, batch):
        time.sleep(len(batch) / 5_000)
        super().write(batch)
"""
SMALL = {"log_max_bytes": 1 << 20}
MEGABYTE = 1 << 20
CHUNK = 50
WIDE = 2_000
"""Makes records large, so that few fill a log and the buffers of a connection."""


def memory(plant: Plant) -> int:
    """Bytes of the whole family, what it shares counted once."""
    total = 0
    for process in plant.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


FULL = "the ingest log is full, so sources wait: 1048576 bytes are in it"


def send_until_it_waits(plant: Plant, sender: socket.socket, sent: int) -> tuple[int, bytes]:
    """Whole records until the log is full and the receiver's window is shut: how many, and what is left of the last ones."""
    full_before = plant.told().count(FULL)
    sender.settimeout(0.5)
    while True:
        data = lines(sent, sent + CHUNK, WIDE)
        sent += CHUNK
        while data:
            try:
                data = data[sender.send(data) :]
            except TimeoutError:  # or it is only slow
                if plant.told().count(FULL) > full_before:
                    return sent, data


def test_behind_a_sink_that_stands_still_senders_wait_and_memory_is_flat(tmp_path: Path, lanes: int) -> None:
    """The log is the spool; when it is full the window of the connection is shut. Then all that was sent comes, once."""
    sent = 0
    with Live(tmp_path, lanes, changes=STALLS, options=SMALL) as plant, plant.connected() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        for _ in range(2 if lanes else 1):
            (tmp_path / "stalled").touch()
            sent, rest = send_until_it_waits(plant, sender, sent)
            full = memory(plant)
            for _ in range(50):  # it turns a few hundred times meanwhile
                with contextlib.suppress(TimeoutError):
                    sender.settimeout(0.02)
                    rest = rest[sender.send(rest) :] if rest else rest
            assert memory(plant) - full < 16 * MEGABYTE
            assert full < 700 * MEGABYTE
            (tmp_path / "stalled").unlink()
            sender.settimeout(None)
            sender.sendall(rest)
            plant.wait_for(sent)
        sender.sendall(lines(sent, sent + 100, WIDE))
        plant.wait_for(sent + 100)
        plant.stop()
    assert plant.rows() == wanted(sent + 100, WIDE)


def test_a_slow_sink_gets_every_row_once(tmp_path: Path, lanes: int) -> None:
    """Sent as fast as it goes, written at some thousand a second; the log holds what is between."""
    count = 5_000
    with Live(tmp_path, lanes, changes=SLOW) as plant:
        plant.send(0, count)
        plant.wait_for(count)
        plant.stop()
    assert plant.rows() == wanted(count)


def test_a_burst_comes_through_whole_and_the_run_is_idle_again_after_it(tmp_path: Path, lanes: int) -> None:
    """Ten times what came before, at once."""
    sent = 0
    with Live(tmp_path, lanes) as plant, plant.connected() as sender:
        for records in (1_000, 10_000, 1_000):
            for start in range(sent, sent + records, CHUNK):
                sender.sendall(lines(start, start + CHUNK))
                if records == 1_000:
                    plant.wait_for(start + CHUNK)
            sent += records
            plant.wait_for(sent)
        plant.stop()
    assert plant.rows() == wanted(sent)
