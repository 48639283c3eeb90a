"""One house number in one photograph: the unit that every collection, generator and shard is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.geometry import Region

MAX_PIXELS = 100_000_000
"""Photographs of more pixels are not decoded in preparation, training and evaluation."""

MAX_DIGITS = 5
"""Longer numbers are counted and reported, but not trained on: the readers have five slots."""

FRAMING = 0.3
"""How much a number's tight box is enlarged in x and in y to give its region (Goodfellow et al. 2013)."""


@dataclass(frozen=True)
class Sample:
    """An encoded photograph and the number that is to be read in it.

    image: the encoded file (any format the service decodes), bytes as stored.
    label: the digits from left to right, characters of "0123456789" only; "" where there is no number.
    region: where to look, in pixels of the upright image, origin at the top-left edge of the first pixel;
        None means the whole image.
    source: what names the photograph within its collection, such as "train/1.png".
    collection: the collection that results are reported under, such as "svhn-train".
    """

    image: bytes
    label: str
    region: Region | None
    source: str
    collection: str


def number_region(
    boxes: Iterable[tuple[float, float, float, float]], image_width: float, image_height: float
) -> Region:
    """Where to look for a number: the tight box around all `boxes`, enlarged by 30 %, clipped to the image.

    boxes: left, top, width, height of each digit, or of the number, in pixels of the upright image; at least one.
    The region has no width or no height when the boxes lie outside the image.
    """
    lefts, tops, rights, bottoms = zip(*((x, y, x + w, y + h) for x, y, w, h in boxes), strict=True)
    left, top = min(lefts), min(tops)
    tight = Region(left, top, max(rights) - left, max(bottoms) - top)
    return tight.enlarged(FRAMING).clipped(image_width, image_height)
