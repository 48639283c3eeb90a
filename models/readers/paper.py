"""The three readers of the STN paper's house-number experiment (section 4.2 and appendix A.2).

One trunk of eight 5x5 convolutions and three fully connected layers of 3072; `cnn` has no transformer,
`st_cnn_single` one on its input, `st_cnn_multi` one before each of the first four convolutions.
"""

from collections.abc import Callable

from torch import Tensor, nn

from models.boxes import Placed, affine_thetas, in_a_row, input_outlines
from models.readers.base import CLASSES, SLOTS, ReaderOutput, no_theta
from models.transformations import AFFINE, Transformation
from models.transformer import Sampling, SpatialTransformer

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


def forms(size: int) -> list[tuple[int, int]]:
    """(channels, side in pixels) of the map that each convolution takes and, last, of what the eighth stage gives."""
    found = [(3, size)]
    for width, pooled in CONVOLUTIONS:
        found.append((width, found[-1][1] // 2 if pooled else found[-1][1]))
    return found


def stage(index: int) -> nn.Sequential:
    """A convolution with what follows it, up to the next."""
    channels = CONVOLUTIONS[index - 1][0] if index else 3
    width, pooled = CONVOLUTIONS[index]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, padding=2), nn.ReLU()]
    if pooled:
        layers.append(nn.MaxPool2d(2))
    # Dropout everywhere but in the first convolution and the localisation networks.
    if index > 0:
        layers.append(nn.Dropout(DROPOUT))
    return nn.Sequential(*layers)


class FiveSoftmaxes(nn.Linear):
    """`[N, features]` -> the logits of all slots, `[N, 5, 11]`."""

    def __init__(self, features: int) -> None:
        super().__init__(features, SLOTS * CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).reshape(-1, SLOTS, CLASSES)


def head(features: int) -> nn.Sequential:
    """The fully connected layers: any map of so many numbers -> the logits of all slots, `[N, 5, 11]`."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in FULLY_CONNECTED:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(DROPOUT)]
        features = width
    return nn.Sequential(*layers, FiveSoftmaxes(features))


def centred(images: Tensor) -> Tensor:
    """Each image less its mean (Goodfellow et al. 2013)."""
    return images - images.mean(dim=(1, 2, 3), keepdim=True)


class PaperReader(nn.Module):
    """The trunk, with `transformers` spatial transformers before its first convolutions.

    Takes float `[N, 3, size, size]` in [0, 1].
    """

    def __init__(
        self,
        size: int,
        transformers: int = 0,
        localisation: Localisation = convolutional_localisation,
        transformation: Transformation = AFFINE,
        sampling: Sampling = "bilinear",
    ) -> None:
        super().__init__()
        self.transformation = transformation
        self.transformers = nn.ModuleList()
        for channels, side in forms(size)[:transformers]:
            network, features = localisation(channels, side)
            transformer = SpatialTransformer(
                network, features, (side, side), transformation=transformation, sampling=sampling
            )
            self.transformers.append(transformer)
        self.stages = nn.ModuleList(stage(index) for index in range(len(CONVOLUTIONS)))
        channels, side = forms(size)[-1]
        self.head = head(channels * side**2)

    def forward(self, images: Tensor) -> ReaderOutput:
        x = centred(images)
        placed: list[Placed] = []
        for index, stage in enumerate(self.stages):
            if index < len(self.transformers):
                x, theta = self.transformers[index](x)
                placed.append((self.transformation, theta))
            x = stage(x)
        logits = self.head(x)
        if not placed:
            return ReaderOutput(logits, no_theta(images))
        return ReaderOutput(logits, affine_thetas(placed), input_outlines(in_a_row(placed)))


def cnn(height: int, width: int) -> PaperReader:
    """The baseline without a transformer."""
    return PaperReader(square(height, width))


def st_cnn_single(height: int, width: int) -> PaperReader:
    """One transformer, on the input."""
    return PaperReader(square(height, width), 1, convolutional_localisation)


def st_cnn_multi(height: int, width: int) -> PaperReader:
    """A transformer before each of the first four convolutions."""
    return PaperReader(square(height, width), 4, connected_localisation)


def square(height: int, width: int, multiple: int = 16) -> int:
    """The side of a square input; ValueError where it is not square, or not a multiple of `multiple`."""
    if height != width or height < multiple or height % multiple:
        raise ValueError(
            f"this reader takes square inputs whose side is a multiple of {multiple}, not {height}x{width}"
        )
    return height
