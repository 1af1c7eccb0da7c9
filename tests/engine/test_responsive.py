"""What a run sets in the interpreter, and gives back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from tidemill.engine.responsive import SWITCH_INTERVAL_S, YOUNG_OBJECTS, responsive

_COUNT = gc.get_freeze_count


@pytest.fixture
def thawed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As an application is that knows nothing of this, nor of what all tests share."""
    monkeypatch.setattr(gc, "get_freeze_count", _COUNT)
    gc.unfreeze()
    yield
    gc.freeze()


def settings() -> tuple[object, ...]:
    return sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()


def test_objects_of_the_application_are_frozen_for_the_time_of_a_run(thawed: None) -> None:
    """And what was garbage before is gone."""
    before = settings()
    with responsive():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
        assert sys.getswitchinterval() <= SWITCH_INTERVAL_S
    assert settings() == before


def test_what_an_application_has_frozen_itself_stays_frozen(thawed: None) -> None:
    """Of two runs in one process, the first to begin has frozen all there is."""
    gc.freeze()
    frozen = gc.get_freeze_count()
    with responsive(), responsive():
        assert gc.get_freeze_count() >= frozen
    assert gc.get_freeze_count() >= frozen
    gc.unfreeze()
    with responsive():
        with responsive():
            pass
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_a_collector_that_is_off_stays_off(thawed: None) -> None:
    """Some programs say when."""
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with responsive():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*thresholds)
