"""Where a transformer should look, where that is known: synthetic images and SVHN tell the number's true box.

The reading loss alone moves a sampling window only while some of the number lies in it; a number that takes an eighth
of the view is seldom found that way. The true box points at it from the first step on. Boxes are upright, which numbers
need not be: only the rectangle around the window is compared, and how the window turns within it is left to the
reading. Where the view itself has been turned, the window has to turn with it.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.boxes import input_boxes
from models.data.warp import rotation
from service.geometry import Region

MARGIN = 0.12
"""Room around the digits, on every side, as a share of their height."""
MIN_WIDTH = 1.5
"""Least width of the window as a share of the digits' height: a single 1 is not to be stretched into a block."""
SMOOTHING = 0.1
"""Error, as a share of the window's half size, below which the loss is quadratic."""
UNKNOWN = np.full((2, 3), math.nan, dtype=np.float32)


def wanted_window(number_box: Region | None, region: Region, turn: float = 0.0) -> NDArray[np.float32]:
    """The window to look at, from the number's tight box and the region that the view shows, both in pixels.

    Args:
        number_box: before anything is turned.
        region: what the view shows, after all has been turned about its centre.
        turn: anticlockwise, in radians.

    Returns:
        float32 `[2, 3]`, a theta: window -> view, normalised; it may reach beyond the view. NaN where there is no box.
    """
    if number_box is None or not (number_box.width > 0 and number_box.height > 0):
        return UNKNOWN
    height = number_box.height
    half = (max(number_box.width / 2 + MARGIN * height, MIN_WIDTH * height / 2), height * (0.5 + MARGIN))
    from_centre = np.array(number_box.centre) - region.centre
    pixels = rotation(turn) @ np.column_stack((np.diag(half), from_centre))
    window: NDArray[np.float32] = (pixels * 2 / np.array([[region.width], [region.height]])).astype(np.float32)
    return window


def location_loss(theta: Tensor, wanted: Tensor) -> Tensor:
    """How far the last transformer's box is from the wanted window, in the window's own coordinates.

    The mean, over the images whose window is known, of the smooth L1 distance (Girshick 2015) of the box's rectangle:
    of the centres, and of the logarithms of the half sizes. Where the window is turned, of the sines of the angles
    between its sides and the box's too.

    Args:
        theta: `[N, K, 2, 3]`, target -> source, K >= 1.
        wanted: `[N, 2, 3]` from `wanted_window`.

    Returns:
        A scalar; 0 where no window is known.
    """
    known = ~wanted.isnan().flatten(1).any(dim=1)
    window = wanted[known]
    corners = input_boxes(theta.float())[known, -1]
    within = torch.linalg.solve(window[:, :, :2], (corners - window[:, None, :, 2]).mT).mT
    low, high = within.amin(dim=1), within.amax(dim=1)
    across, down = within[:, 1] - within[:, 0], within[:, 3] - within[:, 0]
    sines = torch.stack((across[:, 1] / _length(across), down[:, 0] / _length(down)), dim=1)
    turned = (window[:, 0, 1] != 0) | (window[:, 1, 0] != 0)
    rectangle = torch.cat(((low + high) / 2, ((high - low) / 2).clamp(min=1e-4).log()), dim=1)
    error = torch.cat((rectangle, sines * turned[:, None]), dim=1)
    distance = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=SMOOTHING)
    return distance / known.sum().clamp(min=1)


def _length(side: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(side, dim=1).clamp(min=1e-4)
    return length
