"""The lecture's formulas, written out as sums and loops in float64: what the modules are measured against.

Points are normalised (x, y), indices of pixels are (column, row); pixel j of w spans [j, j + 1] of the w pixels that
cover [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Map = Callable[[float, float], tuple[float, float]]
"""From a point of the target to one of the source."""


def target_centres(rows: int, columns: int) -> Array:
    """[rows, columns, 2]: the centres of the target's pixels."""
    u, v = np.meshgrid((2 * np.arange(columns) + 1) / columns - 1, (2 * np.arange(rows) + 1) / rows - 1)
    return np.stack((u, v), axis=-1)


def through(path: Map, points: Array) -> Array:
    """[..., 2], one point after the other."""
    sent = [path(float(u), float(v)) for u, v in points.reshape(-1, 2)]
    return np.array(sent, dtype=np.float64).reshape(points.shape)


def pixel_indices(points: Array, height: int, width: int) -> tuple[Array, Array]:
    """Where normalised points lie in a map, as indices of its pixels, of any fraction: (x, y)."""
    return ((points[..., 0] + 1) * width - 1) / 2, ((points[..., 1] + 1) * height - 1) / 2


def affine_map(theta: Array) -> Map:
    """Equation 1 of the paper."""
    (a, b, c), (d, e, f) = theta.tolist()
    return lambda u, v: (a * u + b * v + c, d * u + e * v + f)


def projective_map(theta: Array) -> Map:
    """The 3 x 3 matrix by rows without its last entry; the third coordinate, divided by, is kept from the horizon."""
    a, b, c, d, e, f, g, h = theta.tolist()

    def path(u: float, v: float) -> tuple[float, float]:
        w = max(g * u + h * v + 1, 0.1)
        return (a * u + b * v + c) / w, (d * u + e * v + f) / w

    return path


def thin_plate_map(theta: Array) -> Map:
    """Bookstein's spline through control points on a regular grid, solved for these very values."""
    size = math.isqrt(len(theta))
    ticks = [2 * i / (size - 1) - 1 for i in range(size)]
    control = [(x, y) for y in ticks for x in ticks]

    def bending(u: float, v: float, x: float, y: float) -> float:
        r = math.hypot(u - x, v - y)
        return r**2 * math.log(r**2) if r > 0 else 0.0

    count = len(control)
    system = np.zeros((count + 3, count + 3))
    for i, (u, v) in enumerate(control):
        for j, (x, y) in enumerate(control):
            system[i, j] = bending(u, v, x, y)
        system[i, count:] = system[count:, i] = (1, u, v)
    solution = np.linalg.solve(system, np.vstack((theta, np.zeros((3, 2)))))

    def path(u: float, v: float) -> tuple[float, float]:
        terms = np.array([*(bending(u, v, x, y) for x, y in control), 1, u, v])
        x, y = terms @ solution
        return float(x), float(y)

    return path


def pyramid(distance: Array) -> Array:
    """The bilinear kernel's side: max(0, 1 - |d|)."""
    weights: Array = np.maximum(0, 1 - np.abs(distance))
    return weights


def nearest(distance: Array) -> Array:
    """The other kernel: 1 for the pixel that is less than half a pixel away."""
    return (np.abs(distance) < 0.5).astype(np.float64)


def double_sum(source: Array, x: Array, y: Array, kernel: Callable[[Array], Array] = pyramid) -> Array:
    """V[c, i, j] = sum_n sum_m U[c, n, m] k(x - m) k(y - n) at x, y [H', W']: equations 3 to 5 of the paper."""
    across = kernel(x[..., None] - np.arange(source.shape[2]))
    down = kernel(y[..., None] - np.arange(source.shape[1]))
    result: Array = np.einsum("cnm,ijm,ijn->cij", source, across, down)
    return result


def slope(distance: Array) -> Array:
    """Of the pyramid's side, `distance` being x - m: 0 from a pixel's distance on, 1 where m >= x, -1 where m < x."""
    return np.where(np.abs(distance) >= 1, 0.0, np.where(distance <= 0, 1.0, -1.0))


def sub_gradients(source: Array, x: Array, y: Array, upstream: Array) -> tuple[Array, Array, Array]:
    """Of sum(upstream * V) by U, by x and by y: equations 6 and 7 of the paper.

    dV/dx = sum_n sum_m U[c, n, m] max(0, 1 - |y - n|) * (0 if |m - x| >= 1, 1 if m >= x, -1 if m < x).
    """
    dx, dy = x[..., None] - np.arange(source.shape[2]), y[..., None] - np.arange(source.shape[1])
    by_source = np.einsum("cij,ijm,ijn->cnm", upstream, pyramid(dx), pyramid(dy))
    by_x = np.einsum("cij,cnm,ijm,ijn->ij", upstream, source, slope(dx), pyramid(dy))
    by_y = np.einsum("cij,cnm,ijm,ijn->ij", upstream, source, pyramid(dx), slope(dy))
    return by_source, by_x, by_y


def noise(*shape: int, seed: int = 0) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape)
