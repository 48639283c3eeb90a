"""What the number stands on: wall textures, plates with their edges, frames and screws, and what is beside it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.fonts import Face
from models.data.synthetic.neighbours import Site, cut_neighbours, level_bars, side_strips, words
from models.data.synthetic.palette import LUMA, Palette
from models.data.synthetic.textures import Image, blend, texture

__all__ = ["Site", "build_surface"]

# Spread of the texture behind the digits, as a share of their contrast.
GRAIN_AT_MOST = 0.22


def build_surface(site: Site, palette: Palette, face: Face, rng: np.random.Generator) -> Image:
    """The canvas without the number, float32 [height, width, 3], 0 to 255.

    The texture behind the digits is never so strong that their contrast drowns in it.
    """
    contrast = abs(float((palette.ink - palette.ground) @ LUMA))
    strength = float(rng.choice([1.0, 3.0, 8.0, 18.0], p=[0.35, 0.3, 0.23, 0.12]))
    on_plate = palette.plated
    strength = 2 * strength if on_plate else min(strength, GRAIN_AT_MOST * contrast)
    wall_colour = palette.wall if on_plate else palette.ground
    scale = site.digit_height / rng.uniform(15, 60)
    tone = texture(site.width, site.height, scale, rng) * strength
    canvas = wall_colour[None, None, :] + tone[:, :, None]
    if on_plate:
        _plate(canvas, site, palette, GRAIN_AT_MOST * contrast, rng)
    if rng.random() < 0.30:
        words(canvas, site, palette, face, rng)
    # Tight crops show most of what their sides cut; loose ones have it further away.
    tight = max(site.box[0] - site.shown[0], site.shown[2] - site.box[2]) < 0.6 * site.digit_height
    if rng.random() < (0.36 if tight else 0.28):
        cut_neighbours(canvas, site, palette, face, rng)
    if rng.random() < (0.5 if tight else 0.22):
        side_strips(canvas, site, palette, rng)
    if rng.random() < 0.12:
        level_bars(canvas, site, palette, rng)
    return np.clip(canvas, 0, 255).astype(np.float32, copy=False)


def _outline(kind: str, left: float, top: float, right: float, bottom: float, radius: float) -> NDArray[np.int32]:
    """A closed polygon, in sixteenths of a pixel: rectangle, rounded rectangle, cut corners or ellipse."""
    cx, cy, rx, ry = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if kind == "oval":
        points = np.stack([cx + 1.18 * rx * np.cos(angles), cy + 1.3 * ry * np.sin(angles)], axis=1)
    elif kind == "cut":
        r = min(radius * 1.5, rx, ry)
        across, down = (left + r, right - r), (top + r, bottom - r)
        points = np.array(
            [
                *((across[0], top), (across[1], top), (right, down[0]), (right, down[1])),
                *((across[1], bottom), (across[0], bottom), (left, down[1]), (left, down[0])),
            ]
        )
    else:
        r = min(radius if kind == "rounded" else 0.0, rx, ry)
        centre = np.stack([np.sign(np.cos(angles)) * (rx - r), np.sign(np.sin(angles)) * (ry - r)], axis=1)
        points = np.array([cx, cy]) + centre + r * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(np.round(points * 16), np.int32)


def _plate(canvas: Image, site: Site, palette: Palette, grain_at_most: float, rng: np.random.Generator) -> None:
    """A plate under the number, often with a shadow, a border line, a band and screws."""
    h = site.digit_height
    left, top, right, bottom = site.box
    side, rise = h * rng.uniform(0.08, 1.0), h * rng.uniform(0.08, 0.8)
    kind = str(rng.choice(["rectangle", "rounded", "oval", "cut"], p=[0.5, 0.28, 0.14, 0.08]))
    radius = h * rng.uniform(0.05, 0.4)
    room = min(left - site.shown[0], site.shown[2] - right)
    if room > 0.1 * h and rng.random() < 0.55:
        # Ends beside the digits, where even a tight crop shows it.
        side = max(min(side, room * rng.uniform(0.3, 0.95)), 0.06 * h)
        kind, radius = ("rectangle" if kind == "oval" else kind), min(radius, 0.5 * (side + rise))
    shift = rng.normal(0, 0.08, 2) * (side, rise)
    edges = (left - side + shift[0], top - rise + shift[1], right + side + shift[0], bottom + rise + shift[1])
    size = canvas.shape[:2]
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [_outline(kind, *edges, radius)], 255, cv2.LINE_AA, 4)
    if rng.random() < 0.5:
        offset = h * rng.uniform(0.02, 0.12)
        matrix = np.array([[1, 0, offset * rng.uniform(-1, 1)], [0, 1, offset]], np.float64)
        shadow = cv2.GaussianBlur(cv2.warpAffine(mask, matrix, size[::-1]), (0, 0), offset / 2 + 0.5)
        blend(canvas, np.asarray(shadow, np.uint8), np.zeros(3, np.float32), rng.uniform(0.2, 0.6))
    grain = texture(size[1], size[0], h / 40, rng) * min(float(rng.choice([0.0, 1.5, 5.0])), grain_at_most)
    share = (mask.astype(np.float32) / 255)[:, :, None]
    canvas += share * (palette.ground[None, None, :] + grain[:, :, None] - canvas)
    if rng.random() < 0.45:
        inset = rng.uniform(0.0, 0.75) * min(side, rise)
        line = np.zeros(size, np.uint8)
        inner = (edges[0] + inset, edges[1] + inset, edges[2] - inset, edges[3] - inset)
        thick = max(1, round(h * rng.uniform(0.02, 0.12)))
        cv2.polylines(line, [_outline(kind, *inner, radius)], True, 255, thick, cv2.LINE_AA, 4)
        blend(canvas, line, palette.ink if rng.random() < 0.7 else palette.wall, rng.uniform(0.5, 1))
    if rng.random() < 0.12:
        band = np.zeros(size, np.uint8)
        band[int(max(edges[3] - rise * rng.uniform(0.2, 0.8), bottom + 0.06 * h)) :] = 255
        blend(canvas, np.minimum(band, mask), rng.uniform(0, 255, 3).astype(np.float32))
    if rng.random() < 0.25:
        dots = np.zeros(size, np.uint8)
        middle = (top + bottom) / 2
        levels = (top - rise * 0.6, bottom + rise * 0.6) if rng.random() < 0.4 else (middle,)
        radius = round(h * rng.uniform(0.03, 0.07) * 16)
        for x in (left - side * 0.6, right + side * 0.6):
            for y in levels:
                cv2.circle(dots, (round(x * 16), round(y * 16)), radius, 255, -1, cv2.LINE_AA, 4)
        tone = palette.ink if rng.random() < 0.5 else palette.ground * rng.uniform(0.3, 1.4)
        blend(canvas, dots, np.asarray(tone, np.float32), 0.9)
