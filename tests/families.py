"""Every transformation with its formula from the lecture, and thetas that look somewhere worth looking."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from lecture import Array, Map, affine_map, noise, projective_map, thin_plate_map

from models.thin_plate import ThinPlateSpline
from models.transformations import (
    Affine,
    Attention,
    Matrix,
    Projective,
    Rotation,
    Similarity,
    Transformation,
    Translation,
)

SCALE = 0.6
"""Of the translation at a fixed scale."""


@dataclass(frozen=True)
class Family:
    transformation: Transformation
    formula: Callable[[Array], Map]
    numbers: int

    def thetas(self, count: int, seed: int = 0, spread: float = 0.1, start: Matrix | None = None) -> Array:
        """[count, *shape]: zoomed in and turned, unless `start` says otherwise, and each a little different."""
        start = start or ((0.7, -0.2, 0.1), (0.2, 0.7, -0.05))
        numbers = np.array(self.transformation.closest_to(start))
        return (numbers + spread * noise(count, len(numbers), seed=seed)).reshape(count, *self.transformation.shape)


def _attention(theta: Array) -> Map:
    s, x, y = theta.tolist()
    return lambda u, v: (s * u + x, s * v + y)


def _translation(theta: Array) -> Map:
    x, y = theta.tolist()
    return lambda u, v: (SCALE * u + x, SCALE * v + y)


def _rotation(theta: Array) -> Map:
    (angle,) = theta.tolist()
    return lambda u, v: (math.cos(angle) * u - math.sin(angle) * v, math.sin(angle) * u + math.cos(angle) * v)


def _similarity(theta: Array) -> Map:
    a, b, x, y = theta.tolist()
    scale, angle = math.hypot(a, b), math.atan2(b, a)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return lambda u, v: (cos * u - sin * v + x, sin * u + cos * v + y)


FAMILIES = {
    "affine": Family(Affine(), affine_map, 6),
    "attention": Family(Attention(), _attention, 3),
    "translation": Family(Translation(SCALE), _translation, 2),
    "rotation": Family(Rotation(), _rotation, 1),
    "similarity": Family(Similarity(), _similarity, 4),
    "projective": Family(Projective(), projective_map, 8),
    "thin plate": Family(ThinPlateSpline(), thin_plate_map, 32),
}
