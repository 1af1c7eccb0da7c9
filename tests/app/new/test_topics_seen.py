"""Topics → a pattern and its key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.app.new.topics_seen import topics_seen
from tidemill.formats.key_template import KeyTemplate
from tidemill.formats.topics import TopicPattern


@pytest.mark.parametrize(
    ("topics", "pattern", "key"),
    [
        (["telemetry"], "telemetry", None),
        (["plant/S1/temperature", "plant/S2/temperature"], "plant/{sensor}/temperature", "sensor"),
        (["plant/a/S1", "plant/a/S2", "plant/b/S3"], "plant/{group}/{sensor}", "{group}/{sensor}"),
        (["plant/a/S1", "plant/a/S2", "plant/b/S1"], "plant/{group}/{sensor}", "{group}/{sensor}"),
        (["S1/temperature", "S1/humidity", "S2/temperature"], "{sensor}/{metric}", "{sensor}/{metric}"),
        (["p/S1/temp", "p/S1/flow", "p/S2/temp", "p/S2/flow", "alarm"], "p/{sensor}/{metric}", "{sensor}/{metric}"),
        (["plant/S1", "plant/S2", "zigbee/lamp"], "plant/{sensor}", "sensor"),
        (["plant/{odd}/S1", "plant/{odd}/S2"], "plant/+/{sensor}", "sensor"),
    ],
)
def test_patterns(topics: list[str], pattern: str, key: str | None) -> None:
    """The levels that vary are named, and the key is of all of them: sensors of other groups may speak later."""
    found = topics_seen(dict.fromkeys(topics, 3))
    assert (found.pattern, found.key) == (pattern, key)


levels = st.text(st.characters(exclude_characters="/+#\0", codec="utf-8"), max_size=3) | st.sampled_from(
    ["S1", "S2", "temp"]
)
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)


@given(st.dictionaries(topics, st.integers(1, 9), min_size=1, max_size=12))
def test_a_pattern_takes_its_topics_and_its_key_tells_them_apart(counts: dict[str, int]) -> None:
    """All topics but those that are said to be left out; no two of them are one sensor."""
    found = topics_seen(counts)
    pattern = TopicPattern(found.pattern)
    taken = [topic for topic in counts if topic not in found.others]
    bound = [pattern.match(topic) for topic in taken]
    assert all(columns is not None for columns in bound)
    if found.key is None:
        assert len(taken) == 1
    else:
        template = KeyTemplate(found.key)
        keys = [template.told({}, columns or {}) for columns in bound]
        assert (
            len({tuple((columns or {})[name] for name in template.names) for columns in bound})
            == len(taken)
            == len(keys)
        )
