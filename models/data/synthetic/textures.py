"""Textures of walls, made once and cut differently each time, and paint laid over them through masks."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
TILE = 384
TILES_PER_KIND = 6
TEXTURES = ("plain", "plain", "render", "stucco", "brick", "siding", "wood", "tiles", "metal", "stone", "foliage")


@lru_cache(maxsize=len(set(TEXTURES)) * TILES_PER_KIND)
def _tile(kind: str, variant: int) -> Image:
    """A grey texture of zero mean and unit spread, [TILE, TILE]; the same on every machine and in every process."""
    rng = np.random.default_rng([variant, *kind.encode()])

    def noise(sx: float, sy: float) -> Image:
        field = cv2.GaussianBlur(rng.standard_normal((TILE, TILE), dtype=np.float32), (0, 0), sx, sigmaY=sy)
        return np.asarray(field / max(float(field.std()), 1e-6), np.float32)

    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    if kind == "plain":
        tile = noise(40, 40) + 0.15 * noise(0.7, 0.7)
    elif kind == "render":
        tile = noise(1.2, 1.2) + 0.5 * noise(12, 12)
    elif kind == "stucco":
        bumps = noise(3, 3)
        tile = cv2.Sobel(bumps, cv2.CV_32F, 1, 1, ksize=3) + 0.6 * bumps
    elif kind == "brick":
        course = float(rng.uniform(18, 42))
        row = np.floor(y / course)
        column = np.floor(x / (course * 2.6) + 0.5 * (row % 2))
        joint = (y % course < course * 0.14) | ((x + course * 1.3 * (row % 2)) % (course * 2.6) < course * 0.14)
        shade = rng.standard_normal((64, 64)).astype(np.float32)[row.astype(int) % 64, column.astype(int) % 64]
        tile = np.where(joint, float(rng.choice([-2.0, 2.2])), 0.6 * shade + 0.4 * noise(1.5, 1.5))
    elif kind == "siding":
        pitch = float(rng.uniform(20, 60))
        across = x if rng.random() < 0.4 else y
        tile = 1.5 * (across % pitch) / pitch - 3 * (across % pitch < 3) + 0.3 * noise(8, 1)
    elif kind == "wood":
        grain = noise(30, 1.2) + 0.6 * noise(60, 3)
        tile = grain if rng.random() < 0.7 else grain.T
    elif kind == "tiles":
        pitch = float(rng.uniform(30, 90))
        tile = np.where((x % pitch < 3) | (y % pitch < 3), float(rng.choice([-2.5, 2.5])), 0.4 * noise(10, 10))
    elif kind == "metal":
        tile = noise(25, 0.6) + noise(50, 50)
    elif kind == "stone":
        tile = noise(6, 5) + 0.7 * noise(2, 2) + 0.5 * noise(20, 20)
    else:
        tile = noise(4, 4) * np.abs(noise(9, 9)) + noise(1.5, 1.5)
    tile = np.asarray(tile, np.float32)
    return np.asarray((tile - tile.mean()) / max(float(tile.std()), 1e-6), np.float32)


def texture(width: int, height: int, scale: float, rng: np.random.Generator) -> Image:
    """A random piece of a random texture, [height, width]; scale: canvas pixels per texture pixel."""
    tile = _tile(TEXTURES[int(rng.integers(len(TEXTURES)))], int(rng.integers(TILES_PER_KIND)))
    matrix = np.array([[1 / scale, 0, rng.uniform(0, TILE)], [0, 1 / scale, rng.uniform(0, TILE)]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    piece = cv2.warpAffine(tile, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(piece, np.float32)


def blend(canvas: Image, mask: NDArray[np.uint8], colour: Image, opacity: float = 1.0) -> None:
    """Paints a colour onto the canvas through a mask of 0 to 255, in place."""
    x, y, w, h = cv2.boundingRect(mask)
    share = (mask[y : y + h, x : x + w].astype(np.float32) * np.float32(opacity / 255))[:, :, None]
    window = canvas[y : y + h, x : x + w]
    window += share * (colour[None, None, :] - window)
