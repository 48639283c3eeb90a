"""Looking twice: what a reader saw crooked, and is not sure of, it is shown once more, turned until its box is level.

A spatial transformer says how crooked a number stands, so it is known by what angle to turn the view. Nothing is looked
up anew: both looks are at the pixels of the view.
"""

from __future__ import annotations

from math import ceil, hypot

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.decoding import decode
from service.engine import Infer, Outputs

CROOKED_DEG = 10.0
"""A box that slopes by less is level enough: turning the view changes next to nothing."""
SURE = 0.99
"""From this confidence on one look is enough."""

_LEAST_PROBABILITY = 1e-9  # what one look rules out the other may still see


def look_twice(infer: Infer, images: NDArray[np.uint8], alphabet: str) -> tuple[Outputs, int]:
    """The outputs of `infer` for views uint8 [N, H, W, 3], and how many of them it was shown twice.

    A view whose box slopes by more than CROOKED_DEG, and is read with less confidence than SURE, is turned about its
    middle by that slope and inferred again. Its probabilities are then the geometric mean of both looks': where these
    disagree neither is believed. Its theta and box are those of the more confident look, in the normalised coordinates
    of the view as it was given. Of readers with no transformer or several, and where outputs are not finite, the first
    look counts alone: which of several tells the slope, and what each theta is seen from, only the reader knows.
    """
    first = infer(images)
    slopes = _slopes(first.boxes, images.shape[1:3])
    crooked = np.flatnonzero(np.abs(slopes) > np.deg2rad(CROOKED_DEG))
    if not len(crooked):  # as nearly always
        return first, 0
    confidences = _confidences(first.probabilities[crooked], alphabet)
    doubtful = (confidences < SURE) & first[crooked].finite()
    again, before = crooked[doubtful], confidences[doubtful]
    if not len(again):
        return first, 0
    second = infer(np.stack([_turned(images[i], slopes[i]) for i in again]))
    finite = second.finite()
    seen, second = again[finite], second[finite]
    outputs = Outputs(first.probabilities.copy(), first.theta.copy(), first.boxes.copy())
    outputs.probabilities[seen] = geometric_mean(first.probabilities[seen], second.probabilities)
    surer = _confidences(second.probabilities, alphabet) > before[finite]
    back = _to_first_view(slopes[seen[surer]], images.shape[1:3])
    outputs.theta[seen[surer]] = np.einsum("nij,nkjl->nkil", back, second.theta[surer])
    outputs.boxes[seen[surer]] = np.einsum("nij,nkcj->nkci", back, second.boxes[surer])
    return outputs, len(again)


def geometric_mean(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """The geometric mean of probabilities [N, slots, classes], which add up to 1 again."""
    mean = np.sqrt(np.maximum(first, _LEAST_PROBABILITY) * np.maximum(second, _LEAST_PROBABILITY))
    scaled: NDArray[np.float32] = mean / mean.sum(axis=-1, keepdims=True)
    return scaled


def _slopes(boxes: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float64]:
    """[N]: the slope of the upper edge of each image's only box, in radians, clockwise as one sees it (y is down)."""
    if boxes.shape[1] != 1:
        return np.zeros(len(boxes))
    height, width = size
    corners = boxes[:, 0].astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinite corners
        x, y = ((corners[:, 1] - corners[:, 0]) * (width, height)).T
    slopes: NDArray[np.float64] = np.arctan2(y, x)
    return slopes


def _turned(image: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
    """The view turned about its middle, anticlockwise as one sees it, by `angle` radians; beyond its edge that is
    repeated, as it was in training."""
    height, width = image.shape[:2]
    margin = ceil((hypot(height, width) - min(height, width)) / 2)
    around = Image.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    turned = around.rotate(np.rad2deg(angle), Image.Resampling.BILINEAR)
    return np.asarray(turned)[margin : margin + height, margin : margin + width]


def _to_first_view(angles: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """[N, 2, 2]: normalised (x, y) of a view turned by each angle -> those of the view as it was given."""
    height, width = size
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([cos, -sin * height / width, sin * width / height, cos], axis=-1).reshape(-1, 2, 2)


def _confidences(probabilities: NDArray[np.float32], alphabet: str) -> NDArray[np.float64]:
    return np.array([read.confidence for read in decode(probabilities, alphabet)], np.float64)
