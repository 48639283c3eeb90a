"""The spatial transformer: localisation network -> theta -> grid -> sampling.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu, "Spatial Transformer Networks" (2015), section 3. Which maps there are is
in `models.transformations`.

Conventions, everywhere in this project: theta maps *target* to *source* ("backwards"); coordinates are
normalised to [-1, 1] over the edges of the map (`align_corners=False`) in (x, y) order, y downwards; what
lies outside the source is zero.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.transformations import AFFINE, IDENTITY_THETA, Matrix, Transformation

Sampling = Literal["bilinear", "nearest"]
"""How a value between pixels is made: of the four around it, or as a copy of the nearest (the paper's equations 5 and
4).

Of two pixels equally near, the one with the even index is taken. A copy does not depend on where exactly it was taken:
through `nearest` no gradient reaches theta, so it can show what a localisation network has learned, but teach it
nothing.
"""


def target_grid(height: int, width: int) -> Tensor:
    """Homogeneous normalised coordinates of the target's pixel centres.

    Returns:
        float32 `[height * width, 3]`, rows (x, y, 1), in raster order.
    """
    ys = (torch.arange(height, dtype=torch.float32) * 2 + 1) / height - 1
    xs = (torch.arange(width, dtype=torch.float32) * 2 + 1) / width - 1
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack((x, y, torch.ones_like(x)), dim=-1).reshape(height * width, 3)


def full_precision(device: str) -> AbstractContextManager[object]:
    """Suspend autocast, if it is on: bf16 has 8 bits, too few for a coordinate.

    Where it is off nothing is entered, so that tracing for export meets no autocast region.
    """
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def sample(source: Tensor, points: Tensor, sampling: Sampling = "bilinear") -> Tensor:
    """The values of `source` at `points`; zero outside.

    Args:
        source: float `[N, C, H, W]`.
        points: `[N, H', W', 2]`, normalised (x, y), float32 or, for a source in float64, float64.
        sampling: the kernel.

    Returns:
        `[N, C, H', W']` of the dtype of `source`.
    """
    # GridSample has CUDA kernels for float32 only, in ONNX Runtime.
    exact = source.to(points.dtype)
    with full_precision(source.device.type):
        sampled = F.grid_sample(exact, points, mode=sampling, padding_mode="zeros", align_corners=False)
    return sampled.to(source.dtype)


class SpatialTransformer(nn.Module):
    """A spatial transformer for an image or any feature map.

    It starts at the identity, or as close to it as its transformation can: the last layer of the localisation has zero
    weights and that theta as its bias, so the untrained transformer shows its whole input.

    The grid is a constant, and the product with theta a plain MatMul: `affine_grid` would export as `AffineGrid`, which
    has no CUDA kernel in ONNX Runtime and drags `GridSample` to the CPU with it.

    Anti-aliasing: where the target has fewer pixels than the source, bilinear sampling alone would skip
    source pixels. Each target pixel is therefore the mean of `oversampling` = (rows, columns) samples spread
    evenly over it. By default that is the whole ratio source : target, rounded up, so at the identity
    every source pixel counts; as theta zooms in the samples move together and the mean turns into plain
    bilinear sampling.
    """

    grid: Tensor

    def __init__(
        self,
        localisation: nn.Module,
        features: int,
        source_size: tuple[int, int],
        target_size: tuple[int, int] | None = None,
        oversampling: tuple[int, int] | None = None,
        *,
        transformation: Transformation = AFFINE,
        sampling: Sampling = "bilinear",
    ) -> None:
        """
        Args:
            localisation: `[N, C, H, W]` -> `[N, features]`.
            features: width of the localisation's output.
            source_size: (height, width) of the map that is sampled, in pixels.
            target_size: (height, width) of the result; that of the source by default.
            oversampling: samples per target pixel as (rows, columns); by default ceil(source / target).
            transformation: the family of maps to choose from.
            sampling: the kernel.
        """
        super().__init__()
        self.localisation = localisation
        self.target_size = target_size or source_size
        self.oversampling = oversampling or (
            math.ceil(source_size[0] / self.target_size[0]),
            math.ceil(source_size[1] / self.target_size[1]),
        )
        self.transformation = transformation
        self.sampling = sampling
        self.to_theta = nn.Linear(features, len(self._first_numbers()))
        self.reset()
        height, width = self._fine_size()
        self.register_buffer("grid", transformation.basis(target_grid(height, width)), persistent=False)

    def _first_numbers(self) -> list[float]:
        """What the last layer of the localisation answers before it has learned anything."""
        return self.transformation.closest_to(IDENTITY_THETA)

    def _fine_size(self) -> tuple[int, int]:
        return self.target_size[0] * self.oversampling[0], self.target_size[1] * self.oversampling[1]

    def reset(self) -> None:
        """Make theta what it starts as, for every input."""
        nn.init.zeros_(self.to_theta.weight)
        with torch.no_grad():
            self.to_theta.bias.copy_(torch.tensor(self._first_numbers()))

    def locate(self, source: Tensor) -> Tensor:
        """Theta for each map: `[N, C, H, W]` -> `[N, *transformation.shape]`, for affine maps `[N, 2, 3]`."""
        return self._numbers(source).reshape(-1, *self.transformation.shape)

    def _numbers(self, source: Tensor) -> Tensor:
        features = self.localisation(source)
        with full_precision(source.device.type):
            numbers: Tensor = self.to_theta(features.to(self.to_theta.weight.dtype))
        return numbers

    def sample(self, source: Tensor, theta: Tensor) -> Tensor:
        """The source as theta sees it, anti-aliased.

        Args:
            source: float `[N, C, H, W]`.
            theta: `[N, *transformation.shape]`.

        Returns:
            `[N, C, *target_size]` of the dtype of `source`.
        """
        height, width = self._fine_size()
        exact = torch.float64 if source.dtype == torch.float64 else torch.float32
        with full_precision(source.device.type):
            points = self.transformation.on(self.grid.to(exact), theta.to(exact))
        sampled = sample(source, points.reshape(-1, height, width, 2), self.sampling)
        if self.oversampling == (1, 1):
            return sampled
        return F.avg_pool2d(sampled, self.oversampling)

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C, H, W]` -> the sampled map `[N, C, *target_size]` and theta `[N, *transformation.shape]`."""
        theta = self.locate(source)
        return self.sample(source, theta), theta


class ParallelTransformers(SpatialTransformer):
    """Several transformers side by side on one map, with one localisation network (the paper's section 4.3).

    Nothing in them makes their thetas differ but what they start as: see `tiles`.
    """

    def __init__(
        self,
        localisation: nn.Module,
        features: int,
        source_size: tuple[int, int],
        target_size: tuple[int, int],
        oversampling: tuple[int, int] | None = None,
        *,
        starts: Sequence[Matrix],
        transformation: Transformation = AFFINE,
    ) -> None:
        """`starts`: the map that each theta starts closest to. For the others see `SpatialTransformer`."""
        self.starts = tuple(starts)  # before all else: the last layer's width hangs on it
        super().__init__(localisation, features, source_size, target_size, oversampling, transformation=transformation)

    @property
    def count(self) -> int:
        """How many thetas there are for each map."""
        return len(self.starts)

    def _first_numbers(self) -> list[float]:
        return [number for start in self.starts for number in self.transformation.closest_to(start)]

    def locate(self, source: Tensor) -> Tensor:
        """The thetas for each map: `[N, C, H, W]` -> `[N, count, *transformation.shape]`."""
        return self._numbers(source).reshape(-1, self.count, *self.transformation.shape)

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C, H, W]` -> the sampled maps `[N, count, C, *target_size]` and their thetas (see `locate`)."""
        theta = self.locate(source)
        sampled = [self.sample(source, theta[:, index]) for index in range(self.count)]
        return torch.stack(sampled, dim=1), theta


def tiles(rows: int, columns: int) -> tuple[Matrix, ...]:
    """Maps that each look at one tile of the source, in raster order; together they cover it once."""
    return tuple(
        ((1 / columns, 0.0, (2 * column + 1) / columns - 1), (0.0, 1 / rows, (2 * row + 1) / rows - 1))
        for row in range(rows)
        for column in range(columns)
    )
