"""All that lanes ask of Linux and not of every system: another system is added here.

To import it asks for nothing, and what lanes without processes (``lanes=0``) use says what it gives elsewhere. Beside it the
processes need what POSIX has: fork, groups of processes, sockets that carry descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import mmap
import os
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Final

from tidemill import files
from tidemill.errors import OutsideError

__all__ = [
    "ProcessorQueue",
    "above_standard_streams",
    "activity",
    "allowed_cpus",
    "die_with_parent",
    "dying_with_parent",
    "ended_child",
    "in_forked_child",
    "keep_to_oneself",
    "message_pair",
    "name_process",
    "no_lanes_here",
    "process_handle",
    "resident_bytes",
    "sealed_memory",
]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_MAP_NORESERVE: Final = 0x4000
_MREMAP_MAYMOVE_FIXED: Final = 3


# -- anywhere ----------------------------------------------------------------------------------------------


def no_lanes_here() -> str:
    """Why lanes have no processes on this system: a sentence, or nothing."""
    return "" if sys.platform.startswith("linux") else "Lanes run on Linux so far."


def allowed_cpus() -> int:
    """CPUs that the affinity mask and the cgroup's quota let this process use, at least 1; elsewhere all there are."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else min(allowed, max(1, math.floor(quota)))


def _quota() -> float | None:
    """CPUs that the cgroup allows, v2 or v1; None for no limit."""
    v2 = files.read_bytes("/sys/fs/cgroup/cpu.max")
    if v2 is not None:
        limit, _, period = v2.decode().strip().partition(" ")
        return None if limit == "max" else int(limit) / int(period or 100_000)
    limit_v1 = files.read_bytes("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_v1 = files.read_bytes("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if limit_v1 is None or period_v1 is None or int(limit_v1) <= 0:
        return None
    return int(limit_v1) / int(period_v1)


def sealed_memory(name: str, size: int) -> int:
    """A descriptor by which other processes map ``size`` zero bytes, whose number nobody can change any more; -1 elsewhere."""
    if not hasattr(os, "memfd_create"):
        return -1
    import fcntl

    fd = os.memfd_create(f"tidemill-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EFBIG:
            raise
        raise OutsideError(
            f"shared memory of {size >> 10:,} KB is larger than this process may make a file (ulimit -f, or LimitFSIZE= of a "
            "service, which counts memory that processes share too); raise that limit."
        ) from error
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class ProcessorQueue:
    """How long the thread that makes this has been ready, and waited for a processor that others had; 0 where the system does not
    tell, as elsewhere."""

    def __init__(self) -> None:
        try:
            self._told = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._told = -1
            return
        weakref.finalize(self, os.close, self._told)
        if os.pread(self._told, 64, 0) == b"0 0 0\n":  # the last is how often it got one: nobody counts
            self._told = -1

    def waited_ns(self) -> int:
        """Up to now; only the difference of two readings says something."""
        return 0 if self._told < 0 else int(os.pread(self._told, 64, 0).split(b" ")[1])


def in_forked_child(do: Callable[[], None]) -> None:
    """Do it in each process that is forked from this one, before that goes on; nothing where none can be."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=do)


# -- where there are processes -----------------------------------------------------------------------------


def message_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a socket on which a read gives one whole message, with its descriptors, or the end of the other side."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def keep_to_oneself(memory: mmap.mmap, fd: int) -> None:
    """Memory of a descriptor that others have mapped too: from now on nobody else sees what this process writes into it. It stays
    where it is, and what looks at it does. Where the system has no room for that it stays shared."""
    size = len(memory)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    system = ctypes.CDLL(None)
    system.mmap.restype = system.mremap.restype = ctypes.c_void_p
    number, address = ctypes.c_size_t, ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    own = system.mmap(None, number(size), mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, ctypes.c_long(0))
    if own != address(-1).value:
        system.mremap(address(own), number(size), number(size), _MREMAP_MAYMOVE_FIXED, address(place))


def above_standard_streams(end: socket.socket) -> int:
    """Another descriptor of it, which is none of the standard streams, though some of these may be closed."""
    import fcntl

    return fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)


def process_handle(pid: int) -> int:
    """A descriptor that is readable from the process's end on. Raises `ProcessLookupError` for one that is gone."""
    return os.pidfd_open(pid)


def ended_child() -> int | None:
    """A child that has ended and is not reaped, so that the number is still its own; None when there is none."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid


def name_process(name: str) -> None:
    """As ``ps -o comm`` and ``top`` show this one, so that an operator can tell a lane from the server."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when the thread of ``parent`` that forked it ends, however it ends."""
    _at_parents_end(signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told, and somebody else has adopted this process
        os._exit(0)


@contextlib.contextmanager
def dying_with_parent() -> Iterator[None]:
    """Meanwhile the same, of whatever parent this process has; one that has ended before is not noticed."""
    _at_parents_end(signal.SIGKILL)
    try:
        yield
    finally:
        _at_parents_end(0)


def _at_parents_end(number: int) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def activity(pid: int | None) -> tuple[bool, int]:
    """Whether the main thread of a process runs, or would if it had a processor or what it reads from a disk, or were not held by
    a debugger; and how much of processors all of its threads have had, in ticks of the system."""
    stat = None if pid is None else files.read_bytes(f"/proc/{pid}/stat")
    if stat is None:
        return False, 0
    state, *fields = stat.rpartition(b")")[2].split()
    return state in (b"R", b"D", b"t"), int(fields[10]) + int(fields[11])


def resident_bytes(pid: int | None) -> int:
    """What a process has in memory, as the kernel counts it; 0 for one that is gone."""
    statm = None if pid is None else files.read_bytes(f"/proc/{pid}/statm")
    return 0 if not statm else int(statm.split()[1]) * mmap.PAGESIZE
