"""The transformations: families of maps from the target's points to the source's.

Jaderberg et al. (2015), section 3.2 and appendix A.1. Theta is what the localisation network says of one map, in the
form of its family: six numbers of a matrix, an angle, the positions of control points. Points are normalised (x, y) as
in `models.transformer`: -1 to 1 over the edges of the map, y downwards. Angles and equal scales are meant in these
coordinates; on a map that is not square they are angles and scales of the map stretched to a square.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The two rows of an affine map, target -> source."""

IDENTITY_THETA: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))

CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
"""The target's corners, clockwise from the top-left, normalised (x, y)."""

HORIZON = 0.1
"""Least denominator of a projective map. Beyond the horizon it would turn negative and the point come back from the
other side; it is sent far away instead, where the source is zero, and everything stays finite."""


class Transformation(ABC):
    """A family of maps; without state, so one object serves any number of transformers.

    Attributes:
        shape: the form of one theta; that of a batch is `[N, *shape]`.
        points_per_side: how many points of each side of the target say where its border goes: 1 where straight lines
            stay straight, so that the four corners say all.
    """

    shape: tuple[int, ...]
    points_per_side: int = 1

    @property
    def size(self) -> int:
        """How many numbers theta has."""
        return math.prod(self.shape)

    @abstractmethod
    def closest_to(self, matrix: Matrix) -> list[float]:
        """The numbers of the theta whose map is closest to an affine one (least squares over the target).

        That of the identity is where a transformer starts.
        """

    @abstractmethod
    def __call__(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where theta sends points of the target.

        Args:
            theta: float `[N, *shape]`.
            points: `[M, 2]`, the same for all maps, or `[N, M, 2]`.

        Returns:
            `[N, M, 2]`, points of the source.
        """

    def basis(self, grid: Tensor) -> Tensor:
        """What can be worked out of a constant grid once: `[M, 3]` from `target_grid` -> `[M, B]` for `on`."""
        return grid[:, :2]

    def on(self, basis: Tensor, theta: Tensor) -> Tensor:
        """Where theta sends the points of the grid that `basis` was made of: `[N, M, 2]`."""
        return self(theta, basis)

    def affine(self, theta: Tensor) -> Tensor:
        """Theta as two rows of three, `[N, 2, 3]`: the matrix itself where the map is affine, otherwise that of the
        affine map which is closest to it at the target's corners (least squares)."""
        corners = constant(CORNERS, theta)
        # The corners' homogeneous coordinates are orthogonal, each column of length 2: their transpose / 4 inverts
        # them.
        homogeneous = constant([(x / 4, y / 4, 1 / 4) for x, y in CORNERS], theta)
        return torch.matmul(self(theta, corners).transpose(1, 2), homogeneous)


def constant(values: object, like: Tensor) -> Tensor:
    """A tensor of `values`, of the type and on the device of another."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _placed(matrix: Tensor, points: Tensor) -> Tensor:
    """Points `[M, 2]` or `[N, M, 2]` through matrices `[N, 2, 3]`, written as (R, t).

    Homogeneous points would need a column of ones for each image, and asking for the batch size leaves shape operators
    on the CPU when the graph is exported.
    """
    rotation, translation = matrix[:, :, :2], matrix[:, :, 2:]
    return torch.matmul(points, rotation.transpose(1, 2)) + translation.transpose(1, 2)


class AffineFamily(Transformation):
    """Maps that are affine, whatever says which."""

    def __call__(self, theta: Tensor, points: Tensor) -> Tensor:
        return _placed(self.affine(theta), points)

    def basis(self, grid: Tensor) -> Tensor:
        return grid

    def on(self, basis: Tensor, theta: Tensor) -> Tensor:
        return torch.matmul(basis, self.affine(theta).transpose(1, 2))


class Affine(AffineFamily):
    """Any affine map: translation, scale, rotation and shear. Theta is its matrix, `[2, 3]`."""

    shape = (2, 3)

    def closest_to(self, matrix: Matrix) -> list[float]:
        return [*matrix[0], *matrix[1]]

    def affine(self, theta: Tensor) -> Tensor:
        return theta


AFFINE = Affine()


class LinearFamily(AffineFamily):
    """Affine maps whose six numbers are linear in theta: `theta @ rows + offset`."""

    def __init__(self, rows: Sequence[Matrix], offset: Matrix = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))) -> None:
        self.shape = (len(rows),)
        self._rows = np.array(rows).reshape(len(rows), 6)
        self._offset = np.array(offset).reshape(6)

    def closest_to(self, matrix: Matrix) -> list[float]:
        numbers, *_ = np.linalg.lstsq(self._rows.T, np.array(matrix).reshape(6) - self._offset, rcond=None)
        found: list[float] = numbers.tolist()
        return found

    def affine(self, theta: Tensor) -> Tensor:
        rows, offset = constant(self._rows.tolist(), theta), constant(self._offset.tolist(), theta)
        return (torch.matmul(theta, rows) + offset).reshape(-1, 2, 3)


_RIGHT: Matrix = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
_DOWN: Matrix = ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
_TURN: Matrix = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0))


class Attention(LinearFamily):
    """Scale and translation: theta is (s, x, y), and s is the same both ways (the paper's equation 2)."""

    def __init__(self) -> None:
        super().__init__((IDENTITY_THETA, _RIGHT, _DOWN))


class Translation(LinearFamily):
    """Translation at a fixed scale: theta is (x, y). The paper's birds are looked at with a scale of 0.5."""

    def __init__(self, scale: float = 1.0) -> None:
        """`scale`: the target's side as a share of the source's. It starts in the middle; at 1 that is the identity."""
        super().__init__((_RIGHT, _DOWN), ((scale, 0.0, 0.0), (0.0, scale, 0.0)))


class Similarity(LinearFamily):
    """Rotation, scale and translation: theta is (a, b, x, y) with a = scale * cos and b = scale * sin."""

    def __init__(self) -> None:
        super().__init__((IDENTITY_THETA, _TURN, _RIGHT, _DOWN))


class Rotation(AffineFamily):
    """Rotation about the centre alone: theta is the angle in radians; positive turns what is seen anticlockwise."""

    shape = (1,)

    def __init__(self) -> None:
        self._plane = LinearFamily((IDENTITY_THETA, _TURN))

    def closest_to(self, matrix: Matrix) -> list[float]:
        (a, b, _), (c, d, _) = matrix
        return [math.atan2(c - b, a + d)]

    def affine(self, theta: Tensor) -> Tensor:
        return self._plane.affine(torch.cat((theta.cos(), theta.sin()), dim=1))


class Projective(Transformation):
    """A homography: theta is its 3 x 3 matrix by rows without the last entry, which is 1, `[8]`.

    Straight lines stay straight, so the box is a quadrilateral. See `HORIZON`.
    """

    shape = (8,)

    def closest_to(self, matrix: Matrix) -> list[float]:
        return [*matrix[0], *matrix[1], 0.0, 0.0]

    def __call__(self, theta: Tensor, points: Tensor) -> Tensor:
        distance = torch.matmul(points, theta[:, 6:].unsqueeze(-1)) + 1
        return _placed(theta[:, :6].reshape(-1, 2, 3), points) / distance.clamp(min=HORIZON)
