"""The maxout network of Goodfellow, Bulatov, Ibarz, Arnoud and Shet, "Multi-digit Number Recognition from Street View
Imagery using Deep Convolutional Neural Networks" (2013, arXiv 1312.6082), section 5.1.

Eight convolutions, a locally connected layer, two fully connected ones. The first layer has maxout units of three
filters each, all others rectifiers. Pooling is 2x2 with strides 2 and 1 in turns, and each convolutional layer ends
with subtractive normalisation over 3x3. The paper leaves open: the order of the two (as listed here), whether the mean
is taken over the other maps too (not here), the rate of the dropout behind every hidden layer (a half), the kernel of
the locally connected layer (that of the convolutions).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.readers.base import CLASSES, SLOTS, ReaderOutput, no_theta
from models.readers.paper import FiveSoftmaxes, centred, square

UNITS = (48, 64, 128, 160, 192, 192, 192, 192)
FILTERS = 3
LOCAL_UNITS = 192
FULLY_CONNECTED = (3072, 3072)
KERNEL = 5
DROPOUT = 0.5


class MaxoutConvolution(nn.Module):
    """For each unit the largest of `FILTERS` convolutions (Goodfellow et al. 2013, arXiv 1302.4389)."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.filters = nn.Conv2d(channels, FILTERS * units, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        largest, *others = torch.chunk(self.filters(x), FILTERS, dim=1)
        for other in others:
            largest = torch.maximum(largest, other)
        return largest


class Pool(nn.Module):
    """2x2 max pooling; with a stride of 1 it keeps the size, the last row and column standing for themselves."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return F.max_pool2d(x, 2)
        return F.max_pool2d(x, 2, stride=1, padding=1)[:, :, 1:, 1:]


class SubtractiveNormalisation(nn.Module):
    """Every value less the mean of the 3x3 around it in its own map."""

    def forward(self, x: Tensor) -> Tensor:
        return x - F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class LocallyConnected(nn.Module):
    """A convolution with weights of its own at each place: `[N, channels, side, side]` -> `[N, units, side, side]`."""

    def __init__(self, channels: int, side: int, units: int) -> None:
        super().__init__()
        self.side = side
        inputs = channels * KERNEL**2
        # As `nn.Conv2d` starts.
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(side**2, inputs, units).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(side**2, 1, units).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        places, inputs, units = self.weight.shape
        padded = F.pad(x, (KERNEL // 2,) * 4)
        shifted = [
            padded[:, :, row : row + self.side, column : column + self.side]
            for row in range(KERNEL)
            for column in range(KERNEL)
        ]
        # [places, N, inputs] times [places, inputs, units].
        seen = torch.stack(shifted, dim=2).reshape(-1, inputs, places).permute(2, 0, 1)
        found = torch.matmul(seen, self.weight) + self.bias
        return found.permute(1, 2, 0).reshape(-1, units, self.side, self.side)


class LengthAndDigits(nn.Module):
    """Goodfellow's own head: one softmax over the length, 0 to 5, and one over the ten digits for each place.

    P(s_1 ... s_n) = P(L = n) * prod_{i <= n} P(S_i = s_i). Trained so. To the artifact it answers with what its slots
    are each, which follows exactly: slot i is blank where the number is shorter, and otherwise holds the digit,

        P(slot i = blank) = P(L < i) = sum_{n < i} P(L = n),    P(slot i = d) = P(L >= i) P(S_i = d).

    What is lost is how the slots hang together. The product that a reading's confidence is, over slots that are blank
    or not independently, is P(L = n) again where all the probability lies on one length, or on two that follow each
    other; where it is spread over more, it is another number, and another length may win.

    The paper's seventh length, "more than five", is missing: such numbers are labelled as none here, which is length 0.
    """

    at_least: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.length = nn.Linear(features, SLOTS + 1)
        self.digits = nn.Linear(features, SLOTS * (CLASSES - 1))
        # Row n, column i - 1: whether a number of n digits has an i-th.
        at_least = torch.ones(SLOTS + 1, SLOTS).tril(-1)
        self.register_buffer("at_least", at_least, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, features]` -> logits `[N, 5, 11]`, or in training `[N, 6, 11]` (see `negative_log_likelihood`)."""
        length, digits = self.length(features), self.digits(features).reshape(-1, SLOTS, CLASSES - 1)
        if self.training:
            never = float("-inf")
            rows = F.pad(length, (0, CLASSES - SLOTS - 1), value=never).unsqueeze(1), F.pad(digits, (0, 1), value=never)
            return torch.cat(rows, dim=1)
        return self.slots(length, digits)

    def slots(self, length: Tensor, digits: Tensor) -> Tensor:
        """Logits `[N, 6]` and `[N, 5, 10]` -> log P of each slot, `[N, 5, 11]`: logits whose softmax is P."""
        of_length = length.float().softmax(dim=-1)
        held = torch.matmul(of_length, self.at_least).unsqueeze(-1)
        blank = torch.matmul(of_length, 1 - self.at_least).unsqueeze(-1)
        probabilities = torch.cat((digits.float().softmax(dim=-1) * held, blank), dim=-1)
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


class MaxoutReader(nn.Module):
    """Takes float `[N, 3, size, size]` in [0, 1]."""

    def __init__(self, size: int, *, tells_length: bool) -> None:
        """
        Args:
            size: side of the input in pixels.
            tells_length: whether the head is Goodfellow's, or the five softmaxes of the STN paper.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, units in enumerate(UNITS):
            layers += _rectified(channels, units) if index else [MaxoutConvolution(channels, units)]
            layers += [Pool(1 if index % 2 else 2), SubtractiveNormalisation(), nn.Dropout(DROPOUT)]
            size = size if index % 2 else size // 2
            channels = units
        layers += [LocallyConnected(channels, size, LOCAL_UNITS), nn.ReLU(), nn.Dropout(DROPOUT), nn.Flatten()]
        features = LOCAL_UNITS * size**2
        for units in FULLY_CONNECTED:
            layers += [nn.Linear(features, units), nn.ReLU(), nn.Dropout(DROPOUT)]
            features = units
        self.trunk = nn.Sequential(*layers)
        self.head = LengthAndDigits(features) if tells_length else FiveSoftmaxes(features)

    def forward(self, images: Tensor) -> ReaderOutput:
        return ReaderOutput(self.head(self.trunk(centred(images))), no_theta(images))


def _rectified(channels: int, units: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, units, KERNEL, padding=KERNEL // 2), nn.ReLU()]


def maxout_cnn(height: int, width: int) -> MaxoutReader:
    """With the head of its paper: length and digits."""
    return MaxoutReader(_side(height, width), tells_length=True)


def maxout_cnn_slots(height: int, width: int) -> MaxoutReader:
    """With the five softmaxes of the STN paper, for comparison."""
    return MaxoutReader(_side(height, width), tells_length=False)


def _side(height: int, width: int) -> int:
    # At 16 the last maps would be single pixels, and normalisation would subtract each from itself.
    return square(height, width, 32)
