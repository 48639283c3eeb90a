"""How much of what they could look at the transformers' boxes cover, how much of the number, and of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from service.geometry import Region

WHOLE_NUMBER = 0.95
"""What was looked at counts as holding the number with at least this share of the number's true box in it."""

Outline = Sequence[tuple[float, float]]
Array = NDArray[np.float64]


def covered_share(region: Region, *outlines: Outline) -> float:
    """The share of `region` that lies inside at least one of the outlines; in [0, 1], 0 without an area.

    Exact, for closed outlines of any form: not convex, as a spline's are, or crossing themselves (inside is what an
    odd number of sides lies before). The region is cut into slabs at every height where a side begins, ends, or meets
    another side: within one, the length covered is linear in the height, so that of its middle says all.

    OpenCV's `intersectConvexConvex` would not do: for a box that all but equals the region, which is what a transformer
    near the identity gives, it often answers 0.

    Args:
        region: in pixels.
        outlines: their points in order, in the same pixels.
    """
    if not (region.width > 0 and region.height > 0):
        return 0.0
    origin, size = np.array([region.x, region.y]), np.array([region.width, region.height])
    # Sides [M, 2, 2], from one point (x, y) to the next, in coordinates in which the region is the unit square.
    shapes = [
        (np.stack([outline, np.roll(outline, -1, axis=0)], axis=1) - origin) / size for outline in outlines if outline
    ]
    edges = np.array([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])
    sides = np.concatenate([*shapes, edges])
    heights = np.unique(np.concatenate([sides[:, :, 1].ravel(), _crossings(sides)]).clip(0, 1))
    slabs: list[tuple[float, float]] = list(pairwise(heights.tolist()))
    return min(1.0, sum((high - low) * _length(shapes, (low + high) / 2) for low, high in slabs))


def _crossings(sides: Array) -> Array:
    """The heights at which two of the sides [M, 2, 2] meet, and where one meets the other's line beyond its ends."""
    start, way = sides[:, 0], sides[:, 1] - sides[:, 0]
    across = way[:, None, 0] * way[None, :, 1] - way[:, None, 1] * way[None, :, 0]
    between = start[None, :] - start[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = (between[:, :, 0] * way[None, :, 1] - between[:, :, 1] * way[None, :, 0]) / across
    first, second = np.nonzero((share > 0) & (share < 1))
    return np.asarray(start[first, 1] + share[first, second] * way[first, 1])


def _length(shapes: Sequence[Array], height: float) -> float:
    """How much of [0, 1] x {height} lies inside any of the shapes, each given by its sides [M, 2, 2]."""
    intervals = []
    for sides in shapes:
        (x0, y0), (x1, y1) = sides[:, 0].T, sides[:, 1].T
        met = (y0 <= height) != (y1 <= height)
        x = x0[met] + (height - y0[met]) / (y1[met] - y0[met]) * (x1[met] - x0[met])
        intervals += np.sort(x.clip(0, 1)).reshape(-1, 2).tolist()
    length, reached = 0.0, 0.0
    for left, right in sorted(intervals):
        length += max(0.0, right - max(left, reached))
        reached = max(reached, right)
    return length


def overlap(around: Region, first: Outline, second: Outline) -> float:
    """Intersection over union of two outlines, as far as they lie in the region `around`; 0 where neither does."""
    apart = covered_share(around, first) + covered_share(around, second)
    union = covered_share(around, first, second)
    return (apart - union) / union if union else 0.0


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
    number_share: the mean share of the number box that lies in what the reader reads from (see `Outcome`), and
    whole_numbers: how often that is at least WHOLE_NUMBER; both None where no number box is known.
    overlap: the mean `overlap` of two of the boxes (see `Outcome`); None with fewer than two.
    """

    n: int
    transformers: list[Spread]
    numbers: int
    number_share: float | None
    whole_numbers: float | None
    overlap: float | None

    @classmethod
    def of(
        cls, view_shares: Sequence[tuple[float, ...]], number_shares: Sequence[float], overlaps: Sequence[float]
    ) -> BoxCoverage:
        """From a share for each transformer, of each sample; the samples' known shares of the number box; and how much
        the boxes of each sample overlap, if there are several."""
        numbers = len(number_shares)
        return cls(
            n=len(view_shares),
            transformers=[Spread.of(shares) for shares in zip(*view_shares, strict=True)],
            numbers=numbers,
            number_share=sum(number_shares) / numbers if numbers else None,
            whole_numbers=sum(share >= WHOLE_NUMBER for share in number_shares) / numbers if numbers else None,
            overlap=fmean(overlaps) if overlaps else None,
        )
