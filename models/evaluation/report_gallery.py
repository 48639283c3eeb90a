"""The samples worth looking at, and each as a picture with what was looked at drawn in."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from models.data.sample import Sample
from models.evaluation.report import Outcome
from service.drawing import draw
from service.geometry import Region
from service.imaging import view
from service.reader import Reader

MOST_FAILURES = 120
MOST_DOUBTFUL = 40
PICTURE_PX = 330
"""Longer side of a picture, long enough for `draw` not to enlarge it."""
SURROUNDINGS = 0.3
"""How much a region is enlarged, in x and in y, to be shown: boxes may reach beyond it."""

_NUMBER_BOX_COLOUR, _RIM_COLOUR, _MARGIN_COLOUR = "white", "black", "#808080"


@dataclass(frozen=True)
class Exhibit:
    """A sample with what became of it."""

    sample: Sample
    outcome: Outcome


class Gallery:
    """Keeps the `limit` exhibits of the highest rank; of equal ones the first. No other photograph is held."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.offered = 0
        self._heap: list[tuple[float, int, Exhibit]] = []

    def offer(self, rank: float, exhibit: Exhibit) -> None:
        self.offered += 1
        entry = (rank, -self.offered, exhibit)
        if len(self._heap) < self.limit:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def exhibits(self) -> list[Exhibit]:
        """The highest rank first."""
        return [exhibit for _, _, exhibit in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


class Galleries:
    """Failures, the most confident first, and the right ones that were least confident."""

    def __init__(self) -> None:
        self.failures = Gallery(MOST_FAILURES)
        self.doubtful = Gallery(MOST_DOUBTFUL)

    def offer(self, sample: Sample, outcome: Outcome) -> None:
        """A sample whose photograph could not be read has no picture, and is passed over."""
        if outcome.correct:
            self.doubtful.offer(-outcome.confidence, Exhibit(sample, outcome))
        elif outcome.read is not None:
            self.failures.offer(outcome.confidence, Exhibit(sample, outcome))


def picture(reader: Reader, sample: Sample) -> Image.Image:
    """The sample's region with its surroundings (grey where the photograph ends), the number's true box as a thin white
    line, and above it what `reader` reads, with its boxes; RGB, at least PICTURE_PX along its longer side.

    The sample is read once more, since boxes are not kept. Raises ServiceError where it cannot be.
    """
    photo, asked = sample.open()
    (seen,) = photo.views([asked], reader.metadata.input_size)
    (reading,) = reader.read([seen])

    frame = seen.region.enlarged(SURROUNDINGS)
    scale = PICTURE_PX / max(frame.width, frame.height)

    def placed(x: float, y: float) -> tuple[float, float]:
        return (x - frame.x) * scale, (y - frame.y) * scale

    def placed_region(region: Region) -> Region:
        return Region(*placed(region.x, region.y), region.width * scale, region.height * scale)

    canvas = Image.new("RGB", _size(placed_region(frame)), _MARGIN_COLOUR)
    inside = frame.clipped(photo.width, photo.height)
    width, height = _size(placed_region(inside))
    pixels = Image.fromarray(view(photo.rgb(), inside, (height, width)))
    left, top = placed(inside.x, inside.y)
    canvas.paste(pixels, (round(left), round(top)))
    if sample.number_box is not None:
        _thin_outline(canvas, placed_region(sample.number_box))
    boxes = [replace(box, corners=tuple(placed(x, y) for x, y in box.corners)) for box in reading.boxes]
    region = None if sample.region is None else placed_region(seen.region)
    return draw(canvas, [replace(reading, boxes=tuple(boxes))], [region])


def _size(region: Region) -> tuple[int, int]:
    return max(1, round(region.width)), max(1, round(region.height))


def _thin_outline(canvas: Image.Image, box: Region) -> None:
    """A white line with a dark rim."""
    corners = [(box.x, box.y), (box.right, box.y), (box.right, box.bottom), (box.x, box.bottom), (box.x, box.y)]
    pen = ImageDraw.Draw(canvas)
    pen.line(corners, fill=_RIM_COLOUR, width=3)
    pen.line(corners, fill=_NUMBER_BOX_COLOUR, width=1)
