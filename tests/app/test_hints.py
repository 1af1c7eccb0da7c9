"""Which stage a function is told to use instead."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest

from tidemill.app.hints import hint_for, names_in


def centred(values):
    return values - values.mean()


class Ranked:
    def __call__(self, frame):
        return frame.assign(y=frame["value"].rank())


def logged(fn):
    @functools.wraps(fn)
    def around(batch):
        return fn(batch)

    return around


def bare(fn):
    def around(batch):
        return fn(batch)

    return around


@functools.lru_cache
def spread(values):
    return np.std(values)


def made(times):
    if times > 1:
        later = 1  # a cell that is empty when its function is made
    return lambda batch: later + centred(batch["value"]) * times


scaled = np.vectorize(lambda value: 0 if value < 5 else value)
typed = np.vectorize(lambda value: value, otypes=[float])


@pytest.mark.parametrize(
    ("fn", "name", "stage"),
    [
        (lambda frame: frame["value"].shift(), "shift", ""),
        (lambda batch: {"y": np.diff(batch["value"], prepend=0)}, "diff", ""),
        (lambda frame: frame["value"].rolling(5).mean(), "rolling", "tm.Rolling"),
        (lambda batch: {"y": batch["value"] / batch["value"].std()}, "std", "tm.Rolling"),
        (lambda rows: [{**row, "y": max(one["value"] for one in rows)} for row in rows], "max", "tm.Rolling"),
        (lambda batch: {"y": centred(batch["value"])}, "mean", "tm.Rolling"),
        (functools.partial(lambda frame, n: frame["value"].cumsum() * n, n=2), "cumsum", ""),
        (logged(lambda batch: {"y": batch["value"].mean()}), "mean", "tm.Rolling"),
        (bare(logged(lambda batch: {"y": batch["value"].mean()})), "mean", "tm.Rolling"),
        (functools.lru_cache(lambda batch: {"y": batch["value"].mean()}), "mean", "tm.Rolling"),
        (lambda batch: {"y": spread(tuple(batch["value"]))}, "std", "tm.Rolling"),
        (made(1), "mean", "tm.Rolling"),
        (Ranked, "rank", "tm.Rolling"),
        (Ranked(), "rank", "tm.Rolling"),
    ],
)
def test_the_name_and_the_stage(fn, name, stage):
    """In a lambda, a comprehension, a helper, a partial, a class and its object; behind decorators and in closures."""
    hint = hint_for(fn)
    assert name in names_in(fn)
    if stage:
        assert hint.startswith(f"It uses {name}(): use ")
        assert stage in hint


@pytest.mark.parametrize(
    "fn",
    [
        lambda batch: {"y": scaled(batch["value"])},
        lambda batch: {"y": np.vectorize(float)(batch["value"])},
        scaled,
    ],
)
def test_a_vectorized_function_takes_the_kind_of_its_first_value(fn):
    """Which is no matter of stages."""
    assert hint_for(fn).startswith("It uses vectorize(): give it otypes=[float]")


def test_a_vectorized_function_that_says_its_kind():
    """Is not what it is about."""
    assert "vectorize" not in hint_for(lambda batch: {"y": typed(batch["value"])[::-1]})


@pytest.mark.parametrize("fn", [len, np.sqrt, None, pd.DataFrame.copy, lambda rows: rows[::-1]])
def test_what_tells_nothing(fn):
    """Builtins, ufuncs, and code without a telling name: still one sentence, and a stage that there is."""
    assert "tm." in hint_for(fn)


def test_two_functions_that_call_each_other():
    """Do not go on for ever."""
    assert "even" in names_in(even)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n > 0 and even(n - 1)
