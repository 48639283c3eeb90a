"""The three readers of the STN paper's house-number experiment (section 4.2 and appendix A.2).

One trunk of eight 5x5 convolutions and three fully connected layers of 3072; `cnn` has no transformer,
`st_cnn_single` one on its input, `st_cnn_multi` one before each of the first four convolutions.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.readers.base import CLASSES, SLOTS, ReaderOutput
from models.transformer import SpatialTransformer

# (channels, whether 2x2/2 max pooling follows) of each convolution.
CONVOLUTIONS = (
    (48, True),
    (64, False),
    (128, True),
    (160, False),
    (192, True),
    (192, False),
    (192, True),
    (192, False),
)
FULLY_CONNECTED = (3072, 3072, 3072)
DROPOUT = 0.5

Localisation = Callable[[int, int], tuple[nn.Module, int]]
"""(channels, size in pixels) -> the localisation network and the width of its output."""


def convolutional_localisation(channels: int, size: int) -> tuple[nn.Module, int]:
    """`conv32-max2-conv32-fc32-fc32`, of `st_cnn_single`."""
    pixels = (size // 2) ** 2
    network = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * pixels, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
    )
    return network, 32


def connected_localisation(channels: int, size: int) -> tuple[nn.Module, int]:
    """`fc32-fc32`, of each transformer of `st_cnn_multi`."""
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size**2, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
    )
    return network, 32


class PaperReader(nn.Module):
    """The trunk, with `transformers` spatial transformers before its first convolutions.

    Takes float `[N, 3, size, size]` in [0, 1] and subtracts each image's mean (Goodfellow et al. 2013).
    """

    def __init__(self, size: int, transformers: int = 0, localisation: Localisation | None = None) -> None:
        super().__init__()
        self.transformers = nn.ModuleList()
        self.stages = nn.ModuleList()
        channels = 3
        for index, (width, pooled) in enumerate(CONVOLUTIONS):
            if index < transformers and localisation is not None:
                network, features = localisation(channels, size)
                self.transformers.append(SpatialTransformer(network, features, (size, size)))
            stage: list[nn.Module] = [nn.Conv2d(channels, width, 5, padding=2), nn.ReLU()]
            if pooled:
                stage.append(nn.MaxPool2d(2))
                size //= 2
            # Dropout everywhere but in the first convolution and the localisation networks.
            if index > 0:
                stage.append(nn.Dropout(DROPOUT))
            self.stages.append(nn.Sequential(*stage))
            channels = width
        head: list[nn.Module] = [nn.Flatten()]
        features = channels * size**2
        for width in FULLY_CONNECTED:
            head += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(DROPOUT)]
            features = width
        self.head = nn.Sequential(*head, nn.Linear(features, SLOTS * CLASSES))

    def forward(self, images: Tensor) -> ReaderOutput:
        x = images - images.mean(dim=(1, 2, 3), keepdim=True)
        thetas = []
        for index, stage in enumerate(self.stages):
            if index < len(self.transformers):
                x, theta = self.transformers[index](x)
                thetas.append(theta)
            x = stage(x)
        logits = self.head(x).reshape(-1, SLOTS, CLASSES)
        # Sliced, not made: `new_zeros` would ask for the batch size, which exports to shape operators.
        none = images[:, :0, :2, :3]
        return ReaderOutput(logits, torch.stack(thetas, dim=1) if thetas else none)


def cnn(height: int, width: int) -> PaperReader:
    """The baseline without a transformer."""
    return PaperReader(_square(height, width))


def st_cnn_single(height: int, width: int) -> PaperReader:
    """One transformer, on the input."""
    return PaperReader(_square(height, width), 1, convolutional_localisation)


def st_cnn_multi(height: int, width: int) -> PaperReader:
    """A transformer before each of the first four convolutions."""
    return PaperReader(_square(height, width), 4, connected_localisation)


def _square(height: int, width: int) -> int:
    if height != width or height % 16:
        raise ValueError(f"the paper's readers take square inputs whose side is a multiple of 16, not {height}x{width}")
    return height
