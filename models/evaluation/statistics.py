"""The statistics of an evaluation, each defined once, on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby, zip_longest
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from models.data.sample import MAX_DIGITS

BLANK = 10
"""The class of a slot without a digit, in a confusion matrix."""

_Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` in `n` >= 1 were seen: the score interval of Wilson (1927).

    With p = right / n and z = 1.96: (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n). Unlike p +- z
    standard errors it stays within [0, 1] and has a width where everything is right.
    """
    p, z2n = right / n, _Z95**2 / n
    centre, half = p + z2n / 2, _Z95 * math.sqrt((p * (1 - p) + z2n / 4) / n)
    return max(0.0, (centre - half) / (1 + z2n)), min(1.0, (centre + half) / (1 + z2n))


def coverage_curve(answers: Iterable[tuple[float, bool]], n: int) -> list[tuple[float, float]]:
    """(share accepted, share right among these) for every threshold that accepts something, the highest first.

    `answers` are the (confidence, right) that may be accepted, of `n` that were asked for. Equally confident answers
    are accepted together.
    """
    accepted = right = 0
    curve = []
    ranked = sorted(answers, key=lambda answer: answer[0], reverse=True)
    for _, tied in groupby(ranked, key=lambda answer: answer[0]):
        for _, correct in tied:
            accepted += 1
            right += correct
        curve.append((accepted / n, right / accepted))
    return curve


def slot_confusion(pairs: Iterable[tuple[str, str]]) -> NDArray[np.int64]:
    """How often a slot with the digit of a label (row) was read as which digit (column): int64 [11, 11], BLANK last.

    `pairs` are (label, reading), both packed to the left, in MAX_DIGITS slots, or as many as the longer one needs.
    """
    counts = np.zeros((BLANK + 1, BLANK + 1), np.int64)
    for label, read in pairs:
        for wanted, got, _ in zip_longest(label, read, range(MAX_DIGITS)):
            counts[_slot_class(wanted), _slot_class(got)] += 1
    return counts


def _slot_class(digit: str | None) -> int:
    return BLANK if digit is None else int(digit)
