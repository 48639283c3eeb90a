"""Walls of whole scenes, of bricks and boards that suit the size of the digits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.palette import muted
from models.data.synthetic.signs import Canvas
from models.data.synthetic.textures import texture

Colour = NDArray[np.float32]
_BRICKS = (
    *((150, 75, 55), (120, 60, 50), (170, 100, 70), (185, 150, 105)),
    *((95, 60, 55), (140, 125, 115), (205, 190, 165)),
)


def draw_wall(width: int, height: int, unit: float, rng: np.random.Generator, colour: Colour | None = None) -> Canvas:
    """A wall, uint8 [height, width, 3], whose bricks and boards suit digits `unit` pixels high.

    colour: what to build it of; None for any.
    """
    kind = str(rng.choice(["brick", "boards", "texture", "smooth"], p=[0.42, 0.13, 0.33, 0.12]))
    if colour is None:
        colour = wall_colour(rng) if kind == "brick" else muted(rng)
    if kind == "brick":
        tone = _bricks(width, height, max(3.0, unit * rng.uniform(0.3, 1.0)), colour, rng)
    elif kind == "boards":
        tone = _boards(width, height, max(4.0, unit * rng.uniform(0.5, 2.5)), colour, rng)
    else:
        strength = rng.uniform(4, 26) if kind == "texture" else rng.uniform(0, 3)
        tone = colour + (texture(width, height, unit / rng.uniform(12, 45), rng) * np.float32(strength))[:, :, None]
    return np.clip(tone, 0, 255).astype(np.uint8)


def wall_colour(rng: np.random.Generator) -> Colour:
    """Mostly that of bricks, else any that walls have."""
    if rng.random() < 0.25:
        return muted(rng)
    return np.array(_BRICKS[int(rng.integers(len(_BRICKS)))], np.float32) + np.float32(rng.normal(0, 12))


def _bricks(width: int, height: int, course: float, colour: Colour, rng: np.random.Generator) -> Colour:
    y, x = np.arange(height, dtype=np.float32) + rng.uniform(0, 99), np.arange(width, dtype=np.float32)
    long, joint = course * rng.uniform(2.2, 3.6), max(1.0, course * rng.uniform(0.08, 0.2))
    row = np.floor(y / course).astype(int)
    # Even courses and odd ones, [2, width]: every row is one of the two.
    shifted = x + np.array([[0.0], [0.5 * long]], np.float32)
    shades = rng.normal(0, rng.uniform(3, 22), (17, 31)) + rng.normal(0, 4, (17, 31))
    tints = (shades[:, :, None] * np.array([1.0, 0.9, 0.85])).astype(np.float32)
    brick = (shifted // long).astype(int) % 31
    picture = colour + tints[row[:, None] % 17, brick[row % 2]]
    mortar = np.float32(rng.choice([0.55, 1.25, 1.7])) * colour.mean() + np.float32(rng.normal(0, 10))
    seams = ((y % course) < joint)[:, None] | ((shifted % long) < joint)[row % 2]
    picture[seams] = np.clip(mortar, 15, 235)
    grain = texture(width, height, 1.0, rng) * np.float32(rng.uniform(1, 7))
    return np.asarray(picture + grain[:, :, None], np.float32)


def _boards(width: int, height: int, pitch: float, colour: Colour, rng: np.random.Generator) -> Colour:
    upright = rng.random() < 0.35
    along = np.arange(width if upright else height, dtype=np.float32) + rng.uniform(0, pitch)
    shade = rng.normal(0, 8, 512)[(along // pitch).astype(int) % 512] + 14 * (along % pitch) / pitch
    shade = np.where(along % pitch < max(1.0, 0.08 * pitch), -rng.uniform(20, 70), shade).astype(np.float32)
    grain = texture(width, height, 0.7, rng) * np.float32(rng.uniform(0, 6))
    return np.asarray(colour + (grain + (shade[None, :] if upright else shade[:, None]))[:, :, None], np.float32)
