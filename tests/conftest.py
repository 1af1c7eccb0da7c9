"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


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
