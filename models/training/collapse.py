"""Signs that a spatial transformer has collapsed: the usual way in which training one fails."""

import torch
from torch import Tensor

MIN_AREA = 0.005
"""Share of the input's area under which a box is degenerate: a number that small cannot be read."""
MAX_AREA = 16.0
"""Share of the input's area over which a box is lost: the input is a speck in it."""
MAX_SHARE = 0.2
"""Share of the images for which a sign may hold before it is worth a warning."""


def signs_of_collapse(boxes: Tensor) -> list[str]:
    """What is wrong with the boxes of a validation set, one line for each fault; empty if nothing is.

    Args:
        boxes: `[N, K, 4, 2]`, normalised corners in the input, clockwise from the target's top-left.
    """
    faults = []
    centre = boxes.mean(dim=2)
    area = torch.linalg.det(torch.stack((boxes[:, :, 1] - boxes[:, :, 0], boxes[:, :, 3] - boxes[:, :, 0]), dim=-1))
    # The input spans 2 x 2.
    area = area.abs() / 4
    outside = (boxes.amin(dim=2) >= 1).any(dim=-1) | (boxes.amax(dim=2) <= -1).any(dim=-1)
    checks = {
        f"degenerate: it covers less than {MIN_AREA:.1%} of the input": area < MIN_AREA,
        f"lost: it covers more than {MAX_AREA:.0f} times the input": area > MAX_AREA,
        "outside: its window holds nothing of the input, so it is black": outside,
        "off-centre: its centre is outside the input": (centre.abs() > 1).any(dim=-1),
        "not a number": ~torch.isfinite(boxes).all(dim=-1).all(dim=-1),
    }
    for fault, holds in checks.items():
        for index, share in enumerate(holds.float().mean(dim=0).tolist()):
            if share > MAX_SHARE:
                faults.append(f"transformer {index} is {fault}, for {share:.0%} of the images")
    return faults
