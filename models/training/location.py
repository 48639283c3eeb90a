"""Where a transformer should look, where that is known: synthetic images and SVHN tell the number's true box.

The reading loss alone moves a sampling window only while some of the number lies in it; a number that takes an eighth
of the view is seldom found that way. The true box points at it from the first step on. Only the axis-aligned
rectangle around the window is compared: how the window turns within it is left to the reading.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.boxes import input_boxes
from service.geometry import Region

MARGIN = 0.12
"""Room around the digits, on every side, as a share of their height."""
MIN_WIDTH = 1.5
"""Least width of the window as a share of the digits' height: a single 1 is not to be stretched into a block."""
SMOOTHING = 0.1
"""Error, as a share of the window's half size, below which the loss is quadratic."""
UNKNOWN = np.full(4, math.nan, dtype=np.float32)


def wanted_window(number_box: Region | None, region: Region) -> NDArray[np.float32]:
    """The rectangle to look at, from the number's tight box and the region that the view shows, both in pixels.

    Returns:
        float32 `[4]`: centre (x, y) and half size (x, y), normalised over the region, beyond which it may reach; NaN
        where there is no box.
    """
    if number_box is None or not (number_box.width > 0 and number_box.height > 0):
        return UNKNOWN
    height = number_box.height
    half = (max(number_box.width / 2 + MARGIN * height, MIN_WIDTH * height / 2), height * (0.5 + MARGIN))
    centre = (number_box.x + number_box.width / 2 - region.x, number_box.y + height / 2 - region.y)
    size = np.array([region.width, region.height])
    window: NDArray[np.float32] = np.concatenate([2 * np.array(centre) / size - 1, 2 * np.array(half) / size])
    return window.astype(np.float32)


def location_loss(theta: Tensor, wanted: Tensor) -> Tensor:
    """How far the last transformer's box is from the wanted window, relative to the window's size.

    The mean, over the images whose window is known, of the smooth L1 distance (Girshick 2015) of the centres in
    half sizes, and of the logarithms of the half sizes.

    Args:
        theta: `[N, K, 2, 3]`, target -> source, K >= 1.
        wanted: `[N, 4]` from `wanted_window`.

    Returns:
        A scalar; 0 where no window is known.
    """
    known = ~wanted.isnan().any(dim=1)
    centre, half = wanted[known, :2], wanted[known, 2:]
    boxes = input_boxes(theta.float())[known, -1]
    low, high = boxes.amin(dim=1), boxes.amax(dim=1)
    error = torch.cat((((low + high) / 2 - centre) / half, (((high - low) / 2).clamp(min=1e-4) / half).log()), dim=1)
    distance = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=SMOOTHING)
    return distance / known.sum().clamp(min=1)
