"""Turning and stretching what lies around a point of a photograph."""

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]


def rotation(angle: float) -> Matrix:
    """`[2, 2]`, for (x, y) with y down: turns anticlockwise as one sees it, by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def warped(
    pixels: Pixels, middle: tuple[float, float], linear: Matrix, size: Matrix, offset: Matrix | None = None
) -> Pixels:
    """What a view shows after `pixels` have been transformed about a point.

    Bilinear; beyond the photograph's edge that is repeated.

    Args:
        pixels: RGB `[H, W, 3]`.
        middle: the point (x, y), in pixels; it comes to the middle of the view.
        linear: `[2, 2]`, from offsets from that point to offsets in the view.
        size: (width, height) of the view in pixels; rounded, and at least one.
        offset: (x, y) by which all is moved within the view, in pixels.

    Returns:
        RGB, uint8 `[height, width, 3]`.
    """
    width, height = np.maximum(np.rint(size), 1).astype(int).tolist()
    # From the indices of the view's pixels to those of the photograph's; their centres lie half a pixel further.
    back = np.linalg.inv(linear)
    moved = np.zeros(2) if offset is None else offset
    constant = np.array(middle) - 0.5 - back @ (np.array([width, height]) / 2 - 0.5 + moved)
    return np.asarray(
        cv2.warpAffine(
            pixels,
            np.column_stack([back, constant]),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.uint8,
    )
