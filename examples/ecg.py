"""Heart beats in an electrocardiogram as it is recorded: a detector with memory, one object per patient.

python examples/ecg.py                          # two invented patients; prints a line for each beat, as NDJSON
tidemill check examples/ecg.py                  # what each stage adds, without running it

A real recording is a CSV file with a column MLII, 360 samples per second in any unit, such as record 100 of the MIT-BIH
Arrhythmia Database (physionet.org/content/mitdb; `rdsamp -r mitdb/100 -c -v -H` of its WFDB tools writes one). Nothing
here looks at the time, so the sample's number serves:

tidemill run examples/ecg.py --input 100.csv --key '{stem}' --time sample --output beats.parquet
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

import tidemill as tm

RATE = 360  # samples per second
LEAD = "MLII"


def even(seconds: float) -> int:
    """The even number of samples nearest to it."""
    return 2 * round(seconds * RATE / 2)


QRS = even(0.097)  # a beat's steep part, the QRS complex, lasts this long
BEAT = even(0.611)  # a whole beat
HISTORY = even(4.0)  # how long the strength of the signal is remembered
OFFSET = 0.08  # of that strength, which a beat has to exceed
SHORT, LONG = even(0.022), even(0.100)  # the difference of two means this long lets about 8 to 20 Hz through
APART_S = 0.2  # no heart beats twice within this time

BEHIND = (BEAT - QRS) // 2  # samples from the middle of a QRS complex's window to the middle of its beat's
DELAY = BEHIND + (QRS + LONG) // 2  # samples from an R peak to the sample at which it stands out
MEMORY = LONG + HISTORY  # samples that decide about one


def moving_mean(signal: np.ndarray, width: int) -> np.ndarray:
    """The mean of each element and the ``width - 1`` before it, shape ``(len(signal) - width + 1,)``.

    Sums of 1, 2, 4, 8, ... neighbours, added up in one order wherever a batch begins: the same bits for any batches.
    The difference of two running sums would depend on where it was begun.
    """
    rows = len(signal) - width + 1
    total, sums, start, step = np.zeros(rows), signal, 0, 1
    while step <= width:
        if width & step:
            total = total + sums[start : start + rows]
            start += step
        sums = sums[:-step] + sums[step:]
        step *= 2
    return total / width


class Beats:
    """Finds beats by two moving means (M. Elgendi, Fast QRS Detection, PLoS ONE 8(9), 2013), with the paper's constants.

    What lies between 8 and 20 Hz is squared. Where its mean over a QRS complex is above its mean over a beat, for at
    least as long as such a complex, there is a beat; the greatest mean is its R peak. What a record gets follows from
    the patient's records up to it, so batches may end anywhere.
    """

    def __init__(self) -> None:
        self.signal = np.zeros(0)  # the last MEMORY samples
        self.seen = 0  # samples
        self.width = 0  # of the complex that the newest sample is in: samples so far; 0 outside of one
        self.height = 0.0  # its greatest mean ..
        self.peak = 0  # .. and where that was
        self.beat: int | None = None  # R peak of the last beat

    def update_many(self, batch: tm.Batch) -> dict[str, np.ndarray]:
        """Gets the records of one patient that came together, in order; returns columns of ``len(batch)``.

        ``beat``   whether a beat was found at this record
        ``ago_s``  seconds since its R peak
        ``bpm``    beats per minute, from the last two; NaN for the first and where none was found
        """
        strength, threshold = self.strength(batch[LEAD])
        above = strength > threshold
        beat, ago_s, bpm = np.zeros(len(batch), bool), np.full(len(batch), np.nan), np.full(len(batch), np.nan)
        turns = np.flatnonzero(above[1:] != above[:-1]) + 1
        for start, stop in itertools.pairwise([0, *turns.tolist(), len(batch)]):
            if above[start]:
                self.rise(start, strength[start:stop])
            elif self.width:
                if self.is_beat():
                    beat[start] = True
                    ago_s[start] = (self.seen + start - self.peak) / RATE
                    bpm[start] = np.nan if self.beat is None else 60 * RATE / (self.peak - self.beat)
                    self.beat = self.peak
                self.width, self.height = 0, 0.0
        self.seen += len(batch)
        return {"beat": beat, "ago_s": ago_s, "bpm": bpm}

    def strength(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean over a QRS complex, and what it has to exceed; two arrays of ``len(values)``."""
        before = self.signal if self.seen else np.full(MEMORY, values[0])
        signal = np.concatenate([before, values])
        self.signal = signal[-MEMORY:].copy()
        rows = slice(-len(values), None)
        slow = moving_mean(signal, LONG)
        fast = moving_mean(signal, SHORT)[(LONG - SHORT) // 2 :][: len(slow)]  # both around the same sample
        energy = (fast - slow) ** 2
        complexes = moving_mean(energy, QRS)[:-BEHIND]
        return complexes[rows], (moving_mean(energy, BEAT)[rows] + OFFSET * moving_mean(energy, HISTORY)[rows])

    def rise(self, start: int, strength: np.ndarray) -> None:
        """These neighbours are above the threshold."""
        top = int(np.argmax(strength))
        self.width += len(strength)
        if strength[top] > self.height:
            self.height = float(strength[top])
            self.peak = self.seen + start + top - DELAY

    def is_beat(self) -> bool:
        """Whether what has just ended was one."""
        return self.width >= QRS and (self.beat is None or self.peak - self.beat >= APART_S * RATE)


def patients(seconds: int = 20) -> Iterator[dict[str, Any]]:
    """Two that do not exist, with 60 and 90 beats a minute: a small wave, a steep one and a broad one for each."""
    chance = np.random.default_rng(360)
    for sample in range(seconds * RATE):
        for bed, bpm in (("bed-1", 60), ("bed-2", 90)):
            phase = sample / RATE % (60 / bpm) - 30 / bpm  # seconds from the R peak
            waves = ((0.15, -0.16, 0.02), (1.0, 0.0, 0.01), (0.3, 0.22, 0.04))
            value = sum(height * np.exp(-(((phase - at) / width) ** 2) / 2) for height, at, width in waves)
            noise = chance.normal(0, 0.02)
            yield {"sensor": bed, "time": sample / RATE, LEAD: round(float(value + noise), 3)}


plan = tm.Plan(
    tm.Keyed(Beats, columns=[LEAD], adds={"beat": bool, "ago_s": float, "bpm": float}),
    tm.Filter("beat"),  # the rows are the beats
)
pipeline = tm.Pipeline(tm.sources.Records(patients()), plan, tm.sinks.Lines("-"))

tm.run(pipeline)  # `tidemill run` reads the file up to here and starts the pipeline itself
