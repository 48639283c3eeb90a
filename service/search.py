"""Searching: where a reader is not sure of a photograph as a whole, it is shown its parts, and then what it saw there.

In a photograph of a house front, reduced to the size of a view, a number is a few pixels high; its parts show it
larger. Where a part seems to hold a number, the box says where, and a view around that box tells a number from a piece
of one.

Here stands what to look at, and what follows from what was seen there. How it is looked at (at once, or through a
batcher with others) is up to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.artifact import ArtifactMetadata
from service.decoding import decode
from service.engine import Outputs
from service.errors import ServiceError
from service.geometry import Region, corners_in_pixels
from service.imaging import Photo, View
from service.second_look import geometric_mean

GRIDS = ((2, 0.6), (3, 0.45))
"""How many parts there are along either side, and the share of the side that each has: neighbours overlap. The second
grid is for what is not found with the first."""
PLACES = 3
"""At most so many of the parts are looked into: those most surely read."""
CLOSER_LOOKS = 2
"""So often at most."""
AROUND = 1.2
"""By how much of its width and height the box in a part is enlarged, for the closer look to show what stands beside it.
"""
MAX_PIXELS = 2_000_000
"""A photograph of more pixels is reduced to so many, and then all views are cut from them: it is decoded once."""
SURELY_NONE = 0.8
"""With this confidence that there is no number, none is searched for."""

ReadEach = Callable[[Sequence[NDArray[np.uint8]]], Sequence[Outputs | ServiceError]]
"""Views, uint8 [h, w, 3] each -> for each its outputs (N = 1), or why there are none."""

_LEAST_CONFIDENCE = 0.05  # a part that is read with less is no place to look into
_LEAST_PX = 2.0  # nor is a box of less than this


def holds_more(view: View) -> bool:
    """Whether the photograph shows the region in more pixels than the view does, in width and height."""
    height, width = map(int, view.pixels.shape[:2])
    return view.region.width > width and view.region.height > height


def is_doubtful(view: View, outputs: Outputs, metadata: ArtifactMetadata) -> bool:
    """Whether these, for one image (N = 1), surely say neither a number nor that there is none."""
    return not _Seen(view.region, outputs, metadata).is_sure


class Search:
    """A search in `region`, for a reader with one transformer.

    `regions` is what is to be looked at next, in the pixels of the same photograph; `saw` takes what was seen there.
    When nothing is left to look at, `found` is what was found: outputs (N = 1) as if the reader had seen the number in
    the view of `region`, theta and boxes normalised over it; or None.

    A place is looked at closer until two looks, one after the other, read the same number, at most CLOSER_LOOKS times.
    Probabilities are the geometric mean of the last two, and what they say counts from the artifact's threshold on.
    """

    def __init__(self, region: Region, metadata: ArtifactMetadata) -> None:
        self.found: Outputs | None = None
        self._metadata = metadata
        self._course = _course(region, metadata)
        self.regions = next(self._course)

    def saw(self, looks: Sequence[Outputs | ServiceError]) -> None:
        """What the reader makes of each of `regions` (N = 1); what could not be read is passed over."""
        seen = [
            _Seen(region, look, self._metadata) if isinstance(look, Outputs) else None
            for region, look in zip(self.regions, looks, strict=True)
        ]
        try:
            self.regions = self._course.send(seen)
        except StopIteration as end:
            self.regions, self.found = [], end.value


def search_at_once(photo: Photo, region: Region, metadata: ArtifactMetadata, read: ReadEach) -> Outputs | None:
    """`Search.found`, where views can be read on the spot. Raises BadImage."""
    search, raster = Search(region, metadata), photo.raster(MAX_PIXELS)
    while search.regions:
        search.saw(read([raster.view(region, metadata.input_size) for region in search.regions]))
    return search.found


class _Seen:
    """A region, the outputs for it (N = 1), and what they say."""

    def __init__(self, region: Region, outputs: Outputs, metadata: ArtifactMetadata) -> None:
        self.region = region
        self.outputs = outputs
        self._threshold = metadata.threshold
        (self.read,) = decode(outputs.probabilities, metadata.alphabet)

    @property
    def is_sure(self) -> bool:
        """Of a number, or of there being none."""
        return self.read.confidence >= (self._threshold if self.read.number else SURELY_NONE)

    @property
    def is_accepted(self) -> bool:
        return self.read.number != "" and self.is_sure

    @property
    def around(self) -> Region:
        """The upright rectangle around the transformer's box, and what stands beside it."""
        xs, ys = zip(*corners_in_pixels(self.outputs.boxes[0, 0].tolist(), self.region), strict=True)
        return Region(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)).enlarged(AROUND)


def _course(
    region: Region, metadata: ArtifactMetadata
) -> Generator[list[Region], Sequence[_Seen | None], Outputs | None]:
    """The course of a search: yields regions, is sent what was seen there, returns what was found."""
    for along, share in GRIDS:
        looks = yield _parts(region, along, share)
        numbers: list[_Seen] = []
        places = [look for look in looks if look]
        for _ in range(CLOSER_LOOKS):
            places = _most_promising(places, region)
            if not places:
                break
            looks = yield [place.around.inside(region) for place in places]
            pairs = [(place, look) for place, look in zip(places, looks, strict=True) if look]
            numbers += [both for pair in pairs if (both := _together(*pair, region, metadata)).is_accepted]
            places = [look for place, look in pairs if look.read.number != place.read.number]
        if numbers:
            # The longest, since others may be pieces of it; of equally long ones the surest.
            return max(numbers, key=lambda number: (len(number.read.number), number.read.confidence)).outputs
    return None


def _parts(region: Region, along: int, share: float) -> list[Region]:
    """A grid of so many parts along either side, each with this share of the side."""
    width, height = region.width * share, region.height * share
    dx, dy = (region.width - width) / (along - 1), (region.height - height) / (along - 1)
    return [
        Region(region.x + column * dx, region.y + row * dy, width, height)
        for row in range(along)
        for column in range(along)
    ]


def _most_promising(seen: Iterable[_Seen], region: Region) -> list[_Seen]:
    """Those most surely read, surest first."""
    places = []
    for look in seen:
        around = look.around.inside(region)
        if (
            look.read.number
            and look.read.confidence >= _LEAST_CONFIDENCE
            and min(around.width, around.height) >= _LEAST_PX
        ):
            places.append(look)
    return sorted(places, key=lambda look: look.read.confidence, reverse=True)[:PLACES]


def _together(before: _Seen, look: _Seen, region: Region, metadata: ArtifactMetadata) -> _Seen:
    """Both looks, in the region that is searched."""
    probabilities = geometric_mean(before.outputs.probabilities, look.outputs.probabilities)
    theta, boxes = _normalised_over(region, look)
    return _Seen(region, Outputs(probabilities, theta, boxes), metadata)


def _normalised_over(outer: Region, look: _Seen) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Theta and boxes that are normalised over the look's own region, over another instead."""
    inner = look.region
    scale = np.array([inner.width / outer.width, inner.height / outer.height])
    offset = np.subtract(inner.centre, outer.centre) * 2 / (outer.width, outer.height)
    theta = look.outputs.theta * scale[:, None]
    theta[..., 2] += offset
    boxes = look.outputs.boxes * scale + offset
    return theta.astype(np.float32), boxes.astype(np.float32)
