"""Elsewhere than on Linux: plans, inline lanes and inline runs work, and lanes with processes say that they do not yet."""

from __future__ import annotations

import subprocess
import sys

import pytest

ELSEWHERE = """
import asyncio, fcntl, os, resource, signal, socket, sys, sysconfig
from functools import partial

sysconfig.get_config_vars()  # looks into this system's own files
asyncio.new_event_loop().close()  # which loops there are is looked up at the first
sys.platform = sys.argv[1]
GONE = [
    (os, "memfd_create MFD_CLOEXEC MFD_ALLOW_SEALING pidfd_open waitid pipe2 sched_getaffinity posix_fallocate fdatasync"),
    (fcntl, "F_ADD_SEALS F_SEAL_SHRINK F_SEAL_GROW F_SEAL_SEAL"),
    (resource, "RUSAGE_THREAD"),
    (socket, "SOCK_SEQPACKET SOCK_CLOEXEC"),
    (signal, "pidfd_send_signal"),
]


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "resource", "termios", "pwd", "grp"}:
            raise ModuleNotFoundError(name)


if sys.platform == "win32":
    GONE += [(os, "fork register_at_fork"), (signal, "SIGKILL SIGCHLD SIGHUP pthread_sigmask")]
    sys.meta_path.insert(0, Missing())
    for module in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules.pop(module, None)
else:
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # its library has another name there
for owner, names in GONE:
    for name in filter(partial(hasattr, owner), names.split()):
        delattr(owner, name)

import tidemill as tm


async def main():
    async with tm.Lanes(0) as lanes:
        assert await lanes.run(divmod, 17, 5) == (3, 2)
    try:
        async with tm.Lanes(2):
            pass
    except tm.CallError as error:
        print(error)


asyncio.run(main())
try:
    with tm.LanesExecutor(2):
        pass
except tm.CallError as error:
    print(error)
rows = [{"sensor": "a", "time": 1, "v": 1.0}, {"sensor": "a", "time": 2, "v": 2.0}]
pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Plan(), tm.sinks.Latest())
for count in (2, None):
    try:
        tm.run(pipeline, lanes=count)
    except tm.OutsideError as error:
        print(error)
assert tm.run(pipeline, lanes=0).rows_out == 2
with tm.LanesExecutor(0) as pool:
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
plan = tm.Plan(tm.Rolling("v", window=2, stats=["mean"]))
assert [row["v_mean_2"] for row in plan.apply(rows, key="sensor")] == [1.0, 1.5]
"""


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_without_what_only_linux_has(platform: str) -> None:
    """In an interpreter that lacks memfds, handles of processes and more; on Windows also fork and fcntl."""
    command = [sys.executable, "-c", ELSEWHERE, platform]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *2 * ["Lanes run on Linux so far. tm.Lanes(0) runs the same calls inline."],
        *2 * ["Lanes run on Linux so far. lanes=0 runs the pipeline in this process."],
    ]
