"""How the digits are put on their surface, and the light on all of it."""

from __future__ import annotations

import cv2
import numpy as np

from models.data.synthetic.finishes import FINISHES, direction, tiled
from models.data.synthetic.palette import Image, Palette

# Share of numbers of which each digit has its own tile.
TILED_SHARE = 0.06


def apply_digits(canvas: Image, mask: Image, digit_height: float, palette: Palette, rng: np.random.Generator) -> Image:
    """The canvas with the digits on it: float32 [h, w, 3], mask [h, w] from 0 to 1. May leave 0 to 255."""
    if rng.random() < TILED_SHARE:
        canvas = tiled(canvas, mask, digit_height, palette, rng)
    shares = np.array([share for share, _ in FINISHES])
    finish = FINISHES[int(rng.choice(len(FINISHES), p=shares / shares.sum()))][1]
    return finish(canvas, mask, digit_height, palette, rng)


def shine_on(canvas: Image, digit_height: float, rng: np.random.Generator) -> Image:
    """Uneven light over everything: a slope, a cast shadow, glare."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.5:
        dx, dy = direction(rng)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        ramp = ((x - width / 2) * dx + (y - height / 2) * dy) / digit_height
        canvas = canvas * np.clip(1 + rng.uniform(0, 0.25) * ramp, 0.3, 1.7)[:, :, None]
    if rng.random() < 0.15:
        middle = np.array([width, height]) * rng.uniform(0.2, 0.8, 2)
        normal = np.array(direction(rng))
        along = np.array([-normal[1], normal[0]]) * 4 * max(width, height)
        corners = [middle - along, middle + along, middle + along + normal * 9999, middle - along + normal * 9999]
        shadow = np.zeros((height, width), np.float32)
        cv2.fillPoly(shadow, [np.round(corners).astype(np.int32)], 1.0)
        shadow = np.asarray(cv2.GaussianBlur(shadow, (0, 0), digit_height * rng.uniform(0.02, 0.2) + 0.5))
        canvas = canvas * (1 - rng.uniform(0.2, 0.6) * shadow)[:, :, None]
    if rng.random() < 0.14:
        # Glare on a part of the number, which stands about the middle: never on the whole of it.
        spot = np.zeros((height, width), np.float32)
        middle = np.clip(rng.normal(0.5, 0.2, 2), 0.1, 0.9) * (width, height)
        axes = (max(1, int(digit_height * rng.uniform(0.1, 0.6))), max(1, int(digit_height * rng.uniform(0.05, 0.3))))
        centre = (int(middle[0]), int(middle[1]))
        cv2.ellipse(spot, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
        spot = np.asarray(cv2.GaussianBlur(spot, (0, 0), digit_height * rng.uniform(0.08, 0.3)))
        canvas = canvas + (spot * rng.uniform(60, 180))[:, :, None]
    return np.asarray(canvas, np.float32)
