"""How the number is photographed: framing, pose, blur, noise, exposure and compression."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Margins:
    """Room around the tight box of the digits, in pixels; a little below 0 where a box was drawn too small."""

    left: float
    top: float
    right: float
    bottom: float


def draw_margins(width: float, height: float, digit: float, rng: np.random.Generator) -> Margins:
    """Margins for a tight box of width x height pixels whose digits are `digit` wide and `height` high.

    Four ways of framing: strips of squares around each digit, with no room above and below; the exact box;
    the box enlarged by about 30 %; loose and off-centre, up to the whole plate.
    """
    way = rng.choice(["strip", "tight", "usual", "loose"], p=[0.31, 0.1, 0.34, 0.25])
    if way == "strip":
        side = max((height - digit) / 2, 0) * rng.uniform(0.7, 1.2)
        jitter = rng.normal(0, 0.02, 4) * height
        return Margins(side + jitter[0], jitter[1], side + jitter[2], jitter[3])
    if way == "tight":
        left, top, right, bottom = rng.uniform(0, 0.04, 4) * height
        return Margins(left, top, right, bottom)
    if way == "usual":
        across, down = np.clip(rng.normal(0.15, 0.04, 2), 0.02, 0.4)
        jitter = rng.normal(0, 0.03, 4)
        left, right = np.maximum(across * width + jitter[:2] * height, 0)
        top, bottom = np.maximum((down + jitter[2:]) * height, 0)
        return Margins(left, top, right, bottom)
    across, down = rng.uniform(0.3, 1.1) * width, rng.uniform(0.3, 1.6) * height
    split = rng.uniform(0.3, 0.7, 2)
    return Margins(across * split[0], down * split[1], across * (1 - split[0]), down * (1 - split[1]))


def draw_pose(width: int, height: int, scale: float, turn: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A homography [3, 3] of canvas pixels: `scale`, a turn by `turn` degrees, shear and perspective."""
    angle = np.radians(turn)
    shear = rng.normal(0, 0.06) + (rng.normal(0, 0.15) if rng.random() < 0.15 else 0.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shearing = np.array([[1, shear, 0], [rng.normal(0, 0.03), 1, 0], [0, 0, 1]])
    tilting = np.eye(3)
    if rng.random() < 0.6:
        # At most about a third nearer at one end of the canvas than in its middle.
        tilting[2, :2] = np.clip(rng.normal(0, 0.1, 2), -0.3, 0.3) / (width / 2, height / 2)
    squeeze = np.diag([scale * rng.uniform(0.8, 1.05), scale, 1])
    centring = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1.0]])
    return np.asarray(squeeze @ rotation @ shearing @ tilting @ centring, np.float64)


def transform(points: NDArray[np.float64], homography: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [n, 2] in (x, y) after a homography."""
    mapped = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography.T
    return np.asarray(mapped[:, :2] / mapped[:, 2:], np.float64)


def ink_box(mask: Image, homography: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """The tight box (left, top, right, bottom) of a mask's ink after the homography.

    A homography keeps convex hulls, so the corners of the outermost ink pixels of each row decide."""
    inked = mask > 0.35
    rows = np.flatnonzero(inked.any(axis=1))
    first = inked[rows].argmax(axis=1)
    last = mask.shape[1] - inked[rows][:, ::-1].argmax(axis=1)
    points = np.concatenate(
        [np.stack([edge, rows + below], axis=1) for edge in (first, last) for below in (0, 1)]
    ).astype(np.float64)
    mapped = transform(points, homography)
    (left, top), (right, bottom) = mapped.min(axis=0), mapped.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def photograph(canvas: Image, homography: NDArray[np.float64], width: int, height: int, scale: float) -> Image:
    """The canvas seen through the homography, [height, width, 3], anti-aliased for the scale given."""
    if scale < 0.8:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.35 / scale), np.float32)
    # The homography maps pixel edges; OpenCV's warp maps pixel centres.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    centres = np.linalg.inv(half) @ homography @ half
    warped = cv2.warpPerspective(canvas, centres, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(warped, np.float32)


def expose(image: Image, digit_height: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur of several kinds, exposure, noise: uint8 of the same shape. Blurs are measured against the digits."""
    kind = rng.choice(["sharp", "soft", "blurred", "motion", "coarse"], p=[0.22, 0.3, 0.2, 0.1, 0.18])
    if kind == "soft":
        image = _gaussian(image, digit_height * rng.uniform(0.01, 0.045))
    elif kind == "blurred":
        image = _gaussian(image, digit_height * rng.uniform(0.04, 0.1), digit_height * rng.uniform(0.04, 0.1))
    elif kind == "motion":
        image = _motion(image, digit_height * rng.uniform(0.08, 0.3), rng)
    elif kind == "coarse":
        factor = min(1.0, rng.uniform(7, 16) / digit_height)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        way = cv2.INTER_CUBIC if rng.random() < 0.6 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(small, image.shape[1::-1], interpolation=way), np.float32)
    image = np.asarray(np.clip(image, 0, 255) / 255, np.float32)
    if rng.random() < 0.5:
        image = np.power(image, np.float32(np.exp(rng.normal(0, 0.3))))
    if rng.random() < 0.5:
        # Under- and over-exposure, haze, and the cool cast of shade.
        gain, lift = np.exp(rng.normal(0, 0.25)), rng.uniform(0, 0.25) if rng.random() < 0.3 else 0.0
        image = image * np.float32(gain * (1 - lift)) + np.float32(lift)
        image = image * (1 + rng.normal(0, 0.05, 3)).astype(np.float32)
    if rng.random() < 0.5:
        grey = image.mean(axis=2, keepdims=True)
        image = grey + (image - grey) * np.float32(rng.uniform(0.2, 1.0))
    # The camera's own exposure keeps the middle of the picture off the ends of the scale.
    mean = max(float(image.mean()), 1e-3)
    image = image * np.float32(np.clip(mean, rng.uniform(0.06, 0.2), rng.uniform(0.75, 0.92)) / mean)
    if rng.random() < 0.65:
        sigma = abs(rng.normal(0, 0.015))
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    if rng.random() < 0.1:
        sharp = 2 * image - np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2))
        image = np.asarray(sharp, np.float32)
    if rng.random() < 0.05:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def _gaussian(image: Image, across: float, down: float | None = None) -> Image:
    if across < 0.25:
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), across, sigmaY=down or across), np.float32)


def _motion(image: Image, length: float, rng: np.random.Generator) -> Image:
    """The picture smeared along a line, mostly level as from a driving car."""
    size = max(3, int(length) | 1)
    angle = rng.normal(0, 0.2) if rng.random() < 0.6 else rng.uniform(0, np.pi)
    kernel = np.zeros((size, size), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * (size - 1) / 2
    start, stop = np.round(size // 2 - reach).astype(int), np.round(size // 2 + reach).astype(int)
    cv2.line(kernel, start.tolist(), stop.tolist(), 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.float32)


def recompress(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A pass through low-quality JPEG, as photographs had before they were cut out and stored again."""
    coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 85))])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def encode(image: NDArray[np.uint8], rng: np.random.Generator) -> bytes:
    """The RGB picture as a file: mostly JPEG of varying quality, some PNG."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    if rng.random() < 0.15:
        return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    quality = int(rng.integers(80, 97)) if rng.random() < 0.65 else int(rng.integers(35, 80))
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
