"""The inner loop of functions over windows: each record's window, copied out of its sensor's ring.

See `kernels` for how these are compiled, and what a ``head`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["HELPERS", "KERNELS"]

NAN: Final = float("nan")


def unroll(n: int, slots: Any, cells: Any, filled: Any, values: Any, ring: Any, window: int, out: Any) -> None:
    """Put each value into its ring, and copy the window that ends with it: ``out[i]`` has the oldest first, NaN before."""
    for i in range(n):
        base = slots[i] * window
        last = base + cells[i]
        ring[last] = values[i]
        rows = filled[i]
        at = i * window
        for j in range(at, at + window - rows):
            out[j] = NAN
        at += window - rows
        wrapped = base - (last + 1 - rows)  # how many of them stand at the end of the ring
        if wrapped > 0:
            for j in range(base + window - wrapped, base + window):
                out[at] = ring[j]
                at += 1
            rows -= wrapped
        for j in range(last + 1 - rows, last + 1):
            out[at] = ring[j]
            at += 1


HELPERS: Final[tuple[Callable[..., Any], ...]] = ()
KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {"unroll": (unroll, "niiiddnd")}
