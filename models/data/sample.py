"""One house number in one photograph: the unit that every collection, generator and shard is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.geometry import Region
from service.imaging import Photo

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
    number_box: the tight box of the digits, in the same pixels as the region; None where it is not known or there is
        no number.
    """

    image: bytes
    label: str
    region: Region | None
    source: str
    collection: str
    number_box: Region | None = None

    def open(self) -> tuple[Photo, Region]:
        """The photograph, and the region to look at in it, which the labels give and nobody has checked yet.

        Raises ServiceError as `Photo.open` does.
        """
        photo = open_photo(self.image)
        return photo, self.region or photo.whole


def open_photo(image: bytes) -> Photo:
    """`Photo.open` with the limit of preparation, training and evaluation."""
    return Photo.open(image, max_pixels=MAX_PIXELS)


def tight_box(boxes: Iterable[tuple[float, float, float, float]]) -> Region:
    """The smallest box around all `boxes`: left, top, width, height in pixels; at least one."""
    lefts, tops, rights, bottoms = zip(*((x, y, x + w, y + h) for x, y, w, h in boxes), strict=True)
    left, top = min(lefts), min(tops)
    return Region(left, top, max(rights) - left, max(bottoms) - top)


def number_region(number_box: Region, image_width: float, image_height: float) -> Region:
    """Where to look for a number: its box enlarged by 30 %, clipped to the image, all in pixels.

    The region has no width or no height when the box lies outside the image.
    """
    return number_box.enlarged(FRAMING).clipped(image_width, image_height)
