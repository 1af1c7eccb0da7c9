"""The inner loops of `Ewm`, `Lag`, `Diff`, `Rate`, `Stuck` and `Dedup`: a few numbers per key, carried from record to record.

Written, compiled and run interpreted as those in `kernels` are, and with the same bits: strict IEEE arithmetic in a
fixed order, and one constant NaN. The state of a key is a row of ``width`` cells; ring buffers have a head beside them,
which packs how many cells are filled (high 32 bits) and the cell of the next record (low 32), in the row's first cell.
"""

# ruff: noqa: FURB136, PLR1730 - min(), max() and sets are slower interpreted; with NaN the first two are open
# ruff: noqa: PLR0124 - x == x is false for NaN alone

from __future__ import annotations

from collections.abc import Callable
from math import exp, sqrt
from typing import Any, Final

__all__ = [
    "DUPLICATE",
    "EWM_STATISTICS",
    "HELPERS",
    "KERNELS",
    "LATE",
    "MOST_REORDER",
    "SEEN_CELLS",
    "UNCHECKED",
    "WEIGHED_CELLS",
]

EWM_STATISTICS: Final = {"mean": 0, "var": 1, "std": 2}
"""Place of each statistic of `Ewm`."""
WEIGHED_CELLS: Final = 5
"""Width of a key's row in `ewm`: mean, spread, weight, pairs, count."""
SEEN_CELLS: Final = 4
"""Width of a key's row in `dedup_counters`: newest counter + 1, its time, bits of those before it, how many could be."""
MOST_REORDER: Final = 62
"""Bits of an int64 that a counter's predecessors have, without its sign and the counter's own."""

DUPLICATE: Final = 1
LATE: Final = 2
UNCHECKED: Final = 3

NAN: Final = float("nan")
LARGEST: Final = 1e140  # its square times any weight is finite, so that no state is ever infinite
SMALLEST: Final = 1e-290  # weights below have lost digits; they count as none
NEVER: Final = -(2**63 - 1)  # before every time
BITS: Final = 2**63 - 1


def hold(n: int, slots: Any, rows: Any, width: int, log_slots: Any, log_rows: Any) -> None:
    """Copy the rows of these slots into the undo log."""
    for i in range(n):
        s = slots[i]
        log_slots[i] = s
        for j in range(width):
            log_rows[i * width + j] = rows[s * width + j]


def claim(
    n: int,
    slots: Any,
    rows: Any,
    width: int,
    held: Any,
    ring: Any,
    window: int,
    log_slots: Any,
    log_cells: Any,
    log_old: Any,
) -> None:
    """Copy into the undo log what stands in the next cells of the rings, one for each record, whether or not it takes it.

    The heads move on meanwhile, and go back to what `hold` has ``held`` of them.
    """
    for i in range(n):
        s = slots[i]
        cell = rows[s * width] & 0xFFFFFFFF
        log_slots[i] = s
        log_cells[i] = cell
        log_old[i] = ring[s * window + cell]
        cell += 1
        if cell == window:
            cell = 0
        rows[s * width] = cell
    for i in range(n):
        rows[slots[i] * width] = held[i * width]


def moved(head: int, window: int) -> int:
    """The head behind the cell that was just filled."""
    count = head >> 32
    cell = (head & 0xFFFFFFFF) + 1
    if count < window:
        count += 1
    if cell == window:
        cell = 0
    return (count << 32) | cell


def since(later: int, earlier: int) -> float:
    """``later - earlier`` in nanoseconds; negative where it is the other way round. The int64s cannot overflow."""
    if (later < 0) != (earlier < 0):
        return float(later) - float(earlier)
    return float(later - earlier)


# -- numbers ----------------------------------------------------------------------------------------------------


def lag(n: int, slots: Any, values: Any, heads: Any, ring: Any, window: int, out: Any) -> None:
    """The value ``window`` records ago of each record's key; NaN where there is none."""
    for i in range(n):
        s = slots[i]
        head = heads[s]
        at = s * window + (head & 0xFFFFFFFF)
        out[i] = ring[at] if head >> 32 == window else NAN
        ring[at] = values[i]
        heads[s] = moved(head, window)


def rate(n: int, slots: Any, values: Any, times: Any, rows: Any, lasts: Any, per: int, counter: int, out: Any) -> None:
    """The difference to the key's previous value, per ``per`` ns; ``rows`` hold that value and whether there is one."""
    for i in range(n):
        s = slots[i]
        x = values[i]
        out[i] = NAN
        if x == x:
            if rows[2 * s + 1] != 0.0:
                passed = since(times[i], lasts[s])
                step = x - rows[2 * s]
                if counter != 0 and step < 0.0:
                    step = x
                if passed > 0.0:
                    result = step / (passed / per)
                    out[i] = result if result == result else NAN
            rows[2 * s] = x
            rows[2 * s + 1] = 1.0
            lasts[s] = times[i]


def ewm(
    n: int,
    slots: Any,
    values: Any,
    times: Any,
    rows: Any,
    lasts: Any,
    weights: Any,
    timed: int,
    adjust: int,
    bias: int,
    min_periods: int,
    places: Any,
    out: Any,
) -> None:
    """Exponentially weighted mean, variance and deviation, as pandas computes them, with one change.

    ``weights``: what a record leaves of the weights before it, the weight of a new value, and, where ``timed``, ln 2 over
    the half-life in ns instead of both. A row holds the mean; the biased variance (``spread``); the sum of weights; of
    all products of two different weights the sum (``pairs``), where pandas keeps the sum of squares and subtracts it,
    which loses all digits after a long silence; and how many values there were.
    """
    p_mean = places[0]
    p_var = places[1]
    p_std = places[2]
    for i in range(n):
        s = slots[i]
        x = values[i]
        row = s * 5
        mean = rows[row]
        spread = rows[row + 1]
        weight = rows[row + 2]
        pairs = rows[row + 3]
        count = rows[row + 4]
        kept = weights[0]
        new = weights[1]
        if timed != 0 and count > 0.0:
            passed = since(times[i], lasts[s])
            new = 1.0
            if passed >= 0.0:
                kept = exp(-passed * weights[2])
                lasts[s] = times[i]
            else:  # it comes late, and weighs what it would have by now
                kept = 1.0
                new = exp(passed * weights[2])
        if count > 0.0:
            weight *= kept
            pairs *= kept * kept
            if weight < SMALLEST:
                weight = 0.0
                pairs = 0.0
            if timed != 0 and adjust == 0:
                new = 1.0 - weight
        if -LARGEST < x < LARGEST:
            if count > 0.0:
                total = weight + new
                if total > 0.0:
                    old = mean
                    if mean != x:  # a sensor that stands still has exactly its own value
                        mean = (weight * old + new * x) / total
                    spread = (weight * (spread + (old - mean) * (old - mean)) + new * ((x - mean) * (x - mean))) / total
                    pairs += 2.0 * weight * new
                    weight = total
                    if adjust == 0:
                        pairs /= total * total
                        weight = 1.0
            else:
                mean = x
                spread = 0.0
                weight = 1.0
                pairs = 0.0
                if timed != 0:
                    lasts[s] = times[i]
            count += 1.0
        rows[row] = mean
        rows[row + 1] = spread
        rows[row + 2] = weight
        rows[row + 3] = pairs
        rows[row + 4] = count
        enough = count > 0.0 and count >= min_periods
        variance = NAN
        if enough and bias != 0:
            variance = spread
        elif enough and pairs > 0.0:
            variance = weight * weight / pairs * spread
        if p_mean >= 0:
            out[p_mean * n + i] = mean if enough else NAN
        if p_var >= 0:
            out[p_var * n + i] = variance
        if p_std >= 0:
            out[p_std * n + i] = sqrt(variance) if variance >= 0.0 else NAN


def stuck(
    n: int, slots: Any, values: Any, heads: Any, rows: Any, ring: Any, window: int, need: int, limits: Any, out: Any
) -> None:
    """Whether the key's last ``need`` values lie within ``limits[0]`` of each other.

    A row holds the least and the greatest of the last values that do, and how many they are, up to ``need``. When a
    value ends that run, the run that ends with it is looked up in the ring of ``window`` values; where only equal values
    count, it is the value alone, and ``window`` is 0.
    """
    tolerance = limits[0]
    for i in range(n):
        s = slots[i]
        x = values[i]
        row = s * 3
        if x == x:
            low = rows[row]
            high = rows[row + 1]
            run = rows[row + 2]
            if run > 0.0:
                low = x if x < low else low
                high = x if x > high else high
            if run > 0.0 and (low == high or high - low <= tolerance):
                run = run + 1.0 if run < need else run
            else:
                low = x
                high = x
                run = 1.0
                if window > 0:
                    filled = heads[s] >> 32
                    cell = heads[s] & 0xFFFFFFFF
                    for _ in range(filled):
                        cell = cell - 1 if cell > 0 else window - 1
                        y = ring[s * window + cell]
                        least = y if y < low else low
                        greatest = y if y > high else high
                        if not (least == greatest or greatest - least <= tolerance):
                            break
                        low = least
                        high = greatest
                        run += 1.0
            if window > 0:
                ring[s * window + (heads[s] & 0xFFFFFFFF)] = x
                heads[s] = moved(heads[s], window)
            rows[row] = low
            rows[row + 1] = high
            rows[row + 2] = run
        out[i] = 1 if rows[row + 2] >= need else 0


# -- records that come twice ------------------------------------------------------------------------------------


def dedup_times(
    n: int, slots: Any, times: Any, rows: Any, ring: Any, window: int, within: int, drop_late: int, verdicts: Any
) -> None:
    """0 for the first record of its key with its time, else `DUPLICATE`, or `LATE` or `UNCHECKED` if it cannot be told.

    ``ring`` holds the times of the key's last ``window`` records that went on and were remembered. A row holds the head,
    the newest time, the newest that was overwritten by one not long before it, and the newest that was overwritten at
    all. What is not after the last may have been seen and forgotten. What is not after the third is not remembered: of a
    block that comes again, the part that was forgotten must not push out the part that is known.
    """
    for i in range(n):
        s = slots[i]
        row = s * 4
        base = s * window
        head = rows[row]
        count = head >> 32
        t = times[i]
        verdict = 0
        if count > 0:
            newest = rows[row + 1]
            closed = rows[row + 2]
            forgotten = rows[row + 3]
        else:
            newest = t
            closed = NEVER
            forgotten = NEVER
        if count > 0 and t == newest:
            verdict = 1
        elif t < newest:
            for j in range(base, base + count):
                if ring[j] == t:
                    verdict = 1
                    break
            if verdict == 0 and (t <= forgotten or since(newest, t) > within):
                verdict = 2 if drop_late != 0 else 3
        if verdict == 0 or (verdict == 3 and t > closed):
            at = base + (head & 0xFFFFFFFF)
            gone = ring[at]
            ring[at] = t
            if t > newest:
                newest = t
            if count == window:
                if gone == newest and since(gone, t) > within:
                    # All that came since were long before it: a clock that was wrong, and no time to measure others by.
                    newest = t
                    for j in range(base, base + count):
                        if ring[j] > newest:
                            newest = ring[j]
                    forgotten = closed
                elif gone > forgotten:
                    forgotten = gone
                if gone > closed and since(gone, t) <= within:
                    closed = gone
            rows[row] = moved(head, window)
            rows[row + 1] = newest
            rows[row + 2] = closed
            rows[row + 3] = forgotten
        verdicts[i] = verdict


def dedup_counters(
    n: int,
    slots: Any,
    counters: Any,
    times: Any,
    rows: Any,
    modulo: int,
    max_gap: int,
    reorder: int,
    within: int,
    verdicts: Any,
    lost: Any,
    resets: Any,
) -> None:
    """0 for a record whose counter is new, `DUPLICATE` for one that was seen, `UNCHECKED` for one without (below 0).

    ``lost`` is how many counters the record shows to be missing, -1 for one that was, ``resets`` 1 where it starts anew.
    """
    for i in range(n):
        row = slots[i] * 4
        c = counters[i]
        verdict = 0
        missing = 0
        reset = 0
        if c < 0:
            verdict = 3
        elif rows[row] == 0:
            rows[row] = c + 1
            rows[row + 1] = times[i]
            rows[row + 2] = 1
            rows[row + 3] = 0
        else:
            ahead = c - rows[row] + 1
            behind = -ahead
            if modulo > 0:
                ahead %= modulo
                behind %= modulo
            if ahead == 0:
                verdict = 1
            elif 0 < ahead <= max_gap:
                missing = ahead - 1
                rows[row] = c + 1
                rows[row + 1] = times[i]
                rows[row + 2] = ((rows[row + 2] << ahead) | 1) & BITS if ahead <= 62 else 1
                known = rows[row + 3] + ahead
                rows[row + 3] = known if known < 62 else 62
            elif 0 < behind <= reorder and since(times[i], rows[row + 1]) <= within:
                if (rows[row + 2] >> behind) & 1 == 1:
                    verdict = 1
                else:
                    known = rows[row + 3]
                    missing = -1
                    if behind > known:  # before the first that came, which was not the first that was sent
                        missing = behind - known - 1
                        rows[row + 3] = behind
                    rows[row + 2] |= 1 << behind
            else:
                reset = 1
                rows[row] = c + 1
                rows[row + 1] = times[i]
                rows[row + 2] = 1
                rows[row + 3] = 0
        verdicts[i] = verdict
        lost[i] = missing
        resets[i] = reset


HELPERS: Final[tuple[Callable[..., Any], ...]] = (moved, since)
"""What the kernels call, each after those that it calls itself."""

# The letters are those of `kernels.KERNELS`.
KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "hold": (hold, "niwniw"),
    "claim": (claim, "niqnqwniiw"),
    "lag": (lag, "nidqdnd"),
    "rate": (rate, "nidqdqnnd"),
    "ewm": (ewm, "nidqdqdnnnnqd"),
    "stuck": (stuck, "nidqddnndq"),
    "dedup_times": (dedup_times, "niqqqnnni"),
    "dedup_counters": (dedup_counters, "niqqqnnnniqq"),
}
