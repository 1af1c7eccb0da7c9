"""The version that is installed."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version"]


@functools.cache
def installed_version() -> str:
    """``"unknown"`` where there is no metadata: of a checkout on the path, or in a frozen program. Read once.

    >>> installed_version() != ""
    True
    """
    try:
        return version("tidemill")
    except PackageNotFoundError:
        return "unknown"
