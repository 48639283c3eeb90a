"""How much of what they could look at the transformers' boxes cover, and how much of the number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.geometry import Region

WHOLE_NUMBER = 0.95
"""A box with at least this share of the number's true box in it counts as one that holds the number."""

Point = tuple[float, float]


def covered_share(region: Region, corners: Sequence[Point]) -> float:
    """The share of `region` inside the convex polygon `corners`, both in the same pixels; in [0, 1], 0 without an area.

    The polygon is clipped to the region edge by edge (Sutherland and Hodgman 1974). OpenCV's
    `intersectConvexConvex` will not do: for a box that all but equals the region, which is what a transformer near the
    identity gives, it often answers 0.
    """
    if not (region.width > 0 and region.height > 0):
        return 0.0
    clipped = [((x - region.x) / region.width, (y - region.y) / region.height) for x, y in corners]
    for axis in (0, 1):
        clipped = _kept(_kept(clipped, axis, 0.0, 1.0), axis, 1.0, -1.0)
    return min(1.0, _area(clipped))


def _kept(polygon: list[Point], axis: int, edge: float, side: float) -> list[Point]:
    """The part of a polygon where side * (coordinate - edge) >= 0."""
    kept = []
    for index, end in enumerate(polygon):
        start = polygon[index - 1]
        from_start, from_end = side * (start[axis] - edge), side * (end[axis] - edge)
        if (from_start < 0) != (from_end < 0):
            share = from_start / (from_start - from_end)
            kept.append((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])))
        if from_end >= 0:
            kept.append(end)
    return kept


def _area(polygon: list[Point]) -> float:
    """Gauss's shoelace formula, without the sign that says which way round the polygon goes."""
    crosses = (polygon[i - 1][0] * polygon[i][1] - polygon[i][0] * polygon[i - 1][1] for i in range(len(polygon)))
    return abs(sum(crosses)) / 2


@dataclass(frozen=True)
class Spread:
    """Mean, median and the 10th and 90th percentile of some shares."""

    mean: float
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, shares: Sequence[float]) -> Spread:
        """Of at least one share."""
        p10, median, p90 = np.percentile(shares, (10, 50, 90)).tolist()
        return cls(float(np.mean(shares)), median, p10, p90)


@dataclass(frozen=True)
class BoxCoverage:
    """Where the transformers looked in the views of `n` samples, n >= 1.

    transformers: for each in turn, the share of the view that its box covers.
    numbers: how many of the samples have a known number box; for these,
    number_share: the mean share of the number box that the last transformer's box contains, and
    whole_numbers: how often that is at least WHOLE_NUMBER; both None where no number box is known.
    """

    n: int
    transformers: list[Spread]
    numbers: int
    number_share: float | None
    whole_numbers: float | None

    @classmethod
    def of(cls, view_shares: Sequence[tuple[float, ...]], number_shares: Sequence[float]) -> BoxCoverage:
        """From a share for each transformer, of each sample, and the samples' known shares of the number box."""
        numbers = len(number_shares)
        return cls(
            n=len(view_shares),
            transformers=[Spread.of(shares) for shares in zip(*view_shares, strict=True)],
            numbers=numbers,
            number_share=sum(number_shares) / numbers if numbers else None,
            whole_numbers=sum(share >= WHOLE_NUMBER for share in number_shares) / numbers if numbers else None,
        )
