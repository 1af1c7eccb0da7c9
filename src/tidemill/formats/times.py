"""Event times, in whatever shape they come, as int64 nanoseconds since 1970-01-01 UTC.

Text is ISO 8601 (``2024-03-01T12:00:00.25+01:00``, a space for the T, any number of fraction digits, of which nine are read)
or a number; numbers are epochs whose unit is told by their magnitude: below 1e11 seconds, below 1e14 milliseconds, below 1e17
microseconds, else nanoseconds. A fractional epoch is read to the microsecond where float64 holds no more than that.
They lie in the years 1823 to 2116 (`tidemill.column.FARTHEST`), so that the difference of two of them is no more than int64 holds.
Times without a zone are local times of ``tz``; of an hour that happens twice, the first; in an hour that is skipped,
the offset before the change.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import ABSENT, NAT, NULL_TAG, Column
from tidemill.errors import InputError, PlanError
from tidemill.schema import Kind

__all__ = ["TimeReader", "epochs", "of_this_century"]

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_NAIVE: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - a local time, on purpose
_UNITS: Final = ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3), (2.0**63, 1))
"""Magnitudes below which an epoch counts in this many nanoseconds."""
_LIMIT_S: Final = 9_223_372_035
"""Seconds either side of 1970 that int64 nanoseconds hold: 1677-09-21 to 2262-04-11."""
_CENTURY_NS: Final = 946_684_800 * 10**9, 4_102_444_800 * 10**9
_PIECE: Final = 8_192
"""Numbers that are read at a time, so that what is in between stays in the cache."""
_WIDTH: Final = 35
"""The longest text that the columnar reader takes: nine fraction digits and a zone."""
_BELOW_MICROSECONDS: Final = re.compile(r"[.,]\d{6}(\d{1,3})")
_DAY_S: Final = 86_400
_QUARTER_S: Final = 900
"""At multiples of which offsets from UTC change."""


def epochs(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Epoch numbers as nanoseconds, shape ``(n,)``; NaT for what is not finite or out of range.

    >>> epochs(np.array([1700000000.25, 1700000000250.0])).tolist()
    [1700000000250000000, 1700000000250000000]
    """
    seconds, unit = _UNITS[0]
    low, high = _ends(numbers)
    if -seconds < low and high < seconds:  # all of them; NaN is not
        return _scaled(numbers, unit, low, high)
    size = np.abs(numbers)
    usable = size < 2.0**63  # NaN is not
    made = np.full(len(numbers), NAT, np.int64)
    lower = -1.0
    for bound, scale in _UNITS:
        rows = np.flatnonzero(usable & (size < bound) & (size >= lower))
        if len(rows):
            some = numbers[rows]
            made[rows] = _scaled(some, scale, *_ends(some))
        lower = bound
    return made


def of_this_century(times_ns: NDArray[Any]) -> NDArray[np.bool_]:
    """Which are of the years 2000 to 2099: what is outside of them is a duration, or the clock of a device that counts from its start."""
    within: NDArray[np.bool_] = (times_ns >= _CENTURY_NS[0]) & (times_ns < _CENTURY_NS[1])
    return within


def _ends(numbers: NDArray[np.float64]) -> tuple[float, float]:
    """The least and the largest; NaN where one is that, and where there is none."""
    return (float(numbers.min()), float(numbers.max())) if len(numbers) else (np.nan, np.nan)


def _scaled(numbers: NDArray[np.float64], scale: int, low: float, high: float) -> NDArray[np.int64]:
    """Of at least one number, none less than ``low`` or more than ``high``."""
    least, most = max(low, -high, 0.0), max(-low, high)  # of their sizes, or below it
    coarse = _is_coarse(most, scale)
    if coarse == _is_coarse(least, scale) and (most + 1) * (scale / 1e9) < _LIMIT_S:
        return _scaled_alike(numbers, scale, coarse=bool(coarse))
    whole = np.floor(numbers)
    fraction = (numbers - whole) * scale
    parts = np.where(_is_coarse(np.abs(numbers), scale), np.rint(fraction / 1000) * 1000, np.rint(fraction))
    seconds_fit = np.abs(whole) * (scale / 1e9) < _LIMIT_S
    ticks = np.where(seconds_fit, whole, 0).astype(np.int64) * scale + parts.astype(np.int64)
    return np.where(seconds_fit, ticks, NAT)


def _scaled_alike(numbers: NDArray[np.float64], scale: int, *, coarse: bool) -> NDArray[np.int64]:
    """Of numbers that are all coarse or none, none out of range: most columns. Piece by piece, because memory for what is in
    between costs more than the arithmetic: a fourth of the time."""
    made = np.empty(len(numbers), np.int64)
    wholes, fractions = np.empty((2, min(len(numbers), _PIECE)))
    for start in range(0, len(numbers), _PIECE):
        piece, ticks = numbers[start : start + _PIECE], made[start : start + _PIECE]
        whole, fraction = wholes[: len(piece)], fractions[: len(piece)]
        np.floor(piece, out=whole)
        np.subtract(piece, whole, out=fraction)
        fraction *= scale
        if coarse:
            fraction /= 1000
        np.rint(fraction, out=fraction)
        if coarse:
            fraction *= 1000
        ticks[:] = whole
        ticks *= scale
        ticks += fraction.astype(np.int64)
    return made


def _is_coarse(size: Any, scale: int) -> Any:
    """Whether the digits below the microsecond are noise."""
    return np.spacing(size) * scale > 8


class TimeReader:
    """Reads columns of times with one zone and, when given, one ``strptime`` format. Raises `InputError` for a zone that nobody
    knows, and `PlanError` for a format by which nothing can be read.

    >>> TimeReader().column(Column.of_texts(["2024-03-01 00:00:00", "soon"]))[0].tolist()[0]
    1709251200000000000
    """

    def __init__(self, tz: str = "UTC", time_format: str | None = None) -> None:
        if time_format is not None:
            _check_format(time_format)
        self.time_format = time_format
        self._zone = zone_of(tz)

    def column(self, column: Column) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Nanoseconds per row, and where there is no readable time (missing counts; those rows hold NaT)."""
        match column.kind:
            case Kind.TEXT:
                assert column.texts is not None
                table = np.append(self.texts(column.texts.tolist()), NAT)
                ns = table[column.values]
            case Kind.TIME:
                ns = column.values.copy()
            case Kind.OBJECT:
                ns = np.fromiter(map(self.one, column.to_list()), np.int64, len(column))
            case Kind.BOOL:
                ns = np.full(len(column), NAT)
            case _ if self.time_format is not None:
                ns = self.texts([str(item) for item in column.to_list()])
            case _:
                ns = epochs(column.values.astype(np.float64, copy=False))
                for row, item in (column.exact or {}).items():
                    ns[row] = self.one(item)
                if column.kind is Kind.INT:
                    for row in np.flatnonzero(np.abs(column.values) >= 2**53).tolist():
                        ns[row] = _integer(int(column.values[row]))
        if column.tags is not None:
            ns[(column.tags == NULL_TAG) | (column.tags == NULL_TAG + 1)] = NAT
        return ns, ns == NAT

    def one(self, item: Any) -> int:
        """One value of any type as nanoseconds; NaT when it is not a time, nor can be asked."""
        try:
            return self._one(item)
        except Exception:  # noqa: BLE001 - a zone, or a class of the user's, may raise anything
            return NAT

    def _one(self, item: Any) -> int:
        match item:
            case bool() | None:
                return NAT
            case str():
                return int(self.texts([item])[0])
            case int() | float() if self.time_format is not None:
                return int(self.texts([str(item)])[0])
            case int():
                return _integer(item)
            case float():
                return int(epochs(np.array([item]))[0])
            case dt.datetime():
                return self._moment(item)
            case dt.date():
                return self._moment(dt.datetime.combine(item, dt.time()))
            case np.datetime64():
                return int(self.localised(np.array([_numpy_moment(item)]))[0])
            case np.integer():
                return self._one(int(item))
            case np.floating():
                return self._one(float(item))  # also a long double, of which NumPy makes no other number
            case _ if item is ABSENT:
                return NAT
            case _:
                return NAT

    def is_time(self, item: Any) -> bool:
        """Whether a value is a time, also one that is too far away to be read."""
        try:
            return self._is_time(item)
        except Exception:  # noqa: BLE001 - see `one`
            return False

    def _is_time(self, item: Any) -> bool:
        if self.time_format is not None and isinstance(item, int | float):
            item = str(item)
        match item:
            case bool():
                return False
            case int():
                return True
            case float():
                return math.isfinite(item)
            case dt.datetime() if item.tzinfo is not None:
                return item.utcoffset() is not None  # a zone that says none is no zone
            case dt.date() | np.datetime64():
                return True
            case str() if self.time_format is not None:
                return self._parses(lambda: dt.datetime.strptime(item.strip(), self.time_format or ""))  # noqa: DTZ007
            case str():
                text = item.strip()
                return (_is_number(text) and self._parses(lambda: float(text))) or self._parses(
                    lambda: dt.datetime.fromisoformat(text)
                )
            case _:
                return False

    @staticmethod
    def _parses(read: Callable[[], object]) -> bool:
        try:
            read()
        except ValueError:
            return False
        return True

    def texts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """One time per text; NaT where it is none."""
        made = np.full(len(texts), NAT, np.int64)
        if self.time_format is not None:
            made[:] = [self._formatted(text) for text in texts]
            return made
        lengths = set(map(len, texts))
        if lengths and min(lengths) >= 19 and max(lengths) <= _WIDTH and "".join(texts).isascii():
            made[:] = self._columnar(list(texts))
        elif lengths and max(lengths) >= 19:
            rows = [row for row, text in enumerate(texts) if 19 <= len(text) <= _WIDTH and text.isascii()]
            if rows:
                made[rows] = self._columnar([texts[row] for row in rows])
        for row in np.flatnonzero(made == NAT).tolist():
            made[row] = self._slow(texts[row])
        return made

    def localised(self, local_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Local times of this reader's zone, counted as if they were UTC's, as the moments they are."""
        if self._zone is None:
            return local_ns
        moments = local_ns - _offsets(self._zone, local_ns // 10**9) * 10**9
        return np.where(local_ns == NAT, NAT, moments)

    def local(self, moments_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Moments as the local times of this reader's zone that clocks showed, counted as if they were UTC's."""
        if self._zone is None:
            return moments_ns
        quarters, where = np.unique(moments_ns // (_QUARTER_S * 10**9), return_inverse=True)
        there = quarters != NAT // (_QUARTER_S * 10**9)
        starts = np.where(there, quarters, 0) * _QUARTER_S
        offsets = np.array([_offset_at(self._zone, start) for start in starts.tolist()], np.int64)
        return np.where(moments_ns == NAT, NAT, moments_ns + offsets[where] * 10**9)

    # -- one at a time -----------------------------------------------------------------------------

    def _formatted(self, text: str) -> int:
        assert self.time_format is not None
        try:
            return self._moment(dt.datetime.strptime(text.strip(), self.time_format))  # noqa: DTZ007 - naive is read in tz
        except ValueError:
            return NAT

    def _slow(self, text: str) -> int:
        text = text.strip()
        if text.lstrip("+-")[:1].isdigit() and _is_number(text) and (made := _number(text)) != NAT:
            return made
        try:  # a day alone, such as 2024-03-01, has the characters of a number, and is none
            made = self._moment(dt.datetime.fromisoformat(text))  # which cuts the fraction at six digits
        except ValueError:
            return NAT
        cut = _BELOW_MICROSECONDS.search(text)
        return made if cut is None or made == NAT else made + int(cut[1].ljust(3, "0"))

    def _moment(self, moment: dt.datetime) -> int:
        nanosecond = int(getattr(moment, "nanosecond", 0))  # a pandas Timestamp
        try:
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=self._zone or dt.UTC)
            past = moment - _EPOCH
        except (ValueError, OverflowError):
            return NAT
        seconds = past.days * _DAY_S + past.seconds
        return seconds * 10**9 + past.microseconds * 1000 + nanosecond if abs(seconds) < _LIMIT_S else NAT

    # -- many at a time ----------------------------------------------------------------------------

    def _columnar(self, texts: list[str]) -> NDArray[np.int64]:
        seconds, nanos, aware, valid = _iso(texts)
        if self._zone is not None:
            naive = np.flatnonzero(valid & ~aware)
            seconds[naive] -= _offsets(self._zone, seconds[naive])
        valid &= np.abs(seconds) < _LIMIT_S
        return np.where(valid, seconds * 10**9 + nanos, NAT)


def _check_format(time_format: str) -> None:
    """A format that is one reads what it writes."""
    why = "there is no directive in it"
    try:
        if "%" in time_format:
            dt.datetime.strptime(_EPOCH.strftime(time_format).strip(), time_format)  # noqa: DTZ007 - it is not kept
            return
    except (TypeError, ValueError, re.error) as error:
        why = str(error)
    raise PlanError(
        f"time_format={time_format!r} reads no time: {why}. It is a format of strptime, such as '%d.%m.%Y %H:%M:%S'."
    )


def zone_of(tz: str) -> zoneinfo.ZoneInfo | None:
    """The zone named ``tz``, or None for UTC. Raises `InputError` when nobody knows it."""
    if tz.upper() in ("UTC", "Z", "ETC/UTC"):
        return None
    try:
        return zoneinfo.ZoneInfo(tz)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"tz={tz!r} is not a time zone this machine knows; write a name such as 'Europe/Berlin', or 'UTC'."
        ) from None


def _is_number(text: str) -> bool:
    return text.isascii() and not set(text) - set("0123456789.+-eE")


def _number(text: str) -> int:
    """A number in text, exact when it is an integer."""
    digits = text.lstrip("+-")
    try:
        if digits.isdigit():
            return _integer(int(text)) if len(digits) <= 19 else NAT
        return int(epochs(np.array([float(text)]))[0])
    except ValueError:
        return NAT


def _integer(number: int) -> int:
    size = abs(number)
    for bound, scale in _UNITS:
        if size < bound:
            made = number * scale
            return made if abs(made) < 2**63 else NAT
    return NAT


def _numpy_moment(moment: np.datetime64) -> int:
    if np.isnat(moment):
        return NAT
    seconds = moment.astype("datetime64[s]").astype(np.int64)
    return int(moment.astype("datetime64[ns]").astype(np.int64)) if abs(int(seconds)) < _LIMIT_S else NAT


def _iso(
    texts: list[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Seconds, nanoseconds, whether a zone was given, whether the text was understood.

    Takes ``YYYY-MM-DD[T ]HH:MM:SS[.f{1,9}][Z|+HH:MM|+HHMM|+HH]``; everything else is left to the slow reader.
    """
    glyphs = np.array(texts, f"S{_WIDTH}").view(np.uint8).reshape(len(texts), _WIDTH)
    glyphs = np.concatenate([glyphs, np.zeros((len(texts), 8), np.uint8)], axis=1)  # room to look past the end
    digits = glyphs.astype(np.int64) - 48
    numeric = (digits >= 0) & (digits <= 9)
    valid = numeric[:, [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]].all(axis=1)
    separators = glyphs[:, [4, 7, 13, 16]] == np.frombuffer(b"--::", np.uint8)
    valid &= separators.all(axis=1) & np.isin(glyphs[:, 10], np.frombuffer(b"Tt ", np.uint8))
    year = digits[:, 0] * 1000 + digits[:, 1] * 100 + digits[:, 2] * 10 + digits[:, 3]
    month, day, hour, minute, second = (digits[:, at] * 10 + digits[:, at + 1] for at in (5, 8, 11, 14, 17))
    nanos, zone_at = _fractions(glyphs, digits, numeric)
    offset, aware, zone_valid = _zones(glyphs, digits, numeric, zone_at)
    valid &= zone_valid & (month >= 1) & (month <= 12) & (hour <= 23) & (minute <= 59) & (second <= 59)
    safe_month = np.where(valid, month, 1)
    valid &= (day >= 1) & (day <= _month_days(year, safe_month))
    days = _civil_days(year, safe_month, day)
    return days * _DAY_S + hour * 3600 + minute * 60 + second - offset, nanos, aware, valid


def _fractions(
    glyphs: NDArray[np.uint8], digits: NDArray[np.int64], numeric: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nanoseconds, and where the zone starts."""
    point = (glyphs[:, 19] == ord(".")) | (glyphs[:, 19] == ord(","))
    if not point.any():
        return np.zeros(len(glyphs), np.int64), np.full(len(glyphs), 19)
    run = np.logical_and.accumulate(numeric[:, 20:29], axis=1) & point[:, None]
    weights = 10 ** np.arange(8, -1, -1)
    nanos = (np.where(run, digits[:, 20:29], 0) * weights).sum(axis=1)
    length = run.sum(axis=1)
    return nanos, np.where(length > 0, 20 + length, 19)  # "12:00:00." fails at the zone, which sees the point


def _zones(
    glyphs: NDArray[np.uint8], digits: NDArray[np.int64], numeric: NDArray[np.bool_], at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Seconds east of UTC, whether a zone was given, whether what stands there is one (or nothing)."""
    rows = np.arange(len(glyphs))
    first = glyphs[rows, at]
    aware = first != 0
    valid = ~aware
    if not aware.any():
        return np.zeros(len(glyphs), np.int64), aware, valid
    valid |= ((first == ord("Z")) | (first == ord("z"))) & (glyphs[rows, at + 1] == 0)
    offset = np.zeros(len(glyphs), np.int64)
    signed = (first == ord("+")) | (first == ord("-"))
    if signed.any():
        colon = glyphs[rows, at + 3] == ord(":")
        minutes_at = at + 3 + colon
        has_minutes = numeric[rows, minutes_at] & numeric[rows, minutes_at + 1]
        hours = digits[rows, at + 1] * 10 + digits[rows, at + 2]
        minutes = np.where(has_minutes, digits[rows, minutes_at] * 10 + digits[rows, minutes_at + 1], 0)
        end = np.where(has_minutes, minutes_at + 2, at + 3)
        fits = numeric[rows, at + 1] & numeric[rows, at + 2] & (glyphs[rows, end] == 0)
        fits &= (hours <= 23) & (minutes <= 59) & signed
        offset = np.where(fits, (hours * 3600 + minutes * 60) * np.where(first == ord("-"), -1, 1), 0)
        valid |= fits
    return offset, aware, valid


def _month_days(year: NDArray[np.int64], month: NDArray[np.int64]) -> NDArray[np.int64]:
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    lengths = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
    days: NDArray[np.int64] = lengths[month] + (leap & (month == 2))
    return days


def _civil_days(year: NDArray[np.int64], month: NDArray[np.int64], day: NDArray[np.int64]) -> NDArray[np.int64]:
    """Days since 1970-01-01 of a Gregorian date (Howard Hinnant, "chrono-compatible low-level date algorithms")."""
    year = year - (month <= 2)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days: NDArray[np.int64] = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return days


def _offsets(zone: zoneinfo.ZoneInfo, local_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Seconds east of UTC of local times; a day with one offset all through it is asked for once."""
    days, where = np.unique(local_s // _DAY_S, return_inverse=True)
    ask = _offset_of(zone)
    before = np.array([ask(int(day - 1) * _DAY_S) for day in days.tolist()], np.int64)
    after = np.array([ask(int(day + 2) * _DAY_S) for day in days.tolist()], np.int64)
    offsets = before[where]
    for row in np.flatnonzero((before != after)[where]).tolist():
        offsets[row] = ask(int(local_s[row]))
    return offsets


def _offset_at(zone: zoneinfo.ZoneInfo, moment_s: int) -> int:
    """Seconds east of UTC at a moment."""
    offset = (_EPOCH + dt.timedelta(seconds=moment_s)).astimezone(zone).utcoffset()
    return math.floor(offset.total_seconds()) if offset is not None else 0


def _offset_of(zone: zoneinfo.ZoneInfo) -> Callable[[int], int]:
    def ask(local_s: int) -> int:
        try:
            moment = _EPOCH_NAIVE + dt.timedelta(seconds=local_s)
            offset = zone.utcoffset(moment)
        except (OverflowError, ValueError):
            return 0
        return math.floor(offset.total_seconds()) if offset is not None else 0

    return ask
