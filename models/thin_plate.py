"""The thin-plate spline: the smoothest map that takes a grid of control points where theta says.

Bookstein, "Principal Warps" (1989); Jaderberg et al. (2015), appendix A.1.
"""

import numpy as np
import torch
from torch import Tensor

from models.transformations import Matrix, Transformation, constant

TINY = 1e-20
"""Squared distances below this count as this under the logarithm: r^2 log r^2 is 0 at 0."""


class ThinPlateSpline(Transformation):
    """Theta is where the control points lie in the source, `[size^2, 2]`, in raster order of the target.

    The control points are a regular grid over the target, its corners included. The map is f(p) = A p + t + sum_i w_i
    U(|p - c_i|) with U(r) = r^2 log r^2, the w_i chosen so that f(c_i) = theta_i. All of that is linear in theta: each
    source point is a sum of the theta_i with weights that depend on the target point alone, which for a constant grid
    are constants.
    """

    # A side bends as often as there are control points on it; eight pieces draw it as a curve.
    points_per_side = 8

    def __init__(self, size: int = 4) -> None:
        """
        Args:
            size: control points in a row, and rows; the paper takes 4.

        Raises:
            ValueError: `size` is less than 2: one point says nothing of scale.
        """
        if size < 2:
            raise ValueError(f"a thin-plate spline takes at least 2 x 2 control points, not {size} x {size}")
        count = size**2
        self.shape = (count, 2)
        y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
        self._control = np.stack((x.ravel(), y.ravel(), np.ones(count)), axis=1)
        squared = np.square(self._control[:, None] - self._control[None]).sum(axis=-1)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = squared * np.log(np.maximum(squared, TINY))
        # Without what an affine map could do, the bending energy is finite.
        system[:count, count:] = self._control
        system[count:, :count] = self._control.T
        self._solution = np.linalg.inv(system)[:, :count]

    def closest_to(self, matrix: Matrix) -> list[float]:
        numbers: list[float] = (self._control @ np.array(matrix).T).ravel().tolist()
        return numbers

    def __call__(self, theta: Tensor, points: Tensor) -> Tensor:
        return torch.matmul(self._weights(points), theta)

    def basis(self, grid: Tensor) -> Tensor:
        # In float64: in the solution large numbers cancel.
        return self._weights(grid[:, :2].double()).to(grid.dtype)

    def on(self, basis: Tensor, theta: Tensor) -> Tensor:
        return torch.matmul(basis, theta)

    def _weights(self, points: Tensor) -> Tensor:
        """How much each control point counts at each point: `[..., M, 2]` -> `[..., M, size^2]`."""
        x, y = points[..., :1], points[..., 1:]
        control = constant(self._control.T.tolist(), points)
        squared = (x - control[0]).square() + (y - control[1]).square()
        solution = constant(self._solution.tolist(), points)
        bent = torch.matmul(squared * squared.clamp(min=TINY).log(), solution[:-3])
        return bent + x * solution[-3] + y * solution[-2] + solution[-1]
