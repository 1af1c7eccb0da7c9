"""A sender of its own process: ``python -m bench._durability_ack_sender PORT RATE SECONDS``; a rate of 0 is as fast as it can.

It answers with a line of JSON: lines, seconds until all were acknowledged, and quantiles of the milliseconds from the moment
each line was due until it was acknowledged, those due in the first second left out.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

import numpy as np

SENSORS = 1_000
_LINES = 1 << 17
"""Of the block that is sent over and over."""
_TICK_S = 0.001
_WARM_S = 1.0


class Sender:
    """One connection, read and written in turn by one thread, so that neither waits for the other."""

    def __init__(self, port: int) -> None:
        sensors = np.random.default_rng(0).integers(0, SENSORS, _LINES).tolist()
        lines = [
            f'{{"sensor":"S{sensor}","time":{number / 1000},"value":{number % 997 / 8}}}\n'.encode()
            for number, sensor in enumerate(sensors)
        ]
        self.ends = np.cumsum([len(line) for line in lines]).tolist()
        self.block = memoryview(b"".join(lines))
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.sent = 0
        """Bytes."""
        self.acknowledged = 0
        self.told: list[tuple[int, float]] = []
        self._rest = b""

    def bytes_of(self, lines: int) -> int:
        rounds, part = divmod(lines, _LINES)
        return rounds * len(self.block) + (self.ends[part - 1] if part else 0)

    def write(self, upto: int) -> bool:
        """True when the other side does not take all of it now."""
        while self.sent < upto:
            place = self.sent % len(self.block)
            part = self.block[place : place + min(upto - self.sent, 1 << 16)]
            try:
                self.sent += self.socket.send(part)
            except BlockingIOError:
                return True
        return False

    def read(self) -> None:
        try:
            data = self._rest + self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise SystemExit("the connection was closed")
        *counts, self._rest = data.split(b"\n")
        if counts:
            self.acknowledged = int(counts[-1])
            self.told.append((self.acknowledged, time.perf_counter()))


def flood(sender: Sender, seconds: float) -> int:
    """As fast as it goes; lines that were sent."""
    until = time.perf_counter() + seconds
    lines = 0
    while time.perf_counter() < until:
        lines += 1_000 if not (full := sender.write(sender.bytes_of(lines + 1_000))) else 0
        select.select([sender.socket], [sender.socket] if full else [], [], _TICK_S if full else 0)
        sender.read()
    lines += 1_000
    _finish(sender, lines)
    return lines


def paced(sender: Sender, rate: float, seconds: float) -> tuple[int, np.ndarray]:
    """Lines when they are due; how many, and the seconds until each was acknowledged."""
    lines = int(rate * seconds)
    began = time.perf_counter()
    due = 0
    while due < lines:
        due = min(lines, int((time.perf_counter() - began) * rate))
        full = sender.write(sender.bytes_of(due))
        select.select([sender.socket], [sender.socket] if full else [], [], _TICK_S)
        sender.read()
    _finish(sender, lines)
    counts, moments = np.array([count for count, _ in sender.told]), np.array([moment for _, moment in sender.told])
    numbers = np.arange(int(rate * min(_WARM_S, seconds / 2)), lines)
    return lines, moments[np.searchsorted(counts, numbers, "right")] - (began + numbers / rate)


def _finish(sender: Sender, lines: int) -> None:
    while sender.acknowledged < lines:
        full = sender.write(sender.bytes_of(lines))
        select.select([sender.socket], [sender.socket] if full else [], [], _TICK_S)
        sender.read()


if __name__ == "__main__":
    port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    one = Sender(port)
    start = time.perf_counter()
    quantiles = {}
    if rate:
        count, waits = paced(one, rate, seconds)
        made = np.quantile(waits, [0.5, 0.99, 0.999, 1.0]) * 1e3
        quantiles = dict(zip(("p50", "p99", "p999", "most"), made.tolist(), strict=True))
    else:
        count = flood(one, seconds)
    print(json.dumps({"lines": count, "seconds": time.perf_counter() - start, **quantiles}))
