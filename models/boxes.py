"""Where each transformer looked, in the coordinates of the input."""

import torch
from torch import Tensor

CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
"""The target's corners, clockwise from the top-left, normalised (x, y)."""


def input_boxes(theta: Tensor) -> Tensor:
    """Corners of every transformer's box, taken back through all the earlier transformers to the input.

    With `align_corners=False`, 2x2/2 pooling and "same" convolutions keep normalised coordinates, so the
    composition is A1 A2 ... Ak on the corners. It is written with (R, t) pairs, R = R1 R2 and
    t = R1 t2 + t1: homogeneous 3x3 matrices would need rows of ones for each image, and asking for the batch size
    leaves shape operators on the CPU when the graph is exported.

    Args:
        theta: `[N, K, 2, 3]`, target -> source of each of K transformers in a row, normalised.

    Returns:
        `[N, K, 4, 2]`, clockwise from the target's top-left, normalised (x, y) of the input.
    """
    # A reader without transformers (K = 0) has no boxes, but still an output of the right rank.
    if theta.shape[1] == 0:
        return torch.cat((theta, theta), dim=2)[..., :2]
    corners = torch.tensor(CORNERS, dtype=theta.dtype, device=theta.device)
    rotation, translation = theta[:, 0, :, :2], theta[:, 0, :, 2:]
    boxes = [_place(corners, rotation, translation)]
    for k in range(1, theta.shape[1]):
        translation = rotation @ theta[:, k, :, 2:] + translation
        rotation = rotation @ theta[:, k, :, :2]
        boxes.append(_place(corners, rotation, translation))
    return torch.stack(boxes, dim=1)


def _place(corners: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Corners `[4, 2]` under `[N, 2, 2]` and `[N, 2, 1]`: `[N, 4, 2]`."""
    return torch.matmul(corners, rotation.transpose(1, 2)) + translation.transpose(1, 2)
