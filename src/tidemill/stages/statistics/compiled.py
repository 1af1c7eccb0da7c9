"""Kernels as machine code that loads in a tenth of a second, or as plain Python where there is none.

Importing Numba and letting it find its own cache takes two seconds, more than a whole run's start may. So each kernel
is compiled once into an object file; those are kept together in one file in this user's cache folder, and a start
loads them with llvmlite alone:

    compile (numba, once)  ─▶  kernels-<key>.bin: [sha256 | header JSON | object code ...]  ─▶  load (llvmlite)

The key is a hash of the kernels' source, the versions of Numba and llvmlite, this machine's CPU and its features: when
any changes, another file is made. Machine code from a file is run as it stands, so a folder that anyone else can write
to is not used, nor is a file whose checksum does not match.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tidemill import files
from tidemill.errors import EngineError, OutsideError
from tidemill.formats import alike_kernel
from tidemill.stages.statistics import compiling, folds, kernels, ranks, recurrences, rolling, spans, trends, windows
from tidemill.stages.statistics.blocks import Blocks
from tidemill.stages.statistics.compiling import Packed

__all__ = ["Kernels", "address_of", "compile_kernels", "interpreted_kernels", "load_kernels"]

_SOURCES: Final[tuple[ModuleType, ...]] = (
    *(folds, kernels, rolling, ranks, trends, spans, recurrences, windows),
    alike_kernel,
)
"""The modules whose kernels are compiled, each after those whose ``HELPERS`` it calls. Each has ``HELPERS`` and
``KERNELS``; a kernel's name is its own among them all."""
_KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    name: kernel for module in _SOURCES for name, kernel in module.KERNELS.items()
}
_FORMAT: Final = 1
_CACHE: Final = "default"
_NUMPY_OF: Final[dict[str, np.dtype[Any]]] = {
    "i": np.dtype(np.int32),
    "q": np.dtype(np.int64),
    "d": np.dtype(np.float64),
    "b": np.dtype(np.uint8),
}
_NUMBA_RUNTIME: Final = (
    "NRT_Allocate",
    "NRT_Free",
    "NRT_decref",
    "NRT_incref",
    "numba_do_raise",
    "numba_gil_ensure",
    "numba_gil_release",
    "numba_runtime_build_excinfo_struct",
    "numba_unpickle",
)
Call = Callable[..., Any]
_addressof: Final = ctypes.addressof
_as_bytes: Final = ctypes.c_char.from_buffer
_WORD: Final = 8  # bytes


class Kernels:
    """The kernels, called with NumPy arrays.

    ``kind``       ``"compiled"`` or ``"interpreted"``; the numbers are the same, bit for bit
    ``reason``     one line saying why they are interpreted; empty when compiled
    ``cold_s``     seconds it took to get them ready
    """

    def __init__(
        self,
        calls: dict[str, Call],
        kind: Literal["compiled", "interpreted"],
        *,
        reason: str = "",
        cold_s: float = 0.0,
    ) -> None:
        self.kind = kind
        self.reason = reason
        self.cold_s = cold_s
        self._calls = calls
        self._keep = calls["keep"]
        self._advance = calls["advance"]
        self._gather = calls["gather"]
        self._roll = calls["roll"]
        self._unroll = calls["unroll"]
        self._pick, self._put = calls["pick"], calls["put"]

    def __repr__(self) -> str:
        return f"Kernels({self.kind}, ready in {self.cold_s:.2f} s)"

    def __getitem__(self, name: str) -> Call:
        """A kernel by name; it takes the number of rows, then what its letters say."""
        return self._calls[name]

    def keep(
        self, slots: NDArray[np.int32], heads: NDArray[np.int64], log: tuple[NDArray[np.int32], Any, NDArray[Any]]
    ) -> None:
        """Put the heads of these slots into an undo log reservation."""
        self._keep(len(slots), slots, heads, log[0], log[2])

    def advance(
        self,
        slots: NDArray[np.int32],
        heads: NDArray[np.int64],
        ring: NDArray[np.float64],
        log: tuple[NDArray[np.int32], Any, NDArray[Any]],
        *,
        far: bool = False,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Move the heads on; per record its cell and its window's rows, int32 of shape ``(n,)``.

        The cells of ``ring`` (keys x window) are put into an undo log reservation; those returned lie in it.
        """
        filled = np.empty(len(slots), np.int32)
        self._advance(len(slots), slots, heads, ring, ring.shape[1], int(far), filled, log[0], log[1], log[2])
        return log[1], filled

    def gather(
        self,
        slots: NDArray[np.int32],
        cells: NDArray[np.int32],
        ring: NDArray[np.float64],
        log: tuple[NDArray[np.int32], Any, NDArray[Any]],
    ) -> None:
        """Put these cells of a further ``ring`` into an undo log reservation."""
        self._gather(len(slots), slots, cells, ring, ring.shape[1], log[0], log[1], log[2])

    def unroll(
        self,
        slots: NDArray[np.int32],
        cells: NDArray[np.int32],
        filled: NDArray[np.int32],
        values: NDArray[np.float64],
        ring: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None:
        """Write ``values`` into ``ring`` and copy each record's window to ``out``, of shape ``(n, window)``."""
        self._unroll(len(slots), slots, cells, filled, values, ring, ring.shape[1], out)

    def pick(self, column: NDArray[Any], rows: NDArray[np.int32]) -> NDArray[Any]:
        """``column[rows]``, copied; the rows are not checked."""
        if column.itemsize != _WORD:
            return column.take(rows)
        out = np.empty(len(rows), column.dtype)
        self._pick(len(rows), rows, column, out)
        return out

    def put(self, column: NDArray[Any] | int, rows: NDArray[np.int32] | int, values: NDArray[Any]) -> None:
        """``column[rows] = values``, of 8 bytes each and one type; the rows are not checked. Compiled kernels also take
        addresses: see `address_of`."""
        self._put(len(values), rows, np.ascontiguousarray(values), column)

    def roll(
        self,
        slots: NDArray[np.int32],
        cells: NDArray[np.int32],
        filled: NDArray[np.int32],
        values: NDArray[np.float64],
        ring: NDArray[np.float64],
        places: NDArray[np.int64],
        blocks: Blocks,
        out: NDArray[np.float64],
        *,
        ddof: int,
        min_periods: int,
        keys: int,
    ) -> None:
        """Write ``values`` into ``ring`` and the statistics into ``out``: of shape ``(rows that places name, n)``.

        ``keys`` says how many keys are in use, which no slot may be beyond: blocks are kept of so many.
        """
        held, stamps, stamp = blocks.stamped(keys)
        self._roll(
            len(slots),
            slots,
            cells,
            filled,
            values,
            ring,
            ring.shape[1],
            blocks.shift,
            ddof,
            min_periods,
            places,
            held,
            stamps,
            stamp,
            int(blocks.are_far(keys)),
            blocks.gapped(keys),
            out,
        )


def check_slots(slots: NDArray[Any], keys: int) -> tuple[NDArray[np.int32], int]:
    """``slots`` as the kernels read them, and how many keys there must be for them; compiled code checks no bounds, so they are
    checked here."""
    slots = np.ascontiguousarray(slots, np.int32)
    used = int(np.maximum.reduce(slots.view(np.uint32))) + 1 if len(slots) else 0  # a negative one is beyond them all
    if used > keys:
        raise EngineError(f"a key slot is outside the {keys} slots of the state memory")
    return slots, used


# -- getting them ---------------------------------------------------------------------------------------

_loaded: dict[str, Kernels] = {}
_loading: Final = threading.Lock()


def load_kernels(cache: str | os.PathLike[str] | None = _CACHE, *, compile_missing: bool = True) -> Kernels:
    """The kernels, as fast as this machine has them; loaded once per process.

    ``cache`` is the folder of compiled kernels; the default is this user's cache folder, None is no cache. Kernels that
    are not there are compiled, which takes some seconds once, and stored; with ``compile_missing=False`` they run
    interpreted instead. ``NUMBA_DISABLE_JIT=1`` gives interpreted ones.

    >>> load_kernels(None, compile_missing=False).kind
    'interpreted'
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return interpreted_kernels("NUMBA_DISABLE_JIT is set")
    folder = files.cache_folder() if cache == _CACHE else None if cache is None else Path(cache)
    name = str(folder)
    with _loading:
        found = _loaded.get(name)
        if found is None or (found.kind == "interpreted" and compile_missing):
            found = _loaded[name] = _load(folder, compile_missing)
        return found


def _load(folder: Path | None, compile_missing: bool) -> Kernels:
    started = time.perf_counter()
    if importlib.util.find_spec("numba") is None:
        return interpreted_kernels('Numba is not installed; install it with: pip install "tidemill[fast]"')
    try:
        importlib.import_module("llvmlite.binding")
    except (ImportError, OSError) as error:
        return interpreted_kernels(f"llvmlite cannot be loaded: {error}")
    if folder is not None and not files.is_private(folder):
        folder = None
    path = None if folder is None else folder / f"kernels-{cache_key()[:32]}.bin"
    packed = None if path is None else _unpack(files.read_bytes(path))
    if packed is None:
        if not compile_missing:
            return interpreted_kernels("the kernels are not compiled yet")
        packed = compile_kernels()
        if path is not None:
            _store(path, packed)
    calls = _link(packed)
    alike_kernel.use(calls["read_alike"])
    return Kernels(calls, "compiled", cold_s=time.perf_counter() - started)


def interpreted_kernels(reason: str = "asked for") -> Kernels:
    """The kernels as plain Python: slow, and the oracle of the compiled ones."""
    return Kernels({name: _interpreted(fn) for name, (fn, _) in _KERNELS.items()}, "interpreted", reason=reason)


def _interpreted(fn: Call) -> Call:
    def call(*arguments: Any) -> None:
        view: Callable[[Any], memoryview] = memoryview
        # Memoryviews give Python's floats: IEEE like NumPy's, without its warnings, and quicker one by one.
        fn(*(view(a.reshape(-1)) if isinstance(a, np.ndarray) else a for a in arguments))

    return call


def cache_key() -> str:
    """Names exactly what compiled code depends on."""
    llvm: Any = importlib.import_module("llvmlite.binding")

    features = llvm.get_host_cpu_features()
    parts = [
        str(_FORMAT),
        *map(inspect.getsource, (*_SOURCES, compiling)),
        metadata.version("numba"),
        metadata.version("llvmlite"),
        llvm.get_host_cpu_name(),
        features.flatten() if features else "",
        llvm.get_process_triple(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# -- compiling ------------------------------------------------------------------------------------------


def compile_kernels() -> Packed:
    """Compile every kernel with Numba; raises `MissingExtra` without it."""
    return compiling.machine_code(_SOURCES)


def _store(path: Path, packed: Packed) -> None:
    header = [{"name": k["name"], "symbol": k["symbol"], "bytes": len(k["code"])} for k in packed]
    text = json.dumps(header).encode()
    body = len(text).to_bytes(8, "little") + text + b"".join(k["code"] for k in packed)
    try:
        files.write_atomic(path, hashlib.sha256(body).digest() + body)
    except OutsideError:
        return  # a full disk costs the next start some seconds, not this run


def _unpack(data: bytes | None) -> Packed | None:
    """What `_store` wrote; None when it is missing or damaged."""
    if data is None or len(data) < 40 or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    at = 40 + int.from_bytes(data[32:40], "little")
    packed = []
    for kernel in json.loads(data[40:at]):
        packed.append({**kernel, "code": data[at : at + kernel["bytes"]]})
        at += kernel["bytes"]
    return packed if {k["name"] for k in packed} == set(_KERNELS) else None


# -- linking --------------------------------------------------------------------------------------------


def _link(packed: Packed) -> dict[str, Call]:
    """Object code made callable."""
    llvm: Any = importlib.import_module("llvmlite.binding")

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    _settle_symbols(llvm)
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for kernel in packed:
        engine.add_object_file(llvm.ObjectFileRef.from_data(kernel["code"]))
    engine.finalize_object()
    return {k["name"]: _call(k["name"], engine.get_function_address(k["symbol"]), engine) for k in packed}


def _settle_symbols(llvm: Any) -> None:
    """Give Numba's runtime functions an address, so that code which mentions them on a path never taken links.

    None of our kernels allocates or raises; should one ever get there, the process stops rather than go on wrong.
    """
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in _NUMBA_RUNTIME:
        if not llvm.address_of_symbol(name):
            llvm.add_symbol(name, abort)


def _call(name: str, address: int, engine: object) -> Call:
    """The function at this address, which is there as long as its ``engine`` is."""
    arguments = _KERNELS[name][1]
    native = ctypes.CFUNCTYPE(None, *(ctypes.c_int64 if a == "n" else ctypes.c_void_p for a in arguments))(address)
    dtypes = [_NUMPY_OF.get(letter) for letter in arguments[1:]]

    def call(rows: int, *given: Any, _keeps: object = engine) -> None:
        if rows:  # nothing has no address
            native(rows, *map(_native, given, dtypes))

    return call


def _native(given: Any, dtype: np.dtype[Any] | None) -> int:
    """A count or an address as it is, and of an array the address."""
    if isinstance(given, int):
        return given
    flags = given.flags
    if not flags.c_contiguous or (given.dtype != dtype if dtype is not None else given.itemsize != _WORD):
        raise EngineError(f"a kernel was given {given.dtype} in place of a contiguous array of {dtype or 'words'}")
    if flags.writeable:
        return _addressof(_as_bytes(given))  # a third of the time of ``ctypes.data``
    return int(given.ctypes.data)


def address_of(buffer: Any) -> int:
    """Where a writable buffer lies in this process."""
    return _addressof(_as_bytes(buffer))


def main(arguments: Sequence[str] = ()) -> int:
    """Compile into this user's cache folder ahead of the first run (``python -m tidemill.stages.statistics.compile``)."""
    ready = load_kernels(arguments[0] if arguments else _CACHE)
    print(f"{ready!r}{': ' if ready.reason else ''}{ready.reason}")  # noqa: T201 - its answer to a person
    return 0
