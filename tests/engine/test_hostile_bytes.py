"""What is made to run a program when it is read, sent to everything that listens: it is a dead letter, a text or an error."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import io
import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from tests.engine.test_pages import ANYWHERE, ask
from tests.sources.test_http import Sender
from tests.sources.test_mqtt import Publisher
from tests.sources.test_tcp import send

import tidemill as tm
from tidemill.testing import ListSink


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def hostile(mark: Path) -> list[bytes]:
    """In every protocol of pickle, bare, in an array of NumPy's, packed, as a text of JSON, and as what other readers obey."""
    pickles = [pickle.dumps(Evil(mark), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    array = io.BytesIO()
    np.save(array, np.array([Evil(mark)], object), allow_pickle=True)
    made = [*pickles, cloudpickle.dumps(Evil(mark)), array.getvalue(), *map(gzip.compress, pickles)]
    made += map(base64.b64encode, pickles)
    call = f"os.mkdir({str(mark)!r})"
    made += [f'!!python/object/apply:os.mkdir ["{mark}"]'.encode(), f"__import__('os').{call}".encode()]
    made += [f"$(mkdir {mark})".encode(), f"`mkdir {mark}`".encode(), f"; mkdir {mark} #".encode()]
    made += [json.dumps({"py/reduce": [{"py/function": "posix.mkdir"}, {"py/tuple": [str(mark)]}]}).encode()]
    return made


def reading(sensor: str, **more: Any) -> bytes:
    return json.dumps({"sensor": sensor, "time": 1, "value": 1.5, **more}).encode()


def test_what_is_sent_here_does_harm_where_it_is_obeyed(tmp_path: Path) -> None:
    """Otherwise the test below would say nothing."""
    for number in range(pickle.HIGHEST_PROTOCOL + 1):
        pickle.loads(pickle.dumps(Evil(tmp_path / str(number)), number))
        assert (tmp_path / str(number)).is_dir()


def told_to_pages(url: str, evil: list[bytes]) -> None:
    """As the body of a request, and as what stands where a request should."""
    where = url.removeprefix("http://")
    host, _, port = where.partition(":")
    for each in evil:
        asking = http.client.HTTPConnection(where, timeout=120)
        asking.request("POST", "/metrics", each, {"Content-Type": "application/python-pickle"})
        assert asking.getresponse().status >= 400
        asking.close()
        with socket.create_connection((host, int(port)), timeout=120) as line:
            line.sendall(each + b"\r\n\r\n")
            line.shutdown(socket.SHUT_WR)
            while line.recv(1 << 16):
                pass


async def test_nothing_that_is_sent_to_a_listener_is_executed(tmp_path: Path, lanes: int, mosquitto: Any) -> None:
    """To the sources and to the pages; the run goes on, and every good record behind it is there."""
    mark = tmp_path / "executed"
    evil = hostile(mark)
    notes = [reading("notes", note=each.decode("latin-1")) for each in evil]
    tcp, influx, posts, udp = tm.sources.TCP(), tm.sources.TCP(format="influx"), tm.sources.HTTP(), tm.sources.UDP()
    broker = tm.sources.MQTT(mosquitto.url, "hostile/{sensor}")
    sink = ListSink()
    pipeline = tm.Pipeline([tcp, influx, posts, udp, broker], tm.Lag("value"), sink)
    options: Any = {"lanes": lanes, "state": tmp_path / "state", "dead_letters": tmp_path / "dead.ndjson"}
    async with tm.serve(pipeline, metrics=ANYWHERE, **options) as run, asyncio.timeout(60):
        await tcp.wait_listening()
        await send(tcp.address, *(each + b"\n" for each in [*evil, *notes]), reading("tcp") + b"\n")
        await influx.wait_listening()
        await send(influx.address, *(each + b"\n" for each in evil), b"m,sensor=influx value=1.5\n")
        sender = Sender((await posts.wait_listening())[1])
        for kind in ("application/python-pickle", "application/json", "application/x-ndjson"):
            answers = [await sender.post(each, Content_Type=kind) for each in evil]
            assert {status for status, _, _ in answers} <= {202, 400}
        assert (await sender.post(evil[-2], Content_Encoding="gzip"))[0] == 400
        assert (await sender.post(reading("http")))[0] == 202
        await udp.wait_listening()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            for each in [*evil, reading("udp")]:
                datagrams.sendto(each, udp.address)
        await broker.wait_subscribed()
        publisher = Publisher(mosquitto.port)
        for each in [*evil, reading("mqtt")]:
            publisher.publish("hostile/mqtt", each)
        await publisher.published()
        publisher.close()
        await asyncio.to_thread(told_to_pages, run.metrics_url, evil)
        good = {"tcp", "influx", "http", "udp", "mqtt"}
        while not good <= {row["sensor"] for row in sink.rows if row.get("value") == 1.5}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (await ask(run, "/healthz"))[0] == 200
        rejected = [source.statistics().rejected for source in (tcp, influx, udp, broker)]
        assert min(rejected) >= len(evil) // 2
        run.stop_soon()
        await run.wait()
    assert not mark.exists()
    assert [row["note"] for row in sink.rows if row.get("sensor") == "notes"] == [
        each.decode("latin-1") for each in evil
    ]
