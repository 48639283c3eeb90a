"""The compact readers: one transformer on the input, a small residual trunk, attention for the slots.

The localisation network sees the image at half its resolution; the transformer samples a window of 32x64 from the
full resolution, so what it zooms in on gains detail. The trunk is residual (He et al. 2016); its 2x16 map
is read by five learned queries, one for each slot, so a digit is learned once for all places it can stand in.

`compact_points` is the reader we ship: it finds numbers that take an eighth of the view (see `PointLocalisation`).
`compact` is for numbers that fill theirs. `compact_cnn` is the twin of `compact_points` without the transformer: its
trunk sees the whole input at the window's size. It is there to be compared with.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.readers.base import CLASSES, SLOTS, ReaderOutput, no_theta
from models.transformer import SpatialTransformer, full_precision, target_grid

# Hyper-parameters. The window is twice as wide as high, as most house numbers are once their
# margins are gone.
WINDOW = (32, 64)
# Samples for each pixel of the window, (rows, columns). At the identity they lie 1.5 source pixels apart both ways on
# 96x96, and two on 128x128; a bilinear sample reaches one pixel to each side, so none is skipped. Six, the whole ratio,
# read one more of 427 real photographs at 96x96 and took longer (docs/results.md).
OVERSAMPLING = (2, 1)
TRUNK_WIDTHS = (24, 48, 80, 128)
# The first a multiple of 16, the block in which ONNX Runtime computes channels on the CPU, as the others are.
BLOCK_TRUNK_WIDTHS = (16, 48, 80, 128)
CONNECTED_WIDTHS = (16, 32, 48, 48)
POINT_WIDTHS = (16, 32, 64)
LOCALISATION_FEATURES = 64
POINTS = 8
# Positions count more than other features, so that theta, which starts behind zero weights, follows them soon.
POSITION_SCALE = 4.0
HEADS = 4
DROPOUT = 0.1

# ITU-R BT.601: the weights of R, G and B in the luminance.
LUMINANCE = (0.299, 0.587, 0.114)
# Least standard deviation, in grey levels of [0, 1], that an image is divided by: keeps noise from being blown up.
MIN_CONTRAST = 0.02


def convolution(channels: int, width: int, stride: int | tuple[int, int] = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries over the tokens of each image.

    Rows of all images stand in one matrix: so a linear layer exports as one Gemm, its bias included, which
    takes half the operators of a product of three-dimensional tensors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, query_count: int, tokens: Tensor, token_count: int) -> Tensor:
        """Queries `[N * query_count, C]`, or `[query_count, C]` for all images, over tokens `[N * token_count, C]`.

        Returns:
            `[N * query_count, C]`.
        """
        query = _split(self.query(queries), query_count)
        key, value = (_split(half, token_count) for half in self.key_value(tokens).chunk(2, dim=-1))
        weights = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mixed = torch.matmul(weights.softmax(dim=-1), value)
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(-1, tokens.shape[-1]))
        return attended


def _split(rows: Tensor, count: int) -> Tensor:
    """`[N * count, C]` -> `[N, heads, count, C / heads]`."""
    return rows.reshape(-1, count, HEADS, rows.shape[-1] // HEADS).transpose(1, 2)


class SlotReadout(nn.Module):
    """Reads the trunk's map into five slots: one layer of self-attention, then one query for each slot.

    Self-attention is what lets a place know how many digits stand to its left.
    """

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(places, width))
        self.slots = nn.Parameter(0.02 * torch.randn(1, SLOTS, width))
        self.mix_norm = nn.LayerNorm(width)
        self.mix = Attention(width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.read_norm = nn.LayerNorm(width)
        self.read = Attention(width)
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Dropout(DROPOUT), nn.Linear(width, CLASSES))

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` -> logits `[N, 5, 11]`."""
        places, width = self.position.shape
        tokens = (features.flatten(2).transpose(1, 2) + self.position).reshape(-1, width)
        normed = self.mix_norm(tokens)
        tokens = tokens + self.mix(normed, places, normed, places)
        tokens = tokens + self.feed(self.feed_norm(tokens))
        logits: Tensor = self.classify(self.read(self.slots[0], SLOTS, self.read_norm(tokens), places))
        return logits.reshape(-1, SLOTS, CLASSES)


def connected_localisation(height: int, width: int) -> nn.Sequential:
    """`[N, 1, height, width]` -> `[N, LOCALISATION_FEATURES]`: convolutions, then a connected layer on their map."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    channels = 1
    for features in CONNECTED_WIDTHS:
        layers.append(convolution(channels, features, stride=2))
        channels = features
    places = math.ceil(height / 32) * math.ceil(width / 32)
    layers += [nn.Flatten(), nn.Linear(channels * places, LOCALISATION_FEATURES), nn.ReLU()]
    return nn.Sequential(*layers)


def attended(features: Tensor, maps: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """What each map attends to and where that is: its spatial softmax (Levine et al. 2016, section 4.2).

    Args:
        features: `[N, C, H, W]`.
        maps: logits `[N, POINTS, H, W]`.
        positions: of the places in raster order, float32 `[H * W, 2]`.

    Returns:
        The mean of the features, `[N, POINTS * C]`, and of the positions, float32 `[N, POINTS * 2]`.
    """
    weights = maps.flatten(2).float().softmax(dim=-1)
    found = torch.matmul(weights.to(features.dtype), features.flatten(2).transpose(1, 2))
    with full_precision(features.device.type):
        expected = torch.matmul(weights, positions)
    return found.flatten(1), expected.flatten(1)


def point_positions(height: int, width: int) -> Tensor:
    """The positions `attended` takes for a map: float32 `[height * width, 2]`, (x, y) in [-4, 4]."""
    return POSITION_SCALE * target_grid(height, width)[:, :2]


class PointLocalisation(nn.Module):
    """Where to look: points on a small map, and what is found at them.

    Theta is nearly linear in the positions, so a number that takes a sixth of the view is found sooner than by a
    connected layer on the map.
    """

    positions: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        a, b, c = POINT_WIDTHS
        self.convolutions = nn.Sequential(
            nn.AvgPool2d(2),
            convolution(1, a, stride=2),
            convolution(a, b, stride=2),
            convolution(b, c, stride=2),
            Residual(c),
            Residual(c),
        )
        self.points = nn.Conv2d(c, POINTS, 1)
        self.describe = nn.Sequential(nn.Linear(POINTS * c, LOCALISATION_FEATURES), nn.ReLU())
        positions = point_positions(math.ceil(height / 16), math.ceil(width / 16))
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 1, height, width]` -> `[N, LOCALISATION_FEATURES + 2 * POINTS]`."""
        features = self.convolutions(x)
        found, positions = attended(features, self.points(features), self.positions)
        return torch.cat((self.describe(found).float(), positions), dim=1)


class CompactReader(nn.Module):
    """Takes float `[N, 3, height, width]` in [0, 1]."""

    luminance: Tensor

    def __init__(self, transformer: SpatialTransformer | None, whole: nn.Module, widths: tuple[int, ...]) -> None:
        """
        Args:
            transformer: samples the window, from the contrast-normalised grey input `[N, 1, height, width]`.
            whole: without a transformer, makes the window of the same.
            widths: of the trunk.
        """
        super().__init__()
        self.register_buffer("luminance", 3 * torch.tensor(LUMINANCE).reshape(1, 3, 1, 1), persistent=False)
        self.transformer = transformer
        self.whole = whole
        a, b, c, d = widths
        self.trunk = nn.Sequential(
            convolution(1, a),
            convolution(a, b, stride=2),
            Residual(b),
            convolution(b, c, stride=2),
            Residual(c),
            # Rows only: five digits need the columns.
            convolution(c, d, stride=(2, 1)),
            Residual(d),
            nn.AvgPool2d((2, 1)),
        )
        self.readout = SlotReadout(d, (WINDOW[0] // 16) * (WINDOW[1] // 4))

    def forward(self, images: Tensor) -> ReaderOutput:
        pixels = self.normalised(images)
        if self.transformer is None:
            window, theta = self.whole(pixels), no_theta(images)
        else:
            window, theta = self.transformer(pixels)
            theta = theta.unsqueeze(1)
        return ReaderOutput(self.readout(self.trunk(window)), theta)

    def locate(self, images: Tensor) -> Tensor:
        """Theta `[N, 1, 2, 3]` alone, without reading; for readers with a transformer."""
        assert self.transformer is not None
        return self.transformer.locate(self.normalised(images)).unsqueeze(1)

    def normalised(self, images: Tensor) -> Tensor:
        """Grey, each image of zero mean and unit contrast: `[N, 1, height, width]`."""
        with full_precision(images.device.type):
            # A mean, not a convolution: ONNX Runtime would compute 16 channels for the one that is wanted.
            grey = (images * self.luminance).mean(dim=1, keepdim=True)
        centred = grey - grey.mean(dim=(2, 3), keepdim=True)
        contrast = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
        return centred / contrast.clamp(min=MIN_CONTRAST)


def compact(height: int, width: int) -> CompactReader:
    """Finds what it reads by a connected layer. Raises ValueError for a height or width that is not even."""
    _check_even(height, width)
    localisation = connected_localisation(height, width)
    transformer = SpatialTransformer(localisation, LOCALISATION_FEATURES, (height, width), WINDOW, OVERSAMPLING)
    return CompactReader(transformer, nn.Identity(), TRUNK_WIDTHS)


def compact_points(height: int, width: int) -> CompactReader:
    """Finds what it reads by points. Raises ValueError for a height or width that is not even."""
    _check_even(height, width)
    localisation, features = PointLocalisation(height, width), LOCALISATION_FEATURES + 2 * POINTS
    transformer = SpatialTransformer(localisation, features, (height, width), WINDOW, OVERSAMPLING)
    return CompactReader(transformer, nn.Identity(), BLOCK_TRUNK_WIDTHS)


def compact_cnn(height: int, width: int) -> CompactReader:
    """The twin without a transformer. Raises ValueError for a size that is no multiple of the window's."""
    if height < 1 or width < 1 or height % WINDOW[0] or width % WINDOW[1]:
        raise ValueError(f"compact_cnn takes multiples of {WINDOW[0]}x{WINDOW[1]}, not {height}x{width}")
    return CompactReader(None, nn.AvgPool2d((height // WINDOW[0], width // WINDOW[1])), BLOCK_TRUNK_WIDTHS)


def _check_even(height: int, width: int) -> None:
    if min(height, width) < 2 or height % 2 or width % 2:
        raise ValueError(f"compact takes even sizes, not {height}x{width}")
