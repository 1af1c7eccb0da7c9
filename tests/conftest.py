"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st


@pytest.fixture(params=[0, 2], ids=["inline", "processes"])
def lanes(request: pytest.FixtureRequest) -> int:
    """The same test inline and with real processes."""
    return request.param


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    assert folder.is_dir(), f"the recorded data are not at {folder}; this test needs them and does not skip"
    return folder


# -- records of every shape that must come back as they came, for property tests ------------------------------

_MISSING = object()

_numbers = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 0.0, -0.0, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**64, 10**400, float(2**53)]),
)
_nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
_FIELDS = {
    "number": _numbers,
    "text": st.text(max_size=3) | st.sampled_from(["", "S1", "\ud800", "ü" * 300]),
    "flag": st.booleans(),
    "nested": st.lists(_nested, max_size=2) | st.dictionaries(st.text(max_size=2), _nested, max_size=2),
}


@st.composite
def _records(draw, max_size=12):
    """A list of dicts; each field has one kind, may be None or absent, and dicts differ in the order of their fields."""
    holes = draw(st.sampled_from([[], [None], [None, _MISSING]]))
    shuffled = draw(st.booleans())
    columns = {name: values | st.sampled_from(holes) if holes else values for name, values in _FIELDS.items()}
    rows = draw(st.lists(st.fixed_dictionaries(columns), max_size=max_size))
    made = []
    for row in rows:
        names = draw(st.permutations(list(row))) if shuffled else list(row)
        made.append({name: row[name] for name in names if row[name] is not _MISSING})
    return made


def _told(rows):
    """Names, order, types and values of records, to the bit: for comparing."""
    return [[(name, type(item).__name__, repr(item)) for name, item in row.items()] for row in rows]


@pytest.fixture(scope="session")
def records():
    """The strategy of lists of records: ``records(max_size=12)``."""
    return _records


@pytest.fixture(scope="session")
def told():
    """Names, order, types and values of records, for comparing."""
    return _told
