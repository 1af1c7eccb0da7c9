"""Topic patterns: what they match and bind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from tidemill.errors import PlanError
from tidemill.formats.topics import TopicPattern, TopicTemplate

_LEVELS = st.sampled_from(["", "a", "b", "S1", "$SYS", "ü"])
_PATTERN_LEVELS = st.sampled_from(["", "a", "b", "S1", "$SYS", "ü", "+", "{one}", "{two}", "{three}"])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    levels = draw(st.lists(_PATTERN_LEVELS, min_size=1, max_size=5))
    names = [level for level in levels if level.startswith("{")]
    if len(set(names)) < len(names):
        levels = [f"{{{place}}}" if level.startswith("{") else level for place, level in enumerate(levels)]
    end = draw(st.sampled_from([[], ["#"]]))
    pattern = "/".join([*levels, *end])
    return pattern or "a"


@given(patterns(), st.lists(_LEVELS, min_size=1, max_size=6).map("/".join).filter(bool))
def test_a_pattern_matches_what_its_filter_matches_at_a_broker(pattern: str, topic: str) -> None:
    """The oracle is the client library's own matching; what is bound, put back, gives the topic again."""
    made = TopicPattern(pattern)
    bound = made.match(topic)
    assert (bound is not None) == topic_matches_sub(made.filter, topic)
    if bound is not None:
        assert tuple(bound) == made.names
        put_back = pattern
        for name, level in bound.items():
            put_back = put_back.replace(f"{{{name}}}", level)
        assert TopicPattern(put_back).match(topic) is not None
        named = [(p, t) for p, t in zip(pattern.split("/"), topic.split("/"), strict=False) if p.startswith("{")]
        assert bound == {p[1:-1]: t for p, t in named}


def test_a_shared_subscription_matches_the_topics_without_its_group() -> None:
    """The group is for the broker alone."""
    pattern = TopicPattern("$share/tidemill/plant/{sensor}/#")
    assert pattern.filter == "$share/tidemill/plant/+/#"
    assert pattern.match("plant/S1/temperature/raw") == {"sensor": "S1"}
    assert pattern.match("$share/tidemill/plant/S1") is None


@pytest.mark.parametrize(
    "pattern",
    ["", "plant/#/x", "plant/a+", "plant/{a", "plant/x{a}", "{a}/{a}", "plant/{}", "$share/g", "$share//a", "$share/+/a", "a\0b",
     "plant/{a/b}", "a" * 70_000, None],
)  # fmt: skip
def test_what_no_broker_takes_is_refused_at_once(pattern: str) -> None:
    """With the pattern and what is wrong with it."""
    with pytest.raises(PlanError, match="topics="):
        TopicPattern(pattern)


_LEVELS = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=6),
    st.sampled_from(["", "a/b", "+", "#", "$SYS", "S1", 7, None, 1.5]),
)


@given(st.tuples(_LEVELS, _LEVELS))
def test_a_rows_topic_is_the_one_that_is_meant_or_there_is_none(values: tuple[object, object]) -> None:
    """Whatever is in the columns: the pattern reads back what the template was given, and each refusal names a column."""
    for shape in ("features/{site}/{sensor}/x", "{site}/{sensor}"):
        template = TopicTemplate(shape)
        topic = template.of(values)
        if topic is None:
            culprit = values[template.names.index(template.unfit(values))]
            odd = not isinstance(culprit, str) or culprit == "" or set(culprit) & set("/+#\0$")
            assert odd or not culprit.isprintable() or any("\ud800" <= one <= "\udfff" for one in culprit)
        else:
            assert TopicPattern(shape).match(topic) == {"site": str(values[0]), "sensor": str(values[1])}
            assert not set(topic) & set("+#\0")
            topic.encode()


@pytest.mark.parametrize("template", ["", "a/+", "a/#", "$SYS/a", "a/{", "a/}", "a/{}", "a" * 70_000, None])
def test_what_makes_no_topic_is_refused_at_once(template: str) -> None:
    """By its name."""
    with pytest.raises(PlanError, match="topic="):
        TopicTemplate(template)


_FEW = st.lists(st.sampled_from(["", "a", "b", "$SYS"]), min_size=1, max_size=4).map("/".join).filter(bool)


@given(patterns(), patterns(), _FEW)
def test_patterns_that_take_one_topic_overlap(one: str, other: str, topic: str) -> None:
    """Each with the other, and both ways."""
    both = TopicPattern(one), TopicPattern(other)
    if all(pattern.match(topic) is not None for pattern in both):
        assert both[0].overlaps(both[1])
    assert both[0].overlaps(both[1]) == both[1].overlaps(both[0])


@pytest.mark.parametrize(
    ("one", "other", "so"),
    [
        ("plant/{site}/{sensor}", "plant/#", True), ("plant/#", "plant", True), ("plant/a/#", "plant/{b}/c", True),
        ("$share/g/plant/{sensor}", "plant/S1", True), ("plant/{sensor}", "plant/{site}/{sensor}", False),
        ("plant/n/{sensor}", "plant/s/{sensor}", False), ("plant/+", "plant", False),
    ],
)  # fmt: skip
def test_which_patterns_overlap(one: str, other: str, so: bool) -> None:
    """Those that have topics in common."""
    assert TopicPattern(one).overlaps(TopicPattern(other)) is so
