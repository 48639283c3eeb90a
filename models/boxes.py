"""Where each transformer looked, in the coordinates of the input.

With `align_corners=False`, 2x2/2 pooling and "same" convolutions keep normalised coordinates, so a point of the k-th
target goes through the k-th transformer, then the one before, and so on: what the first gives is a point of the input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.transformations import AFFINE, CORNERS, Transformation, constant
from models.transformer import full_precision

Placed = tuple[Transformation, Tensor]
"""A transformation, and its thetas for the images of a batch, `[N, *shape]`."""


def input_boxes(theta: Tensor) -> Tensor:
    """Corners of every box of affine transformers in a row.

    Args:
        theta: `[N, K, 2, 3]`, target -> source of each of K transformers, normalised.

    Returns:
        `[N, K, 4, 2]`, clockwise from the target's top-left, normalised (x, y) of the input.
    """
    # A reader without transformers (K = 0) has no boxes, but still an output of the right rank.
    if theta.shape[1] == 0:
        return torch.cat((theta, theta), dim=2)[..., :2]
    return input_outlines(in_a_row([(AFFINE, theta[:, k]) for k in range(theta.shape[1])]))


def in_a_row(placed: Sequence[Placed]) -> list[Sequence[Placed]]:
    """The ways back to the input from each of K transformers, where each sees what the one before it shows."""
    return [placed[k::-1] for k in range(len(placed))]


def side_by_side(transformation: Transformation, theta: Tensor) -> list[Sequence[Placed]]:
    """The ways back to the input from each of K transformers that all look at it: thetas `[N, K, *shape]`."""
    return [[(transformation, theta[:, k])] for k in range(theta.shape[1])]


def input_outlines(ways: Sequence[Sequence[Placed]]) -> Tensor:
    """The closed outline of every box.

    Args:
        ways: for each of K >= 1 transformers, what its points go through: itself first, the one on the input last.

    Returns:
        `[N, K, 4 * S, 2]`, S points on each side beginning with its corner, clockwise from the target's top-left,
        normalised (x, y) of the input. S is 1, which leaves the corners alone, unless some transformation bends lines.
    """
    points_per_side = max(transformation.points_per_side for way in ways for transformation, _ in way)
    outlines = []
    for way in ways:
        theta = way[0][1]
        points = constant(target_outline(points_per_side), theta)
        with full_precision(theta.device.type):
            for transformation, theta in way:
                points = transformation(theta, points)
        outlines.append(points)
    return torch.stack(outlines, dim=1)


def target_outline(points_per_side: int) -> list[tuple[float, float]]:
    """Points of the target's border, normalised (x, y), clockwise from the top-left, evenly spaced on each side."""
    shares = [step / points_per_side for step in range(points_per_side)]
    ends = zip(CORNERS, CORNERS[1:] + CORNERS[:1], strict=True)
    return [(a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share) for a, b in ends for share in shares]


def affine_thetas(placed: Sequence[Placed]) -> Tensor:
    """The thetas of K >= 1 transformers as an artifact gives them, `[N, K, 2, 3]` (see `Transformation.affine`)."""
    with full_precision(placed[0][1].device.type):
        return torch.stack([transformation.affine(theta) for transformation, theta in placed], dim=1)
