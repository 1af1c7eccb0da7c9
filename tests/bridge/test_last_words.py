"""What a dead lane wrote last is in the error of its call, and went where it always goes."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def says_and_ends(*texts: str) -> None:
    sys.stdout.write(f"{texts[0]}\n")
    for text in texts[1:]:
        sys.stderr.write(text)
    os._exit(3)


def reads_nothing() -> None:
    ctypes.string_at(0)


async def test_prints_and_errors(capfd: pytest.CaptureFixture[str]) -> None:
    """Both streams, in order; the error survives a pickle."""
    async with tm.Lanes(1) as lanes:
        with pytest.raises(LaneDied) as caught:
            await lanes.run(says_and_ends, "opening the model", "CUDA: ", "out of memory ü\n")
    assert caught.value.stderr == "opening the model\nCUDA: out of memory ü"
    assert "exit code 3" in str(caught.value)
    assert str(caught.value).endswith(f"It wrote last:\n{caught.value.stderr}")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.stderr, again.code) == (str(caught.value), caught.value.stderr, 3)
    assert "CUDA: out of memory ü" in capfd.readouterr().err


async def test_a_crash_tells_where(one: tm.Lanes) -> None:
    """The Python traceback of a segfault names the function."""
    with pytest.raises(LaneDied, match=r"(?s)SIGSEGV.*It wrote last:.*in reads_nothing") as caught:
        await one.run(reads_nothing)
    assert "Segmentation fault" in caught.value.stderr


async def test_a_flood_leaves_its_end(one: tm.Lanes) -> None:
    """However much was written, in whatever pieces: some of the last of it."""
    with pytest.raises(LaneDied) as caught:
        await one.run(says_and_ends, "x" * 10_000, *(f"line {number}\n" for number in range(5_000)))
    assert caught.value.stderr.endswith("line 4998\nline 4999")
    assert 1_000 < len(caught.value.stderr) < 3_000


async def test_a_process_that_said_nothing(one: tm.Lanes) -> None:
    """The words of the one before are not its own."""
    with pytest.raises(LaneDied) as caught:
        await one.run(os._exit, 4)
    assert caught.value.stderr == ""
    assert "wrote last" not in str(caught.value)


async def test_an_initializer_that_ends_its_process() -> None:
    """Its words are in the error of the start."""

    def ends() -> None:
        says_and_ends("no licence found")

    with pytest.raises((LaneDied, CallError), match="It wrote last:\nno licence found"):
        async with tm.Lanes(1, initializer=ends):
            pass
