"""Theta from features that the localisation network shares with the classifier.

Finnveden, Jansson and Lindeberg, "Understanding when spatial transformer networks do not support invariance, and what
to do about it" (2020, arXiv 2004.11678): a transformed feature map is not the feature map of the transformed image, so
the *input* is to be transformed; a deep localisation network of its own is hard to train; one that begins with the
classifier's own first layers is not.

The trunk is that of the STN paper. Its first `SHARED` stages see the image twice: as it is, for a small localisation
network on their map, and as the transformer shows it.
"""

from torch import Tensor, nn

from models.readers.base import ReaderOutput
from models.readers.paper import CONVOLUTIONS, centred, connected_localisation, forms, head, square, stage
from models.transformer import SpatialTransformer

SHARED = 3
"""Stages shared: at 64 px the localisation network sees 128 maps of 16x16, as the fourth of `st_cnn_multi`."""


class SharedReader(nn.Module):
    """Takes float `[N, 3, size, size]` in [0, 1]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        network, features = connected_localisation(*forms(size)[SHARED])
        # The transformer alone learns at the slow rate: the shared stages are outside of it, and learn from both uses.
        self.transformer = SpatialTransformer(network, features, (size, size))
        self.shared = nn.Sequential(*(stage(index) for index in range(SHARED)))
        self.rest = nn.Sequential(*(stage(index) for index in range(SHARED, len(CONVOLUTIONS))))
        channels, side = forms(size)[-1]
        self.head = head(channels * side**2)

    def forward(self, images: Tensor) -> ReaderOutput:
        pixels = centred(images)
        theta = self.transformer.locate(self.shared(pixels))
        window = self.transformer.sample(pixels, theta)
        return ReaderOutput(self.head(self.rest(self.shared(window))), theta.unsqueeze(1))


def shared(height: int, width: int) -> SharedReader:
    """One transformer, on the input, told where to look by the third stage."""
    return SharedReader(square(height, width))
