"""First, last, delta, rate and slope of the last n records of each sensor."""

# ruff: noqa: PLR0124 - x == x is false for NaN alone

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tidemill.stages.statistics.folds import NAN

__all__ = ["HELPERS", "KERNELS"]


def slope_of(values: Any, times: Any, base: int, end: int) -> Any:
    """Least-squares slope of the values over the times of the same cells, per unit of the times, NaN left out.

    ``sum((t - mean_t) * (x - mean_x)) / sum((t - mean_t) ** 2)``; NaN when there are not two different times.
    """
    k = 0
    ahead = 0.0
    above = 0.0
    first = base
    for j in range(base, end):
        x = values[j]
        if x == x:
            if k == 0:
                first = j
            k += 1
            ahead += times[j] - times[first]
            above += x - values[first]
    if k == 0:
        return NAN
    ahead /= k
    above /= k
    spread = 0.0
    common = 0.0
    for j in range(base, end):
        x = values[j]
        if x == x:
            d = (times[j] - times[first]) - ahead
            spread += d * d
            common += d * ((x - values[first]) - above)
    slope = NAN
    if spread > 0.0:
        slope = common / spread
    return slope if slope == slope else NAN


def ends(
    n: int,
    slots: Any,
    cells: Any,
    filled: Any,
    values: Any,
    moments: Any,
    ring: Any,
    times: Any,
    window: int,
    timed: int,
    min_periods: int,
    places: Any,
    left: Any,
    left_times: Any,
    out: Any,
) -> None:
    """First, last, delta and rate of each record's window, in order of arrival.

    ``places`` says their rows of ``out``; ``times`` and ``moments`` are the event times in the ring and of the records, in
    nanoseconds, read and written when ``timed``. ``ring`` and ``times`` end as they began; ``left`` is room.
    """
    p_first = places[0]
    p_last = places[1]
    p_delta = places[2]
    p_rate = places[3]
    for i in range(n):
        s = slots[i]
        base = s * window
        cell = base + cells[i]
        left[i] = ring[cell]
        ring[cell] = values[i]
        if timed:
            left_times[i] = times[cell]
            times[cell] = moments[i]
        rows = filled[i]
        oldest = base
        if rows == window and cells[i] + 1 < window:
            oldest = cell + 1
        # Cells from the oldest on; from the first value on they are counted, as far as it matters.
        first = -1
        k = 0
        at = oldest
        for _ in range(rows):
            x = ring[at]
            if x == x:
                if first < 0:
                    first = at
                k += 1
                if k >= min_periods:
                    break
            at += 1
            if at == base + rows:
                at = base
        last = cell
        if first >= 0:
            for _ in range(rows):
                x = ring[last]
                if x == x:
                    break
                last -= 1
                if last < base:
                    last = base + rows - 1
        enough = first >= 0 and k >= min_periods
        a = ring[first] if enough else NAN
        b = ring[last] if enough else NAN
        delta = b - a
        if delta != delta:
            delta = NAN
        if p_first >= 0:
            out[p_first * n + i] = a
        if p_last >= 0:
            out[p_last * n + i] = b
        if p_delta >= 0:
            out[p_delta * n + i] = delta
        if p_rate >= 0:
            rate = NAN
            if enough and times[last] != times[first]:
                rate = delta / ((times[last] - times[first]) / 1e9)
            out[p_rate * n + i] = rate if rate == rate else NAN
    for i in range(n - 1, -1, -1):
        cell = slots[i] * window + cells[i]
        ring[cell] = left[i]
        if timed:
            times[cell] = left_times[i]


def slope(
    n: int,
    slots: Any,
    cells: Any,
    filled: Any,
    values: Any,
    moments: Any,
    ring: Any,
    times: Any,
    window: int,
    shift: int,
    min_periods: int,
    blocks: Any,
    stamps: Any,
    stamp: int,
    left: Any,
    left_times: Any,
    out: Any,
) -> None:
    """Least-squares slope of each record's window, value per second of event time, by blocks.

    ``blocks`` holds of each block of ``2**shift`` cells how many values there are, their mean, how far their mean time is
    from the time of its first cell, their squared distances in time from that, and their products of distances in time and
    value. They are joined without subtracting sums (Chan, Golub and LeVeque 1979; Pebay 2008). ``ring`` and ``times`` end
    as they began.
    """
    size = 1 << shift
    most = (window + size - 1) >> shift
    each = (5 * most + 7) >> 3 << 3
    for i in range(n):
        s = slots[i]
        base = s * window
        cell = base + cells[i]
        left[i] = ring[cell]
        left_times[i] = times[cell]
        ring[cell] = values[i]
        times[cell] = moments[i]
        rows = filled[i]
        used = (rows + size - 1) >> shift
        counts = s * each
        levels = counts + most
        aheads = levels + most
        spreads = aheads + most
        commons = spreads + most
        start = cells[i] >> shift
        stop = start + 1
        if stamps[s] != stamp:
            stamps[s] = stamp
            start = 0
            stop = used
        for b in range(start, stop):
            one = base + (b << shift)
            end = min(one + size, base + rows)
            t0 = times[one]
            x0 = 0.0
            held = 0
            above = 0.0
            ahead = 0.0
            for j in range(one, end):
                x = ring[j]
                if x == x:
                    if held == 0:
                        x0 = x
                    held += 1
                    above += x - x0
                    ahead += times[j] - t0
            spread = 0.0
            common = 0.0
            if held > 0:
                above /= held
                ahead /= held
                for j in range(one, end):
                    x = ring[j]
                    if x == x:
                        d = (times[j] - t0) - ahead
                        spread += d * d
                        common += d * ((x - x0) - above)
            blocks[counts + b] = held
            blocks[levels + b] = x0 + above
            blocks[aheads + b] = ahead
            blocks[spreads + b] = spread
            blocks[commons + b] = common
        # Distances from a level that is the window's own, so that a still sensor's are all 0.
        x0 = 0.0
        t0 = moments[i]
        k = 0.0
        above = 0.0
        ahead = 0.0
        for b in range(used):
            held_here = blocks[counts + b]
            if held_here > 0.0:
                if k == 0.0:
                    x0 = blocks[levels + b]
                k += held_here
                above += held_here * (blocks[levels + b] - x0)
                ahead += held_here * ((times[base + (b << shift)] - t0) + blocks[aheads + b])
        result = NAN
        if k > 0.0 and k >= min_periods:
            above /= k
            ahead /= k
            spread = 0.0
            common = 0.0
            for b in range(used):
                held_here = blocks[counts + b]
                if held_here > 0.0:
                    d = ((times[base + (b << shift)] - t0) + blocks[aheads + b]) - ahead
                    spread += blocks[spreads + b] + held_here * (d * d)
                    common += blocks[commons + b] + held_here * (d * ((blocks[levels + b] - x0) - above))
            if spread > 0.0:
                result = common / spread * 1e9
        out[i] = result if result == result else NAN
    for i in range(n - 1, -1, -1):
        cell = slots[i] * window + cells[i]
        ring[cell] = left[i]
        times[cell] = left_times[i]


HELPERS: Final[tuple[Callable[..., Any], ...]] = (slope_of,)
"""What the kernels call, each after those that it calls itself."""

KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "ends": (ends, "niiidqdqnnnqdqd"),
    "slope": (slope, "niiidqdqnnndqndqd"),
}
