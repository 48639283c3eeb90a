"""The spatial transformer: localisation network -> theta -> grid -> bilinear sampling.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu, "Spatial Transformer Networks" (2015), section 3.

Conventions, everywhere in this project: theta maps *target* to *source* ("backwards"); coordinates are
normalised to [-1, 1] over the edges of the map (`align_corners=False`) in (x, y) order, y downwards; what
lies outside the source is zero.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IDENTITY_THETA = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


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


def sample(source: Tensor, theta: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    """Sample `source` bilinearly where `theta` sends the points of `grid`.

    The grid is a constant and the product a plain MatMul: `affine_grid` would export as `AffineGrid`, which
    has no CUDA kernel in ONNX Runtime and drags `GridSample` to the CPU with it.

    Args:
        source: float `[N, C, H, W]`.
        theta: float `[N, 2, 3]`, target -> source, normalised.
        grid: `[height * width, 3]` from `target_grid`.
        height: rows of the target.
        width: columns of the target.

    Returns:
        `[N, C, height, width]` of the dtype of `source`.
    """
    with full_precision(source.device.type):
        # GridSample has CUDA kernels for float32 only, in ONNX Runtime.
        exact = source if source.dtype == torch.float64 else source.float()
        points = torch.matmul(grid.to(exact.dtype), theta.to(exact.dtype).transpose(1, 2))
        sampled = F.grid_sample(
            exact,
            points.reshape(-1, height, width, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
    return sampled.to(source.dtype)


class SpatialTransformer(nn.Module):
    """An affine spatial transformer for an image or any feature map.

    It starts at the identity: the last layer of the localisation has zero weights and the identity as its
    bias, so the untrained transformer shows its whole input.

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
    ) -> None:
        """
        Args:
            localisation: `[N, C, H, W]` -> `[N, features]`.
            features: width of the localisation's output.
            source_size: (height, width) of the map that is sampled, in pixels.
            target_size: (height, width) of the result; that of the source by default.
            oversampling: samples per target pixel as (rows, columns); by default ceil(source / target).
        """
        super().__init__()
        self.localisation = localisation
        self.target_size = target_size or source_size
        self.oversampling = oversampling or (
            math.ceil(source_size[0] / self.target_size[0]),
            math.ceil(source_size[1] / self.target_size[1]),
        )
        self.to_theta = nn.Linear(features, 6)
        self.reset_to_identity()
        height, width = self._fine_size()
        self.register_buffer("grid", target_grid(height, width), persistent=False)

    def _fine_size(self) -> tuple[int, int]:
        return self.target_size[0] * self.oversampling[0], self.target_size[1] * self.oversampling[1]

    def reset_to_identity(self) -> None:
        """Make theta the identity for every input."""
        nn.init.zeros_(self.to_theta.weight)
        with torch.no_grad():
            self.to_theta.bias.copy_(torch.tensor(IDENTITY_THETA).flatten())

    def locate(self, source: Tensor) -> Tensor:
        """Theta for each map: `[N, C, H, W]` -> `[N, 2, 3]`."""
        features = self.localisation(source)
        with full_precision(source.device.type):
            theta: Tensor = self.to_theta(features.to(self.to_theta.weight.dtype))
        return theta.reshape(-1, 2, 3)

    def sample(self, source: Tensor, theta: Tensor) -> Tensor:
        """The source as theta sees it, anti-aliased: `[N, C, H, W]`, `[N, 2, 3]` -> `[N, C, *target_size]`."""
        height, width = self._fine_size()
        sampled = sample(source, theta, self.grid, height, width)
        if self.oversampling == (1, 1):
            return sampled
        return F.avg_pool2d(sampled, self.oversampling)

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C, H, W]` -> the sampled map `[N, C, *target_size]` and theta `[N, 2, 3]`."""
        theta = self.locate(source)
        return self.sample(source, theta), theta
