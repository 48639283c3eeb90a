"""What a confidence is worth: one temperature, the threshold of acceptance, and how far off both are.

Everything here is weighted: `weights` says how much each sample counts, in any unit. Arguments are [N], one value for
each sample.

A temperature divides all logits (Guo et al. 2017, section 4.2). It changes no reading: every sequence's probability is
raised to the same power 1 / T, so the most probable one stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BINS = 15
"""Of the expected calibration error, as in Guo et al. 2017."""

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.1, 10.0
_STEPS, _ROUNDS = 24, 4
_LEAST_PROBABILITY = 1e-7


class CalibrationError(Exception):
    """The data do not determine a calibration; the message says why, in one line."""


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence lies in one interval: their share of all, mean confidence and share of right."""

    share: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Acceptance:
    """What a threshold does, in shares: None of what there is none of.

    accepted: of the samples with a number, those accepted. accepted_right: of all accepted, those right; false numbers
    are among them and wrong (the counts of `models.evaluation.report` leave samples without a number out).
    false_numbers: of the samples without a number, those accepted.
    """

    accepted: float | None
    accepted_right: float | None
    false_numbers: float | None

    @classmethod
    def of(cls, accepted: Flags, correct: Flags, numbered: Flags, weights: Floats) -> Acceptance:
        """`numbered`: the samples that have a number."""

        def share(part: Flags, whole: Flags) -> float | None:
            total = float(weights[whole].sum())
            return float(weights[part & whole].sum()) / total if total else None

        return cls(
            accepted=share(accepted, numbered),
            accepted_right=share(correct, accepted),
            false_numbers=share(accepted, ~numbered),
        )


def log_loss(confidence: Floats, correct: Flags, weights: Floats) -> float:
    """Mean negative logarithm of the probability that confidence gave to what is true of a reading, in nats: that it is
    right, or that it is wrong."""
    clipped = np.clip(confidence, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return float(-(weights @ np.log(np.where(correct, clipped, 1 - clipped))) / weights.sum())


def fit_temperature(confidence: Callable[[float], Floats], correct: Flags, weights: Floats) -> float:
    """The temperature of least `log_loss` of the readings' `confidence`, a function of the temperature; N >= 1.

    Of readings, not of slots: a misplaced view makes several slots wrong at once, which to the likelihood of
    independent slots is as many errors, to the confidence of the whole number one. On real photographs the first
    shipped reader had a calibration error of 2.4 % at T = 1, of 2.7 % where its slots were likeliest, and of 2.2 %
    near T = 1.1.

    The loss need not be convex: the best of a grid in log T is refined between its neighbours, grid after grid.
    Raises CalibrationError when the best is `LOWEST_TEMPERATURE` or `HIGHEST_TEMPERATURE`: on data that are all read
    right, or all wrong, it is.
    """
    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    for round_ in range(_ROUNDS):
        grid = np.linspace(low, high, _STEPS + 1)
        best = int(np.argmin([log_loss(confidence(math.exp(value)), correct, weights) for value in grid]))
        if round_ == 0 and best in (0, _STEPS):
            raise CalibrationError(
                f"{len(correct)} samples give no temperature from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}:"
                " more data are needed, some of them read right and some wrong"
            )
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _STEPS)])
    return math.exp((low + high) / 2)


def fit_threshold(
    confidence: Floats, answered: Flags, correct: Flags, weights: Floats, accuracy: float
) -> float | None:
    """The smallest confidence from which at least `accuracy` of the accepted samples' weight is right.

    Samples not `answered` (no digit was read) are never accepted. As for the coverage of `models.evaluation.report`,
    confidences above the threshold may do worse than it does. The value lies halfway to the next confidence below, or
    to 0 where there is none, so that another runtime's rounding refuses no sample accepted here. None when no
    threshold is good enough.
    """
    order = np.argsort(-confidence[answered], kind="stable")
    values, right, weight = (values[answered][order] for values in (confidence, correct, weights))
    # Equally confident samples are accepted or refused together: only the last of each is a place to stop.
    last = np.append(values[1:] < values[:-1], True)[: len(values)]
    # A sum of many weights may miss an exact share by a rounding error.
    slack = 1e-12 * float(weights.sum())
    good = last & (np.cumsum(weight * (right - accuracy)) >= -slack)
    if not good.any():
        return None
    stop = int(np.flatnonzero(good)[-1])
    below = values[stop + 1] if stop + 1 < len(values) else 0.0
    return float((values[stop] + below) / 2)


def reliability(confidence: Floats, correct: Flags, weights: Floats) -> list[Bin | None]:
    """`BINS` bins of equal width over [0, 1], each closed above (0 is in the first); None where empty."""
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins: list[Bin | None] = []
    for of_bin in (index == number for number in range(BINS)):
        weight = weights[of_bin]
        if total := float(weight.sum()):
            share = total / float(weights.sum())
            mean = float(weight @ confidence[of_bin]) / total
            bins.append(Bin(share, mean, float(weight @ correct[of_bin]) / total))
        else:
            bins.append(None)
    return bins


def expected_calibration_error(bins: Sequence[Bin | None]) -> float:
    """Mean distance of confidence and accuracy over the bins, by their share (Guo et al. 2017, equation 3)."""
    return sum(part.share * abs(part.accuracy - part.confidence) for part in bins if part is not None)
