"""What a lane keeps of its rings from batch to batch is never to be seen: not when it is lost, nor when the state goes back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.blame import Orders
from tidemill.core.chain import Chain
from tidemill.schema import Kind
from tidemill.stages.map import Map
from tidemill.stages.rolling import STATISTICS, Rolling, quantile
from tidemill.stages.state import StateLayout, StateMemory
from tidemill.stages.statistics import blocks, growing
from tidemill.stages.statistics.compiled import interpreted_kernels

ALL = [*STATISTICS, quantile(0.0), quantile(0.05), quantile(0.77), quantile(1.0)]
WINDOWS = st.sampled_from([1, 2, 16, 17, 64, 65, 130, 300])
EACH = 90  # records of a batch


def made(seed, batches, keys=2, *, steady=0.0):
    """Batches of records of a few keys: values of every sort, equal ones among them, some missing."""
    random = np.random.default_rng(seed)
    for number in range(batches):
        values = np.where(random.random(EACH) < 0.5, random.normal(size=EACH), random.integers(-2, 3, EACH) * 0.5)
        values[random.random(EACH) < 0.1 * (seed % 2)] = np.nan
        values[random.random(EACH) < steady] = -0.0
        times = (number * EACH + np.arange(EACH)) * 10**9 + random.integers(0, 3 * 10**9, EACH)
        yield Batch({"v": Column(Kind.FLOAT, values)}, time=times), random.integers(0, keys, EACH).astype(str)


def bits(batch, stage):
    return [batch[name].tobytes() for name in stage.adds]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), WINDOWS)
def test_a_lane_that_has_lost_it_goes_on_with_the_same_bits(drive, seed, window):
    """A new lane over the same state memory, which knows nothing of the rings, makes what the old one would have."""
    stage = Rolling("v", window, ALL)
    steady, forgetful = drive(stage, max_keys=4), drive(stage, max_keys=4)
    for batch, keys in made(seed, 12):
        forgetful.stage = stage.opened()
        assert bits(steady.step(batch, keys).batch, stage) == bits(forgetful.step(batch, keys).batch, stage)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), WINDOWS, st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_batch_that_was_undone_leaves_no_trace(drive, seed, window, undone):
    """Batches that are rolled back in the same process are as if they had never been."""
    stage = Rolling("v", window, ALL)
    straight, hesitant = drive(stage, max_keys=4), drive(stage, max_keys=4)
    other = made(seed + 1, 12)
    for (batch, keys), twice in zip(made(seed, 12), undone, strict=True):
        if twice:
            hesitant.step(*next(other), commit=False)
            hesitant.memory.roll_back()
        assert bits(straight.step(batch, keys).batch, stage) == bits(hesitant.step(batch, keys).batch, stage)


@pytest.mark.parametrize("goes_back", [True, False])
def test_a_step_that_fails_midway_leaves_nothing_behind(drive, monkeypatch, goes_back):
    """What was kept of the rings when an exception left a step is not used again, whether the state is put back or not."""
    stage = Rolling("v", 70, ALL)
    failing = drive(stage, max_keys=4)
    for number, (batch, keys) in enumerate(made(1, 6)):
        if number == 3:
            with monkeypatch.context() as patched:
                patched.setattr(type(failing.stage._kernels), "roll", lambda *_, **__: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    failing.step(batch, keys, commit=not goes_back)
            if goes_back:
                assert failing.memory.roll_back()
            fresh = drive(stage, max_keys=4)
            fresh.slots = dict(failing.slots)
            for name, array in failing.state._arrays.items():
                fresh.state[name][...] = array
        made_by = bits(failing.step(batch, keys).batch, stage)
        assert number < 3 or made_by == bits(fresh.step(batch, keys).batch, stage)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 65, 130]))
def test_what_is_kept_is_the_same_interpreted(drive, seed, window):
    """Chunks, blocks and slopes of compiled and interpreted kernels have the same bits, batch after batch."""
    stage = Rolling("v", window, ALL)
    fast, slow = drive(stage, max_keys=4), drive(stage, max_keys=4, kernels=interpreted_kernels())
    for batch, keys in made(seed, 6, steady=0.3):
        assert bits(fast.step(batch, keys).batch, stage) == bits(slow.step(batch, keys).batch, stage)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), WINDOWS)
def test_asking_for_memory_ahead_changes_no_bit(drive, seed, window):
    """With more sensors than the processor has at hand, kernels ask for memory ahead of its use, and for nothing else."""
    stage = Rolling("v", window, ALL)
    near, far = drive(stage, max_keys=4), drive(stage, max_keys=4)
    for each in far.stage._windows._blocks:
        each._near = 0
    for batch, keys in made(seed, 6):
        assert bits(near.step(batch, keys).batch, stage) == bits(far.step(batch, keys).batch, stage)
    assert blocks.Blocks(50).are_far(100_000)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([63, 64, 65, 200]))
def test_quantiles_of_long_windows_are_numpys(drive, seed, window):
    """Over chunks that fill, turn and empty: every quantile is NumPy's of the window."""
    wanted = [quantile(q) for q in (0.0, 0.1, 0.5, 0.633, 1.0)]
    stage = Rolling("v", window, wanted)
    driver, seen = drive(stage), {}
    for batch, keys in made(seed, 12):
        out = driver.step(batch, keys).batch
        for row, key in enumerate(keys):
            own = np.array([*seen.setdefault(key, []), batch["v"][row]])[-window:]
            seen[key].append(batch["v"][row])
            own = own[~np.isnan(own)]
            right = np.quantile(own, [each.q for each in wanted]) if len(own) else np.nan
            got = [out[name][row] for name in stage.adds]
            np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-15)


def test_a_neighbour_that_fails_does_not_disturb_it():
    """A user's function that is narrowed down, or run row by row, behind and before it: the rolling stage has run once."""

    def picky(batch):
        if (batch["v"] == 0.5).any():
            raise ValueError("half")
        return {"w": batch["v"] * 2}

    stages = [Map(picky, name="before"), Rolling("w", 70, ALL), Map(picky, name="after")]

    def run(cuts, isolate):
        layout = StateLayout(tuple(stage.state_fields() for stage in stages), 4, EACH)
        memory = StateMemory(layout, bytearray(layout.total_bytes))
        chain = Chain(stages, memory, lambda: 0)
        chain.admit(["0", "1"], 0)
        parts, slab = [], 0
        for batch, keys in made(2, 6):
            slots = keys.astype(np.int32)
            for start, stop in zip([0, *cuts], [*cuts, EACH], strict=True):
                slab += 1
                memory.begin(slab)
                orders = Orders({0, 2}) if isolate else None
                outcome = chain.run(batch.slice(start, stop), slots[start:stop], orders)
                memory.commit(slab)
                parts.append(outcome.batch)
        return [Batch.concat(parts)[name].tobytes() for name in stages[1].adds]

    assert run([], isolate=False) == run([1, 30, 31], isolate=False) == run([44], isolate=True)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), WINDOWS)
def test_sensors_that_come_one_by_one_leave_the_bits_as_they_are(drive, seed, window):
    """What is kept grows with the sensors, and what is known of those before is as it was."""
    stage = Rolling("v", window, ALL)
    grown, whole = drive(stage, max_keys=400), drive(stage, max_keys=400)
    whole.slots = {str(number): number for number in range(400)}
    whole.stage.admit(list(whole.slots), 0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(growing, "_LEAST", 4096)
        for number, (batch, few) in enumerate(made(seed, 8)):
            keys = [str((int(key) + row * number) % (5 * 3**number) % 400) for row, key in enumerate(few)]
            grown.slots.update((key, int(key)) for key in keys)
            assert bits(grown.step(batch, keys).batch, stage) == bits(whole.step(batch, keys).batch, stage)


@pytest.mark.parametrize("kept", [blocks.Blocks(1_000_000), blocks.Sorted(1_000_000)], ids=["blocks", "sorted"])
def test_of_keys_that_never_came_nothing_is_asked_of_the_machine(kept):
    """The longest windows of three sensors take address space for about three, however many sensors there may be."""
    held, stamps, _ = kept.stamped(3)
    assert held.nbytes <= 2 * 3 * kept.bytes_per_key + growing._LEAST
    assert stamps.nbytes <= growing._LEAST


def test_the_longest_window_starts_with_as_many_sensors_as_there_may_be():
    """A run over two sensors with windows of a million records needs no terabytes for the sensors that it might have."""
    rows = [{"sensor": f"S{i % 2}", "time": i, "value": float(i)} for i in range(10)]
    made = []
    stage = Rolling("value", 1_000_000, ["median", "mean", "slope"])
    pipeline = tm.Pipeline(tm.sources.Records(rows), [stage], tm.sinks.Callback(made.extend, rows=True))
    assert tm.run(pipeline, lanes=0).rows_out == 10
    assert made[-1]["value_median_1000000"] == made[-1]["value_mean_1000000"] == 5.0
