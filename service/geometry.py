"""Rectangles and quadrilaterals, and the two coordinate systems they are given in.

Pixel coordinates are (x, y) with the origin at the top-left *edge* of the first pixel: an image of
w x h pixels spans [0, w] x [0, h], and the centre of its first pixel is (0.5, 0.5). Normalised
coordinates run over the same span from -1 to 1 (what PyTorch calls `align_corners=False`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in the pixels of an upright image: its top-left corner (x, y), width and height."""

    x: float
    y: float
    width: float
    height: float

    @classmethod
    def whole(cls, width: float, height: float) -> Self:
        """The region that is the whole of an image of `width` x `height` pixels."""
        return cls(0.0, 0.0, float(width), float(height))

    @property
    def right(self) -> float:
        """The x coordinate of the right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The y coordinate of the bottom edge."""
        return self.y + self.height

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y)."""
        return self.x + self.width / 2, self.y + self.height / 2

    def scaled(self, sx: float, sy: float) -> "Region":
        """The same region of an image that has been resized by the factors (sx, sy)."""
        return Region(self.x * sx, self.y * sy, self.width * sx, self.height * sy)

    def enlarged(self, share: float) -> "Region":
        """Grown about its centre by `share` of its width and of its height: 0.3 gives 1.3 x the size."""
        dx, dy = self.width * share, self.height * share
        return Region(self.x - dx / 2, self.y - dy / 2, self.width + dx, self.height + dy)

    def clipped(self, width: float, height: float) -> "Region":
        """The part inside an image of `width` x `height`; of zero width or height where there is none."""
        return self.inside(Region.whole(width, height))

    def inside(self, outer: "Region") -> "Region":
        """The part inside another region; of zero width or height where there is none."""
        left, top = min(max(self.x, outer.x), outer.right), min(max(self.y, outer.y), outer.bottom)
        right, bottom = min(max(self.right, left), outer.right), min(max(self.bottom, top), outer.bottom)
        return Region(left, top, right - left, bottom - top)


def corners_in_pixels(corners: Iterable[Sequence[float]], region: Region) -> tuple[tuple[float, float], ...]:
    """Take points (x, y) from the normalised coordinates of a view to the pixels of the image around it.

    `corners` are normalised over `region`: (-1, -1) is the region's top-left corner. Points outside [-1, 1] lie outside
    the region and may lie outside the image.
    """
    left, top, width, height = region.x, region.y, region.width, region.height
    return tuple([(left + (x + 1.0) / 2.0 * width, top + (y + 1.0) / 2.0 * height) for x, y in corners])
