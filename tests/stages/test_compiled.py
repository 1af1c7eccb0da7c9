"""The compiled kernels' cache: used when it is whole and ours, and never otherwise."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from tidemill import files
from tidemill.errors import EngineError
from tidemill.stages.statistics import compiled
from tidemill.stages.statistics.compiled import address_of, check_slots, interpreted_kernels, load_kernels


@pytest.fixture(scope="module")
def packed():
    """Compiled kernels: those of this user's cache, when there are any."""
    load_kernels()
    home = files.cache_folder()
    stored = home and compiled._unpack(files.read_bytes(home / f"kernels-{compiled.cache_key()[:32]}.bin"))
    return stored or compiled.compile_kernels()


@pytest.fixture
def folder(tmp_path, packed):
    """A private cache folder that holds the kernels."""
    made = tmp_path / "cache"
    made.mkdir(mode=0o700)
    compiled._store(made / f"kernels-{compiled.cache_key()[:32]}.bin", packed)
    return made


def kind(folder):
    """What a fresh load from this folder gives when nothing may be compiled."""
    compiled._loaded.pop(str(folder), None)
    return load_kernels(folder, compile_missing=False).kind


def test_stored_kernels_load(folder):
    """What was stored is loaded, without compiling."""
    assert kind(folder) == "compiled"


def test_loading_does_not_import_numba(folder):
    """A start with cached kernels does not pay for Numba's import."""
    code = (
        "import sys; from tidemill.stages.statistics.compiled import load_kernels;"
        "kernels = load_kernels(sys.argv[1], compile_missing=False);"
        "print(kernels.kind, 'numba' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["compiled", "False"]


def test_a_damaged_file_is_not_run(folder):
    """A file with one bit changed, or cut short, is not used."""
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert kind(folder) == "interpreted"
    path.write_bytes(whole[:1000])
    assert kind(folder) == "interpreted"
    path.write_bytes(b"")
    assert kind(folder) == "interpreted"


def test_a_folder_open_to_others_is_not_trusted(folder, tmp_path):
    """Code from a folder that others can write to, or that is a link, is not run."""
    folder.chmod(0o770)
    assert kind(folder) == "interpreted"
    folder.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert kind(link) == "interpreted"
    assert kind(folder) == "compiled"


def test_other_sources_or_machines_have_other_files(monkeypatch):
    """The key changes with the kernels' source and the versions they were compiled by."""
    key = compiled.cache_key()
    monkeypatch.setattr(compiled.inspect, "getsource", lambda _: "another source")
    other = compiled.cache_key()
    monkeypatch.setattr(compiled.metadata, "version", lambda _: "0.0")
    assert len({key, other, compiled.cache_key()}) == 3


def test_without_numba_it_says_so(monkeypatch, tmp_path):
    """Without Numba the kernels run interpreted, and the reason names the extra to install."""
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda _: None)
    kernels = load_kernels(tmp_path)
    assert kernels.kind == "interpreted"
    assert 'pip install "tidemill[fast]"' in kernels.reason
    assert "\n" not in kernels.reason


def test_a_read_only_home_costs_nothing_but_time(monkeypatch, packed, tmp_path):
    """Kernels that cannot be stored are compiled and used all the same."""
    monkeypatch.setattr(compiled, "compile_kernels", lambda: packed)
    gone = tmp_path / "never made"
    assert load_kernels(gone).kind == "compiled"
    assert not gone.exists()


@pytest.mark.slow
def test_ahead_of_time(tmp_path):
    """``python -m tidemill.stages.statistics.compile`` fills the cache folder; only this user can read what it wrote."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tidemill.stages.statistics.compile"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("Kernels(compiled")
    (stored,) = (tmp_path / "tidemill").iterdir()
    assert stored.stat().st_mode & 0o077 == 0
    assert (tmp_path / "tidemill").stat().st_mode & 0o777 == 0o700


def test_memory_is_guarded():
    """Compiled code checks nothing, so what goes into it is checked: slots in range, arrays of the right kind."""
    with pytest.raises(EngineError, match="outside the 4 slots"):
        check_slots(np.array([4]), 4)
    with pytest.raises(EngineError, match="outside"):
        check_slots(np.array([-1]), 4)
    kernels = load_kernels()
    with pytest.raises(EngineError, match="in place of a contiguous array of int64"):
        kernels.keep(np.zeros(1, np.int32), np.zeros(4), (np.zeros(1, np.int32), None, np.zeros(1, np.int64)))
    assert interpreted_kernels().reason == "asked for"


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.bool_, np.int32])
def test_rows_move_as_numpy_moves_them(dtype):
    """`pick` and `put` are ``column[rows]`` read and written, whatever lies in the column, down to the bits of a NaN."""
    kernels = load_kernels()
    random = np.random.default_rng(0)
    raw = np.frombuffer(random.bytes(100 * np.dtype(dtype).itemsize), np.uint8)
    column = (raw & 1 if dtype is np.bool_ else raw).view(dtype)
    rows = random.permutation(100)[:60].astype(np.int32)
    picked = kernels.pick(column, rows)
    assert (picked.dtype, picked.tobytes()) == (column.dtype, column[rows].tobytes())
    if column.itemsize == 8:
        whole, expected = np.zeros(100, dtype), np.zeros(100, dtype)
        kernels.put(whole, rows, picked)
        expected[rows] = picked
        assert whole.tobytes() == expected.tobytes()
        kernels.put(address_of(whole), address_of(rows), picked[::-1])
        expected[rows] = picked[::-1]
        assert whole.tobytes() == expected.tobytes()
    assert not len(kernels.pick(column, rows[:0]))


def test_functions_live_as_long_as_somebody_has_them(folder):
    """Though the kernels are loaded anew meanwhile, as another run in another thread may do."""
    compiled._loaded.pop(str(folder), None)
    pick = load_kernels(folder, compile_missing=False)["pick"]
    compiled._loaded.pop(str(folder), None)
    load_kernels(folder, compile_missing=False)
    gc.collect()
    out = np.empty(2)
    pick(2, np.array([2, 0], np.int32), np.array([1.0, 2.0, 3.0]), out)
    assert out.tolist() == [3.0, 1.0]


def test_a_broken_llvmlite_leaves_the_kernels_interpreted(folder, monkeypatch):
    """And says so."""
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    compiled._loaded.pop(str(folder), None)
    found = load_kernels(folder, compile_missing=False)
    assert found.kind == "interpreted"
    assert "llvmlite cannot be loaded" in found.reason
    compiled._loaded.pop(str(folder), None)
