"""The digit networks of the STN paper (section 4.1 and appendix A.4).

`fcn` and `cnn` classify; with transformers before them they are the paper's ST-FCN and ST-CNN. All networks of one
comparison have about the same number of parameters: what the localisation takes, the classifier goes without.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.boxes import input_outlines, side_by_side
from models.experiments.digits import SIDE
from models.readers import parameter_count
from models.readers.compact import POINTS, attended, point_positions
from models.readers.paper import Localisation
from models.thin_plate import ThinPlateSpline
from models.transformations import AFFINE, IDENTITY_THETA, Matrix, Projective, Transformation
from models.transformer import ParallelTransformers

TRANSFORMATIONS: dict[str, Transformation] = {
    "affine": AFFINE,
    "projective": Projective(),
    "TPS": ThinPlateSpline(4),
}

Network = TypeVar("Network", bound=nn.Module)

Build = Callable[[int, int, int], nn.Module]
"""(channels, side in pixels, width) -> a classifier; its width is what is fitted."""


def fcn(channels: int, side: int, width: int, classes: int = 10) -> nn.Sequential:
    """Two fully connected layers and the classes."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * side**2, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def cnn_features(channels: int, side: int, filters: int) -> tuple[nn.Sequential, int]:
    """`conv9-max2-conv7-max2`, unpadded, flattened; and how many numbers that gives."""
    network = nn.Sequential(
        nn.Conv2d(channels, filters, 9),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(filters, filters, 7),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return network, filters * (((side - 8) // 2 - 6) // 2) ** 2


def cnn(channels: int, side: int, filters: int, classes: int = 10) -> nn.Sequential:
    """Two convolutions and the classes."""
    network, features = cnn_features(channels, side, filters)
    return network.append(nn.Linear(features, classes))


def connected_localisation(channels: int, side: int) -> tuple[nn.Module, int]:
    """`fc32-fc32-fc32` on the image at half its size, of ST-FCN."""
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * (side // 2) ** 2, 32), nn.ReLU())
    for _ in range(2):
        network.extend((nn.Linear(32, 32), nn.ReLU()))
    return network, 32


def convolutional_localisation(channels: int, side: int, features: int = 20) -> tuple[nn.Module, int]:
    """`conv5(20)-max2-conv5(20)-fc20`, unpadded, on the image at half its size, of ST-CNN. `features`: of the last."""
    network, map_side = _localisation_convolutions(channels, side)
    network.extend((nn.Flatten(), nn.Linear(20 * map_side**2, features), nn.ReLU()))
    return network, features


def point_localisation(channels: int, side: int) -> tuple[nn.Module, int]:
    """The same convolutions, and points on their map in the place of the connected layer (not the paper's)."""
    return _Points(channels, side), 20 + 2 * POINTS


def _localisation_convolutions(channels: int, side: int) -> tuple[nn.Sequential, int]:
    """And the side of the map they give."""
    network = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 20, 5), nn.ReLU()
    )
    return network, (side // 2 - 4) // 2 - 4


class _Points(nn.Module):
    positions: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.convolutions, map_side = _localisation_convolutions(channels, side)
        self.points = nn.Conv2d(20, POINTS, 1)
        self.describe = nn.Sequential(nn.Linear(POINTS * 20, 20), nn.ReLU())
        self.register_buffer("positions", point_positions(map_side, map_side), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolutions(images)
        found, positions = attended(features, self.points(features), self.positions)
        return torch.cat((self.describe(found), positions), dim=1)


class DigitNetwork(nn.Module):
    """A classifier behind any number of transformers side by side, none among them.

    The transformers look at the image as a whole; what they show, 28 x 28 each, the classifier gets as channels. From
    images larger than that each pixel is the mean of 2 x 2 samples: the paper's average pooling after the transformer.
    """

    def __init__(
        self,
        classifier: Build,
        width: int,
        channels: int,
        side: int,
        localisation: Localisation | None = None,
        transformation: Transformation = AFFINE,
        starts: Sequence[Matrix] = (IDENTITY_THETA,),
    ) -> None:
        """
        Args:
            classifier: builds it for its input.
            width: of the classifier.
            channels: of the image.
            side: of the image in pixels.
            localisation: that of the transformers; None for no transformers.
            transformation: their family.
            starts: where each of them starts.
        """
        super().__init__()
        self.transformers: ParallelTransformers | None = None
        if localisation:
            samples = 2 if side > SIDE else 1
            self.transformers = ParallelTransformers(
                *localisation(channels, side),
                (side, side),
                (SIDE, SIDE),
                (samples, samples),
                transformation=transformation,
                starts=starts,
            )
            channels, side = channels * len(starts), SIDE
        self.classifier = classifier(channels, side, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, channels, side, side]` -> logits, and what each transformer looked at, `[N, K, M, 2]`, normalised."""
        if self.transformers is None:
            return self.classifier(images), images.new_zeros(len(images), 0, 4, 2)
        windows, theta = self.transformers(images)
        outlines = input_outlines(side_by_side(self.transformers.transformation, theta))
        return self.classifier(windows.flatten(1, 2)), outlines


def fitted(build: Callable[[int], Network], parameters: int) -> Network:
    """The widest network of at most so many parameters: `build` takes the width. The narrowest is 4 wide."""
    width, step = 4, 256
    while step:
        with torch.device("meta"):
            count = parameter_count(build(width + step))
        if count <= parameters:
            width += step
        else:
            step //= 2
    return build(width)


def normalise(network: nn.Module) -> None:
    """Put batch normalisation behind each convolution of a network's sequences."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, layer in reversed(list(enumerate(sequence))):
            if isinstance(layer, nn.Conv2d):
                sequence.insert(index + 1, nn.BatchNorm2d(layer.out_channels))
