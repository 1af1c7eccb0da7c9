"""Windows of time: the statistics of what has arrived of each sensor with event times in ``(t - span, t]``.

A key's ring holds its last ``room`` records in order of arrival, with their event times. A window is gathered from it,
newest arrival first, missing values left out: it is right for records that come late and for those that come after them.
For a key whose last records came in order, gathering ends at the first one that is too old.
"""


# ruff: noqa: PLR0124 - x == x is false for NaN alone

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, Final

from tidemill.stages.statistics.folds import EARLIEST, INF, NAN, before, highest_of, lowest_of, squares_of, total_of
from tidemill.stages.statistics.ranks import between
from tidemill.stages.statistics.trends import slope_of

__all__ = ["HELPERS", "KERNELS"]


def select_of(scratch: Any, m: int, rank: int) -> Any:
    """The value with ``rank`` values before it in order, by Hoare's selection, which moves no greater ones before it."""
    left = 0
    right = m - 1
    while left < right:
        pivot = scratch[(left + right) >> 1]
        a = left
        b = right
        while a <= b:
            while scratch[a] < pivot:
                a += 1
            while pivot < scratch[b]:
                b -= 1
            if a <= b:
                x = scratch[a]
                scratch[a] = scratch[b]
                scratch[b] = x
                a += 1
                b -= 1
        if b < rank:
            left = a
        if rank < a:
            right = b
    return scratch[rank]


def advance_span(
    n: int,
    slots: Any,
    heads: Any,
    newest: Any,
    runs: Any,
    moments: Any,
    gap: int,
    ring: Any,
    room: int,
    filled: Any,
    in_order: Any,
    over: Any,
    log_slots: Any,
    log_cells: Any,
    log_old: Any,
) -> None:
    """Give each record its cell, and how many cells are then filled; moves the heads on.

    ``newest`` is the greatest time of a key, ``runs`` how many of its last records came in order of time (``in_order`` the
    same at each record), ``over`` whether the record takes the cell of another. A record more than ``gap`` nanoseconds
    after the newest (0: never) finds the ring empty.
    """
    for i in range(n):
        s = slots[i]
        head = heads[s]
        cell = head & 0xFFFFFFFF
        count = head >> 32
        t = moments[i]
        if count > 0 and gap > 0 and newest[s] < before(t, gap):
            count = 0
            cell = 0
        if count == 0:
            newest[s] = t
            runs[s] = 0
        run = 0
        if t >= newest[s]:
            newest[s] = t
            run = runs[s]
            if run < room:
                run += 1
        runs[s] = run
        in_order[i] = run
        log_slots[i] = s
        log_cells[i] = cell
        log_old[i] = ring[s * room + cell]
        over[i] = 0
        if count < room:
            count += 1
        else:
            over[i] = 1
        filled[i] = count
        cell += 1
        if cell == room:
            cell = 0
        heads[s] = (count << 32) | cell


def lose(
    n: int,
    slots: Any,
    cells: Any,
    over: Any,
    filled: Any,
    moments: Any,
    times: Any,
    room: int,
    span: int,
    lost: Any,
    left_times: Any,
    lacking: Any,
) -> None:
    """Note in ``lost`` the greatest time of a record that has lost its cell, and count in ``lacking[0]`` the windows that
    reach back to it; where a ring begins anew it is `EARLIEST` again. ``times`` ends as it began."""
    for i in range(n):
        s = slots[i]
        cell = s * room + cells[i]
        left_times[i] = times[cell]
        if filled[i] == 1 and not over[i]:
            lost[s] = EARLIEST
        if over[i] and times[cell] > lost[s]:
            lost[s] = times[cell]
        times[cell] = moments[i]
        if lost[s] > before(moments[i], span):
            lacking[0] += 1
    for i in range(n - 1, -1, -1):
        times[slots[i] * room + cells[i]] = left_times[i]


def roll_span(
    n: int,
    slots: Any,
    cells: Any,
    filled: Any,
    in_order: Any,
    values: Any,
    moments: Any,
    ring: Any,
    times: Any,
    room: int,
    span: int,
    ddof: int,
    min_periods: int,
    places: Any,
    fractions: Any,
    quantiles: int,
    first_quantile: int,
    found: Any,
    found_times: Any,
    left: Any,
    left_times: Any,
    out: Any,
) -> None:
    """The statistics of each record's window; all of them, as ``places`` says.

    The quantiles have the rows of ``out`` from ``first_quantile`` on. ``found`` and ``found_times`` are room for a window,
    ``left`` and ``left_times`` for what stood in the cells: ``ring`` and ``times`` end as they began.
    """
    p_count = places[0]
    p_sum = places[1]
    p_mean = places[2]
    p_std = places[3]
    p_var = places[4]
    p_min = places[5]
    p_max = places[6]
    p_rms = places[7]
    p_first = places[8]
    p_last = places[9]
    p_delta = places[10]
    p_rate = places[11]
    p_slope = places[12]
    spread = p_std >= 0 or p_var >= 0 or p_rms >= 0
    extremes = spread or p_mean >= 0 or p_min >= 0 or p_max >= 0
    summed = spread or p_mean >= 0 or p_sum >= 0
    for i in range(n):
        s = slots[i]
        base = s * room
        at = base + cells[i]
        left[i] = ring[at]
        left_times[i] = times[at]
        ring[at] = values[i]
        times[at] = moments[i]
        t = moments[i]
        after = before(t, span)
        run = in_order[i]
        # The newest records that came in order: the first that is too old ends them, and with them the window.
        rows = 0
        k = 0
        j = 0
        u = t
        while j < run:
            u = times[at]
            if u <= after:
                break
            x = ring[at]
            found_times[k] = u - t
            if x == x:
                found[k] = x
                k += 1
            rows += 1
            j += 1
            at -= 1
            if at < base:
                at = base + filled[i] - 1
        oldest = k - 1
        newest = 0
        # What came before them, in any order.
        while j < filled[i] and u > after:
            v = times[at]
            if after < v <= t:
                rows += 1
                x = ring[at]
                if x == x:
                    found[k] = x
                    found_times[k] = v - t
                    if oldest < 0 or found_times[k] <= found_times[oldest]:
                        oldest = k
                    if found_times[k] > found_times[newest]:
                        newest = k
                    k += 1
            j += 1
            at -= 1
            if at < base:
                at = base + filled[i] - 1
        first = NAN
        last = NAN
        apart = 0.0
        if k > 0:
            first = found[oldest]
            last = found[newest]
            apart = found_times[newest] - found_times[oldest]
        enough = k >= min_periods
        total = total_of(found, 0, k) if summed else NAN
        low = lowest_of(found, 0, k) if extremes else INF
        high = highest_of(found, 0, k) if extremes else -INF
        clean = -INF < total < INF
        # A sensor that stands still has exactly its own value as mean and exactly 0 as spread.
        mean = NAN
        if k > 0:
            mean = low if low == high else total / k
        if p_count >= 0:
            out[p_count * n + i] = float(k) if rows >= min_periods else NAN
        if p_sum >= 0:
            out[p_sum * n + i] = total if enough and total == total else NAN
        if p_mean >= 0:
            out[p_mean * n + i] = mean if enough and mean == mean else NAN
        if p_min >= 0:
            out[p_min * n + i] = low if enough and k > 0 else NAN
        if p_max >= 0:
            out[p_max * n + i] = high if enough and k > 0 else NAN
        if spread:
            variance = NAN
            power = NAN
            if enough and k > 0:
                around = 0.0
                if not clean or low != high:
                    around = squares_of(found, 0, k, mean)
                if k > ddof:
                    variance = around / (k - ddof)
                power = mean * mean + around / k if clean else squares_of(found, 0, k, 0.0) / k
            if p_var >= 0:
                out[p_var * n + i] = variance if variance == variance else NAN
            if p_std >= 0:
                out[p_std * n + i] = sqrt(variance) if variance >= 0.0 else NAN
            if p_rms >= 0:
                out[p_rms * n + i] = sqrt(power) if power >= 0.0 else NAN
        delta = last - first
        if p_first >= 0:
            out[p_first * n + i] = first if enough else NAN
        if p_last >= 0:
            out[p_last * n + i] = last if enough else NAN
        if p_delta >= 0:
            out[p_delta * n + i] = delta if enough and delta == delta else NAN
        if p_rate >= 0:
            rate = NAN
            if enough and apart > 0.0:
                rate = delta / (apart / 1e9)
            out[p_rate * n + i] = rate if rate == rate else NAN
        if p_slope >= 0:
            slope = NAN
            if enough:
                slope = slope_of(found, found_times, 0, k) * 1e9
            out[p_slope * n + i] = slope if slope == slope else NAN
        for q in range(quantiles):
            value = NAN
            if enough and k > 0:
                place = (k - 1) * fractions[q]
                r = int(place)
                low = select_of(found, k, r)
                high = low
                if place > r:
                    # The selection has left the values after rank r behind it.
                    high = lowest_of(found, r + 1, k)
                value = between(low, high, place - r)
            out[(first_quantile + q) * n + i] = value
    for i in range(n - 1, -1, -1):
        at = slots[i] * room + cells[i]
        ring[at] = left[i]
        times[at] = left_times[i]


HELPERS: Final[tuple[Callable[..., Any], ...]] = (select_of,)
"""What the kernels call, each after those that it calls itself."""

KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "advance_span": (advance_span, "niqqqqndniiiiid"),
    "lose": (lose, "niiiiqqnnqqq"),
    "roll_span": (roll_span, "niiiidqdqnnnnqdnndddqd"),
}
