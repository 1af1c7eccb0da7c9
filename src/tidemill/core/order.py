"""The order in which rows come out: that of the input, and a fixed one for rows that have no record of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tidemill.core.watermark import BEGIN

__all__ = ["input_order"]


def input_order(
    places: NDArray[np.int32], ends: NDArray[np.int64], codes: NDArray[np.int32], names: NDArray[np.object_]
) -> NDArray[np.intp]:
    """Positions of the rows in the order in which they come out, whatever lanes they came from.

    By place in the slab; at one place the record's own row first (its end is `BEGIN`), then by what ended, then by the
    sensor's name as bytes (``names[codes]``). What one stage made of one sensor for one end keeps its order.

    >>> input_order(*np.array([[0, 0], [7, 7], [1, 0]]), np.array(["a", "b"], object)).tolist()
    [1, 0]
    """
    ranks = np.zeros(len(codes), np.int64)
    made = np.flatnonzero(ends != BEGIN)
    if len(made):
        own = codes[made]
        is_used = np.zeros(len(names), np.bool_)
        is_used[own] = True
        used = np.flatnonzero(is_used)
        by_name = sorted(range(len(used)), key=names[used].tolist().__getitem__)  # UTF-8 keeps the order of code points
        rank = np.empty(len(names), np.int64)
        rank[used[by_name]] = np.arange(len(used))
        ranks[made] = rank[own]
    return np.lexsort((ranks, ends, places))
