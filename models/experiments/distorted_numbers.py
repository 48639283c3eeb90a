"""Photographs of house numbers, turned, scaled, moved, sheared and cluttered so that the whole number stays in view.

What lies around the region that is read comes into view as it is in the photograph, and beyond the photograph's edge
that is repeated.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from models.data.sample import Sample
from models.data.warp import Pixels, rotation, warped
from service.errors import ServiceError
from service.geometry import Region

DISTORTIONS: dict[str, tuple[float, ...]] = {
    "rotation": tuple(range(-90, 91, 15)),
    "scale": (0.25, 0.35, 0.5, 0.7, 1.0, 1.2),
    "shift": (-0.5, -0.25, 0.0, 0.25, 0.5),
    "shear": (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8),
    "clutter": (0, 2, 4, 8, 16),
}
"""The amounts of each.

rotation: degrees, anticlockwise. shear: pixels to the right for each pixel down. Of both, the view is what just holds
the distorted region. scale: of the number, in a view of the region's size. shift: of the number, to the right and down,
in widths and heights of the region; clutter: fragments of other photographs around the region. Of both, the view is
twice as wide and high as the region.
"""
ROOMY = ("shift", "clutter")

MOST_PX = 192
"""Longer side of a region, in pixels; photographs of larger ones are reduced to that, which still is more than readers
are shown."""
FRAGMENTS = 64
"""Different ones."""
FRAGMENT = 0.2
"""Side of a fragment, as a share of the view's shorter side."""


def distorted(samples: Sequence[Sample], seed: int, collection: str = "{distortion} {amount:g}") -> Iterator[Sample]:
    """Every sample by every amount of every distortion, as photographs to be read as a whole.

    What cannot be decoded is given as it is, each time.

    Args:
        samples: what their regions show is distorted.
        seed: of the clutter.
        collection: the name of their collection, made of the distortion and its amount.
    """
    fragments = _fragments(samples, seed)
    for index, sample in enumerate(samples):
        try:
            pixels, region = _region_and_surroundings(sample)
        except ServiceError:
            pixels = None
        for distortion, amounts in DISTORTIONS.items():
            for amount in amounts:
                name = collection.format(distortion=distortion, amount=amount)
                if pixels is None:
                    yield replace(sample, collection=name)
                    continue
                view = distort(pixels, region, distortion, amount)
                if distortion == "clutter":
                    clutter(view, fragments, int(amount), np.random.default_rng((seed, index)))
                encoded = cv2.imencode(".png", view[:, :, ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
                yield Sample(encoded.tobytes(), sample.label, None, sample.source, name)


def distort(pixels: Pixels, region: Region, distortion: str, amount: float) -> Pixels:
    """The view that one distortion gives.

    Args:
        pixels: RGB `[H, W, 3]`.
        region: what is distorted, in these pixels.
        distortion: one of DISTORTIONS; clutter is left to `clutter`, and gives the empty space for it.
        amount: see there.
    """
    linear, offset, size = np.eye(2), np.zeros(2), np.array([region.width, region.height])
    if distortion == "rotation":
        linear = rotation(math.radians(amount))
    elif distortion == "shear":
        linear = np.array([[1.0, amount], [0.0, 1.0]])
    elif distortion == "shift":
        offset = amount * size
    view = np.abs(linear) @ size * (2 if distortion in ROOMY else 1)
    if distortion == "scale":
        linear = linear * amount
    return warped(pixels, region.centre, linear, view, offset)


def clutter(view: Pixels, fragments: Sequence[Pixels], count: int, rng: np.random.Generator) -> None:
    """Paste `count` fragments into a view, `[H, W, 3]`, anywhere but over its middle half, where the region is."""
    size = np.array(view.shape[1::-1])
    side = max(1, round(FRAGMENT * size.min()))
    for _ in range(count):
        fragment = fragments[int(rng.integers(len(fragments)))]
        place = rng.uniform(0, size - side)
        # In one of the four margins, each a quarter of the view across.
        across, far = (int(number) for number in rng.integers(2, size=2))
        inwards = rng.uniform(0, max(0.0, size[across] / 4 - side))
        place[across] = size[across] - side - inwards if far else inwards
        x, y = np.maximum(place, 0).astype(int).tolist()
        view[y : y + side, x : x + side] = cv2.resize(fragment, (side, side), interpolation=cv2.INTER_AREA)


def _fragments(samples: Sequence[Sample], seed: int) -> list[Pixels]:
    """Squares out of the samples' regions, half as high."""
    rng = np.random.default_rng(seed)
    fragments: list[Pixels] = []
    for index in rng.permutation(len(samples)).tolist():
        if len(fragments) == FRAGMENTS:
            break
        try:
            pixels, region = _region_and_surroundings(samples[index])
        except ServiceError:
            continue
        side = min(region.width, region.height) / 2
        corner = rng.uniform((region.x, region.y), (region.right - side, region.bottom - side))
        (left, top), end = corner.astype(int).tolist(), math.ceil(side)
        fragments.append(pixels[top : top + end, left : left + end])
    return fragments


def _region_and_surroundings(sample: Sample) -> tuple[Pixels, Region]:
    """The photograph, reduced so that the sample's region is no larger than wanted, and that region in it.

    Raises ServiceError where it cannot be decoded, or the region is no part of it.
    """
    photo, region = sample.open()
    region = photo.check_region(region)
    rgb = photo.rgb()
    scale = min(1.0, MOST_PX / max(region.width, region.height))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.BOX)
    return np.array(rgb), region.scaled(size[0] / photo.width, size[1] / photo.height)
