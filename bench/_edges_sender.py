"""Senders of their own process: ``python -m bench._edges_sender HOW PORT NUMBER [MORE]``.

``lines PORT NUMBER FORMAT``       that many lines over one connection, as fast as they are read
``posts PORT NUMBER AT_ONCE``      that many lines in posts of 100 to ``/ingest``, so many of them under way
``connections PORT NUMBER ACTIVE`` that many connections; once a line comes on standard input, the first so many of them send
                                   one line each, in turn, for as long as a paced run takes
``scrapes PORT 0``                 ``/metrics``, at once and each second until standard input is closed; how often, on standard output
"""

from __future__ import annotations

import http.client
import json
import select
import selectors
import socket
import sys
import time

SENSORS = 1_000
POSTED = 100
"""Lines of a post."""
RATE, SECONDS = 5_000, 8.0
"""Of the lines of ``connections``."""
_BLOCK = 1 << 15


BAD = {
    "no JSON": b"this is no JSON\n",
    "a time that is none": b'{"sensor":"S1","time":"soon","value":1.5,"level":3}\n',
    "a value that is no number": b'{"sensor":"S1","time":1700000000.5,"value":"error","level":3}\n',
}
"""Lines that are no records."""


def line(number: int, form: str) -> bytes:
    """A reading: three fields and a time; or none."""
    if form in BAD:
        return BAD[form]
    sensor, value = f"S{number % SENSORS}", number % 997 / 8
    if form == "influx":
        return b"mill,sensor=%s value=%r,level=%di %d\n" % (
            sensor.encode(),
            value,
            number % 7,
            1_700_000_000_000_000_000 + number * 1_000_000,
        )
    return b'{"sensor":"%s","time":%r,"value":%r,"level":%d}\n' % (
        sensor.encode(),
        1_700_000_000 + number / 1000,
        value,
        number % 7,
    )


def block(form: str, lines: int = _BLOCK) -> bytes:
    return b"".join(line(number, form) for number in range(lines))


def _connected(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def lines(port: int, number: int, form: str) -> None:
    whole = block(form)
    with _connected(port) as to:
        for _ in range(number // _BLOCK):
            to.sendall(whole)
        to.sendall(block(form, number % _BLOCK))


def posts(port: int, number: int, at_once: int) -> None:
    """A post that is told to come again comes again."""
    body = block("ndjson", POSTED)
    head = f"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    left = number // POSTED
    waiting = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(at_once):
            to = _connected(port)
            selector.register(to, selectors.EVENT_READ, bytearray())
            to.sendall(request)
            left, waiting = left - 1, waiting + 1
        while waiting:
            for key, _ in selector.select():
                to, answer = key.fileobj, key.data
                assert isinstance(to, socket.socket)
                answer += to.recv(1 << 14)
                if not (status := _whole(answer)):
                    continue
                answer.clear()
                if status != 202:
                    raise SystemExit(f"answered with {status}")
                if left > 0:
                    to.sendall(request)
                    left -= 1
                else:
                    waiting -= 1
                    selector.unregister(to)
                    to.close()


def _whole(answer: bytearray) -> int:
    """The status, once all of the answer is there."""
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    if not end:
        return 0
    lengths = [
        int(each.partition(b":")[2]) for each in head.split(b"\r\n") if each.lower().startswith(b"content-length")
    ]
    return int(head.split(b" ", 2)[1]) if len(body) >= sum(lengths) else 0


def connections(port: int, number: int, active: int) -> None:
    made = [_connected(port) for _ in range(number)]
    print(json.dumps({"connected": len(made)}), flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    sent = 0
    while sent < RATE * SECONDS:
        due = int((time.perf_counter() - began) * RATE)
        while sent < due:
            place = sent % active
            made[place].sendall(b'{"sensor":"S%d","value":1.5,"sent":%r}\n' % (place, time.monotonic()))
            sent += 1
        time.sleep(0.001)
    print(json.dumps({"sent": sent}), flush=True)
    sys.stdin.readline()


def scrapes(port: int) -> None:
    made = 0
    while True:
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        asking.request("GET", "/metrics")
        answer = asking.getresponse()
        if answer.status != 200 or b"tidemill_records_in_total" not in answer.read():
            raise SystemExit(f"answered with {answer.status}")
        asking.close()
        made += 1
        if made == 1:
            print("scraped", flush=True)
        if select.select([sys.stdin], [], [], 1)[0]:
            break
    print(made, flush=True)


if __name__ == "__main__":
    how, to, count, *more = sys.argv[1:]
    match how:
        case "lines":
            lines(int(to), int(count), more[0])
        case "posts":
            posts(int(to), int(count), int(more[0]))
        case "scrapes":
            scrapes(int(to))
        case _:
            connections(int(to), int(count), int(more[0]))
