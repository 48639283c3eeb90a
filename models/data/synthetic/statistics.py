"""What true house numbers are like: lengths, digits, shapes, tilts and sizes, and numbers drawn like them.

`statistics.json` holds the figures, derived from the published boxes of SVHN's training photographs by
`derive_statistics`; the labels themselves are not needed to draw numbers.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.sample import MAX_DIGITS

STATISTICS_PATH = Path(__file__).with_name("statistics.json")
QUANTILES = 41

# Shares of numbers whose length, or digits, are drawn evenly instead of by the statistics. By the
# statistics alone one number in 4,000 has five digits, and a reader would never learn to read them.
EVEN_LENGTH_SHARE = 0.08
EVEN_DIGITS_SHARE = 0.4


@dataclass(frozen=True)
class Statistics:
    """Figures over a set of annotated photographs; quantiles are evenly spaced from 0 to 1.

    lengths: shares of the numbers with 1 to 5 digits.
    digits: share of each digit "0" to "9" at each position from the left, [5][10].
    aspect: quantiles of a digit's width / height.
    gap: quantiles of the gap between neighbouring boxes / the left one's height (negative: they overlap).
    tilt: quantiles of the slope of the line through the digits' centres, in degrees, y downwards.
    height: quantiles of a digit's height in pixels.
    longer: how many numbers had more than five digits (left out of all other figures); numbers: how many had not.
    """

    numbers: int
    longer: int
    lengths: list[float]
    digits: list[list[float]]
    aspect: list[float]
    gap: list[float]
    tilt: list[float]
    height: list[float]


def derive_statistics(annotations: Mapping[str, Mapping[str, Sequence[float]]]) -> Statistics:
    """The figures of photographs given as name -> {label, left, top, width, height}, one entry per digit.

    Labels are SVHN's own: 10 stands for the digit 0. Boxes are in pixels, y downwards.

    Raises KeyError for a photograph without one of the five, ValueError for one without digits or with fields of
    different lengths, or when there is no number at all.
    """
    lengths = np.zeros(MAX_DIGITS)
    digits = np.zeros((MAX_DIGITS, 10))
    aspects: list[float] = []
    gaps: list[float] = []
    tilts: list[float] = []
    heights: list[float] = []
    longer = 0
    for photograph in annotations.values():
        left, top, width, height = (
            np.asarray(photograph[key], np.float64) for key in ("left", "top", "width", "height")
        )
        if not len(photograph["label"]) == len(left) == len(top) == len(width) == len(height) > 0:
            raise ValueError("a photograph without digits, or with fields of different lengths")
        if len(left) > MAX_DIGITS:
            longer += 1
            continue
        lengths[len(left) - 1] += 1
        for position, label in enumerate(photograph["label"]):
            digits[position, int(label) % 10] += 1
        aspects.extend(width / height)
        heights.extend(height)
        gaps.extend((left[1:] - left[:-1] - width[:-1]) / height[:-1])
        across, down = left + width / 2, top + height / 2
        if len(left) > 1 and np.ptp(across) > 0:
            spread = across - across.mean()
            tilts.append(float(np.degrees(np.arctan(spread @ (down - down.mean()) / (spread @ spread)))))
    if not lengths.sum():
        raise ValueError("no number of one to five digits among the annotations")
    steps = np.linspace(0, 1, QUANTILES)

    def quantiles(values: list[float]) -> list[float]:
        return [round(float(q), 4) for q in np.quantile(values, steps)] if values else [0.0] * QUANTILES

    shares = digits / np.maximum(digits.sum(axis=1, keepdims=True), 1)
    return Statistics(
        numbers=int(lengths.sum()),
        longer=longer,
        lengths=[round(float(share), 6) for share in lengths / lengths.sum()],
        digits=[[round(float(share), 6) for share in row] for row in shares],
        aspect=quantiles(aspects),
        gap=quantiles(gaps),
        tilt=quantiles(tilts),
        height=quantiles(heights),
    )


def write_statistics(labels: Path, out: Path = STATISTICS_PATH) -> Statistics:
    """Derives the figures of a gzipped JSON file of annotations and writes them as JSON."""
    with gzip.open(labels, "rt", encoding="utf-8") as file:
        statistics = derive_statistics(json.load(file))
    out.write_text(json.dumps(asdict(statistics), indent=1) + "\n", encoding="utf-8")
    return statistics


@lru_cache(maxsize=1)
def load_statistics() -> Statistics:
    """The figures that come with the project."""
    return Statistics(**json.loads(STATISTICS_PATH.read_text(encoding="utf-8")))


def draw(quantiles: Sequence[float], rng: np.random.Generator) -> float:
    """One value from the distribution whose evenly spaced quantiles are given, its outermost 1 % cut off."""
    return float(np.interp(rng.uniform(0.01, 0.99), np.linspace(0, 1, len(quantiles)), quantiles))


def length_shares() -> NDArray[np.float64]:
    """Shares of drawn numbers with 1 to 5 digits, [5]: the statistics with the even share mixed in."""
    true = np.asarray(load_statistics().lengths)
    return np.asarray((1 - EVEN_LENGTH_SHARE) * true / true.sum() + EVEN_LENGTH_SHARE / MAX_DIGITS)


def draw_number(rng: np.random.Generator) -> str:
    """A number of one to five digits; lengths and digits as in the statistics, evened out a little."""
    length = int(rng.choice(MAX_DIGITS, p=length_shares())) + 1
    number = ""
    even = rng.random() < EVEN_DIGITS_SHARE
    for position in range(length):
        true = np.asarray(load_statistics().digits[position])
        # Numbers of five digits are so few that their last digit has no statistics worth the name.
        shares = np.full(10, 0.1) if even or position == MAX_DIGITS - 1 else true / true.sum()
        number += str(rng.choice(10, p=shares))
    # Houses hardly ever have a leading zero; rooms and flats do.
    if number[0] == "0" and rng.random() < 0.7:
        number = str(rng.integers(1, 10)) + number[1:]
    return number
