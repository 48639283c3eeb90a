"""Several transformers side by side, each with a trunk of its own, their features concatenated.

After the fine-grained experiment of the STN paper (section 4.3), with the layers of its house-number experiment: one
localisation network for all, and biases that tile the plane. Nothing but that start makes the transformers look at
different things.
"""

import torch
from torch import Tensor, nn

from models.boxes import input_outlines, side_by_side
from models.readers.base import ReaderOutput
from models.readers.paper import CONVOLUTIONS, centred, convolutional_localisation, forms, head, square, stage
from models.transformer import ParallelTransformers, tiles

TILES = (1, 4)
"""(rows, columns): the digits of a number stand in one row. Affine, so each can leave its tile and change its size."""
WINDOW_SHARE = 2
"""A window has the input's side divided by this, so that four trunks cost as much as the one of `cnn`."""


class ParallelReader(nn.Module):
    """Takes float `[N, 3, size, size]` in [0, 1]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        network, features = convolutional_localisation(3, size)
        side = size // WINDOW_SHARE
        self.transformers = ParallelTransformers(network, features, (size, size), (side, side), starts=tiles(*TILES))
        self.trunks = nn.ModuleList(
            nn.Sequential(*(stage(index) for index in range(len(CONVOLUTIONS)))) for _ in range(self.transformers.count)
        )
        channels, side = forms(side)[-1]
        self.head = head(self.transformers.count * channels * side**2)

    def forward(self, images: Tensor) -> ReaderOutput:
        windows, theta = self.transformers(centred(images))
        features = [trunk(windows[:, index]).flatten(1) for index, trunk in enumerate(self.trunks)]
        logits = self.head(torch.cat(features, dim=1))
        outlines = input_outlines(side_by_side(self.transformers.transformation, theta))
        return ReaderOutput(logits, theta, outlines)


def parallel(height: int, width: int) -> ParallelReader:
    """A transformer for each tile of the input."""
    return ParallelReader(square(height, width, 16 * WINDOW_SHARE))
