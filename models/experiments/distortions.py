"""What the paper does to its digits (STN paper, section 4.1 and appendix A.4): float `[N, 1, 28, 28]`
-> `[N, 1, S, S]`.

A distortion draws a theta for each image and looks at the digit through it, as a transformer does: from the points of
the distorted image back to the digit's. Everything random comes from a generator on the CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from models.experiments.digits import SIDE
from models.thin_plate import ThinPlateSpline
from models.transformations import CORNERS, HORIZON, Projective, Rotation, Similarity, Transformation, constant
from models.transformer import sample, target_grid

RTS_SIDE = 42
RTS_TURN, RTS_SCALE = math.radians(45), (0.7, 1.2)
SHRUNK = (0.75, 1.0)
"""Scale of a digit before it is stretched or bent, so that it stays in the image."""
CORNER_DEVIATION = 5.0
"""Standard deviation of each corner's place, in pixels."""
CONTROL_DEVIATION = 1.5
"""And of each of the spline's 16 control points."""
CLUTTERED_SIDE, PATCHES, PATCH_SIDE = 60, 6, 6


@dataclass(frozen=True)
class Distortion:
    """One of the paper's data sets: the side of its images in pixels, and how they are made."""

    side: int
    distort: Callable[[Tensor, Generator], Tensor]


def warp(digits: Tensor, transformation: Transformation, theta: Tensor, side: int) -> Tensor:
    """Digits seen through `theta` `[N, *shape]`, which sends points of the new image, `side` wide, to the digit's."""
    points = transformation(theta.to(digits.device), target_grid(side, side)[:, :2].to(digits.device))
    return sample(digits, points.reshape(-1, side, side, 2))


def uniform(generator: Generator, count: int, low: float, high: float) -> Tensor:
    """`[count]`, evenly between two numbers."""
    return torch.rand(count, generator=generator) * (high - low) + low


def placed(angle: Tensor, scale: Tensor, centre: Tensor, side: int) -> Tensor:
    """Theta `[N, 4]` of the `Similarity` that shows a digit turned, scaled and moved in an image `side` wide.

    Args:
        angle: `[N]`, radians, anticlockwise.
        scale: `[N]`; at 1 the digit's image is 28 pixels wide.
        centre: `[N, 2]`, where the digit's centre is to lie, normalised (x, y).
        side: in pixels.
    """
    length = side / (SIDE * scale)
    a, b = length * angle.cos(), length * angle.sin()
    x, y = centre.unbind(dim=1)
    return torch.stack((a, b, b * y - a * x, -b * x - a * y), dim=1)


def rotate(digits: Tensor, generator: Generator) -> Tensor:
    """R: turned by up to 90 degrees either way."""
    angle = uniform(generator, len(digits), -math.pi / 2, math.pi / 2)
    return warp(digits, Rotation(), angle.unsqueeze(1), SIDE)


def anywhere(generator: Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles, scales and centres for `placed` that RTS draws: anywhere the image of the unturned digit fits."""
    angle = uniform(generator, count, -RTS_TURN, RTS_TURN)
    scale = uniform(generator, count, *RTS_SCALE)
    room = 1 - scale * SIDE / RTS_SIDE
    centre = torch.stack([uniform(generator, count, -1, 1) * room for _ in range(2)], dim=1)
    return angle, scale, centre


def rotate_translate_scale(digits: Tensor, generator: Generator) -> Tensor:
    """RTS: turned by up to 45 degrees, scaled by 0.7 to 1.2, anywhere in 42 x 42."""
    theta = placed(*anywhere(generator, len(digits)), RTS_SIDE)
    return warp(digits, Similarity(), theta, RTS_SIDE)


def homography(quadrilaterals: Tensor) -> Tensor:
    """Theta `[N, 8]` of the `Projective` that sends the four corners `[N, 4, 2]` to the square's, in order."""
    x, y = quadrilaterals.double().unbind(dim=-1)
    u, v = constant(CORNERS, x).unbind(dim=-1)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    across = torch.stack((x, y, one, none, none, none, -u * x, -u * y), dim=-1)
    down = torch.stack((none, none, none, x, y, one, -v * x, -v * y), dim=-1)
    wanted = torch.cat((u, v)).expand(len(x), 8)
    solved: Tensor = torch.linalg.solve(torch.cat((across, down), dim=1), wanted)
    return solved.to(quadrilaterals.dtype)


def project(digits: Tensor, generator: Generator) -> Tensor:
    """P: scaled by 0.75 to 1, then each corner moved. Corners that would turn the digit inside out are drawn anew."""
    count = len(digits)
    scale = uniform(generator, count, *SHRUNK).reshape(-1, 1, 1)
    theta = torch.zeros(count, 8)
    missing = torch.ones(count, dtype=torch.bool)
    while missing.any():
        moved = torch.randn(count, 4, 2, generator=generator) * CORNER_DEVIATION * 2 / SIDE
        corners = constant(CORNERS, scale) * scale + moved
        found = homography(corners)
        before_horizon = (torch.matmul(corners, found[:, 6:].unsqueeze(-1)) + 1 > HORIZON).all(dim=1).squeeze(1)
        theta = torch.where((missing & before_horizon).unsqueeze(1), found, theta)
        missing &= ~before_horizon
    return warp(digits, Projective(), theta, SIDE)


def bend(digits: Tensor, generator: Generator) -> Tensor:
    """E: scaled by 0.75 to 1, then 16 control points moved: those of the way back to the digit."""
    count = len(digits)
    scale = uniform(generator, count, *SHRUNK).reshape(-1, 1, 1)
    spline = ThinPlateSpline(4)
    regular = torch.tensor(spline.closest_to(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))).reshape(spline.shape)
    moved = torch.randn(count, *spline.shape, generator=generator) * CONTROL_DEVIATION * 2 / SIDE
    return warp(digits, spline, regular / scale + moved, SIDE)


def clutter(digits: Tensor, generator: Generator) -> Tensor:
    """TC: anywhere in 60 x 60, with six patches of 6 x 6 from other digits of the batch anywhere over it.

    Where two things lie over each other the brighter one shows: a patch never wipes out the digit.
    """
    count = len(digits)
    image = digits.new_zeros(count, CLUTTERED_SIDE, CLUTTERED_SIDE)
    _paste(image, digits[:, 0], generator)
    for _ in range(PATCHES):
        other = (torch.arange(count) + torch.randint(1, max(2, count), (count,), generator=generator)) % count
        _paste(image, digits[:, 0][_squares(count, SIDE, PATCH_SIDE, generator, other)], generator)
    return image.unsqueeze(1)


def _paste(image: Tensor, patches: Tensor, generator: Generator) -> None:
    """Put a square patch somewhere into each image."""
    where = _squares(len(image), image.shape[-1], patches.shape[-1], generator)
    image[where] = torch.maximum(image[where], patches)


def _squares(
    count: int, side: int, patch: int, generator: Generator, images: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of a random square in each of `count` images, or in those of the numbers `images`."""
    rows, columns = torch.randint(side - patch + 1, (2, count, 1), generator=generator) + torch.arange(patch)
    images = torch.arange(count) if images is None else images
    return images[:, None, None], rows[:, :, None], columns[:, None, :]


DISTORTIONS = {
    "R": Distortion(SIDE, rotate),
    "RTS": Distortion(RTS_SIDE, rotate_translate_scale),
    "P": Distortion(SIDE, project),
    "E": Distortion(SIDE, bend),
    "cluttered": Distortion(CLUTTERED_SIDE, clutter),
}
"""By the names of the paper's table 1."""
