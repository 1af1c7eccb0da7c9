"""The pools that a program could use instead, each warm and with its best documented options.

A peer opens its pool once and gives one or more ways to send many items through it; the best way of each cell counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from bench import _bridge_work as work

Through = Callable[[Callable[[Any], Any], list[Any]], list[Any]]
"""A function and its items, to the results in order."""

_CHUNKS = (1, 16)
"""Items a message, for pools that leave it to the user: the first answers each item as soon as it is done."""


@dataclass(frozen=True)
class Peer:
    """A pool."""

    name: str
    module: str
    package: str
    open: Callable[[int], AbstractContextManager[list[Through]]]
    slow: bool = False
    """A millisecond and more a call: it gets fewer items, and none with ``--quick``."""

    def missing(self) -> str:
        """What to say when it is not there; empty when it is."""
        found = importlib.util.find_spec(self.module) is not None
        return "" if found else f"not installed: pip install '{self.package}'"


def _warm(ways: list[Through]) -> list[Through]:
    for way in ways:
        way(work.busy, [0.01] * 32)
    return ways


@contextlib.contextmanager
def _stdlib(workers: int) -> Iterator[list[Through]]:
    with ProcessPoolExecutor(workers) as pool:
        yield _warm([lambda fn, items, chunk=chunk: list(pool.map(fn, items, chunksize=chunk)) for chunk in _CHUNKS])


@contextlib.contextmanager
def _loky(workers: int) -> Iterator[list[Through]]:
    import loky

    pool = loky.get_reusable_executor(max_workers=workers, timeout=600)
    try:
        yield _warm([lambda fn, items, chunk=chunk: list(pool.map(fn, items, chunksize=chunk)) for chunk in _CHUNKS])
    finally:
        pool.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _joblib(workers: int) -> Iterator[list[Through]]:
    import joblib

    with joblib.Parallel(n_jobs=workers, batch_size="auto") as pool:
        yield _warm([lambda fn, items: list(pool(joblib.delayed(fn)(item) for item in items))])


@contextlib.contextmanager
def _mpire(workers: int) -> Iterator[list[Through]]:
    from mpire import WorkerPool
    from mpire.utils import make_single_arguments

    def way(fn: Callable[[Any], Any], items: list[Any], chunk: int | None) -> list[Any]:
        single = make_single_arguments(items, generator=False)
        return list(pool.imap(fn, single, iterable_len=len(items), chunk_size=chunk))

    with WorkerPool(n_jobs=workers, keep_alive=True) as pool:
        # None: its own choice, a 64th of each worker's share
        yield _warm([lambda fn, items, chunk=chunk: way(fn, items, chunk) for chunk in (*_CHUNKS, None)])


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[list[Through]]:
    with multiprocessing.Pool(workers) as pool:
        yield _warm([lambda fn, items, chunk=chunk: list(pool.imap(fn, items, chunk)) for chunk in _CHUNKS])


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[list[Through]]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # what it will be one day; without it, a warning
    import ray

    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    remote: dict[Any, Any] = {}

    def way(fn: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        if fn not in remote:
            remote[fn] = ray.remote(fn)
        return list(ray.get([remote[fn].remote(item) for item in items]))

    try:
        yield _warm([way])
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _dask(workers: int) -> Iterator[list[Through]]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield _warm([lambda fn, items: list(client.gather(client.map(fn, items, pure=False)))])


PEERS = (
    Peer("ProcessPoolExecutor", "concurrent.futures", "", _stdlib),
    Peer("loky", "loky", "loky", _loky),
    Peer("joblib", "joblib", "joblib", _joblib),
    Peer("mpire", "mpire", "mpire", _mpire),
    Peer("multiprocessing.Pool", "multiprocessing", "", _pool),
    Peer("ray", "ray", "ray", _ray, slow=True),
    Peer("dask", "distributed", "dask[distributed]", _dask, slow=True),
)
