"""Drawn birds of two parts: what they are called says what both their head and their body are covered with.

A bird is a round head with a beak, a neck, and an oval body, anywhere among leaves and twigs, the head on the left of
the body. Head and body each bear bars in one of `PLUMAGES` directions, and the class is the pair: one part tells
nothing of the other. The bars are about four pixels apart, for which a third of the resolution is too little, and
leave each part's rim plain, so that a window between the two sees little of them.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 96
"""Of an image, in pixels."""
PLUMAGES = 4
CLASSES = PLUMAGES**2
PERIOD = (3.6, 4.4)
"""From one bar to the next, in pixels."""
CONTRAST = (0.25, 0.35)
"""Of the bars, either way, where black to white is 1."""
TURN = math.radians(8)
"""The bars' direction is a plumage's, give or take this."""
HEAD = (11.0, 13.0)
"""Radius of the head."""
BODY = ((14.0, 17.0), (10.0, 12.0))
"""Half axes of the body, along and across it."""
DISTANCE = (34.0, 50.0)
"""From the middle of the head to that of the body."""
FACING = math.radians(60)
"""The head is on the left of the body, up or down by at most this."""
MARKED = 0.75
"""The share of a part's half axes within which bars are."""
LEAVES, TWIGS = (4, 8), (2, 5)
NOISE = 0.05
_MARGIN = 12.0
"""Least distance of a part's middle from the edge."""
_SUBPIXELS = 4
"""OpenCV takes coordinates in 1/16 of a pixel."""

Image = NDArray[np.float32]


def draw_bird(seed: int, index: int) -> tuple[NDArray[np.uint8], int, NDArray[np.float32]]:
    """The bird of that index.

    Returns:
        The image, uint8 `[SIDE, SIDE]`; its class, head * PLUMAGES + body; the middles of head and body, `[2, 2]`,
        normalised (x, y).
    """
    rng = np.random.default_rng((seed, index))
    head_plumage, body_plumage = (int(number) for number in rng.integers(PLUMAGES, size=2))
    head, body = _places(rng)
    image = _thicket(rng)
    away = (head - body) / np.hypot(*(head - body))
    skin = rng.uniform(0.3, 0.7)
    radius = rng.uniform(*HEAD)
    beak = head + away * (radius + 5)
    across = np.array([-away[1], away[0]]) * 3
    _fill(image, np.stack([beak, head + across, head - across]), 0.9 if skin < 0.5 else 0.1)
    cv2.line(image, _fixed(head), _fixed(body), skin, 5, cv2.LINE_AA, _SUBPIXELS)
    along = math.atan2(away[1], away[0]) + rng.normal(0, 0.3)
    half = rng.uniform(*np.transpose(BODY))
    for middle, axes, angle, plumage in ((body, half, along, body_plumage), (head, [radius] * 2, 0.0, head_plumage)):
        turns = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        oval = np.stack([np.cos(turns) * axes[0], np.sin(turns) * axes[1]], axis=1)
        turned = oval @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        mask, marked = np.zeros((2, SIDE, SIDE), np.float32)
        _fill(mask, middle + turned, 1.0)
        _fill(marked, middle + MARKED * turned, 1.0)
        image += mask * (skin + marked * _bars(plumage, rng) - image)
    image += rng.normal(0, NOISE, image.shape).astype(np.float32)
    pixels: NDArray[np.uint8] = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    parts = np.stack([head, body]) * 2 / SIDE - 1
    return pixels, head_plumage * PLUMAGES + body_plumage, parts.astype(np.float32)


def _places(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middles of head and body, (x, y) in pixels."""
    while True:
        body = rng.uniform(_MARGIN, SIDE - _MARGIN, 2)
        angle, distance = math.pi + rng.uniform(-FACING, FACING), rng.uniform(*DISTANCE)
        head = body + distance * np.array([math.cos(angle), math.sin(angle)])
        if (head > _MARGIN).all() and (head < SIDE - _MARGIN).all():
            return head, body


def _thicket(rng: np.random.Generator) -> Image:
    """Light and shade, leaves and twigs: float32 `[SIDE, SIDE]` in about [0, 1]."""
    shade = rng.normal(0.5, 0.12, (6, 6)).astype(np.float32)
    image = np.asarray(cv2.resize(shade, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.float32)
    for _ in range(rng.integers(*TWIGS)):
        start, end = rng.uniform(0, SIDE, (2, 2))
        cv2.line(image, _fixed(start), _fixed(end), rng.uniform(0.1, 0.9), int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    for _ in range(rng.integers(*LEAVES)):
        middle, angle, (long, short) = rng.uniform(0, SIDE, 2), rng.uniform(0, 180), rng.uniform((4, 2), (14, 7))
        axes = _fixed(np.array([long, short]))
        grey = rng.uniform(0.2, 0.8)
        cv2.ellipse(image, _fixed(middle), axes, angle, 0, 360, grey, -1, cv2.LINE_AA, _SUBPIXELS)
    return image


def _bars(plumage: int, rng: np.random.Generator) -> Image:
    """Bars all over, around 0."""
    angle = math.pi * plumage / PLUMAGES + rng.uniform(-TURN, TURN)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    phase = 2 * math.pi * ((x * math.cos(angle) + y * math.sin(angle)) / rng.uniform(*PERIOD) + rng.random())
    return np.asarray(rng.uniform(*CONTRAST) * np.sin(phase), np.float32)


def _fill(image: Image, outline: NDArray[np.float64], grey: float) -> None:
    cv2.fillPoly(image, [np.rint((outline - 0.5) * 2**_SUBPIXELS).astype(np.int32)], grey, cv2.LINE_AA, _SUBPIXELS)


def _fixed(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.rint((point - 0.5) * 2**_SUBPIXELS).astype(int).tolist()
    return x, y
