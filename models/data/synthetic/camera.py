"""How the number is photographed: framing, pose, blur, noise, exposure and compression."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from service.geometry import Region

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Photograph:
    """A finished picture, uint8 [h, w, 3] in RGB, what of it is to be read, and the tight box of the number's ink
    (None without one), in its pixels."""

    image: NDArray[np.uint8]
    region: Region
    number_box: Region | None


# Contrast, of 1, below which the camera's own processing brings it out.
LEAST_VISIBLE = 0.08
# Ways of blurring and their shares.
_BLURS = {
    "sharp": 0.2, "soft": 0.29, "blurred": 0.16, "motion": 0.08, "coarse": 0.16, "streaked": 0.06, "shaken": 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Margins:
    """Room around the tight box of the digits, in pixels; a little below 0 where a box was drawn too small."""

    left: float
    top: float
    right: float
    bottom: float

    def at_least(self, least: float) -> Margins:
        """The margins, none of them less than that."""
        return Margins(*(max(margin, least) for margin in (self.left, self.top, self.right, self.bottom)))


def draw_margins(width: float, height: float, digit: float, rng: np.random.Generator) -> Margins:
    """Margins for a tight box of width x height pixels whose digits are `digit` wide and `height` high.

    Four ways of framing a close view: strips of squares around each digit, with no room above and below; the exact box;
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
    image = _blurred(image, digit_height, rng)
    if rng.random() < 0.12:
        # The lens puts the colours side by side: purple on one side of an edge, green on the other.
        shift = float(digit_height * rng.uniform(0.01, 0.035) * rng.choice([-1, 1]))
        fringed = [_moved(image[:, :, 0], shift), image[:, :, 1], _moved(image[:, :, 2], -shift)]
        image = np.asarray(np.stack(fringed, axis=2), np.float32)
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
    strong, light = contrast(image, digit_height) > 0.25, rng.random()
    if strong and light < 0.06:
        # Night: what is left of the number is little brighter than the noise, of all colours.
        image = image * np.float32(rng.uniform(0.15, 0.4) / max(float(image.max()), 1e-3))
        blotches = cv2.GaussianBlur(rng.standard_normal(image.shape, dtype=np.float32), (0, 0), rng.uniform(0.5, 1.5))
        image = image + blotches * np.float32(rng.uniform(0.008, 0.025))
    elif strong and light < 0.12:
        # Full sun: the picture fades into white.
        image = 1 - (1 - image) * np.float32(rng.uniform(0.3, 0.7))
    visible = contrast(image, digit_height)
    if visible < LEAST_VISIBLE:
        around = _surroundings(image, digit_height)
        image = around + (image - around) * np.float32(min(LEAST_VISIBLE / max(visible, 1e-3), 3.0))
    if rng.random() < 0.65:
        sigma = abs(rng.normal(0, 0.015))
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    if rng.random() < 0.1:
        sharp = 2 * image - np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2))
        image = np.asarray(sharp, np.float32)
    if rng.random() < 0.05:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def contrast(image: Image, digit_height: float) -> float:
    """From the darkest to the brightest twentieth of a picture's middle, in its own units.

    Measured in green, against the mean of a digit's surroundings: shade, glare and walls beside a plate do not count.
    """
    height, width = image.shape[:2]
    rest = image[:, :, 1] - _surroundings(image[:, :, 1], digit_height)
    middle = rest[height // 5 : max(height - height // 5, 1), width // 5 : max(width - width // 5, 1)]
    low, high = np.percentile(middle[:: 1 + height // 40, :: 1 + width // 40], (5, 95))
    return float(high - low)


def _surroundings(image: Image, digit_height: float) -> Image:
    size = max(3, int(0.8 * digit_height) | 1)
    return np.asarray(cv2.blur(image, (size, size)), np.float32)


def _blurred(image: Image, digit_height: float, rng: np.random.Generator) -> Image:
    """One way of blurring; what is hardly visible to begin with is blurred less, so that something is left to read."""
    kinds, shares = zip(*_BLURS.items(), strict=True)
    kind = rng.choice(kinds, p=shares)
    mild = float(np.clip(contrast(image, digit_height) / 70, 0.3, 1.0))
    reach = digit_height * mild
    if kind == "soft":
        return _gaussian(image, reach * rng.uniform(0.01, 0.045))
    if kind == "blurred":
        return _gaussian(image, reach * rng.uniform(0.04, 0.1), reach * rng.uniform(0.04, 0.1))
    if kind == "streaked":
        return _gaussian(image, max(0.25, reach * rng.uniform(0.01, 0.05)), reach * rng.uniform(0.06, 0.13))
    if kind == "motion":
        return _motion(image, reach * rng.uniform(0.08, 0.3), rng)
    if kind == "shaken":
        # The hand moved and held still again: two pictures in one.
        share, turn = rng.uniform(0.4, 0.65), rng.normal(0, 0.4)
        step = reach * rng.uniform(0.05, 0.16)
        ghost = _moved(image, step * np.cos(turn), step * np.sin(turn))
        return _gaussian(np.asarray(image * share + ghost * (1 - share), np.float32), reach * rng.uniform(0, 0.03))
    if kind == "coarse":
        factor = min(1.0, rng.uniform(8, 16) / reach)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        way = cv2.INTER_CUBIC if rng.random() < 0.6 else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(small, image.shape[1::-1], interpolation=way), np.float32)
    return image


def _moved(image: Image, dx: float, dy: float = 0.0) -> Image:
    """The picture moved by so many pixels, its edges drawn out."""
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return np.asarray(cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE), np.float32)


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
