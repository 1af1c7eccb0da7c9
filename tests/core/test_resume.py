"""A changed plan: which stages go on with which state, and what the user is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.plan import Plan
from tidemill.core.resume import StageIdentity, check_resume, described, identify, matched
from tidemill.errors import PlanError
from tidemill.schema import Schema
from tidemill.stages.base import Stage
from tidemill.stages.state import StateField


def halved(batch: tm.Batch) -> dict[str, Any]:
    return {"half": batch["value"] / 2}


class Counter:
    n = 0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.n += 1
        return {"n": self.n}


def rising(state: Any, record: dict[str, Any]) -> Any:
    return record["value"], {}


def falling(state: Any, record: dict[str, Any]) -> Any:
    return record["value"], {}


def resumed(old: Plan, new: Plan) -> str:
    return described(matched(identify(old), identify(new)))


# -- what a stage is known by --------------------------------------------------------------------------------------

SAME = [
    (tm.Rolling("value", 50), tm.Rolling(["value"], window=50, stats=["min", tm.quantile(0.9)], on_error=None)),
    (tm.Rolling("value", "1min", max_gap_s=5), tm.Rolling("value", "60s", max_gap_s="5s")),
    (tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}), tm.Aggregate(tm.tumbling(10), {"value": ["min", "max"]})),
    (
        tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}, max_waiting=5),
        tm.Aggregate(tm.tumbling(10), {"value": "mean"}),
    ),
    (tm.Align(["a"], by=None, tolerance="1s"), tm.Align(["a"], by=None, tolerance=1, on="a", max_waiting=7)),
    (tm.Resample("value", "60s", late="drop"), tm.Resample(["value"], "1min", late="dead_letter")),
    (tm.Keyed(Counter), tm.Keyed(Counter, max_keys=5, on_error="stop", deadline_s=3)),
    (tm.Ewm("value", span=9), tm.Ewm("value", span=9, stats=["std"])),
    (tm.Lag("value", 3), tm.Lag("value", 3, names="before", name="lag")),
    (tm.scan(rising), tm.scan(rising, name="rise")),
    (tm.Silence("1min"), tm.Silence("60s").within(3)),
]
OTHER = [
    (tm.Rolling("value", 50), tm.Rolling("value", 51)),
    (tm.Rolling("value", 50), tm.Rolling("other", 50)),
    (tm.Rolling("value", 50), tm.Rolling("value", 50, max_gap_s=5)),
    (tm.Rolling("value", 50), tm.Rolling("value", 50, stats=["slope"])),  # which needs the times too
    (tm.Rolling("value", "30s"), tm.Rolling("value", "30s", max_records=7)),
    (tm.Rolling("value", 50, name="a"), tm.Rolling("value", 50, name="b")),
    (tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}), tm.Aggregate(tm.sliding("10s", "5s"), {"value": "mean"})),
    (tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}), tm.Aggregate(tm.tumbling("10s"), {"other": "mean"})),
    (
        tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}),
        tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}, allowed_lateness=1),
    ),
    (tm.Align(["a", "b"], by=None), tm.Align(["b", "a"], by=None)),
    (tm.Align(["a"], by=None), tm.Align(["a"], by=None, tolerance="1s")),
    (tm.Resample("value", "60s"), tm.Resample("value", "60s", offset=1)),
    (tm.Resample("value", "60s"), tm.Resample("value", "60s", "mean")),
    (tm.Keyed(Counter), tm.Keyed(Counter, ttl="1h")),
    (tm.Ewm("value", span=9), tm.Ewm("value", span=10)),
    (tm.Ewm("value", span=9), tm.Ewm("value", span=9, adjust=False)),
    (tm.Lag("value", 3), tm.Lag("value", 4)),
    (tm.Lag("value", 3), tm.Diff("value", 3)),
    (tm.scan(rising), tm.scan(falling)),
    (tm.Silence("1min"), tm.Silence("61s")),
    (tm.Stuck("value", 3), tm.Stuck("value", 3, 0.5)),
    (tm.Dedup(), tm.Dedup(within="5s")),
    (tm.Dedup(counter="n"), tm.Dedup(counter="n", modulo=256)),
    (tm.Rate("value"), tm.Rate("value", counter=True)),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_what_state_does_not_depend_on_may_change(one: Stage, other: Stage) -> None:
    """Statistics of the same window, room, what becomes of late records, ways to write the same."""
    assert identify(Plan(one))[0].is_same(identify(Plan(other))[0])


@pytest.mark.parametrize(("one", "other"), OTHER, ids=str)
def test_what_state_depends_on_makes_another_stage(one: Stage, other: Stage) -> None:
    """Its numbers would mean something else."""
    assert not identify(Plan(one))[0].is_same(identify(Plan(other))[0])


@pytest.mark.parametrize("stage", dict.fromkeys(stage for pair in [*SAME, *OTHER] for stage in pair), ids=str)
def test_identities_are_the_same_after_a_file(stage: Stage) -> None:
    """As JSON and back."""
    own = identify(Plan(stage, tm.Map(halved), tm.Calibrate({"S1": (1.0, 2.0)})), "pump")
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(own)), list[StageIdentity]) == own
    assert all(
        one.is_same(other)
        for one, other in zip(
            own, identify(Plan(stage, tm.Map(halved), tm.Calibrate({"S1": (1.0, 2.0)})), "pump"), strict=True
        )
    )


class Own(Stage):
    """A user's stage, which says nothing of what it is known by."""

    def __init__(self, limit: object) -> None:
        super().__init__()
        self.limit = limit

    def bind(self, schema: Schema) -> Schema:
        return schema

    def state_fields(self) -> dict[str, StateField]:
        return {"count": StateField("int64")}

    def step(self, batch: tm.Batch, state: object) -> tm.Batch:
        return batch


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), (1.5, float("inf")), ("a", "b"), ([1], [2]), ({"a": 1}, {"a": 2}), (rising, falling), ({1}, {2}), (b"a", b"b"),
     (np.float64(1), np.float64(2)), (np.arange(3), np.arange(4)), (tm.tumbling(1), tm.tumbling(2)), (Counter, Own),
     (tm.Kind.FLOAT, tm.Kind.INT), (np.zeros(20_000), np.zeros(20_001)), (["a"] * 20_000, ["a"] * 20_001),
     (dict.fromkeys(range(20_000)), dict.fromkeys(range(20_001))), (None, False)],
)  # fmt: skip
def test_a_users_stage_is_known_by_its_public_attributes(one: object, other: object) -> None:
    """Whatever they are."""
    assert identify(Plan(Own(one)))[0].is_same(identify(Plan(Own(one)))[0])
    assert not identify(Plan(Own(one)))[0].is_same(identify(Plan(Own(other)))[0])


def test_sensors_that_are_placed_by_another_column_are_others() -> None:
    """What was kept of a name is not that of a name on a device; stages without state do not mind."""
    plan = Plan(tm.Map(halved), tm.Rolling("value", 5))
    matching = matched(identify(plan), identify(plan, "pump"))
    assert matching.sources == (0, None)
    assert not matching.keeps
    assert [one.shown for one in matching.lost] == ["Rolling('value', 5)"]


def test_a_watermark_that_would_fall_back_makes_another_stage() -> None:
    """Windows that have ended would end again; a stage that does not follow it does not mind."""
    before, now = (
        Plan(
            tm.Aggregate(tm.tumbling("10s"), {"value": "max"}, allowed_lateness=lateness),
            tm.Rolling("value_max", 3),
            tm.Silence("1h"),
        )
        for lateness in (1, 2)
    )
    assert matched(identify(before), identify(now)).sources == (None, 1, None)


# -- matching ------------------------------------------------------------------------------------------------------


def one(kind: str, name: str | None) -> StageIdentity:
    """Upper-case kinds have state."""
    fields = {"count": StateField("int64")} if kind.isupper() else {}
    return StageIdentity(kind, name or kind, name, {}, fields, objects=False, placed_by=None, behind_ns=0)


PLANS = st.lists(st.builds(one, st.sampled_from("aABC"), st.none() | st.none() | st.sampled_from("xy")), max_size=5)


def matchings(old: Sequence[StageIdentity], new: Sequence[StageIdentity]) -> Iterator[tuple[int | None, ...]]:
    """All that keep the order."""
    for sources in itertools.product([None, *range(len(old))], repeat=len(new)):
        used = [source for source in sources if source is not None]
        if used == sorted(set(used)) and all(s is None or n.is_same(old[s]) for s, n in zip(sources, new, strict=True)):
            yield sources


def best(old: Sequence[StageIdentity], new: Sequence[StageIdentity]) -> tuple[int | None, ...]:
    """By looking at all of them."""

    def worth(sources: tuple[int | None, ...]) -> tuple[Any, ...]:
        used = [source for source in sources if source is not None]
        places = [-len(old) if source is None else -source for source in sources]
        return sum(old[source].has_state for source in used), len(used), places

    return max(matchings(old, new), key=worth)


@given(PLANS, PLANS)
def test_the_best_matching_is_found(old: list[StageIdentity], new: list[StageIdentity]) -> None:
    """Without names: what going through all matchings finds."""
    old, new = ([replace(stage, name=None) for stage in plan] for plan in (old, new))
    assert matched(old, new).sources == best(old, new)


@given(PLANS, PLANS)
def test_stages_of_one_name_are_matched_first_wherever_they_stand(
    old: list[StageIdentity], new: list[StageIdentity]
) -> None:
    """And the others among themselves as if these were not there."""
    sources = list(matched(old, new).sources)
    used = [source for source in sources if source is not None]
    assert len(set(used)) == len(used)
    free = set(range(len(old)))
    expected: list[int | None] = [None] * len(new)
    for place, stage in enumerate(new):
        named = sorted(
            n for n in free if stage.name is not None and old[n].name == stage.name and stage.is_same(old[n])
        )
        if named:
            expected[place] = named[0]
            free.discard(named[0])
    rest_old, rest_new = sorted(free), [place for place, source in enumerate(expected) if source is None]
    for place, source in zip(rest_new, best([old[n] for n in rest_old], [new[n] for n in rest_new]), strict=True):
        expected[place] = None if source is None else rest_old[source]
    assert sources == expected


@given(PLANS)
def test_an_unchanged_plan_keeps_everything(plan: list[StageIdentity]) -> None:
    """Each stage its own, but for two of one name, which are as good as each other."""
    matching = matched(plan, plan)
    assert None not in matching.sources
    assert not matching.lost
    check_resume(matching)


# -- what the user is told -----------------------------------------------------------------------------------------

CALIBRATE = tm.Calibrate({"S1": (1.0, 2.0)}, name="Calibrate")
R20, R50, R100 = (tm.Rolling("value", n, name=None) for n in (20, 50, 100))


def test_it_is_told_what_keeps_and_what_starts_empty() -> None:
    """The stages of the new plan in their order, then what is gone."""
    told = resumed(Plan(CALIBRATE, R50), Plan(CALIBRATE, R50, R100))
    assert told == "resume: Calibrate keeps, Rolling('value', 50) keeps, Rolling('value', 100) starts empty"
    told = resumed(Plan(R20, R50), Plan(tm.Map(halved), R50))
    assert told == "resume: Map(halved) is new, Rolling('value', 50) keeps, Rolling('value', 20) is dropped"
    assert resumed(Plan(), Plan()) == "resume: no stages"


def test_state_is_not_lost_unless_it_is_named() -> None:
    """One sentence has the stages, and the options to paste; all of them must be there."""
    matching = matched(
        identify(Plan(CALIBRATE, R20, tm.Keyed(Counter, name='the "best"'), R50)), identify(Plan(CALIBRATE, R50))
    )
    with pytest.raises(PlanError) as refused:
        check_resume(matching)
    assert str(refused.value) == (
        "the state holds that of Rolling('value', 20), the \"best\", stages that are not in the plan any more or changed; to "
        "go on without it, give --drop-state \"Rolling('value', 20)\" --drop-state 'the \"best\"'."
    )
    with pytest.raises(PlanError, match=r"of Rolling.*, a stage that is not"):
        check_resume(matching, {'the "best"'})
    check_resume(matching, ['the "best"', "Rolling('value', 20)", "one that is long gone"])


def test_a_plan_with_nothing_in_common_is_refused() -> None:
    """With both plans, and the ways out; but only if there is something to lose that is not named."""
    matching = matched(identify(Plan(R20)), identify(Plan(R50)))
    with pytest.raises(PlanError) as refused:
        check_resume(matching)
    assert str(refused.value) == (
        "the state is of Plan(Rolling('value', 20)), and no stage of Plan(Rolling('value', 50)) can go on with it (Rolling('value', "
        "20): window=20, and now 50); run the plan that it is of, go on where the input stands with empty stages, --drop-state "
        "\"Rolling('value', 20)\", or start over with --fresh."
    )
    check_resume(matching, ["Rolling('value', 20)"])
    check_resume(matched(identify(Plan(tm.Map(halved))), identify(Plan(R50))))
    check_resume(matched([], identify(Plan(R50))))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (tm.Stuck("v", 5), tm.Stuck("v", 3), "Stuck('v'): n=5, and now 3"),
        (tm.Rate("v"), tm.Rate("v", per="1min"), "Rate('v'): per='1s', and now '1min'"),
        (tm.Rolling("v", "5s", ["mean"]), tm.Rolling("v", "7s", ["mean"]), "window='5s', and now '7s'"),
        (
            tm.Rolling("v", "5s", ["mean"], max_records=10),
            tm.Rolling("v", "5s", ["mean"], max_gap_s=3),
            "max_records=10, and now 1024; max_gap_s=None, and now '3s'",
        ),
        (
            tm.Rolling("v", 5, ["mean"]),
            tm.Rolling("v", 5, ["mean", "slope"]),
            "what it keeps of each sensor is laid out otherwise",
        ),
        (
            tm.Aggregate(tm.tumbling("10s"), {"v": "mean"}),
            tm.Aggregate(tm.tumbling("5s"), {"v": "mean"}),
            "window.Sliding.size='10s', and now '5s'; window.Sliding.every='10s', and now '5s'",
        ),
    ],
)
def test_a_refusal_names_the_option_that_differs(old: Stage, new: Stage, told: str) -> None:
    """Both plans may look the same, since a stage's name has its main argument alone."""
    with pytest.raises(PlanError) as refused:
        check_resume(matched(identify(Plan(old)), identify(Plan(new))))
    assert told in str(refused.value)
    with pytest.raises(PlanError) as refused:
        check_resume(matched(identify(Plan(R50, old)), identify(Plan(R50, new))))
    assert told in str(refused.value)


def test_a_refusal_names_what_comes_before_a_stage_that_follows_the_watermark() -> None:
    """Where it would fall back, the stage's own options are what they were."""
    late, soon = (
        tm.Aggregate(tm.tumbling("1s"), {"v": "mean"}, allowed_lateness=lateness) for lateness in ("9s", "2s")
    )
    plans = [identify(Plan(one, tm.Silence("5s"))) for one in (late, soon)]
    with pytest.raises(
        PlanError, match=r"lateness='9s', and now '2s'; Silence\(.*: rows come to it '9s' late, and now '2s'"
    ):
        check_resume(matched(*plans))


def test_a_refusal_says_that_a_stage_has_changed_places() -> None:
    """Nothing of the stage itself differs, and of two without a name only one can keep its state."""
    old, new = Plan(R50, tm.Lag("v")), Plan(tm.Lag("v"), R50)
    with pytest.raises(PlanError, match="it is the same, and has changed places with another; without a name="):
        check_resume(matched(identify(old), identify(new)))
