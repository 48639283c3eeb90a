"""What a confidence is worth: one temperature, the threshold of acceptance, and how far off both are.

Everything here is weighted: `weights` says how much each sample counts, in any unit. Logits may be shifted by any
constant per slot, so the logarithm of probabilities is as good.

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
Classes = NDArray[np.intp]

BINS = 15
"""Of the expected calibration error, as in Guo et al. 2017."""

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.1, 10.0
_HALVINGS = 60
_STEPS = 24
_LEAST_PROBABILITY = 1e-7


class CalibrationError(Exception):
    """The data do not determine a calibration; the message says why, in one line."""


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence lies in one interval: their share of all, mean confidence and share of right."""

    share: float
    confidence: float
    accuracy: float


def log_softmax(logits: Floats) -> Floats:
    """Natural logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)


def negative_log_likelihood(logits: Floats, targets: Classes, weights: Floats, temperature: float = 1.0) -> float:
    """Mean negative logarithm of the probability of the true sequence, all slots together, in nats.

    logits [N, S, C], targets [N, S] (see `service.decoding.pack`), weights [N].
    """
    of_targets = np.take_along_axis(log_softmax(logits / temperature), targets[..., None], -1)[..., 0]
    return float(-(weights @ of_targets.sum(-1)) / weights.sum())


def fit_temperature(logits: Floats, targets: Classes, weights: Floats) -> float:
    """The temperature of least `negative_log_likelihood` (same arguments).

    In 1 / T the likelihood is convex, so its slope has one root; halving an interval of log T finds it whatever the
    start. Raises CalibrationError when the root is not between `LOWEST_TEMPERATURE` and `HIGHEST_TEMPERATURE`: on
    data that are all read right, or all wrong, there is none.
    """
    of_targets = np.take_along_axis(logits, targets[..., None], -1)[..., 0]

    def slope(temperature: float) -> float:
        """Of the likelihood in 1 / T: expected logits less those of the targets."""
        expected = (np.exp(log_softmax(logits / temperature)) * logits).sum(-1)
        return float(weights @ (expected - of_targets).sum(-1))

    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    if not len(logits) or slope(LOWEST_TEMPERATURE) <= 0 or slope(HIGHEST_TEMPERATURE) >= 0:
        raise _no_temperature(len(logits))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def log_loss(confidence: Floats, correct: Flags, weights: Floats) -> float:
    """Mean negative logarithm of the probability that confidence gave to what is true of a reading, in nats: that it is
    right, or that it is wrong. All arguments [N]."""
    clipped = np.clip(confidence, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return float(-(weights @ np.log(np.where(correct, clipped, 1 - clipped))) / weights.sum())


def fit_temperature_to_readings(confidence: Callable[[float], Floats], correct: Flags, weights: Floats) -> float:
    """The temperature of least `log_loss` of the readings' confidence, a function of the temperature.

    A misplaced view makes several slots wrong at once. To the likelihood of independent slots that is as many errors,
    to the confidence of the whole number it is one, so this temperature is lower than that of `fit_temperature`.
    The loss need not be convex: the best of a grid in log T is refined between its neighbours, grid after grid.
    Raises CalibrationError when the best is `LOWEST_TEMPERATURE` or `HIGHEST_TEMPERATURE`.
    """
    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    for round_ in range(4):
        grid = np.linspace(low, high, _STEPS + 1)
        best = int(np.argmin([log_loss(confidence(math.exp(value)), correct, weights) for value in grid]))
        if round_ == 0 and best in (0, _STEPS):
            raise _no_temperature(len(correct))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _STEPS)])
    return math.exp((low + high) / 2)


def _no_temperature(samples: int) -> CalibrationError:
    return CalibrationError(
        f"{samples} samples give no temperature from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}:"
        " more data are needed, some of them read right and some wrong"
    )


def fit_threshold(
    confidence: Floats, answered: Flags, correct: Flags, weights: Floats, accuracy: float
) -> float | None:
    """The smallest confidence from which at least `accuracy` of the accepted samples' weight is right.

    All arguments [N]; samples not `answered` (no digit was read) are never accepted. As for the
    coverage of `models.evaluation.report`, confidences above the threshold may do worse than it does. The value lies
    halfway to the next confidence below, so that rounding elsewhere changes nothing. None when no threshold is good
    enough.
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
    below = values[stop + 1] if stop + 1 < len(values) else values[stop]
    return float((values[stop] + below) / 2)


def reliability(confidence: Floats, correct: Flags, weights: Floats) -> list[Bin | None]:
    """`BINS` bins of equal width over [0, 1], each closed above (a confidence of 0 is in the first); None where empty.

    All arguments [N].
    """
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
